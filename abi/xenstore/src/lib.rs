//! The xenstore wire protocol: what a client and a xenstored say to each other.
//!
//! A message is a [`Header`] and at most [`PAYLOAD_MAX`] bytes. The same bytes travel over a Unix socket, over
//! `/dev/xen/xenbus` and through a shared ring page ([`ring`]). Requests and replies carry the same type and
//! request id; a refusal is an [`MessageType::ERROR`] with an error's name ([`ErrorCode`]).
//!
//! Always true:
//! 1. What [`Decoder`] gives out has a payload of the length that its header says, and never a longer one
//!    than [`PAYLOAD_MAX`].
//! 2. A path that [`path::check`] lets through is ASCII, has no empty component and no trailing slash.
//!
//! Upstream: `xen/include/public/io/xs_wire.h`, `docs/misc/xenstore.txt`, `docs/misc/xenstore-ring.txt`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod decoder;
mod error;
mod message;
pub mod path;
mod perms;
pub mod ring;

pub use decoder::{Decoder, TooLong};
pub use error::ErrorCode;
pub use message::{Header, Message, MessageType, encode, strings};
pub use perms::{BadPermission, Permission, Rights, parse_permissions};

/// Bytes that may follow a header (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// The longest absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;
/// The longest relative path (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;

/// The event that a domain has been introduced.
pub const INTRODUCE_DOMAIN: &str = "@introduceDomain";
/// The event that a domain has shut down, crashed or gone.
pub const RELEASE_DOMAIN: &str = "@releaseDomain";
