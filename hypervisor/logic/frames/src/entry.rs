//! What an entry of a page table may say, level by level.
//!
//! Guests of ours are 64-bit and run at CPL 3 in kernel and user mode alike, so every present entry gets the
//! user bit. Large pages are refused: an entry above level 1 always names a table. SDM 3A "4-Level Paging".

use crate::word::Refused;

/// Bits of an entry.
pub mod bits {
    #![allow(missing_docs, reason = "SDM 3A \"Formats of paging-structure entries\"")]
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const WRITE_THROUGH: u64 = 1 << 3;
    pub const CACHE_DISABLE: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    /// Large page above level 1; at level 1 the page-attribute-table bit.
    pub const LARGE_OR_PAT: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    /// Bits 9 to 11, the operating system's.
    pub const AVAILABLE: u64 = 7 << 9;
    /// Bits 52 to 62, the operating system's.
    pub const AVAILABLE_HIGH: u64 = 0x7ff << 52;
    /// `_PAGE_GUEST_KERNEL`: a page that the guest's user mode must not see. We keep it; it is the guest's memo.
    pub const GUEST_KERNEL: u64 = 1 << 52;
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// The frame number's place.
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
    /// What chooses the memory type of a level-1 entry.
    pub const CACHING: u64 = WRITE_THROUGH | CACHE_DISABLE | LARGE_OR_PAT;
}

use bits::*;

/// Bits that a guest may set at any level.
const ALLOWED: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY | AVAILABLE | AVAILABLE_HIGH | NO_EXECUTE | FRAME;

/// A change in these alone needs no new look at what the entry names.
const HARMLESS: u64 = NO_EXECUTE | AVAILABLE_HIGH | AVAILABLE | GLOBAL | DIRTY | ACCESSED | USER;

/// One entry of a page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(pub u64);

impl Entry {
    /// Nothing is mapped.
    pub const EMPTY: Entry = Entry(0);

    /// Whether the CPU would follow it.
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// Whether it allows writes.
    #[inline(always)]
    pub const fn is_writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// The frame that it names.
    #[inline(always)]
    pub const fn mfn(self) -> u64 {
        (self.0 & FRAME) >> 12
    }

    /// Refuses bits that a guest may not set in a present entry of that level.
    ///
    /// `caching` says whether the domain may choose memory types (those that have devices may).
    #[inline(always)]
    pub const fn check(self, level: u8, caching: bool) -> Result<(), Refused> {
        let mut allowed = ALLOWED;
        if level == 1 {
            allowed |= GLOBAL;
            if caching {
                allowed |= CACHING;
            }
        }
        let bad = self.0 & !allowed;
        if bad == 0 { Ok(()) } else { Err(Refused::BadBits(bad)) }
    }

    /// The entry as it is written for a guest: user-accessible, and never global, since what is global would
    /// outlive the flush at a change of tables.
    #[inline(always)]
    pub const fn adjusted(self, level: u8) -> Entry {
        if !self.is_present() {
            return self;
        }
        let mut raw = self.0;
        if level == 1 {
            raw &= !GLOBAL;
            if raw & USER == 0 {
                raw |= GUEST_KERNEL;
            }
        }
        Entry(raw | USER)
    }

    /// Whether both name the same frame with the same rights.
    #[inline(always)]
    pub const fn is_similar(self, other: Entry) -> bool {
        (self.0 ^ other.0) & !HARMLESS == 0
    }
}

/// Entries in a table.
pub const ENTRIES: usize = 512;

/// Whether a slot of a level-4 table belongs to the hypervisor, in every domain alike.
#[inline(always)]
pub const fn is_own_slot(index: usize) -> bool {
    index >= 256 && index <= 271
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pages_are_refused_above_level_1() {
        for level in 2..=4 {
            assert!(Entry(PRESENT | LARGE_OR_PAT).check(level, true).is_err());
        }
    }

    #[test]
    fn only_domains_with_devices_choose_memory_types_and_only_in_leaves() {
        let uncached = Entry(PRESENT | CACHE_DISABLE);
        assert!(uncached.check(1, true).is_ok());
        assert!(uncached.check(1, false).is_err());
        assert!(uncached.check(2, true).is_err());
    }

    #[test]
    fn present_entries_become_user_accessible_and_absent_ones_stay_as_they_are() {
        assert_eq!(Entry(PRESENT).adjusted(1), Entry(PRESENT | USER | GUEST_KERNEL));
        assert_eq!(Entry(PRESENT | USER | GLOBAL).adjusted(1), Entry(PRESENT | USER));
        assert_eq!(Entry(PRESENT).adjusted(3), Entry(PRESENT | USER));
        assert_eq!(Entry(0x1234_5670).adjusted(1), Entry(0x1234_5670));
    }

    #[test]
    fn a_change_of_right_or_frame_is_no_small_change() {
        let entry = Entry(PRESENT | 0x5000);
        assert!(!entry.is_similar(Entry(PRESENT | WRITABLE | 0x5000)));
        assert!(!entry.is_similar(Entry(PRESENT | 0x6000)));
        assert!(!entry.is_similar(Entry(0x5000)));
        assert!(entry.is_similar(Entry(PRESENT | ACCESSED | DIRTY | NO_EXECUTE | 0x5000)));
    }
}
