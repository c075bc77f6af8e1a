//! The few system calls, with their results as `io::Result`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;

/// Opens a device for reading and writing; not inherited by programs that we start.
pub fn open_device(path: &str, extra_flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | extra_flags)
        .open(path)
}

/// `ioctl` whose result is a whole `long`, as a hypercall's is (libc's own wrapper cuts it to an `int`).
///
/// # Safety
/// `arg` is what the ioctl `request` of this device takes: a number, or the address of its structure, in
/// which every address and length is valid for what the ioctl does with it.
pub unsafe fn ioctl(fd: BorrowedFd<'_>, request: u64, arg: usize) -> io::Result<i64> {
    // SAFETY: the caller vouches for the argument; the descriptor is open, since it is borrowed.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), request, arg) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A mapping of ours, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; whoever reads or writes through `start`
// argues for its own accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself has no method that touches the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a device (or of nothing, for plain memory) where the kernel likes.
    pub fn new(fd: Option<BorrowedFd<'_>>, offset: u64, len: usize, prot: i32, flags: i32) -> io::Result<Mapping> {
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let raw_fd = fd.map_or(-1, |fd| fd.as_raw_fd());
        // SAFETY: without MAP_FIXED (no caller passes it) a new mapping replaces nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, raw_fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Mapping { start, len })
    }

    /// The address of the first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Asks that a forked child not get this memory, whose frames the hypervisor may be using.
    pub fn dont_fork(&self) -> io::Result<()> {
        // SAFETY: the range is exactly our mapping; the advice changes nothing in this process.
        let result = unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTFORK) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped, and it goes away only here. An error would mean
        // a range that was never mapped, which cannot be.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
