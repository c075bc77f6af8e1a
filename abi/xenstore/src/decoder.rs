//! Cutting a byte stream into messages.

use crate::{Header, Message, PAYLOAD_MAX};
use alloc::vec::Vec;
use core::fmt;
use zerocopy::FromBytes;

/// A header that announces more than [`PAYLOAD_MAX`] bytes. The stream cannot be followed any further.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooLong(pub u32);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message announces {} bytes, and {PAYLOAD_MAX} is the most", self.0)
    }
}

impl core::error::Error for TooLong {}

/// Collects bytes as they come and gives out whole messages.
///
/// It asks for at most what completes the message at hand ([`wanted`](Self::wanted)), so that what a client
/// sends ahead can be left in its ring or socket, where it costs us nothing.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// How many more bytes the message at hand needs, as far as that is known; never 0 after
    /// [`next`](Self::next) gave `None`.
    pub fn wanted(&self) -> usize {
        match self.header() {
            None => Header::SIZE.saturating_sub(self.bytes.len()),
            Some(header) => (Header::SIZE + header.len as usize).saturating_sub(self.bytes.len()),
        }
    }

    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Gives the next whole message, if there is one.
    #[expect(clippy::should_implement_trait, reason = "it can fail, and goes on after None")]
    pub fn next(&mut self) -> Result<Option<Message>, TooLong> {
        let Some(header) = self.header() else {
            return Ok(None);
        };
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return Err(TooLong(header.len));
        }
        let end = Header::SIZE + len;
        let Some(payload) = self.bytes.get(Header::SIZE..end) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.bytes.drain(..end);
        Ok(Some(Message { header, payload }))
    }

    /// Whether a message has begun but not ended.
    pub fn is_mid_message(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The bytes of the message at hand, for whoever carries the connection over to a successor.
    pub fn pending(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what has come in.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    fn header(&self) -> Option<Header> {
        Header::read_from_prefix(&self.bytes).ok().map(|(header, _)| header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MessageType, encode};
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn an_endless_message_is_refused_at_its_header() {
        let mut decoder = Decoder::default();
        let mut header = encode(MessageType::READ, 0, 0, &[]).unwrap();
        header[12..].copy_from_slice(&4097u32.to_ne_bytes());
        decoder.push(&header);
        assert_eq!(decoder.next(), Err(TooLong(4097)));
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..5),
            cuts in prop::collection::vec(1usize..40, 1..50),
        ) {
            let mut stream = vec![];
            for (id, payload) in payloads.iter().enumerate() {
                stream.extend(encode(MessageType::WRITE, id as u32, 0, &[payload]).unwrap());
            }
            let (mut decoder, mut out, mut cuts) = (Decoder::default(), vec![], cuts.into_iter().cycle());
            while !stream.is_empty() {
                let rest = stream.split_off(cuts.next().unwrap().min(stream.len()));
                decoder.push(&stream);
                stream = rest;
                while let Some(message) = decoder.next().unwrap() {
                    prop_assert_eq!(message.header.req_id as usize, out.len());
                    out.push(message.payload);
                }
                prop_assert!(decoder.wanted() > 0);
            }
            prop_assert_eq!(out, payloads);
            prop_assert!(!decoder.is_mid_message());
        }
    }
}
