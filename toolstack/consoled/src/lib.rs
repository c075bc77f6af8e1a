//! Guest consoles: the daemon that serves them, and the client that shows one.
//!
//! What a guest prints lies in its ring until [`daemon`] takes it into a [`backlog`], from which each reader
//! takes at its own pace. While somebody reads, nothing is lost: a full backlog leaves the bytes in the ring,
//! and the guest waits. While nobody does, the oldest bytes make room for the newest.
#![forbid(unsafe_code)]

mod attach;
pub mod backlog;
pub mod daemon;

pub use attach::{AttachOptions, Ended, attach, interrupts};

/// Where xenconsoled listens for readers.
pub const SOCKET: &str = "/run/xenconsoled/socket";
