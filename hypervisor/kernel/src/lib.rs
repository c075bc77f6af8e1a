//! Wires what `logic` decides to what `machine` does. No `unsafe` here.
//!
//! Read from the top: [`boot`] brings the host up and starts Domain 0; after that everything begins in
//! [`entry`], which is where a CPU arrives whenever a guest calls, faults or is interrupted.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access;
pub mod boot;
pub mod console;
pub mod cpu;
pub mod debug_keys;
pub mod dom0;
pub mod domain;
pub mod entry;
pub mod firmware;
pub mod guest;
pub mod hypercall;
pub mod irq;
pub mod lock;
pub mod memory;
pub mod pv;
pub mod sched;
pub mod time;
pub mod trace;

pub use boot::{secondary, start};
