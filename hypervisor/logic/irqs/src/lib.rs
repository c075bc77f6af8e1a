//! Interrupts: which line or device interrupts which domain, and by which event channel.
//!
//! An [`Irq`] is ours: the first are lines into IO-APICs, numbered as Domain 0 numbers its GSIs; further ones are
//! made for devices that send messages. Each that is in use has a [`Place`]: a CPU and a vector there. A domain
//! knows an irq as a `pirq`, and binds the pirq to one of its event channel ports. [`Irqs`] keeps all of that and
//! decides what is to be done to the hardware; it touches none.
//!
//! Level-triggered lines are masked when they interrupt and stay so until every domain they were told to has said
//! `PHYSDEVOP_eoi`: no domain can hold the local APIC's in-service bit, so none can hold back another's interrupts.
//! Edges and messages need no answer.
//!
//! Always true ([`Irqs::audit`] checks; every property test calls it):
//! 1. A vector of a CPU belongs to at most one irq, and that irq names the place back.
//! 2. A pirq that is mapped names an irq; an irq's guest names a pirq of that domain that is mapped to this irq.
//! 3. An irq that the hypervisor uses has no guests; one that nobody uses owes nobody anything.
//! 4. Only a level-triggered line waits for anybody's EOI.
//! 5. No vector is handed out below [`vectors::FIRST`], above [`vectors::LAST`], or at 0x80 or 0x82.
//!
//! Caller holds the lock of interrupt descriptors (docs/locks.md). Guests see this as `abi::xen::physdev`; upstream:
//! `xen/arch/x86/irq.c`, `physdev.c`, `msi.c`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod irqs;
pub mod msi;
mod pirqs;
pub mod vectors;

pub use irqs::{
    Acknowledge, Arrival, Eoi, Irq, Irqs, Line, Lines, MAX_SHARERS, Moved, Override, Polarity, Started, Status,
    Stopped, Target, Trigger, Unmapped,
};
pub use pirqs::FreeKind;
pub use vectors::Place;

/// Why something is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The number is beyond what the domain may use, or no such interrupt exists.
    NoSuchNumber,
    /// The pirq already stands for another interrupt.
    PirqTaken,
    /// The interrupt already has another pirq in that domain.
    IrqTaken,
    /// The pirq stands for no interrupt.
    NotMapped,
    /// The pirq is not the first of its block.
    NotTheFirst,
    /// The interrupt is the hypervisor's own.
    HypervisorsOwn,
    /// Somebody has it and one of the two does not share.
    NotShared,
    /// As many domains share it as may.
    TooManySharers,
    /// The pirq has a port already.
    AlreadyBound,
    /// The pirq has no port.
    NotBound,
    /// The line is in use or was set up by firmware's word.
    AlreadySetUp,
    /// No IO-APIC pin leads to it.
    NoPin,
    /// No free pirq, or no free vector on any CPU.
    NoneFree,
}
