//! Waits that end: with what was waited for, at a deadline, or when whoever started us has had enough (Ctrl-C).

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Readable from the moment on at which whoever started us wants us to stop.
#[derive(Debug, Default)]
pub struct Interrupt(Option<OwnedFd>);

impl Interrupt {
    /// Will never come.
    pub fn never() -> Interrupt {
        Interrupt(None)
    }

    /// Comes when `pipe` can be read.
    pub fn from_pipe(pipe: OwnedFd) -> Interrupt {
        Interrupt(Some(pipe))
    }

    /// An error of kind [`io::ErrorKind::Interrupted`] if it has come.
    pub fn check(&self) -> io::Result<()> {
        Patience {
            deadline: Some(Instant::now()),
            interrupt: Some(self),
        }
        .wait(None)
        .map(drop)
    }
}

/// How long a wait may last, and what may end it early.
#[derive(Clone, Copy, Debug)]
pub struct Patience<'a> {
    deadline: Option<Instant>,
    interrupt: Option<&'a Interrupt>,
}

impl<'a> Patience<'a> {
    /// Waits for ever, or for so long, unless interrupted.
    pub fn until_interrupted(interrupt: &'a Interrupt, limit: Option<Duration>) -> Patience<'a> {
        Patience {
            deadline: limit.map(|limit| Instant::now() + limit),
            interrupt: Some(interrupt),
        }
    }

    /// Waits for so long, whatever comes: for what has to be done once it has begun.
    pub fn stubborn(limit: Duration) -> Patience<'static> {
        Patience {
            deadline: Some(Instant::now() + limit),
            interrupt: None,
        }
    }

    /// Waits until `source` can be read. `false`: it is too late. Fails when interrupted.
    pub fn ready(&self, source: impl AsFd) -> io::Result<bool> {
        self.wait(Some(source.as_fd()))
    }

    fn wait(&self, source: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        let stop = self.interrupt.and_then(|interrupt| interrupt.0.as_ref());
        loop {
            let left = self
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = Vec::with_capacity(2);
            fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
            fds.extend(source.as_ref().map(|source| PollFd::new(source, PollFlags::IN)));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            if stop.is_some() && is_ready(0) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            if source.is_some() && is_ready(usize::from(stop.is_some())) {
                return Ok(true);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_interrupt_ends_a_wait_and_a_stubborn_one_goes_on() {
        let (near, mut far) = UnixStream::pair().expect("sockets");
        let (source, mut feeder) = UnixStream::pair().expect("sockets");
        let interrupt = Interrupt::from_pipe(near.into());
        interrupt.check().expect("nothing has come");
        far.write_all(b"!").expect("is read");
        let impatient = Patience::until_interrupted(&interrupt, None);
        let error = impatient.ready(&source).expect_err("is interrupted");
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert!(!Patience::stubborn(Duration::ZERO).ready(&source).expect("waits"));
        feeder.write_all(b"x").expect("is read");
        assert!(
            Patience::stubborn(Duration::from_secs(9))
                .ready(&source)
                .expect("waits")
        );
    }
}
