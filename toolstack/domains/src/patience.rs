//! Waits that end: with what was waited for, at a deadline, or when whoever started us has had enough (Ctrl-C).

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
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

    /// Waits as long as it takes, whatever comes.
    pub fn without_end() -> Patience<'static> {
        Patience {
            deadline: None,
            interrupt: None,
        }
    }

    /// Waits for so long, whatever comes: for what has to be done once it has begun.
    pub fn stubborn(limit: Duration) -> Patience<'static> {
        Patience {
            deadline: Some(Instant::now() + limit),
            interrupt: None,
        }
    }

    /// The same, but from now on for so long at most.
    pub fn within(self, limit: Duration) -> Patience<'a> {
        let deadline = Instant::now() + limit;
        Patience {
            deadline: Some(self.deadline.map_or(deadline, |other| other.min(deadline))),
            ..self
        }
    }

    /// Waits until `source` can be read. `false`: it is too late. Fails when interrupted.
    pub fn ready(&self, source: impl AsFd) -> io::Result<bool> {
        self.wait(Some((source.as_fd(), PollFlags::IN)))
    }

    /// Waits until `sink` takes more. `false`: it is too late. Fails when interrupted.
    pub fn takes_more(&self, sink: impl AsFd) -> io::Result<bool> {
        self.wait(Some((sink.as_fd(), PollFlags::OUT)))
    }

    fn wait(&self, source: Option<(BorrowedFd<'_>, PollFlags)>) -> io::Result<bool> {
        let stop = self.interrupt.and_then(|interrupt| interrupt.0.as_ref());
        loop {
            let left = self
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = Vec::with_capacity(2);
            fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::IN)));
            fds.extend(source.as_ref().map(|(source, event)| PollFd::new(source, *event)));
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

/// A pipe at which no wait outlasts an interrupt.
#[derive(Debug)]
pub struct Piped<'a, T> {
    pipe: T,
    patience: Patience<'a>,
}

impl<'a, T: AsFd> Piped<'a, T> {
    /// Takes a pipe of which nobody else has this end.
    pub fn new(pipe: T, patience: Patience<'a>) -> io::Result<Piped<'a, T>> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Piped { pipe, patience })
    }

    /// From now on, waits like that.
    pub fn wait_with(&mut self, patience: Patience<'a>) {
        self.patience = patience;
    }

    /// Tries again whenever the pipe may be ready, which `wait` tells.
    fn retry<R>(
        &mut self,
        mut act: impl FnMut(&mut T) -> io::Result<R>,
        wait: impl Fn(&Patience<'a>, &T) -> io::Result<bool>,
    ) -> io::Result<R> {
        loop {
            match act(&mut self.pipe) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            match wait(&self.patience, &self.pipe) {
                Ok(true) => {}
                Ok(false) => return Err(io::ErrorKind::TimedOut.into()),
                // Of the kind that it has, whoever reads or writes whole things would try it again.
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl<T: Read + AsFd> Read for Piped<'_, T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.retry(|pipe| pipe.read(bytes), |patience, pipe| patience.ready(pipe))
    }
}

impl<T: Write + AsFd> Write for Piped<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(|pipe| pipe.write(bytes), |patience, pipe| patience.takes_more(pipe))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pipe.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_pipe_that_is_stuck_does_not_outlast_an_interrupt() {
        let (near, mut far) = UnixStream::pair().expect("sockets");
        let (into, mut out) = UnixStream::pair().expect("sockets");
        let interrupt = Interrupt::from_pipe(near.into());
        let patience = Patience::until_interrupted(&interrupt, None);
        let mut into = Piped::new(into, patience).expect("is a pipe");
        into.write_all(b"word").expect("there is room");
        let mut word = [0; 4];
        out.read_exact(&mut word).expect("it has come");
        assert_eq!(&word, b"word");
        far.write_all(b"!").expect("is read");
        let error = into.write_all(&vec![0; 4 << 20]).expect_err("nobody reads that");
        assert!(error.to_string().contains("interrupted"), "{error}");
        let error = into.read_exact(&mut word).expect_err("nobody writes");
        assert!(error.to_string().contains("interrupted"), "{error}");
    }
}
