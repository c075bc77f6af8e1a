//! A blocking client of xenstore.
//!
//! ```no_run
//! use ferroxen_xenstore::{Client, Store};
//! let store = Client::connect()?;
//! store.write("/tool/example", "42")?;
//! store.transaction(|tx| {
//!     let old = tx.read_string("/tool/example")?;
//!     tx.write("/tool/example-old", &old)
//! })?;
//! # Ok::<(), ferroxen_xenstore::Error>(())
//! ```
//!
//! A [`Client`] is one connection; requests are answered before the call returns, and watch events that come in
//! between wait in a queue ([`Client::next_event`]). It may be shared by threads, which then take turns.
//!
//! Always true: after any error but a refusal the connection is not used again (answers could be mixed up).
#![forbid(unsafe_code)]

mod client;
mod error;
mod store;

pub use client::{Client, Event, Transaction, Values};
pub use error::{Error, Result};
pub use ferroxen_xenstore_wire as wire;
pub use ferroxen_xenstore_wire::{ErrorCode, Permission, Rights};
pub use store::{Changes, Store};
