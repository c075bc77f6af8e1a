//! The public Xen ABI: shapes and numbers, no behaviour. One module per upstream public header.
//!
//! Structures are laid out byte for byte as C lays them out on x86-64; codes and flags that come from
//! outside are open (newtypes with constants), so that a value we have not met is still a value.
#![no_std]
#![forbid(unsafe_code)]

pub mod domctl;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod features;
pub mod grant_table;
pub mod hypfs;
pub mod io;
pub mod mca;
pub mod memory;
pub mod physdev;
pub mod platform;
pub mod sched;
pub mod sysctl;
pub mod trace;
pub mod vcpu;
pub mod version;
pub mod x86;
pub mod xen;
