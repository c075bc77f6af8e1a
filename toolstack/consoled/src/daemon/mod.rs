//! xenconsoled: one thread, one poll loop, a [`Console`](console) per domain.
//!
//! Always true: a ring is looked at once a millisecond at most, so that no guest keeps the others from being
//! served; and a console outlives its domain until its readers have read the last words.

mod console;
mod hypervisor;
mod hypervisor_log;
mod pty;
mod readers;
mod ring;
mod serve;

pub use serve::{Daemon, Setup};
