//! Does what only a CPU can do: the hypervisor's one room with `unsafe`.
//!
//! Entry from guests and the way back, page tables, per-CPU state, interrupt controllers, guest copies.
//! Nothing here decides anything about domains: the kernel does, through the doors that this crate offers.
//! Every door that is not marked `unsafe` keeps the hypervisor's own memory safe, whoever calls it;
//! `SOUNDNESS.md` says for each why that is so.
//!
//! UNSAFETY: this crate talks to the processor and owns physical memory; there is no safe way to do so.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
extern crate alloc;

pub mod arithmetic;
pub mod calendar;
pub mod interrupts;
pub mod multiboot;
pub mod ports;
pub mod ranges;
pub mod timescale;
pub mod uart;

#[cfg(target_os = "none")]
mod x86_64;
#[cfg(target_os = "none")]
pub use x86_64::*;
