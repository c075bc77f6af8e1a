//! Where everything lies in a PV domain at its start: pure arithmetic, for Domain 0 and the toolstack.
//!
//! The kernel finds its memory as `abi::xen` ("start-of-day memory layout") promises: from
//! `virt_base`, virtual addresses and pfns rise together through kernel, initrd, P2M list, start info
//! (xenstore and console page), page tables and one page of stack, up to a 4 MiB boundary with at least
//! 512 KiB to spare. A kernel that says so gets its initrd outside of that mapping, and its P2M list at
//! an address of its own; both then take the pfns behind it.
//!
//! Always true of a [`Layout`]:
//! 1. No pfn serves two purposes, and all are below the domain's size.
//! 2. The root table is the first page at [`Layout::page_tables`], as kernels expect.
//! 3. [`Layout::entries`] maps every page of both areas once, page tables read-only.

use crate::kernel::PvImage;
use core::fmt;
use core::ops::Range;

const PAGE: u64 = 4096;
const SLACK: u64 = 512 << 10;
const STEP: u64 = 4 << 20;
/// What the hypervisor keeps for itself (`HYPERVISOR_VIRT_START`, `HYPERVISOR_VIRT_END`).
const HOLE: Range<u64> = 0xffff_8000_0000_0000..0xffff_8800_0000_0000;

/// What has to find its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Virtual address of pfn 0.
    pub virt_base: u64,
    /// Virtual addresses of the kernel.
    pub kernel: (u64, u64),
    /// Length of the initrd in bytes, 0 for none.
    pub initrd_bytes: u64,
    /// The initrd may stay out of the mapping.
    pub unmapped_initrd: bool,
    /// The kernel's own address for the P2M list.
    pub init_p2m: Option<u64>,
    /// Entries of the P2M list, usually the domain's pages.
    pub p2m_entries: u64,
    /// Pages the domain has.
    pub nr_pages: u64,
    /// Pages behind start info: 2 (xenstore, console) for a guest, 0 for Domain 0.
    pub special_pages: u64,
}

impl Request {
    /// What `image` asks for, in a domain of `nr_pages`.
    pub fn of(image: &PvImage<'_>, initrd_bytes: u64, nr_pages: u64, special_pages: u64) -> Self {
        Request {
            virt_base: image.virt_base,
            kernel: (image.kernel_start, image.kernel_end),
            initrd_bytes,
            unmapped_initrd: image.unmapped_initrd,
            init_p2m: image.init_p2m,
            p2m_entries: nr_pages,
            nr_pages,
            special_pages,
        }
    }
}

/// Why there is no layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DoesNotFit {
    /// The domain is too small.
    Pages {
        /// Pages that it takes.
        needed: u64,
        /// Pages that there are.
        available: u64,
    },
    /// The mapping runs over the end of the address space or into the hypervisor's part.
    Addresses(u64),
    /// Not on a page boundary.
    Unaligned(u64),
    /// The P2M list's own address lies in the mapping of everything else.
    P2mOverlaps(u64),
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DoesNotFit::Pages { needed, available } => {
                write!(f, "needs at least {} KiB of memory, has {}", needed * 4, available * 4)
            }
            DoesNotFit::Addresses(at) => write!(f, "cannot be mapped at {at:#x}"),
            DoesNotFit::Unaligned(at) => write!(f, "address {at:#x} is not on a page boundary"),
            DoesNotFit::P2mOverlaps(at) => write!(f, "P2M list at {at:#x} overlaps the kernel's mapping"),
        }
    }
}

impl core::error::Error for DoesNotFit {}

/// A run of pages and, if it is mapped, its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Area {
    /// First pfn.
    pub pfn: u64,
    /// Number of pages, maybe 0.
    pub pages: u64,
    /// Virtual address of the first page.
    pub vaddr: Option<u64>,
}

impl Area {
    /// The pfns.
    pub fn pfns(&self) -> Range<u64> {
        self.pfn..self.pfn + self.pages
    }
}

/// The places. Every field is an answer for `start_info` or for the builder.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The kernel, with what lies before it (pfn 0 on).
    pub kernel: Area,
    /// The initrd: `mod_start` is its address or, unmapped, its pfn (`SIF_MOD_START_PFN`).
    pub initrd: Area,
    /// The P2M list: `mfn_list` is its address.
    pub p2m: Area,
    /// One page.
    pub start_info: Area,
    /// [`Request::special_pages`] pages: xenstore's, then the console's.
    pub special: Area,
    /// `pt_base` and `nr_pt_frames`; the root comes first.
    pub page_tables: Area,
    /// One page; the kernel starts with the stack pointer at its end.
    pub stack: Area,
    /// Tables of a P2M list with its own address, behind its pages: with them `nr_p2m_frames`.
    pub p2m_tables: Area,
    /// Virtual address of pfn 0.
    pub virt_base: u64,
    /// Behind the last mapped byte.
    pub virt_end: u64,
    /// Pfns in use or mapped; those from here on are free memory.
    pub used_pages: u64,
    main: Tables,
    own: Tables,
}

/// An entry of a page table to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Level of the table: 4 for the root, 1 for the one that maps pages.
    pub level: u8,
    /// The table's pfn.
    pub table: u64,
    /// Index within the table.
    pub slot: u16,
    /// The pfn to point to.
    pub target: u64,
    /// Whether pages behind it can be written.
    pub writable: bool,
}

impl Entry {
    /// The entry's low bits: present, user, accessed; dirty in upper levels; writable if it may be.
    pub fn flags(&self) -> u64 {
        const PRESENT_USER_ACCESSED: u64 = 0x25;
        PRESENT_USER_ACCESSED | if self.writable { 2 } else { 0 } | if self.level > 1 { 0x40 } else { 0 }
    }
}

/// The tables of one mapping: per level 1 to 3 a run of keys, and the pfn of the first.
///
/// A table's key is the virtual address that it begins at, shifted down by what it spans.
#[derive(Clone, Debug, Default)]
struct Tables {
    vaddr: u64,
    pages: u64,
    first_pfn: u64,
    levels: [Keys; 3],
}

#[derive(Clone, Copy, Debug, Default)]
struct Keys {
    first: u64,
    count: u64,
    pfn: u64,
}

impl Keys {
    fn find(&self, key: u64) -> Option<u64> {
        let index = key.checked_sub(self.first).filter(|&index| index < self.count)?;
        Some(self.pfn + index)
    }
}

const fn span_shift(level: usize) -> u32 {
    12 + 9 * level as u32
}

impl Tables {
    /// Tables for `pages` at `vaddr`, taking pfns from `next` on, save those that `shared` has already.
    fn plan(vaddr: u64, pages: u64, first_pfn: u64, mut next: u64, shared: Option<&Tables>) -> Tables {
        let mut tables = Tables {
            vaddr,
            pages,
            first_pfn,
            levels: [Keys::default(); 3],
        };
        if pages == 0 {
            return tables;
        }
        let last_byte = vaddr + (pages * PAGE - 1);
        for level in [3, 2, 1] {
            let (mut first, mut last) = (vaddr >> span_shift(level), last_byte >> span_shift(level));
            // The two mappings are apart, so they share tables at one end at most.
            let known = |key| shared.is_some_and(|shared| shared.levels[level - 1].find(key).is_some());
            let mut count = last - first + 1;
            if known(first) {
                first += 1;
                count -= 1;
            }
            if count > 0 && known(last) {
                last -= 1;
                count = last + 1 - first;
            }
            tables.levels[level - 1] = Keys {
                first,
                count,
                pfn: next,
            };
            next += count;
        }
        tables
    }

    fn count(&self) -> u64 {
        self.levels.iter().map(|keys| keys.count).sum()
    }
}

impl Layout {
    /// Finds a place for everything.
    pub fn plan(request: &Request) -> Result<Layout, DoesNotFit> {
        let base = request.virt_base;
        for address in [Some(base), request.init_p2m].into_iter().flatten() {
            if address % PAGE != 0 {
                return Err(DoesNotFit::Unaligned(address));
            }
        }
        let kernel_bytes = request
            .kernel
            .1
            .checked_sub(base)
            .ok_or(DoesNotFit::Addresses(request.kernel.1))?;
        let too_large = DoesNotFit::Pages {
            needed: u64::MAX / PAGE,
            available: request.nr_pages,
        };
        let p2m_pages = pages_of(request.p2m_entries.checked_mul(8).ok_or(too_large)?);
        let initrd_pages = pages_of(request.initrd_bytes);
        let too_many = |count: u64| count > request.nr_pages;
        if [pages_of(kernel_bytes), p2m_pages, initrd_pages, request.special_pages]
            .into_iter()
            .any(too_many)
        {
            let needed = pages_of(kernel_bytes)
                .saturating_add(p2m_pages)
                .saturating_add(initrd_pages);
            return Err(DoesNotFit::Pages {
                needed,
                available: request.nr_pages,
            });
        }

        let mut next = 0;
        let mut mapped = |pages: u64| {
            let pfn = next;
            next += pages;
            Area {
                pfn,
                pages,
                vaddr: base.checked_add(pfn * PAGE),
            }
        };
        let kernel = mapped(pages_of(kernel_bytes));
        let mut initrd = mapped(if request.unmapped_initrd { 0 } else { initrd_pages });
        let mut p2m = mapped(if request.init_p2m.is_some() { 0 } else { p2m_pages });
        let start_info = mapped(1);
        let special = mapped(request.special_pages);
        let (page_tables, virt_end, main) = plan_tables(base, next)?;
        let stack_pfn = page_tables.pfns().end;
        let stack = Area {
            pfn: stack_pfn,
            pages: 1,
            vaddr: Some(base + stack_pfn * PAGE),
        };

        let mut used_pages = (virt_end - base) / PAGE;
        let mut unmapped = |pages: u64, vaddr| {
            let pfn = used_pages;
            used_pages += pages;
            Area { pfn, pages, vaddr }
        };
        if request.unmapped_initrd {
            initrd = unmapped(initrd_pages, None);
        }
        let mut own = Tables::default();
        let mut p2m_tables = Area::default();
        if let Some(address) = request.init_p2m {
            check_addresses(address, p2m_pages)?;
            let p2m_end = address + p2m_pages * PAGE;
            if address < virt_end && p2m_end > base {
                return Err(DoesNotFit::P2mOverlaps(address));
            }
            p2m = unmapped(p2m_pages, Some(address));
            own = Tables::plan(address, p2m_pages, p2m.pfn, p2m.pfns().end, Some(&main));
            p2m_tables = unmapped(own.count(), None);
        }
        if used_pages > request.nr_pages {
            return Err(DoesNotFit::Pages {
                needed: used_pages,
                available: request.nr_pages,
            });
        }
        Ok(Layout {
            kernel,
            initrd,
            p2m,
            start_info,
            special,
            page_tables,
            stack,
            p2m_tables,
            virt_base: base,
            virt_end,
            used_pages,
            main,
            own,
        })
    }

    /// The root table's pfn.
    pub fn root(&self) -> u64 {
        self.page_tables.pfn
    }

    /// Initial stack pointer.
    pub fn stack_top(&self) -> u64 {
        self.virt_base + (self.stack.pfn + 1) * PAGE
    }

    /// `first_p2m_pfn` and `nr_p2m_frames`: 0 unless the P2M list has an address of its own.
    pub fn p2m_frames(&self) -> (u64, u64) {
        match self.p2m_tables.pages {
            0 if self.own.pages == 0 => (0, 0),
            tables => (self.p2m.pfn, self.p2m.pages + tables),
        }
    }

    /// Whether that pfn holds a page table.
    pub fn is_page_table(&self, pfn: u64) -> bool {
        self.page_tables.pfns().contains(&pfn) || self.p2m_tables.pfns().contains(&pfn)
    }

    /// Pages that hold tables, with their level.
    pub fn tables(&self) -> impl Iterator<Item = (u64, u8)> + '_ {
        let below = [&self.main, &self.own].into_iter().flat_map(|tables| {
            [3u8, 2, 1].into_iter().flat_map(move |level| {
                let keys = tables.levels[usize::from(level) - 1];
                (keys.pfn..keys.pfn + keys.count).map(move |pfn| (pfn, level))
            })
        });
        core::iter::once((self.root(), 4)).chain(below)
    }

    /// Every entry to write, upper levels first; tables start out zeroed.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let both = [&self.main, &self.own];
        let upper = [4u8, 3, 2].into_iter().flat_map(move |level| {
            both.into_iter().flat_map(move |tables| {
                let keys = tables.levels[usize::from(level) - 2];
                (0..keys.count).map(move |index| {
                    let key = keys.first + index;
                    let table = self.table(level, key >> 9);
                    Entry {
                        level,
                        table,
                        slot: (key & 511) as u16,
                        target: keys.pfn + index,
                        writable: true,
                    }
                })
            })
        });
        let leaves = both.into_iter().flat_map(move |tables| {
            (0..tables.pages).map(move |index| {
                let page = (tables.vaddr >> 12) + index;
                let target = tables.first_pfn + index;
                let writable = !self.is_page_table(target);
                Entry {
                    level: 1,
                    table: self.table(1, page >> 9),
                    slot: (page & 511) as u16,
                    target,
                    writable,
                }
            })
        });
        upper.chain(leaves)
    }

    fn table(&self, level: u8, key: u64) -> u64 {
        if level == 4 {
            return self.root();
        }
        let index = usize::from(level) - 1;
        let found = self.main.levels[index]
            .find(key)
            .or_else(|| self.own.levels[index].find(key));
        found.expect("every key below was counted into a table by plan()")
    }
}

fn pages_of(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE)
}

/// Tables lie in what they map, so their number is found by trying.
fn plan_tables(base: u64, pfn: u64) -> Result<(Area, u64, Tables), DoesNotFit> {
    let wrong = DoesNotFit::Addresses(base);
    let mut count = 4;
    loop {
        let stack_end = (pfn + count + 1)
            .checked_mul(PAGE)
            .and_then(|bytes| base.checked_add(bytes))
            .ok_or(wrong)?;
        let mut end = stack_end.checked_next_multiple_of(STEP).ok_or(wrong)?;
        if end - stack_end < SLACK {
            end = end.checked_add(STEP).ok_or(wrong)?;
        }
        let pages = (end - base) / PAGE;
        check_addresses(base, pages)?;
        let tables = Tables::plan(base, pages, 0, pfn + 1, None);
        if tables.count() < count {
            return Ok((
                Area {
                    pfn,
                    pages: count,
                    vaddr: Some(base + pfn * PAGE),
                },
                end,
                tables,
            ));
        }
        count = tables.count() + 1;
    }
}

/// All in one canonical half and out of the hypervisor's part.
fn check_addresses(start: u64, pages: u64) -> Result<(), DoesNotFit> {
    let wrong = DoesNotFit::Addresses(start);
    let end = pages
        .checked_mul(PAGE)
        .and_then(|bytes| start.checked_add(bytes))
        .ok_or(wrong)?;
    let fits = end <= 1 << 47 || start >= HOLE.end;
    if fits { Ok(()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn linux(nr_pages: u64, initrd_bytes: u64) -> Request {
        Request {
            virt_base: 0xffff_ffff_8000_0000,
            kernel: (0xffff_ffff_8100_0000, 0xffff_ffff_84a0_0000),
            initrd_bytes,
            unmapped_initrd: true,
            init_p2m: Some(0x80_0000_0000),
            p2m_entries: nr_pages,
            nr_pages,
            special_pages: 2,
        }
    }

    /// Walks as a CPU would; checks all that the module promises.
    fn audit(request: &Request, layout: &Layout) {
        let areas = [
            layout.kernel,
            layout.initrd,
            layout.p2m,
            layout.start_info,
            layout.special,
            layout.page_tables,
            layout.stack,
            layout.p2m_tables,
        ];
        let mut owned = BTreeSet::new();
        for pfn in areas.iter().flat_map(Area::pfns) {
            assert!(owned.insert(pfn), "pfn {pfn} twice");
            assert!(pfn < layout.used_pages && layout.used_pages <= request.nr_pages);
        }
        let levels: BTreeMap<u64, u8> = layout.tables().collect();
        assert_eq!(levels.len() as u64, layout.page_tables.pages + layout.p2m_tables.pages);
        assert!(levels.keys().all(|&pfn| layout.is_page_table(pfn)));
        let mut slots = BTreeMap::new();
        for entry in layout.entries() {
            assert_eq!(levels[&entry.table], entry.level);
            if entry.level > 1 {
                assert_eq!(levels[&entry.target], entry.level - 1);
            }
            assert!(slots.insert((entry.table, entry.slot), entry).is_none(), "a slot twice");
        }
        let walk = |vaddr: u64| {
            let mut table = layout.root();
            for level in (1..=4).rev() {
                let slot = (vaddr >> (3 + 9 * level) & 511) as u16;
                let entry: &Entry = &slots[&(table, slot)];
                assert_eq!(u64::from(entry.level), level);
                if level == 1 {
                    assert_eq!(entry.writable, !layout.is_page_table(entry.target));
                }
                table = entry.target;
            }
            table
        };
        let pages = (layout.virt_end - layout.virt_base) / PAGE;
        for pfn in 0..pages {
            assert_eq!(walk(layout.virt_base + pfn * PAGE), pfn);
        }
        if request.init_p2m.is_some() {
            for index in 0..layout.p2m.pages {
                assert_eq!(walk(layout.p2m.vaddr.unwrap() + index * PAGE), layout.p2m.pfn + index);
            }
        }
        let leaves = slots.values().filter(|entry| entry.level == 1).count() as u64;
        assert_eq!(
            leaves,
            pages
                + if request.init_p2m.is_some() {
                    layout.p2m.pages
                } else {
                    0
                }
        );
        let stack_end = layout.stack_top();
        assert!(layout.virt_end - stack_end >= SLACK && layout.virt_end.is_multiple_of(STEP));
        assert!(layout.virt_end - stack_end < SLACK + STEP);
        assert_eq!(layout.stack.pfn, layout.page_tables.pfns().end);
    }

    #[test]
    fn linux_finds_its_p2m_and_initrd_outside_of_the_mapping() {
        let request = linux(1 << 17, 30_000_001);
        let layout = Layout::plan(&request).unwrap();
        audit(&request, &layout);
        assert_eq!(layout.kernel.pages, 0x4a00);
        assert_eq!(layout.start_info.vaddr, Some(0xffff_ffff_84a0_0000));
        assert_eq!(layout.page_tables.vaddr, Some(0xffff_ffff_84a0_3000));
        assert_eq!(
            layout.initrd,
            Area {
                pfn: (layout.virt_end - layout.virt_base) / PAGE,
                pages: 7325,
                vaddr: None
            }
        );
        assert_eq!((layout.p2m.pages, layout.p2m.vaddr), (256, Some(0x80_0000_0000)));
        assert_eq!(layout.p2m_frames(), (layout.p2m.pfn, 256 + 3));
    }

    #[test]
    fn an_old_kernel_finds_all_in_one_row() {
        let request = Request {
            unmapped_initrd: false,
            init_p2m: None,
            special_pages: 0,
            ..linux(1 << 16, 5000)
        };
        let layout = Layout::plan(&request).unwrap();
        audit(&request, &layout);
        assert_eq!(layout.initrd.vaddr, Some(0xffff_ffff_84a0_0000));
        assert_eq!(layout.p2m.vaddr, Some(0xffff_ffff_84a0_2000));
        assert_eq!(layout.start_info.vaddr, Some(0xffff_ffff_84a8_2000));
        assert_eq!(layout.p2m_frames(), (0, 0));
    }

    #[test]
    fn a_tiny_guest_at_zero_needs_a_few_tables() {
        let request = Request {
            virt_base: 0,
            kernel: (0x10_0000, 0x14_0000),
            initrd_bytes: 0,
            unmapped_initrd: false,
            init_p2m: None,
            p2m_entries: 2048,
            nr_pages: 2048,
            special_pages: 2,
        };
        let layout = Layout::plan(&request).unwrap();
        audit(&request, &layout);
        assert_eq!((layout.page_tables.pages, layout.virt_end), (5, 4 << 20));
    }

    #[test]
    fn refusals_say_how_much_would_do() {
        let refusal = Layout::plan(&linux(1000, 0)).unwrap_err();
        assert!(matches!(refusal, DoesNotFit::Pages { available: 1000, .. }));
        let Err(DoesNotFit::Pages { needed, .. }) = Layout::plan(&linux(0x4b00, 0)) else {
            panic!()
        };
        assert!(
            Layout::plan(&Request {
                nr_pages: needed,
                ..linux(0x4b00, 0)
            })
            .is_ok()
        );
        let hole = Request {
            init_p2m: Some(0xffff_8000_0000_0000),
            ..linux(1 << 17, 0)
        };
        assert_eq!(
            Layout::plan(&hole).unwrap_err(),
            DoesNotFit::Addresses(0xffff_8000_0000_0000)
        );
        let inside = Request {
            init_p2m: Some(0xffff_ffff_8000_0000),
            ..linux(1 << 17, 0)
        };
        assert_eq!(
            Layout::plan(&inside).unwrap_err(),
            DoesNotFit::P2mOverlaps(0xffff_ffff_8000_0000)
        );
        let high = Request {
            virt_base: 0xffff_ffff_ffc0_0000,
            kernel: (0xffff_ffff_ffc0_0000, 0xffff_ffff_ffd0_0000),
            ..linux(1 << 17, 0)
        };
        assert!(matches!(Layout::plan(&high), Err(DoesNotFit::Addresses(_))));
        assert!(
            Layout::plan(&Request {
                p2m_entries: u64::MAX,
                ..linux(1 << 17, 0)
            })
            .is_err()
        );
        assert!(
            Layout::plan(&Request {
                initrd_bytes: u64::MAX,
                ..linux(1 << 17, 0)
            })
            .is_err()
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_layout_is_sound(
            base in prop::sample::select(&[0u64, 0x1000, 0x3f_f000, 0x7f_ffff_0000, 0x3fff_f000, 0xffff_8800_0000_0000, 0xffff_ffff_8000_0000][..]),
            kernel_pages in 1u64..3000, initrd in 0u64..5_000_000, unmapped: bool, special in 0u64..3,
            p2m in prop::option::of(prop::sample::select(&[0x80_0000_0000u64, 0x4000_0000, 0x200_0000, 0xffff_9000_0000_0000, 0x7f_fff0_0000][..])),
            entries in 1u64..2_000_000,
        ) {
            let request = Request {
                virt_base: base, kernel: (base, base + kernel_pages * PAGE - 7), initrd_bytes: initrd, unmapped_initrd: unmapped,
                init_p2m: p2m, p2m_entries: entries, nr_pages: 1 << 16, special_pages: special,
            };
            match Layout::plan(&request) {
                Ok(layout) => audit(&request, &layout),
                Err(DoesNotFit::P2mOverlaps(_)) => {}
                Err(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
