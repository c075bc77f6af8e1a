//! Vectors, and the words by which an IO-APIC pin or a device's message is told where to interrupt.
//!
//! A [`Vector`] is never an exception's, so that no device can be made to forge one. That is what lets the doors
//! that take a vector be safe to call.

/// The number by which an interrupt arrives: 0x20 to 0xff.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vector(u8);

impl Vector {
    /// The vector, unless the number is an exception's.
    pub const fn new(number: u8) -> Option<Vector> {
        if number >= 0x20 { Some(Vector(number)) } else { None }
    }

    /// The number.
    pub const fn number(self) -> u8 {
        self.0
    }

    const fn ours(number: u8) -> Vector {
        assert!(number >= 0x20);
        Vector(number)
    }
}

/// The vectors of the local APIC and of calls between CPUs. They share the highest priority class.
pub mod vectors {
    use super::Vector;

    /// First of sixteen set aside for stray 8259 interrupts.
    pub const LEGACY_FIRST: u8 = 0x20;
    /// Lowest of the vectors below; the kernel hands out vectors from under it.
    pub const HIGHEST_CLASS: u8 = 0xf0;
    /// "Corrected machine check".
    pub const MACHINE_CHECK: Vector = Vector::ours(0xf8);
    /// Thermal sensor.
    pub const THERMAL: Vector = Vector::ours(0xf9);
    /// Performance counter overflow.
    pub const PERFORMANCE: Vector = Vector::ours(0xfa);
    /// "Look at your run queue": makes a CPU leave its guest.
    pub const POKE: Vector = Vector::ours(0xfb);
    /// "Answer the requests in your mailbox."
    pub const REQUEST: Vector = Vector::ours(0xfc);
    /// The local APIC timer.
    pub const TIMER: Vector = Vector::ours(0xfd);
    /// The local APIC noticed an error.
    pub const ERROR: Vector = Vector::ours(0xfe);
    /// An interrupt that went away before it was taken; it wants no EOI.
    pub const SPURIOUS: Vector = Vector::ours(0xff);
}

/// A local APIC's id, by which other CPUs and devices address it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ApicId(pub u32);

/// How a line signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// A change interrupts once.
    Edge,
    /// It interrupts for as long as the line is held.
    Level,
}

/// Which voltage means "interrupt".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polarity {
    /// High is active (ISA).
    High,
    /// Low is active (PCI).
    Low,
}

/// Where an IO-APIC pin sends its interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Arriving as which vector.
    pub vector: Vector,
    /// At which CPU.
    pub to: ApicId,
    /// How the line signals.
    pub trigger: Trigger,
    /// Which voltage is active.
    pub polarity: Polarity,
}

/// Redirection entry bit: nothing is sent.
pub const RTE_MASKED: u32 = 1 << 16;
/// Redirection entry bit: the line interrupts for as long as it is held.
pub const RTE_LEVEL: u32 = 1 << 15;
const RTE_LOW: u32 = 1 << 13;

impl Route {
    /// The redirection entry, (low, high), masked: fixed delivery, physical destination (82093AA "IOREDTBL").
    ///
    /// `None` for a CPU whose id needs more than eight bits, which takes interrupt remapping.
    pub const fn entry(self) -> Option<(u32, u32)> {
        if self.to.0 > 0xfe {
            return None;
        }
        let mut low = RTE_MASKED | self.vector.0 as u32;
        if matches!(self.trigger, Trigger::Level) {
            low |= RTE_LEVEL;
        }
        if matches!(self.polarity, Polarity::Low) {
            low |= RTE_LOW;
        }
        Some((low, self.to.0 << 24))
    }
}

/// What a device writes to interrupt a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Where the device writes.
    pub address: u64,
    /// What it writes.
    pub data: u32,
}

impl Message {
    /// The message for one vector on one CPU: fixed delivery, physical destination, edge
    /// (SDM 3A "Message Signalled Interrupts").
    ///
    /// `None` for a CPU whose id needs more than eight bits, which takes interrupt remapping.
    pub const fn compose(vector: Vector, to: ApicId) -> Option<Message> {
        if to.0 > 0xfe {
            return None;
        }
        Some(Message {
            address: 0xfee0_0000 | (to.0 as u64) << 12,
            data: vector.0 as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTOR: Vector = Vector::ours(0x41);

    #[test]
    fn an_exception_is_no_vector() {
        assert_eq!(Vector::new(0x1f), None);
        assert_eq!(Vector::new(0x20).map(Vector::number), Some(0x20));
    }

    #[test]
    fn a_level_low_route_starts_masked() {
        let route = Route {
            vector: VECTOR,
            to: ApicId(5),
            trigger: Trigger::Level,
            polarity: Polarity::Low,
        };
        assert_eq!(route.entry(), Some((0x0001_a041, 0x0500_0000)));
    }

    #[test]
    fn an_isa_route_sets_neither_bit() {
        let route = Route {
            vector: VECTOR,
            to: ApicId(0),
            trigger: Trigger::Edge,
            polarity: Polarity::High,
        };
        assert_eq!(route.entry(), Some((0x0001_0041, 0)));
    }

    #[test]
    fn a_message_names_the_cpu_in_its_address_and_the_vector_in_its_data() {
        assert_eq!(
            Message::compose(VECTOR, ApicId(3)),
            Some(Message {
                address: 0xfee0_3000,
                data: 0x41
            })
        );
    }

    #[test]
    fn a_cpu_beyond_eight_bits_cannot_be_addressed() {
        assert_eq!(Message::compose(VECTOR, ApicId(255)), None);
    }
}
