//! Which vector of which CPU belongs to whom.
//!
//! A local APIC ranks vectors in classes of sixteen, and old ones hold only two waiting interrupts for each class. So
//! vectors are handed out across the classes, not through them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use ferroxen_words::CpuId;

use crate::Irq;

/// The lowest vector handed out: below lie exceptions and what stray 8259 interrupts use.
pub const FIRST: u8 = 0x30;
/// The highest: above lie the local APIC's own and calls between CPUs.
pub const LAST: u8 = 0xef;
/// `int 0x80` is Linux's old system call, `int 0x82` is set aside for compat hypercalls.
pub const RESERVED: [u8; 2] = [0x80, 0x82];

const CLASSES: u8 = (LAST - FIRST) / 16 + 1;
/// The most messages that one device can have in a block (PCI "Multiple Message Capable").
pub const MAX_BLOCK: u8 = 32;

/// Where an interrupt arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// At which CPU.
    pub cpu: CpuId,
    /// As which vector.
    pub vector: u8,
}

/// The vectors of all CPUs.
pub struct Vectors {
    cpus: Vec<Table>,
}

struct Table {
    owners: Box<[Option<Irq>; 256]>,
    /// Where the next search begins, so that one that was just freed rests a while.
    next: u8,
}

impl Vectors {
    /// The vectors of so many CPUs, all free.
    pub fn new(cpus: u32) -> Vectors {
        let table = || Table {
            owners: Box::new([None; 256]),
            next: 0,
        };
        Vectors {
            cpus: (0..cpus).map(|_| table()).collect(),
        }
    }

    /// Whose a vector is.
    #[inline]
    pub fn owner(&self, place: Place) -> Option<Irq> {
        self.cpus
            .get(place.cpu.0 as usize)?
            .owners
            .get(usize::from(place.vector))
            .copied()
            .flatten()
    }

    /// Takes a vector, on `preferred` if it has one left, else on another CPU.
    pub fn take(&mut self, irq: Irq, preferred: CpuId) -> Option<Place> {
        self.take_block(&[irq], preferred)
    }

    /// Takes vectors for a block of irqs, next to each other on one CPU and aligned as a device counts them.
    pub fn take_block(&mut self, irqs: &[Irq], preferred: CpuId) -> Option<Place> {
        let count = u8::try_from(irqs.len())
            .ok()
            .filter(|count| (1..=MAX_BLOCK).contains(count))?;
        let first = preferred.0 as usize;
        let order = core::iter::once(first).chain((0..self.cpus.len()).filter(|cpu| *cpu != first));
        for cpu in order {
            let Some(table) = self.cpus.get_mut(cpu) else { continue };
            if let Some(vector) = table.take(irqs, count) {
                return Some(Place {
                    cpu: CpuId(u32::try_from(cpu).ok()?),
                    vector,
                });
            }
        }
        None
    }

    /// Gives a vector back.
    pub fn give_back(&mut self, place: Place) {
        if let Some(owner) = self
            .cpus
            .get_mut(place.cpu.0 as usize)
            .and_then(|table| table.owners.get_mut(usize::from(place.vector)))
        {
            *owner = None;
        }
    }

    /// Every vector that somebody has.
    pub fn taken(&self) -> impl Iterator<Item = (Place, Irq)> + '_ {
        self.cpus.iter().zip(0u32..).flat_map(|(table, cpu)| {
            table.owners.iter().zip(0u8..=255).filter_map(move |(owner, vector)| {
                Some((
                    Place {
                        cpu: CpuId(cpu),
                        vector,
                    },
                    (*owner)?,
                ))
            })
        })
    }
}

impl Table {
    fn take(&mut self, irqs: &[Irq], count: u8) -> Option<u8> {
        let align = count.next_power_of_two();
        let total = CLASSES * 16;
        let start = self.next;
        let first = (0..total).find_map(|step| {
            let at = (start + step) % total;
            let vector = FIRST + (at % CLASSES) * 16 + at / CLASSES;
            (vector.is_multiple_of(align) && self.is_free(vector, align)).then(|| {
                self.next = (at + 1) % total;
                vector
            })
        })?;
        for (irq, vector) in irqs.iter().zip(first..) {
            self.owners[usize::from(vector)] = Some(*irq);
        }
        Some(first)
    }

    /// A device that was given fewer messages than a power of two still may send the others: they stay free of use.
    fn is_free(&self, first: u8, count: u8) -> bool {
        (first..first.saturating_add(count))
            .all(|vector| vector <= LAST && !RESERVED.contains(&vector) && self.owners[usize::from(vector)].is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: CpuId = CpuId(0);

    #[test]
    fn neighbours_in_time_lie_in_different_classes() {
        let mut vectors = Vectors::new(1);
        let places: Vec<u8> = (0..11)
            .map(|n| vectors.take(Irq::new(n), CPU).unwrap().vector)
            .collect();
        let classes: alloc::collections::BTreeSet<u8> = places.iter().map(|vector| vector / 16).collect();
        assert_eq!(classes.len(), 11, "0x80 itself is never handed out");
    }

    #[test]
    fn every_vector_but_the_reserved_is_handed_out_once_and_then_the_next_cpu_helps() {
        let mut vectors = Vectors::new(2);
        let mut seen = alloc::collections::BTreeSet::new();
        for n in 0..190 {
            let place = vectors.take(Irq::new(n), CPU).unwrap();
            assert_eq!(place.cpu, CPU);
            assert!((FIRST..=LAST).contains(&place.vector) && !RESERVED.contains(&place.vector));
            assert!(seen.insert(place.vector));
        }
        assert_eq!(vectors.take(Irq::new(190), CPU).unwrap().cpu, CpuId(1));
    }

    #[test]
    fn a_block_is_aligned_and_whole() {
        let mut vectors = Vectors::new(1);
        let _ = vectors.take(Irq::new(99), CPU);
        let irqs: Vec<Irq> = (0..16).map(Irq::new).collect();
        let place = vectors.take_block(&irqs, CPU).unwrap();
        assert_eq!(place.vector % 16, 0);
        for (irq, vector) in irqs.iter().zip(place.vector..) {
            assert_eq!(vectors.owner(Place { vector, ..place }), Some(*irq));
        }
    }

    #[test]
    fn a_block_wider_than_any_device_can_have_is_refused() {
        let mut vectors = Vectors::new(1);
        let irqs: Vec<Irq> = (0..33).map(Irq::new).collect();
        assert_eq!(vectors.take_block(&irqs, CPU), None);
        assert_eq!(vectors.take_block(&[], CPU), None);
    }

    #[test]
    fn a_vector_just_given_back_rests() {
        let mut vectors = Vectors::new(1);
        let first = vectors.take(Irq::new(1), CPU).unwrap();
        vectors.give_back(first);
        assert_ne!(vectors.take(Irq::new(2), CPU), Some(first));
    }
}
