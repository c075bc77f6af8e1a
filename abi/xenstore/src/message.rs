//! Headers, types and payloads.

use crate::PAYLOAD_MAX;
use alloc::vec::Vec;
use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a message asks for, or answers (`enum xsd_sockmsg_type`). Open: an unknown number is still a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct MessageType(pub u32);

macro_rules! types {
    ($($name:ident = $value:literal),* $(,)?) => {
        impl MessageType {
            $(#[doc = concat!("`XS_", stringify!($name), "`")] pub const $name: MessageType = MessageType($value);)*

            /// Upstream's name without `XS_`, if the number has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($value => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

types! {
    CONTROL = 0, DIRECTORY = 1, READ = 2, GET_PERMS = 3, WATCH = 4, UNWATCH = 5, TRANSACTION_START = 6,
    TRANSACTION_END = 7, INTRODUCE = 8, RELEASE = 9, GET_DOMAIN_PATH = 10, WRITE = 11, MKDIR = 12, RM = 13,
    SET_PERMS = 14, WATCH_EVENT = 15, ERROR = 16, IS_DOMAIN_INTRODUCED = 17, RESUME = 18, SET_TARGET = 19,
    // Refused by every xenstored of today, but the number stays taken.
    RESTRICT = 20,
    RESET_WATCHES = 21, DIRECTORY_PART = 22,
}

impl fmt::Debug for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "message type {}", self.0),
        }
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What stands before every payload (`struct xsd_sockmsg`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// What is asked, or answered.
    pub kind: MessageType,
    /// Chosen by the asker, echoed in the answer.
    pub req_id: u32,
    /// The transaction, or 0.
    pub tx_id: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}
const _: () = assert!(size_of::<Header>() == Header::SIZE && core::mem::offset_of!(Header, len) == 12);

impl Header {
    /// Bytes of a header on the wire.
    pub const SIZE: usize = 16;
}

/// A whole message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The header; its `len` is the payload's length.
    pub header: Header,
    /// What follows it.
    pub payload: Vec<u8>,
}

/// Puts a message into wire form. `None` if the payload is longer than the protocol allows.
pub fn encode(kind: MessageType, req_id: u32, tx_id: u32, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let len = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.len()))?;
    if len > PAYLOAD_MAX {
        return None;
    }
    let header = Header {
        kind,
        req_id,
        tx_id,
        len: u32::try_from(len).ok()?,
    };
    let mut bytes = Vec::with_capacity(Header::SIZE + len);
    bytes.extend_from_slice(header.as_bytes());
    for part in parts {
        bytes.extend_from_slice(part);
    }
    Some(bytes)
}

/// Walks the NUL-terminated strings of a payload. An unterminated rest comes out as the last one.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    payload
        .split_inclusive(|byte| *byte == 0)
        .map(|string| string.strip_suffix(&[0]).unwrap_or(string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_header_and_its_parts_in_a_row() {
        let bytes = encode(MessageType::WRITE, 7, 9, &[b"a/b\0", b"value"]).unwrap();
        assert_eq!(bytes[..16], [11, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0]);
        assert_eq!(&bytes[16..], b"a/b\0value");
    }

    #[test]
    fn too_much_payload_cannot_be_encoded() {
        assert!(encode(MessageType::WRITE, 0, 0, &[&[0; PAYLOAD_MAX]]).is_some());
        assert!(encode(MessageType::WRITE, 0, 0, &[&[0; PAYLOAD_MAX], b"x"]).is_none());
    }

    #[test]
    fn strings_are_cut_at_nuls() {
        let cut = |payload| strings(payload).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(cut(b"a\0bc\0"), [b"a".to_vec(), b"bc".to_vec()]);
        assert_eq!(cut(b"a\0\0rest"), [b"a".to_vec(), b"".to_vec(), b"rest".to_vec()]);
        assert!(cut(b"").is_empty());
    }
}
