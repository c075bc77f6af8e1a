//! Those who look at a console: its pseudo-terminal's reader, and clients of our socket.

use super::pty::Pty;
use crate::backlog::{Backlog, ReaderId};
use rustix::event::PollFlags;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// What a reader reads by.
#[derive(Debug)]
pub enum Line {
    /// The console's pseudo-terminal.
    Pty(Pty),
    /// A client of our socket.
    Socket(UnixStream),
}

/// One reader: attached while it has an id.
#[derive(Debug)]
pub struct Reader {
    /// What it reads by.
    pub line: Line,
    id: Option<ReaderId>,
}

/// How a reader is doing after it was served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It reads on.
    Here,
    /// It has left.
    Gone,
}

impl Reader {
    /// Somebody who may read.
    pub fn new(line: Line) -> Reader {
        Reader { line, id: None }
    }

    /// Notes that it reads now, if it does.
    pub fn check_attached(&mut self, backlog: &mut Backlog) {
        let is_here = match &self.line {
            Line::Pty(pty) => pty.has_reader(),
            Line::Socket(_) => true,
        };
        match (is_here, self.id) {
            (true, None) => self.id = Some(backlog.add_reader()),
            (false, Some(_)) => self.detach(backlog),
            _ => {}
        }
    }

    /// Whether it reads now.
    pub fn is_attached(&self) -> bool {
        self.id.is_some()
    }

    /// Whether it has read everything, or does not read at all.
    pub fn is_done(&self, backlog: &Backlog) -> bool {
        self.id.is_none_or(|id| backlog.is_drained(id))
    }

    /// What to wait for.
    pub fn interest(&self, backlog: &Backlog, wants_input: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, wants_input);
        flags.set(PollFlags::OUT, !self.is_done(backlog));
        flags
    }

    /// Gives it what it has not read, as far as it takes it.
    pub fn feed(&mut self, backlog: &mut Backlog) -> State {
        let Some(id) = self.id else { return State::Here };
        loop {
            let bytes = backlog.ahead_of(id);
            if bytes.is_empty() {
                return State::Here;
            }
            // A pseudo-terminal takes what is written even if nobody will ever read it.
            if matches!(&self.line, Line::Pty(pty) if !pty.has_reader()) {
                self.detach(backlog);
                return State::Gone;
            }
            match self.write(bytes) {
                Ok(0) => return State::Here,
                Ok(count) => backlog.advance(id, count),
                Err(error) if is_later(&error) => return State::Here,
                Err(_) => {
                    self.detach(backlog);
                    return State::Gone;
                }
            }
        }
    }

    /// Takes what was typed, at most so many bytes.
    pub fn typed(&mut self, backlog: &mut Backlog, room: usize) -> (Vec<u8>, State) {
        let mut bytes = vec![0; room];
        let result = match &self.line {
            Line::Pty(pty) => pty.master().read(&mut bytes),
            Line::Socket(socket) => (&*socket).read(&mut bytes),
        };
        match result {
            Ok(count) if count > 0 || room == 0 => {
                bytes.truncate(count);
                (bytes, State::Here)
            }
            Err(error) if is_later(&error) => (vec![], State::Here),
            // A pseudo-terminal's reader has left (EIO); a socket is at its end.
            _ => {
                self.detach(backlog);
                (vec![], State::Gone)
            }
        }
    }

    fn detach(&mut self, backlog: &mut Backlog) {
        if let Some(id) = self.id.take() {
            backlog.remove_reader(id);
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.line {
            Line::Pty(pty) => pty.master().write(bytes),
            Line::Socket(socket) => (&*socket).write(bytes),
        }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.line {
            Line::Pty(pty) => pty.as_fd(),
            Line::Socket(socket) => socket.as_fd(),
        }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
