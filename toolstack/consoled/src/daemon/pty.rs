//! A pseudo-terminal that shows a console to whoever opens it.
//!
//! We keep only the master. While nobody has the other end open, the kernel reports a hang-up there; that is
//! how we know whether somebody reads. The hang-up's end makes no event, so the opening itself is watched.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, inotify, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The master of a pseudo-terminal in raw mode.
#[derive(Debug)]
pub struct Pty {
    master: File,
    /// The path of the end that readers open.
    pub path: String,
    /// By what its openings are recognised.
    pub watch: i32,
}

impl Pty {
    /// Makes a pseudo-terminal, and has its openings reported by `openings`.
    pub fn open(openings: &OwnedFd) -> io::Result<Pty> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, vec![])?;
        // Opened and closed once: from then on the kernel reports the hang-up.
        let reader = open(
            name.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut attributes = tcgetattr(&reader)?;
        attributes.make_raw();
        tcsetattr(&reader, OptionalActions::Now, &attributes)?;
        drop(reader);
        let watch = inotify::add_watch(openings, name.as_c_str(), inotify::WatchFlags::OPEN)?;
        rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK)?;
        let path = name.into_string().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Pty {
            master: File::from(master),
            path,
            watch,
        })
    }

    /// The master, to read what is typed from and to write what is shown to. Does not block.
    pub fn master(&self) -> &File {
        &self.master
    }

    /// Whether somebody has it open.
    pub fn has_reader(&self) -> bool {
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::HUP)
    }
}

impl AsFd for Pty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::{Read, Write};
    use std::mem::MaybeUninit;

    #[test]
    fn openings_are_reported_and_hang_ups_noticed() {
        let openings = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let pty = Pty::open(&openings).unwrap();
        assert!(!pty.has_reader());
        let mut reader = OpenOptions::new().read(true).write(true).open(&pty.path).unwrap();
        let mut bytes = [MaybeUninit::uninit(); 512];
        let event = inotify::Reader::new(&openings, &mut bytes).next().unwrap().wd();
        assert_eq!(event, pty.watch);
        assert!(pty.has_reader());
        // Raw: no echo, no translation.
        pty.master().write_all(b"a\nb\x03").unwrap();
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"a\nb\x03");
        drop(reader);
        assert!(!pty.has_reader());
    }
}
