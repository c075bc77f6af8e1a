//! The firmware's memory map (e820): sorted, without overlaps, and what is usable of it.
//!
//! Firmware tells overlapping, unsorted and even wrapping ranges. Where two claims meet, the more
//! restrictive kind wins, which in e820's numbering is the higher number.
//!
//! Always true of a [`MemoryMap`]: regions are not empty, in rising order, do not overlap, and no two
//! neighbours of one kind touch.

use arrayvec::ArrayVec;
use core::ops::Range;

/// What a region is for, in e820's numbering.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Kind(pub u32);

impl Kind {
    /// Ordinary memory.
    pub const RAM: Kind = Kind(1);
    /// Not to be touched.
    pub const RESERVED: Kind = Kind(2);
    /// ACPI tables; memory once they are read.
    pub const ACPI: Kind = Kind(3);
    /// To be kept over sleep.
    pub const NVS: Kind = Kind(4);
    /// Memory with errors.
    pub const UNUSABLE: Kind = Kind(5);
}

/// One range of machine addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
    /// What it is for.
    pub kind: Kind,
}

/// Regions taken in; firmware has been seen to give about a hundred.
pub const MAX_CLAIMS: usize = 256;
/// Regions that come out: cutting `n` overlapping ranges leaves fewer than `2n`.
pub const MAX_REGIONS: usize = 2 * MAX_CLAIMS;

/// Machine addresses end here (52 bits, SDM 3A "4-Level Paging").
const ADDRESS_END: u64 = 1 << 52;

/// A memory map in order. Large (12 KiB): keep it in a static or behind a reference.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    regions: ArrayVec<Region, MAX_REGIONS>,
}

impl MemoryMap {
    /// Sorts out what firmware claims. Claims beyond [`MAX_CLAIMS`] are left out and counted.
    pub fn sanitise(&mut self, claims: impl IntoIterator<Item = Region>) -> usize {
        let mut dropped = 0;
        let mut taken: ArrayVec<Region, MAX_CLAIMS> = ArrayVec::new();
        for mut claim in claims {
            claim.end = claim.end.min(ADDRESS_END);
            if claim.start < claim.end && taken.try_push(claim).is_err() {
                dropped += 1;
            }
        }
        let mut edges: ArrayVec<u64, MAX_REGIONS> = ArrayVec::new();
        for edge in taken.iter().flat_map(|claim| [claim.start, claim.end]) {
            edges.insert(edges.partition_point(|before| *before <= edge), edge);
        }
        self.regions.clear();
        for pair in edges.windows(2) {
            let [start, end] = *pair else { continue };
            let covering = taken.iter().filter(|claim| claim.start <= start && claim.end >= end);
            if let (true, Some(kind)) = (start < end, covering.map(|claim| claim.kind).max()) {
                self.append(Region { start, end, kind });
            }
        }
        dropped
    }

    /// Regions in rising order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Gives `range` another kind where it is RAM; what is not RAM stays what it is.
    pub fn claim_ram(&mut self, range: Range<u64>, kind: Kind) {
        if range.is_empty() {
            return;
        }
        let before = core::mem::take(&mut self.regions);
        for region in before {
            let cut = region.start.max(range.start)..region.end.min(range.end);
            if region.kind != Kind::RAM || cut.is_empty() {
                self.append(region);
                continue;
            }
            self.append(Region {
                end: cut.start,
                ..region
            });
            self.append(Region {
                start: cut.start,
                end: cut.end,
                kind,
            });
            self.append(Region {
                start: cut.end,
                ..region
            });
        }
    }

    /// Forgets RAM from `end` on (`mem=`).
    pub fn clip_ram(&mut self, end: u64) {
        for region in self.regions.iter_mut().filter(|region| region.kind == Kind::RAM) {
            region.end = region.end.min(end);
        }
        self.regions.retain(|region| region.start < region.end);
    }

    /// Keeps `bytes` of RAM, the lowest (`availmem=`).
    pub fn limit_ram(&mut self, bytes: u64) {
        let mut left = bytes;
        for region in self.regions.iter_mut().filter(|region| region.kind == Kind::RAM) {
            let kept = (region.end - region.start).min(left);
            region.end = region.start + kept;
            left -= kept;
        }
        self.regions.retain(|region| region.start < region.end);
    }

    /// Whole pages of RAM, as ranges of byte addresses.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.regions
            .iter()
            .filter(|region| region.kind == Kind::RAM)
            .map(|region| region.start.next_multiple_of(4096)..region.end & !4095)
            .filter(|range| !range.is_empty())
    }

    /// Number of whole pages of RAM.
    pub fn ram_pages(&self) -> u64 {
        self.ram().map(|range| (range.end - range.start) / 4096).sum()
    }

    /// Behind the last byte of RAM; 0 without any.
    pub fn ram_end(&self) -> u64 {
        self.ram().map(|range| range.end).max().unwrap_or(0)
    }

    /// Whether all of `range` is RAM.
    pub fn is_ram(&self, range: Range<u64>) -> bool {
        self.regions
            .iter()
            .any(|region| region.kind == Kind::RAM && region.start <= range.start && region.end >= range.end)
    }

    /// Adds at the end, or grows the last; the array is full only if it came in full of RAM, in which
    /// case the rest is lost to us but not misused.
    fn append(&mut self, region: Region) {
        if region.start >= region.end {
            return;
        }
        match self.regions.last_mut() {
            Some(last) if last.end == region.start && last.kind == region.kind => last.end = region.end,
            _ => drop(self.regions.try_push(region)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn map(claims: &[(u64, u64, u32)]) -> MemoryMap {
        let mut map = MemoryMap::default();
        let regions = claims.iter().map(|&(start, end, kind)| Region {
            start,
            end,
            kind: Kind(kind),
        });
        assert_eq!(map.sanitise(regions), 0);
        map
    }

    fn plain(map: &MemoryMap) -> Vec<(u64, u64, u32)> {
        map.regions()
            .iter()
            .map(|region| (region.start, region.end, region.kind.0))
            .collect()
    }

    fn audit(map: &MemoryMap) {
        for region in map.regions() {
            assert!(region.start < region.end);
        }
        for pair in map.regions().windows(2) {
            assert!(pair[0].end <= pair[1].start);
            assert!(pair[0].end < pair[1].start || pair[0].kind != pair[1].kind);
        }
    }

    #[test]
    fn overlaps_go_to_the_more_restrictive_kind() {
        let map = map(&[
            (0x10_0000, 0x4000_0000, 1),
            (0, 0xa_0000, 1),
            (0x9_f000, 0x10_0000, 2),
            (0x3000_0000, 0x3000_1000, 4),
        ]);
        let expected = [
            (0, 0x9_f000, 1),
            (0x9_f000, 0x10_0000, 2),
            (0x10_0000, 0x3000_0000, 1),
            (0x3000_0000, 0x3000_1000, 4),
            (0x3000_1000, 0x4000_0000, 1),
        ];
        assert_eq!(plain(&map), expected);
        assert!(map.is_ram(0x20_0000..0x30_0000) && !map.is_ram(0..0x10_0000));
    }

    #[test]
    fn claimed_ram_is_no_longer_ram() {
        let mut map = map(&[(0, 0x10_0000, 1), (0x10_0000, 0x20_0000, 2)]);
        map.claim_ram(0x8_0000..0x18_0000, Kind::UNUSABLE);
        assert_eq!(
            plain(&map),
            [(0, 0x8_0000, 1), (0x8_0000, 0x10_0000, 5), (0x10_0000, 0x20_0000, 2)]
        );
    }

    #[test]
    fn pages_cut_by_an_edge_do_not_count() {
        let mut map = map(&[(0x800, 0x3800, 1), (0x3800, 0x5000, 2), (0x10_0000, 0x11_0000, 1)]);
        assert_eq!(map.ram_pages(), 2 + 16);
        map.limit_ram(0x3000 + 0x4000);
        assert_eq!(map.ram_end(), 0x10_4000);
        map.clip_ram(0x10_0000);
        assert_eq!(map.ram_end(), 0x3000);
    }

    proptest! {
        #[test]
        fn every_byte_keeps_its_most_restrictive_kind(claims in prop::collection::vec((0u64..64, 0u64..64, 1u32..6), 0..20), claim in 0u64..64) {
            let scaled: Vec<_> = claims.iter().map(|&(start, end, kind)| (start * 512, end * 512, kind)).collect();
            let mut map = map(&scaled);
            audit(&map);
            for at in (0..64 * 512).step_by(256) {
                let wanted = scaled.iter().filter(|c| c.0 <= at && at < c.1).map(|c| c.2).max();
                let found = map.regions().iter().find(|r| r.start <= at && at < r.end).map(|r| r.kind.0);
                prop_assert_eq!(wanted, found);
            }
            map.claim_ram(claim * 512..claim * 512 + 4096, Kind::RESERVED);
            audit(&map);
        }
    }
}
