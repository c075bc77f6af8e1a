//! Refusals travel by name.

use core::fmt;

macro_rules! codes {
    ($($name:ident = $number:literal, $words:literal;)*) => {
        /// Why a request was refused: one of the names that `xs_wire.h` lists.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum ErrorCode {
            $(#[doc = concat!("`", stringify!($name), "`: ", $words, ".")] $name,)*
        }

        impl ErrorCode {
            /// Every code, in the order of the header.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name),*];

            /// The name that travels.
            pub const fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => stringify!($name),)* }
            }

            /// What it means, in words.
            pub const fn words(self) -> &'static str {
                match self { $(ErrorCode::$name => $words,)* }
            }

            /// Linux's number for it.
            pub const fn number(self) -> i32 {
                match self { $(ErrorCode::$name => $number,)* }
            }
        }
    };
}

codes! {
    EINVAL = 22, "invalid argument";
    EACCES = 13, "permission denied";
    EEXIST = 17, "already exists";
    EISDIR = 21, "is a directory";
    ENOENT = 2, "no such node";
    ENOMEM = 12, "out of memory";
    ENOSPC = 28, "quota exceeded";
    EIO = 5, "input/output error";
    ENOTEMPTY = 39, "not empty";
    ENOSYS = 38, "not implemented";
    EROFS = 30, "read-only";
    EBUSY = 16, "busy";
    EAGAIN = 11, "try again";
    EISCONN = 106, "already connected";
    E2BIG = 7, "too much";
    EPERM = 1, "not permitted";
}

impl ErrorCode {
    /// The code of that name.
    pub fn from_name(name: &[u8]) -> Option<ErrorCode> {
        Self::ALL.iter().copied().find(|code| code.name().as_bytes() == name)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.words(), self.name())
    }
}

impl core::error::Error for ErrorCode {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_codes() {
        assert_eq!(ErrorCode::ALL.len(), 16);
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(code.name().as_bytes()), Some(*code));
        }
        assert_eq!(ErrorCode::from_name(b"EWHAT"), None);
    }
}
