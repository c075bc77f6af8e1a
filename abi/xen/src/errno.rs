//! Error numbers of the hypercall ABI. Upstream: `xen/include/public/errno.h`.
//!
//! They are Xen's own and happen to agree with Linux's on x86.

/// Why a hypercall was refused; guests see the negated number.
///
/// As wide as a register: so a result of a hypercall, refusal or value, is handed on in two of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Errno(u64);

macro_rules! errnos {
    ($($name:ident = $value:literal),* $(,)?) => {
        impl Errno {
            $(#[doc = concat!("`XEN_", stringify!($name), "`")] pub const $name: Errno = Errno($value);)*

            /// The symbolic name, if the number is one of the public ones.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($value => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

errnos! {
    EPERM = 1, ENOENT = 2, ESRCH = 3, EINTR = 4, EIO = 5, ENXIO = 6, E2BIG = 7, ENOEXEC = 8, EBADF = 9,
    ECHILD = 10, EAGAIN = 11, ENOMEM = 12, EACCES = 13, EFAULT = 14, EBUSY = 16, EEXIST = 17, EXDEV = 18,
    ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22, ENFILE = 23, EMFILE = 24, ENOSPC = 28, EROFS = 30,
    EMLINK = 31, EDOM = 33, ERANGE = 34, EDEADLK = 35, ENAMETOOLONG = 36, ENOLCK = 37, ENOSYS = 38,
    ENOTEMPTY = 39, ENODATA = 61, ETIME = 62, EBADMSG = 74, EOVERFLOW = 75, EILSEQ = 84, ERESTART = 85,
    ENOTSOCK = 88, EMSGSIZE = 90, EOPNOTSUPP = 95, EADDRINUSE = 98, EADDRNOTAVAIL = 99, ENOBUFS = 105,
    EISCONN = 106, ENOTCONN = 107, ETIMEDOUT = 110, ECONNREFUSED = 111,
}

impl Errno {
    /// The positive number.
    pub const fn number(self) -> u16 {
        self.0 as u16
    }

    /// What a hypercall returns in `rax`: the negated number.
    pub const fn to_return(self) -> i64 {
        -(self.0 as i64)
    }

    /// Reads what a hypercall returned, the other way round: the error, unless `value` is none.
    pub const fn from_return(value: i64) -> Option<Errno> {
        /// Errors take the last page of numbers, and leave the rest to results (`MAX_ERRNO` of every guest).
        const GREATEST: i64 = 4095;
        if value < 0 && value >= -GREATEST {
            Some(Errno(value.unsigned_abs()))
        } else {
            None
        }
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_page_of_numbers_are_errors() {
        assert_eq!(Errno::from_return(-22), Some(Errno::EINVAL));
        assert_eq!(Errno::from_return(0), None);
        assert_eq!(Errno::from_return(-4096), None);
    }
}
