//! Event channels: doorbells between vcpus.
//!
//! A port is one bit. Ringing sets it and, unless masked, asks for an upcall on one vcpu.
//! This crate decides what a port is, who may bind it and who must wake; it never touches a CPU.
//! [`PortTable`] is one domain's ports, [`ring`] the two-level protocol on the words that guest and
//! hypervisor share, [`fifo`] the other one, by queues.
//!
//! Always true ([`PortTable::audit`] checks; every property test calls it):
//! 1. Port 0 is never handed out, and no port above the domain's limit is in use.
//! 2. A virq of a vcpu has at most one port, and that port names the virq back.
//! 3. A pirq has at most one port, and that port names the pirq back.
//! 4. The map of free ports agrees with the ports.
//! 5. An interdomain port and its far end name each other ([`audit_pair`]).
//!
//! Caller holds the domain's event lock; two domains lock in domid order (docs/locks.md).
//! Guests see this as `abi::xen::event_channel`; upstream: `xen/common/event_channel.c`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod fifo;
mod shared;
mod table;

pub use shared::{Rung, SharedBits, ring, unmask};
pub use table::{
    Channel, Closed, FarEnd, Limits, NoMemory, PortTable, Refused, State, Target, Unsound, audit_pair,
    bind_interdomain, bind_loopback, virq_is_global,
};
