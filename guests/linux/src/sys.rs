//! Linux's system calls, as far as rows are made of them (its uapi headers: asm/unistd_64.h and those it names).
//!
//! There is no library between: what it did besides would be in the figures.
//!
//! Safe here means what the kernel guarantees: it checks every address it is given, and refuses. The exceptions are
//! mappings, which may only be made anew, where nothing is ([`Mapping`]).

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::ops::Range;
use core::panic::PanicInfo;

global_asm!(
    ".globl _start",
    "_start:",
    // The stack is aligned, and holds the words that this was started with.
    "    xor ebp, ebp",
    "    mov rdi, rsp",
    "    call {entered}",
    "    ud2",
    entered = sym entered,
);

extern "C" fn entered(stack: *const usize) -> ! {
    exit(crate::run(Words(stack)))
}

/// The words that the program was started with.
#[derive(Clone, Copy)]
pub struct Words(*const usize);

impl Words {
    /// Returns one of them; the first is the program's name.
    pub fn get(self, index: usize) -> Option<&'static str> {
        // SAFETY: the kernel has put the count there, then as many addresses of strings, which stay.
        let word = unsafe {
            if index >= *self.0 {
                return None;
            }
            CStr::from_ptr(*self.0.add(1 + index) as *const c_char)
        };
        word.to_str().ok()
    }

    /// Becomes the program that the words from `index` on name. Returns when there is none.
    pub fn exec(self, index: usize) -> Errno {
        let Some(program) = self.get(index) else {
            return ENOENT;
        };
        // SAFETY: the words end with a zero, and behind it is the environment, which does too.
        let answer = unsafe {
            let words = self.0.add(1 + index);
            let environment = self.0.add(2 + *self.0);
            call(
                EXECVE,
                [program.as_ptr() as usize, words as usize, environment as usize, 0, 0, 0],
            )
        };
        answer.err().unwrap_or(ENOENT)
    }
}

#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    say("[bench] linux: FAIL it panicked\n");
    exit(101)
}

const READ: usize = 0;
const WRITE: usize = 1;
const MMAP: usize = 9;
const MUNMAP: usize = 11;
const PIPE: usize = 22;
const MINCORE: usize = 27;
const NANOSLEEP: usize = 35;
const SOCKET: usize = 41;
const CONNECT: usize = 42;
const SETSOCKOPT: usize = 54;
const FORK: usize = 57;
const EXECVE: usize = 59;
const EXIT: usize = 60;
const WAIT4: usize = 61;
const GETPPID: usize = 110;
const REBOOT: usize = 169;
const CLOCK_GETTIME: usize = 228;

/// What a call was refused with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub isize);

/// `ENOENT`
pub const ENOENT: Errno = Errno(2);
/// `EAGAIN`: of a wait with a limit, that it is over.
pub const EAGAIN: Errno = Errno(11);
/// `ENOMEM`: of `mincore`, that nothing is mapped there.
pub const ENOMEM: Errno = Errno(12);

/// Calls the kernel.
///
/// # Safety
/// What the call does to memory, by address or by mapping, is what the caller may do to it.
unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the kernel keeps all registers but these; memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            in("r9") arguments[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    usize::try_from(result).map_err(|_| Errno(-result))
}

/// Does nothing, in a way that whoever counts instructions from outside can tell (`xchg bx, bx`).
#[inline(always)]
pub fn mark() {
    // SAFETY: changes nothing. Not `nomem`, so that it stays between what is marked.
    unsafe { asm!("xchg bx, bx", options(nostack, preserves_flags)) };
}

/// Writes to the console.
pub fn say(text: &str) {
    // SAFETY: reads the text. That nobody listens is nothing that could be told to anybody.
    let _ = unsafe { call(WRITE, [1, text.as_ptr() as usize, text.len(), 0, 0, 0]) };
}

/// Ends this process.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: nothing is used after.
        let _ = unsafe { call(EXIT, [code.into(), 0, 0, 0, 0, 0]) };
    }
}

/// Switches the machine off. Returns when that is refused.
pub fn power_off() -> Errno {
    // linux/reboot.h: two words by which the kernel knows that it is meant.
    const MAGIC: [usize; 2] = [0xfee1_dead, 672_274_793];
    const POWER_OFF: usize = 0x4321_fedc;
    // SAFETY: touches no memory of ours.
    let answer = unsafe { call(REBOOT, [MAGIC[0], MAGIC[1], POWER_OFF, 0, 0, 0]) };
    answer.err().unwrap_or(Errno(0))
}

/// Returns the parent's number.
pub fn getppid() -> Result<usize, Errno> {
    // SAFETY: touches no memory.
    unsafe { call(GETPPID, [0; 6]) }
}

/// Makes a process that runs `act` and ends with what that returns; returns its number.
pub fn fork(act: impl FnOnce() -> u8) -> Result<usize, Errno> {
    // SAFETY: the child has its own copy of memory, and no other thread that could be in the middle of something.
    match unsafe { call(FORK, [0; 6]) } {
        Ok(0) => exit(act()),
        answer => answer,
    }
}

/// Waits until process `number` ends; returns it with its exit code.
pub fn wait(number: usize) -> Result<(usize, u8), Errno> {
    let mut status = 0_u32;
    // SAFETY: writes the status.
    let ended = unsafe { call(WAIT4, [number, &raw mut status as usize, 0, 0, 0, 0]) }?;
    Ok((ended, (status >> 8) as u8))
}

/// The ends of a pipe.
#[derive(Clone, Copy)]
pub struct Pipe {
    out: u32,
    into: u32,
}

impl Pipe {
    /// Makes one.
    pub fn new() -> Result<Self, Errno> {
        let mut ends = [0_u32; 2];
        // SAFETY: writes both ends' numbers.
        unsafe { call(PIPE, [ends.as_mut_ptr() as usize, 0, 0, 0, 0, 0]) }?;
        Ok(Self {
            out: ends[0],
            into: ends[1],
        })
    }

    /// Puts a byte in.
    pub fn put(self, byte: u8) -> Result<(), Errno> {
        // SAFETY: reads the byte.
        unsafe { call(WRITE, [self.into as usize, &raw const byte as usize, 1, 0, 0, 0]) }.map(drop)
    }

    /// Waits for a byte.
    pub fn take(self) -> Result<u8, Errno> {
        let mut byte = 0_u8;
        // SAFETY: writes the byte.
        unsafe { call(READ, [self.out as usize, &raw mut byte as usize, 1, 0, 0, 0]) }?;
        Ok(byte)
    }
}

/// One end of a stream between two programs.
pub struct Connection(usize);

impl Connection {
    /// Connects to who listens at `path`.
    pub fn to(path: &str) -> Result<Self, Errno> {
        const UNIX: u16 = 1;
        const STREAM: usize = 1;
        #[repr(C)]
        struct Address {
            family: u16,
            path: [u8; 108],
        }
        let mut address = Address {
            family: UNIX,
            path: [0; 108],
        };
        let room = address.path.get_mut(..path.len()).ok_or(Errno(22))?;
        room.copy_from_slice(path.as_bytes());
        // SAFETY: touches no memory.
        let socket = unsafe { call(SOCKET, [UNIX.into(), STREAM, 0, 0, 0, 0]) }?;
        let size = size_of::<Address>();
        // SAFETY: reads the address.
        unsafe { call(CONNECT, [socket, &raw const address as usize, size, 0, 0, 0]) }?;
        Ok(Self(socket))
    }

    /// From now on, waits for bytes so many seconds at most: [`EAGAIN`].
    pub fn give_up_after(&self, seconds: u64) -> Result<(), Errno> {
        const SOL_SOCKET: usize = 1;
        const SO_RCVTIMEO: usize = 20;
        let limit = [seconds, 0];
        let size = size_of_val(&limit);
        // SAFETY: reads the time.
        unsafe {
            call(
                SETSOCKOPT,
                [self.0, SOL_SOCKET, SO_RCVTIMEO, limit.as_ptr() as usize, size, 0],
            )
        }
        .map(drop)
    }

    /// Sends bytes: few, so that they fit at once.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        // SAFETY: reads the bytes.
        unsafe { call(WRITE, [self.0, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }.map(drop)
    }

    /// Waits for bytes; tells how many came. An end is an error.
    pub fn receive(&self, room: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: writes to the room.
        match unsafe { call(READ, [self.0, room.as_mut_ptr() as usize, room.len(), 0, 0, 0]) } {
            Ok(0) => Err(Errno(32)),
            answer => answer,
        }
    }
}

/// Size of a page.
pub const PAGE: usize = 4096;

/// Memory of our own, fresh from the kernel.
pub struct Mapping(Range<usize>);

impl Mapping {
    /// Maps `pages` of zeroes, where the kernel likes.
    pub fn new(pages: usize) -> Result<Self, Errno> {
        const READ_AND_WRITE: usize = 3;
        const PRIVATE_ANONYMOUS: usize = 0x22;
        let no_file = usize::MAX;
        // SAFETY: without MAP_FIXED it replaces nothing.
        let at = unsafe { call(MMAP, [0, pages * PAGE, READ_AND_WRITE, PRIVATE_ANONYMOUS, no_file, 0]) }?;
        Ok(Self(at..at + pages * PAGE))
    }

    /// Writes a byte at the start of each page, and tells whether all of them can be read back.
    pub fn touch(&mut self, byte: u8) -> bool {
        let pages = || self.0.clone().step_by(PAGE).map(|at| at as *mut u8);
        for page in pages() {
            // SAFETY: inside of what is mapped as long as this value lives, and nobody else's.
            unsafe { page.write_volatile(byte) };
        }
        // SAFETY: as above.
        pages().all(|page| unsafe { page.read_volatile() } == byte)
    }

    /// Unmaps it; returns where it was.
    pub fn unmap(self) -> Result<Range<usize>, Errno> {
        // SAFETY: nothing refers to it: this value was the only way in.
        unsafe { call(MUNMAP, [self.0.start, self.0.len(), 0, 0, 0, 0]) }?;
        Ok(self.0)
    }
}

/// Tells whether anything is mapped at the page of `address`.
pub fn is_mapped(address: usize) -> Result<bool, Errno> {
    let mut resident = 0_u8;
    // SAFETY: writes a byte for the one page.
    match unsafe { call(MINCORE, [address, PAGE, &raw mut resident as usize, 0, 0, 0]) } {
        Ok(_) => Ok(true),
        Err(ENOMEM) => Ok(false),
        Err(other) => Err(other),
    }
}

#[repr(C)]
struct Timespec {
    seconds: u64,
    ns: u64,
}

/// Sleeps for seconds.
pub fn sleep(seconds: u64) -> Result<(), Errno> {
    sleep_for(Timespec { seconds, ns: 0 })
}

/// Sleeps for less than a second.
pub fn sleep_ns(ns: u64) -> Result<(), Errno> {
    sleep_for(Timespec { seconds: 0, ns })
}

fn sleep_for(wanted: Timespec) -> Result<(), Errno> {
    // SAFETY: reads how long.
    unsafe { call(NANOSLEEP, [&raw const wanted as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Returns the processor's count, which goes on while a Linux that is moved has no time.
pub fn ticks() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Returns the time since boot, in ns.
pub fn now() -> Result<u64, Errno> {
    const MONOTONIC: usize = 1;
    let mut time = Timespec { seconds: 0, ns: 0 };
    // SAFETY: writes the time.
    unsafe { call(CLOCK_GETTIME, [MONOTONIC, &raw mut time as usize, 0, 0, 0, 0]) }?;
    Ok(time.seconds * 1_000_000_000 + time.ns)
}
