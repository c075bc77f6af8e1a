//! One architecture, whole: x86-64 with paravirtualised guests.

mod boot;
mod fixups;
mod gdt;
mod idt;
mod layout;
mod percpu;
mod secondary;
mod traps;

pub mod area;
pub mod boot_slice;
pub mod cpu;
pub mod current;
pub mod debugregs;
pub mod fpu;
pub mod frame;
pub mod guest;
pub mod handoff;
pub mod heap;
pub mod lock;
pub mod m2p;
pub mod memory;
pub mod paging;
pub mod report;
pub mod segments;
pub mod smp;
pub mod symbols;
pub mod tlb;

pub mod apic;
pub mod hpet;
pub mod ioapic;
pub mod msi;
pub mod pic;
pub mod pit;
pub mod pmtimer;
pub mod port;
pub mod power;
pub mod rtc;
pub mod serial;
pub mod time;
pub mod vga;

pub use frame::{Entry, GuestFrame};
pub use handoff::{Boot, Handoff};
pub use memory::Page;
pub use percpu::PerCpu;

/// CPUs that we are built for.
pub const MAX_CPUS: usize = 256;
