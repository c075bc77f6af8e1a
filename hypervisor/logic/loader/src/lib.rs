//! Bytes in, plain descriptions out: what boots us and what we boot.
//!
//! - [`memory_map`]: e820 put in order
//! - [`options`]: the command line
//! - [`acpi`]: CPUs, interrupt controllers, timers
//! - [`image`]: kernel files, packed or not
//! - [`kernel`]: the ELF file inside, and its Xen notes
//! - [`pv_layout`]: where everything lies in a PV domain at its start
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod image;
pub mod kernel;
pub mod memory_map;
pub mod options;
pub mod pv_layout;
