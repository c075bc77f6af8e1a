//! A set of numbers, kept as ranges.
//!
//! Made for sets that are few long runs: I/O ports, frames of device memory, interrupts. Every answer takes one
//! binary search; a set never holds more ranges than it was allowed at its making, so whoever fills it on a
//! stranger's behalf knows what it can grow to.
//!
//! Always true ([`RangeSet::audit`] checks): the ranges are in order, none is empty, and no two touch.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use core::fmt;

/// A run of numbers, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// The lowest.
    pub first: u64,
    /// The highest.
    pub last: u64,
}

/// The set would need more ranges than it may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// A set of numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct RangeSet {
    ranges: Vec<Range>,
    most: usize,
}

impl RangeSet {
    /// An empty set that may come to hold so many ranges.
    pub const fn new(most: usize) -> RangeSet {
        RangeSet {
            ranges: Vec::new(),
            most,
        }
    }

    /// Adds every number from `first` to `last`. An empty run (`first` above `last`) adds nothing.
    pub fn insert(&mut self, first: u64, last: u64) -> Result<(), Full> {
        if first > last {
            return Ok(());
        }
        // Everything that overlaps or touches becomes one range.
        let from = self
            .ranges
            .partition_point(|range| range.last.saturating_add(1) < first);
        let to = self
            .ranges
            .partition_point(|range| range.first <= last.saturating_add(1));
        let swallowed = self.ranges.get(from..to).unwrap_or(&[]);
        if swallowed.is_empty() && self.ranges.len() >= self.most {
            return Err(Full);
        }
        let merged = Range {
            first: swallowed.first().map_or(first, |range| range.first.min(first)),
            last: swallowed.last().map_or(last, |range| range.last.max(last)),
        };
        self.ranges.splice(from..to, [merged]);
        Ok(())
    }

    /// Takes every number from `first` to `last` out. That can split a range in two, for which there must be room.
    pub fn remove(&mut self, first: u64, last: u64) -> Result<(), Full> {
        if first > last {
            return Ok(());
        }
        let from = self.ranges.partition_point(|range| range.last < first);
        let to = self.ranges.partition_point(|range| range.first <= last);
        let Some(cut) = self.ranges.get(from..to).filter(|cut| !cut.is_empty()) else {
            return Ok(());
        };
        let below = cut.first().filter(|range| range.first < first).map(|range| Range {
            last: first - 1,
            ..*range
        });
        let above = cut.last().filter(|range| range.last > last).map(|range| Range {
            first: last + 1,
            ..*range
        });
        let grows = below.is_some() && above.is_some() && to - from == 1;
        if grows && self.ranges.len() >= self.most {
            return Err(Full);
        }
        self.ranges.splice(from..to, [below, above].into_iter().flatten());
        Ok(())
    }

    /// Tells whether a number is in the set.
    pub fn contains(&self, number: u64) -> bool {
        self.contains_all(number, number)
    }

    /// Tells whether every number from `first` to `last` is in the set. Of an empty run every one is.
    pub fn contains_all(&self, first: u64, last: u64) -> bool {
        if first > last {
            return true;
        }
        let at = self.ranges.partition_point(|range| range.last < first);
        self.ranges
            .get(at)
            .is_some_and(|range| range.first <= first && last <= range.last)
    }

    /// Tells whether any number from `first` to `last` is in the set.
    pub fn overlaps(&self, first: u64, last: u64) -> bool {
        let at = self.ranges.partition_point(|range| range.last < first);
        first <= last && self.ranges.get(at).is_some_and(|range| range.first <= last)
    }

    /// Tells whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Checks what is always true; an error names what is not.
    pub fn audit(&self) -> Result<(), &'static str> {
        if self.ranges.len() > self.most {
            return Err("more ranges than allowed");
        }
        if self.ranges.iter().any(|range| range.first > range.last) {
            return Err("an empty range");
        }
        let apart = |pair: &[Range]| matches!(pair, [a, b] if a.last.checked_add(1).is_some_and(|next| next < b.first));
        if self.ranges.windows(2).all(apart) {
            Ok(())
        } else {
            Err("ranges out of order, or touching")
        }
    }
}

impl fmt::Debug for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for range in &self.ranges {
            list.entry(&format_args!("{:#x}-{:#x}", range.first, range.last));
        }
        list.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    #[test]
    fn neighbours_become_one() {
        let mut set = RangeSet::new(4);
        set.insert(10, 19).unwrap();
        set.insert(30, 39).unwrap();
        set.insert(20, 29).unwrap();
        assert_eq!(set.ranges(), [Range { first: 10, last: 39 }]);
    }

    #[test]
    fn the_whole_span_of_numbers_fits() {
        let mut set = RangeSet::new(2);
        set.insert(0, u64::MAX).unwrap();
        set.remove(7, 7).unwrap();
        assert!(set.contains(6) && !set.contains(7) && set.contains(u64::MAX));
        set.insert(7, 7).unwrap();
        assert!(set.contains_all(0, u64::MAX));
    }

    #[test]
    fn a_full_set_refuses_and_stays_as_it_was() {
        let mut set = RangeSet::new(1);
        set.insert(10, 20).unwrap();
        let before = set.clone();
        assert_eq!(set.insert(30, 31), Err(Full));
        assert_eq!(set.remove(15, 15), Err(Full));
        assert_eq!(set, before);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_set(
            steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..12), 0..60),
            asked in prop::collection::vec((0u64..60, 0u64..12), 1..20),
        ) {
            let (mut set, mut plain) = (RangeSet::new(8), BTreeSet::new());
            for (adds, first, length) in steps {
                let last = first + length;
                let done = if adds { set.insert(first, last) } else { set.remove(first, last) };
                if done.is_ok() {
                    for number in first..=last {
                        if adds { plain.insert(number) } else { plain.remove(&number) };
                    }
                }
                prop_assert_eq!(set.audit(), Ok(()));
            }
            for (first, length) in asked {
                let last = first + length;
                prop_assert_eq!(set.contains_all(first, last), (first..=last).all(|n| plain.contains(&n)));
                prop_assert_eq!(set.overlaps(first, last), (first..=last).any(|n| plain.contains(&n)));
            }
        }
    }
}
