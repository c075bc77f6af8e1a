//! Hypercalls: `syscall` with a number and up to five arguments.

use core::arch::asm;
use core::fmt;

use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::MulticallEntry;
pub use ferroxen_abi::xen::hypercall as number;

/// What a hypercall returned.
///
/// Prints as a number, or as the name of the error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Answer(pub i64);

impl Answer {
    /// "Done", as most calls say it.
    pub const OK: Answer = Answer(0);

    /// Returns the answer that refuses with `errno`.
    pub const fn refused(errno: Errno) -> Self {
        Answer(errno.to_return())
    }

    /// Tells whether this is not an error.
    pub const fn is_ok(self) -> bool {
        self.0 >= 0
    }

    /// Turns an error into `Err`.
    pub const fn ok(self) -> Result<u64, Answer> {
        if self.is_ok() {
            Ok(self.0.unsigned_abs())
        } else {
            Err(self)
        }
    }
}

impl From<Errno> for Answer {
    fn from(errno: Errno) -> Self {
        Self::refused(errno)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Errno::from_return(self.0).and_then(Errno::name) {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Calls the hypervisor.
///
/// It may read and write memory where the arguments point: that is the caller's wish, however wild.
#[inline(always)]
pub fn call<const N: usize>(number: u32, arguments: [u64; N]) -> Answer {
    const { assert!(N <= 5) };
    let argument = |index: usize| if index < N { arguments[index] } else { 0 };
    let result: i64;
    macro_rules! enter {
        ($($register:tt = $index:literal),*) => {
            // SAFETY: enters the hypervisor, which keeps every register but those named here. What it does to
            // our memory is what the caller asked for.
            unsafe {
                asm!(
                    "syscall",
                    inlateout("rax") u64::from(number) => result,
                    $(inlateout($register) argument($index) => _,)*
                    lateout("rcx") _,
                    lateout("r11") _,
                    options(nostack),
                );
            }
        };
    }
    match N {
        0 => enter!(),
        1 => enter!("rdi" = 0),
        2 => enter!("rdi" = 0, "rsi" = 1),
        3 => enter!("rdi" = 0, "rsi" = 1, "rdx" = 2),
        4 => enter!("rdi" = 0, "rsi" = 1, "rdx" = 2, "r10" = 3),
        _ => enter!("rdi" = 0, "rsi" = 1, "rdx" = 2, "r10" = 3, "r8" = 4),
    }
    Answer(result)
}

/// Returns the address of `value`, as hypercalls take it.
pub fn address<T: ?Sized>(value: &mut T) -> u64 {
    core::ptr::from_mut(value).cast::<u8>().expose_provenance() as u64
}

/// Prepares one call of a multicall.
pub fn entry<const N: usize>(number: u32, arguments: [u64; N]) -> MulticallEntry {
    let mut args = [0; 6];
    args[..N].copy_from_slice(&arguments);
    MulticallEntry {
        op: number.into(),
        result: 0,
        args,
    }
}

/// Makes all `calls` in one go; each finds its own result in its entry.
pub fn multicall(calls: &mut [MulticallEntry]) -> Answer {
    let count = calls.len() as u64;
    call(number::MULTICALL, [address(calls), count])
}

/// What a hypercall did to the registers.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// rax
    pub answer: Answer,
    /// rdi, rsi, rdx, r10, r8, r9, and rbx, rbp, r12 to r15.
    before: [u64; 12],
    after: [u64; 12],
}

impl Observed {
    /// Tells whether all registers are as they were, but for those of the first `arguments` arguments.
    pub fn kept_others(&self, arguments: usize) -> bool {
        self.before[arguments..] == self.after[arguments..]
    }
}

/// Calls the hypervisor with a pattern in every register that is no argument, and looks at all of them afterwards.
pub fn observe<const N: usize>(number: u32, arguments: [u64; N]) -> Observed {
    const { assert!(N <= 6) };
    let mut before: [u64; 12] = core::array::from_fn(|index| 0x5a5a_0000_0000_0000 | index as u64);
    before[..N].copy_from_slice(&arguments);
    let mut after = before;
    let result: i64;
    // SAFETY: every register is loaded from the array and stored into it again; rbx, rbp and the array's address are
    // kept on the stack meanwhile. What the hypervisor does to our memory is what the caller asked for.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push rcx",
            "mov rdi, [rcx]",
            "mov rsi, [rcx + 8]",
            "mov rdx, [rcx + 16]",
            "mov r10, [rcx + 24]",
            "mov r8, [rcx + 32]",
            "mov r9, [rcx + 40]",
            "mov rbx, [rcx + 48]",
            "mov rbp, [rcx + 56]",
            "mov r12, [rcx + 64]",
            "mov r13, [rcx + 72]",
            "mov r14, [rcx + 80]",
            "mov r15, [rcx + 88]",
            "syscall",
            "pop rcx",
            "mov [rcx], rdi",
            "mov [rcx + 8], rsi",
            "mov [rcx + 16], rdx",
            "mov [rcx + 24], r10",
            "mov [rcx + 32], r8",
            "mov [rcx + 40], r9",
            "mov [rcx + 48], rbx",
            "mov [rcx + 56], rbp",
            "mov [rcx + 64], r12",
            "mov [rcx + 72], r13",
            "mov [rcx + 80], r14",
            "mov [rcx + 88], r15",
            "pop rbp",
            "pop rbx",
            inlateout("rax") u64::from(number) => result,
            inlateout("rcx") after.as_mut_ptr() => _,
            lateout("rdi") _, lateout("rsi") _, lateout("rdx") _, lateout("r8") _, lateout("r9") _,
            lateout("r10") _, lateout("r11") _, lateout("r12") _, lateout("r13") _, lateout("r14") _,
            lateout("r15") _,
        );
    }
    Observed {
        answer: Answer(result),
        before,
        after,
    }
}
