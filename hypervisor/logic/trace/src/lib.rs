//! Trace rings: where in a CPU's ring a record goes, and what must be written in front of it.
//!
//! The hypervisor produces, a tool (`xentrace`) consumes; both count bytes modulo twice the ring's size, so that a full
//! ring is no empty one. A record lies in one piece: what is left at the ring's end and too short for it becomes a record
//! that says so. Records for which there was no room are counted, and the count is the first record once there is room.
//!
//! The consumer's word comes from memory that Domain 0 writes: nonsense there loses records, and nothing else.
//!
//! Guests see this as `abi::xen::trace`; upstream: xen/common/trace.c.
#![no_std]
#![forbid(unsafe_code)]

/// Most words that a record has beside its header and its time.
pub const MOST_EXTRA: usize = 7;
/// Words of the longest record.
pub const MOST_WORDS: usize = 3 + MOST_EXTRA;
/// Bytes of a record of lost records.
pub const LOST_BYTES: u32 = record_bytes(4, true);

/// Bytes of a record with so many words, and a time or none.
pub const fn record_bytes(extra: u32, has_time: bool) -> u32 {
    4 + 4 * extra + if has_time { 8 } else { 0 }
}

/// The first word of a record (`t_rec`).
pub const fn header(event: u32, extra: u32, has_time: bool) -> u32 {
    event & 0x0fff_ffff | (extra & 7) << 28 | if has_time { 1 << 31 } else { 0 }
}

/// What fills a gap: its header's words and whether it has a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filler {
    /// Words beside header and time.
    pub extra: u32,
    /// Whether there is a time.
    pub has_time: bool,
}

impl Filler {
    /// The one that is `bytes` long: less than the longest record, and whole words.
    const fn of(bytes: u32) -> Filler {
        let words = bytes / 4 - 1;
        let has_time = words > MOST_EXTRA as u32;
        Filler {
            extra: if has_time { words - 2 } else { words },
            has_time,
        }
    }
}

/// Where a record goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// A gap to be filled first, at this offset.
    pub gap: Option<(u32, Filler)>,
    /// The record's offset in the ring.
    pub at: u32,
    /// What the producer's word is once it is written.
    pub produced: u32,
}

/// A ring of so many bytes, which are whole words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ring {
    /// Its size.
    pub bytes: u32,
}

impl Ring {
    /// How many bytes wait for the consumer; `None` if its word (or ours, as the consumer may write it) is nonsense.
    pub fn unread(self, consumed: u32, produced: u32) -> Option<u32> {
        let twice = self.bytes.checked_mul(2)?;
        if consumed >= twice || produced >= twice || !(consumed | produced).is_multiple_of(4) {
            return None;
        }
        let unread = if produced >= consumed {
            produced - consumed
        } else {
            produced + twice - consumed
        };
        (unread <= self.bytes).then_some(unread)
    }

    /// Finds a place for a record of `length` bytes; `None` if there is no room, or no sense in the words.
    pub fn place(self, consumed: u32, produced: u32, length: u32) -> Option<Place> {
        let room = self.bytes - self.unread(consumed, produced)?;
        let offset = produced % self.bytes;
        let left = self.bytes - offset;
        let (gap, at, used) = if left < length {
            (Some((offset, Filler::of(left))), 0, left + length)
        } else {
            (None, offset, length)
        };
        (used <= room).then(|| Place {
            gap,
            at,
            produced: (produced + used) % (2 * self.bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use ferroxen_abi::trace::WRAP_BUFFER;
    use proptest::prelude::*;

    const RING: Ring = Ring { bytes: 4096 - 8 };

    #[test]
    fn a_record_that_does_not_fit_before_the_end_goes_to_the_start() {
        let place = RING.place(400, RING.bytes - 8, 16).unwrap();
        let filler = Filler {
            extra: 1,
            has_time: false,
        };
        assert_eq!((place.gap, place.at), (Some((RING.bytes - 8, filler)), 0));
        assert_eq!(place.produced, RING.bytes + 16);
    }

    #[test]
    fn a_full_ring_takes_nothing_and_is_not_empty() {
        assert_eq!(RING.unread(0, RING.bytes), Some(RING.bytes));
        assert_eq!(RING.place(0, RING.bytes, 4), None);
        assert!(RING.place(4, RING.bytes, 4).is_some());
    }

    #[test]
    fn nonsense_from_the_consumer_loses_records_only() {
        for consumed in [1, 2 * RING.bytes, u32::MAX] {
            assert_eq!(RING.place(consumed, 0, 4), None);
        }
        assert_eq!(RING.unread(8, 4), None);
    }

    #[test]
    fn a_header_has_event_words_and_flag() {
        assert_eq!(header(0x2_1001, 1, true), 0x9002_1001);
        assert_eq!(record_bytes(1, true), 16);
    }

    proptest! {
        /// Reads back whatever was put in, record by record, as a tool does.
        #[test]
        fn every_record_is_read_back(steps in prop::collection::vec((0u32..8, any::<bool>(), any::<bool>()), 1..400)) {
            const SMALL: Ring = Ring { bytes: 136 };
            let mut memory = [0u32; 34];
            let (mut consumed, mut produced) = (0, 0);
            let mut waiting = std::collections::VecDeque::new();
            for (number, (extra, has_time, reads)) in (0u32..).zip(steps) {
                if let Some(place) = SMALL.place(consumed, produced, record_bytes(extra, has_time)) {
                    if let Some((at, filler)) = place.gap {
                        let length = record_bytes(filler.extra, filler.has_time);
                        prop_assert_eq!(at + length, SMALL.bytes);
                        memory[at as usize / 4] = header(WRAP_BUFFER, filler.extra, filler.has_time);
                    }
                    prop_assert!(place.at + record_bytes(extra, has_time) <= SMALL.bytes);
                    memory[place.at as usize / 4] = header(number, extra, has_time);
                    produced = place.produced;
                    waiting.push_back(number);
                }
                while reads && consumed != produced {
                    let first = memory[(consumed % SMALL.bytes) as usize / 4];
                    let (event, extra) = (first & 0x0fff_ffff, first >> 28 & 7);
                    if event != WRAP_BUFFER {
                        prop_assert_eq!(Some(event), waiting.pop_front());
                    }
                    consumed = (consumed + record_bytes(extra, first >> 31 != 0)) % (2 * SMALL.bytes);
                }
            }
        }
    }
}
