//! One connection's bytes: a socket or a ring, the message that is coming in, the one that is going out.
//!
//! What a program of Domain 0's asks in one go is taken from its socket in one go, and answered in one: a change between
//! two programs costs more than most answers. Of a ring no more is taken than the message at hand, so that what a domain
//! sends ahead stays in its memory, where it costs us nothing and outlives us.

use super::ring::{Ring, RingError};
use crate::core::HalfWay;
use ferroxen_xenstore_wire::{Decoder, Header, Message, PAYLOAD_MAX, TooLong, ring};
use rustix::event::epoll::EventFlags;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Bytes of answers that are sent together.
const TOGETHER: usize = 16 << 10;

/// What carries the bytes.
#[derive(Debug)]
pub enum Wire {
    /// A client of our socket.
    Socket(UnixStream),
    /// A domain's ring.
    Ring(Ring),
}

/// A connection, as far as bytes go.
#[derive(Debug)]
pub struct Link {
    /// What carries them.
    pub wire: Wire,
    /// Who is at the other end, for the log.
    pub name: String,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
    /// It broke the rules of its ring and is not listened to until it reconnects.
    pub is_broken: bool,
    /// It may not ask more for now.
    pub is_held: bool,
    /// What we wait for there, once we do.
    pub expected: Option<EventFlags>,
    /// What was last noted of its messages that were half-way.
    pub noted: HalfWay,
}

/// Why a connection ends.
#[derive(Debug)]
pub enum LinkError {
    /// The client has gone.
    Closed,
    /// A message is longer than the protocol allows.
    TooLong(TooLong),
    /// The ring's indices make no sense.
    Indices,
    /// The bytes cannot be carried.
    Io(io::Error),
}

impl LinkError {
    /// What a ring's error word says about it.
    pub fn ring_code(&self) -> u32 {
        match self {
            LinkError::TooLong(_) => ring::error::PROTOCOL,
            LinkError::Indices => ring::error::RING_INDEX,
            LinkError::Closed | LinkError::Io(_) => ring::error::COMM,
        }
    }
}

impl std::fmt::Display for LinkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LinkError::Closed => f.write_str("the client has gone"),
            LinkError::TooLong(error) => error.fmt(f),
            LinkError::Indices => f.write_str("the ring's indices make no sense"),
            LinkError::Io(error) => error.fmt(f),
        }
    }
}

impl From<RingError> for LinkError {
    fn from(error: RingError) -> LinkError {
        match error {
            RingError::Indices => LinkError::Indices,
            RingError::Page(error) => LinkError::Io(error),
        }
    }
}

impl Link {
    /// A connection at its beginning.
    pub fn new(wire: Wire, name: String) -> Link {
        let (decoder, out) = (Decoder::default(), vec![]);
        Link {
            wire,
            name,
            decoder,
            out,
            sent: 0,
            is_broken: false,
            is_held: false,
            expected: None,
            noted: HalfWay::default(),
        }
    }

    /// Takes the next whole message, if it has come in.
    pub fn next_message(&mut self) -> Result<Option<Message>, LinkError> {
        let mut bytes = [0; Header::SIZE + PAYLOAD_MAX];
        loop {
            if let Some(message) = self.decoder.next().map_err(LinkError::TooLong)? {
                return Ok(Some(message));
            }
            let wanted = match self.wire {
                Wire::Socket(_) => bytes.len(),
                Wire::Ring(_) => self.decoder.wanted().min(bytes.len()),
            };
            match self.receive(&mut bytes[..wanted])? {
                0 => return Ok(None),
                len => self.decoder.push(&bytes[..len]),
            }
        }
    }

    /// Whether answers may wait for more of them, until there is nothing left to be asked.
    pub fn sends_together(&self) -> bool {
        matches!(self.wire, Wire::Socket(_))
    }

    /// Sends what waits, as far as it goes; `next` gives the next message. Says whether all is sent.
    pub fn flush(&mut self, mut next: impl FnMut() -> Option<Vec<u8>>) -> Result<bool, LinkError> {
        loop {
            if self.sent == self.out.len() {
                let Some(frame) = next() else { return Ok(true) };
                (self.out, self.sent) = (frame, 0);
                while self.sends_together()
                    && self.out.len() < TOGETHER
                    && let Some(frame) = next()
                {
                    self.out.extend(frame);
                }
            }
            let sent = match &mut self.wire {
                Wire::Socket(socket) => unless_blocked(socket.write(&self.out[self.sent..]))?,
                Wire::Ring(ring) => ring.send(&self.out[self.sent..])?,
            };
            if sent == 0 {
                return Ok(false);
            }
            self.sent += sent;
        }
    }

    /// Whether part of a message is still to be sent.
    pub fn is_mid_send(&self) -> bool {
        self.sent < self.out.len()
    }

    /// The part of a request that has come in, and of an answer that has not gone out.
    pub fn half_way(&self) -> (&[u8], &[u8]) {
        (self.decoder.pending(), self.out.get(self.sent..).unwrap_or_default())
    }

    /// Goes on where another has stopped.
    pub fn take_up(&mut self, (input, output): HalfWay) {
        self.decoder.push(&input);
        (self.out, self.sent) = (output, 0);
    }

    /// Forgets what was coming in and going out.
    pub fn clear(&mut self) {
        self.decoder.clear();
        self.out.clear();
        self.sent = 0;
    }

    fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError> {
        match &mut self.wire {
            Wire::Ring(ring) => Ok(ring.receive(bytes)?),
            Wire::Socket(socket) => match socket.read(bytes) {
                Ok(0) if !bytes.is_empty() => Err(LinkError::Closed),
                result => unless_blocked(result),
            },
        }
    }
}

/// 0 if it would have to wait.
fn unless_blocked(result: io::Result<usize>) -> Result<usize, LinkError> {
    match result {
        Ok(len) => Ok(len),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Err(LinkError::Closed)
        }
        Err(error) => Err(LinkError::Io(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_xenstore_wire::{MessageType, encode};

    #[test]
    fn messages_pass_in_both_directions_and_an_end_is_noticed() {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut link = Link::new(Wire::Socket(near), "test".into());
        assert!(link.next_message().unwrap().is_none());
        let frame = encode(MessageType::READ, 1, 0, &[b"/a\0"]).unwrap();
        far.write_all(&[frame.clone(), frame.clone()].concat()).unwrap();
        assert_eq!(link.next_message().unwrap().unwrap().payload, b"/a\0");
        let mut frames = vec![frame.clone(), frame.clone()];
        assert!(link.flush(|| frames.pop()).unwrap());
        let mut back = vec![0; frame.len() * 2];
        far.read_exact(&mut back).unwrap();
        drop(far);
        assert!(link.next_message().unwrap().is_some());
        assert!(matches!(link.next_message(), Err(LinkError::Closed)));
    }

    #[test]
    fn a_client_that_does_not_read_does_not_stop_us() {
        let (near, _far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let mut link = Link::new(Wire::Socket(near), "test".into());
        assert!(!link.flush(|| Some(vec![0; 4096])).unwrap());
        assert!(link.is_mid_send());
    }
}
