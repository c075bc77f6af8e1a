//! Carries out what [`core`](crate::core) decides: sockets, ring pages, event channels, domain deaths.
//!
//! One thread, one poll loop. Each turn serves every connection that has something to say, a few requests at
//! a time, so that a chatty one does not keep the others waiting; a guest over its budget waits for its time.
//!
//! Always true:
//! 1. Nothing here waits for a client: sockets do not block, and a ring is taken as it is.
//! 2. Whenever we wait, the journal tells all that a successor needs: it can take our place at any time, and no guest
//!    notices.
//! 3. Whatever a guest puts into its ring ends at worst its own connection.

mod handover;
mod hypervisor;
mod journal;
mod link;
mod listener;
mod log;
mod poller;
mod ring;
mod serve;

pub use handover::{Inheritance, OPTION as TAKE_OVER};
pub use log::Log;
pub use serve::{Daemon, Setup};
