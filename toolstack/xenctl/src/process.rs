//! A second process out of this one: what starting our own program again would make, without its start.
//!
//! UNSAFETY: `fork`, and calls that change signals and descriptors of the process that comes of it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The last of the signals (`SIGRTMAX`).
const LAST_SIGNAL: i32 = 64;
/// Descriptors that are closed one by one where there is no `close_range` (Linux before 5.9).
const MANY: i32 = 1024;

/// Starts a process that runs `body` with `with` and ends as that says. It is like a program that was just started: in
/// a session of its own, with these for standard input, output and error, no other descriptors, and no signal handlers.
///
/// Refused while this process has other threads: the copy would have none of them, and whatever one of them was
/// changing would stay half changed. `body` is no closure, and `with` is `Copy`, so that neither brings along one of
/// our descriptors, which are closed there.
pub fn start_copy<T: Copy>(stdio: [BorrowedFd<'_>; 3], with: T, body: fn(T) -> u8) -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has several threads"));
    }
    // SAFETY: this is the only thread, so the copy's memory is whole, and it may go on as we may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // It never goes back to the frames above, whose descriptors it has not got.
            std::process::exit(match start_anew(stdio) {
                Ok(()) => body(with).into(),
                Err(_) => 1,
            })
        }
        _ => Ok(()),
    }
}

fn start_anew(stdio: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    for signal in 1..=LAST_SIGNAL {
        forget_handler(signal);
    }
    // Fails only for one that leads a session already, which is as good.
    // SAFETY: takes no argument.
    unsafe { libc::setsid() };
    // First to where none of the three can be in another's way.
    let mut copies = [0; 3];
    for (copy, fd) in copies.iter_mut().zip(stdio) {
        // SAFETY: the descriptor is open, since it is borrowed.
        *copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, 3) };
        if *copy == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    for (standard, copy) in (0..).zip(copies) {
        // SAFETY: numbers; what stood at 0 to 2 is the standard streams', which are meant to change.
        if unsafe { libc::dup2(copy, standard) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the owners of these descriptors are in frames to which this process never returns.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == -1 {
        for fd in 3..MANY {
            // SAFETY: as above; one that is not open is refused.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// What is handled is not any more; what is ignored stays so, as with a program that is started.
fn forget_handler(signal: i32) {
    // SAFETY: the structure is plain numbers, for which zeroes will do; both calls only read or fill it. A number that
    // is no signal is refused.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let found = libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0;
        if found && action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The test's own thread is not the only one.
        let nothing = fs::File::open("/dev/null").unwrap();
        let refused = start_copy([nothing.as_fd(); 3], (), |()| 0);
        assert!(refused.unwrap_err().to_string().contains("several threads"));
    }
}
