//! Where everything goes in a new PV domain: pure arithmetic, no host needed.
//!
//! In order of pseudo-physical frames: the kernel where its segments say, the initrd (unless the kernel takes
//! it unmapped), the P2M list (unless the kernel has a place of its own for it), start_info, the rings of
//! xenstore and console, the page tables with the top level first, and the boot stack. All that is mapped from
//! `virt_base` on, in order, up to a 4 MiB boundary that leaves 512 KiB or more behind the stack. What is not
//! mapped there comes behind.
//!
//! Upstream: the comment "Start-of-day memory layout" in xen/include/public/xen.h.
//!
//! Always true (the tests check it): no two parts share a frame, every part lies within the domain's memory,
//! and the tables suffice for all that is mapped.

use ferroxen_loader::kernel::PvImage;
use std::collections::BTreeSet;
use std::ops::Range;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Room that a kernel finds mapped behind its stack, at least.
const SLACK: u64 = 512 << 10;
/// To which the mapping is rounded up.
const MAP_ALIGN: u64 = 4 << 20;
/// An entry that points to another table: present, writable, user, accessed, dirty.
const TABLE_FLAGS: u64 = 0x67;
/// The top level has no dirty bit.
const TOP_FLAGS: u64 = 0x27;
/// A page of the kernel: present, writable, accessed.
const PAGE_FLAGS: u64 = 0x23;
const WRITABLE: u64 = 0x2;

/// What a kernel's image says that matters here.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Virtual address of frame 0.
    pub virt_base: u64,
    /// The kernel's bytes, as pseudo-physical addresses.
    pub kernel: Range<u64>,
    /// Where it wants the P2M list, if it cares.
    pub init_p2m: Option<u64>,
    /// It finds its initrd by frame number.
    pub takes_unmapped_initrd: bool,
}

impl Wishes {
    /// Of a kernel's image.
    pub fn of(image: &PvImage<'_>) -> Wishes {
        Wishes {
            virt_base: image.virt_base,
            kernel: image.kernel_paddrs(),
            init_p2m: image.init_p2m,
            takes_unmapped_initrd: image.unmapped_initrd,
        }
    }
}

/// The places.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Virtual address of frame 0.
    pub virt_base: u64,
    /// Frames of the domain.
    pub frames: u64,
    /// First and last-plus-one frame of the initrd.
    pub initrd: Option<Range<u64>>,
    /// The initrd is named by frame number, not by address.
    pub initrd_is_unmapped: bool,
    /// Frames of the P2M list.
    pub p2m: Range<u64>,
    /// Virtual address of the P2M list.
    pub p2m_vaddr: u64,
    /// The P2M list is at a place of its own.
    pub p2m_is_apart: bool,
    /// Frame of start_info.
    pub start_info: u64,
    /// Frame of the xenstore ring.
    pub store: u64,
    /// Frame of the console ring.
    pub console: u64,
    /// Frames of the page tables, the top level first.
    pub tables: Range<u64>,
    /// Frame of the boot stack.
    pub stack: u64,
    /// Virtual addresses mapped from `virt_base` on.
    pub mapped: Range<u64>,
    /// (level, address of its first byte over the level's span) of each table, in the order of `tables`.
    order: Order,
}

/// Tables as (level, first address mapped), in the order of their frames.
type Order = Vec<(u32, u64)>;

/// Why there is no place for everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPlace {
    /// The domain's memory is too small.
    TooSmall {
        /// Frames that are needed, at least.
        needed: u64,
    },
    /// The kernel's addresses leave no room for what has to be mapped behind it.
    AddressesEnd,
}

/// One frame of a page table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    /// Its frame.
    pub pfn: u64,
    /// Its entries.
    pub entries: Vec<u64>,
}

impl Layout {
    /// Finds a place for everything in a domain of `frames` frames.
    pub fn plan(wishes: &Wishes, frames: u64, initrd_bytes: u64) -> Result<Layout, NoPlace> {
        let initrd_frames = initrd_bytes.div_ceil(PAGE);
        let p2m_frames = (frames * 8).div_ceil(PAGE);
        let initrd_is_unmapped = wishes.takes_unmapped_initrd && initrd_bytes > 0;
        let mut next = wishes.kernel.end.div_ceil(PAGE);
        // From here on nothing is larger than a few times the domain's memory.
        if next > frames || initrd_frames > frames {
            return Err(NoPlace::TooSmall {
                needed: next.saturating_add(initrd_frames),
            });
        }
        let mut take = |count: u64| {
            let range = next..next + count;
            next += count;
            range
        };
        let mut initrd = (initrd_bytes > 0 && !initrd_is_unmapped).then(|| take(initrd_frames));
        let mut p2m = if wishes.init_p2m.is_none() {
            take(p2m_frames)
        } else {
            0..0
        };
        let [start_info, store, console] = [(); 3].map(|()| take(1).start);
        let first_table = take(0).start;
        let (order, mapped) = tables(wishes, first_table, p2m_frames).ok_or(NoPlace::AddressesEnd)?;
        let tables = take(order.len() as u64);
        let stack = take(1).start;
        // Behind the mapping if there is room, so that what a kernel takes for free behind its stack is free.
        let behind = initrd_frames * u64::from(initrd_is_unmapped) + p2m_frames * u64::from(wishes.init_p2m.is_some());
        let mapped_frames = (mapped.end - mapped.start) / PAGE;
        if mapped_frames + behind <= frames {
            let gap = mapped_frames.saturating_sub(take(0).start);
            take(gap);
        }
        if initrd_is_unmapped {
            initrd = Some(take(initrd_frames));
        }
        if wishes.init_p2m.is_some() {
            p2m = take(p2m_frames);
        }
        let needed = take(0).start;
        if needed > frames {
            return Err(NoPlace::TooSmall { needed });
        }
        let address = |pfn: u64| wishes.virt_base.wrapping_add(pfn * PAGE);
        Ok(Layout {
            virt_base: wishes.virt_base,
            frames,
            initrd,
            initrd_is_unmapped,
            p2m_vaddr: wishes.init_p2m.unwrap_or(address(p2m.start)),
            p2m_is_apart: wishes.init_p2m.is_some(),
            p2m,
            start_info,
            store,
            console,
            tables,
            stack,
            mapped,
            order,
        })
    }

    /// The virtual address of a frame in the initial mapping.
    pub fn address_of(&self, pfn: u64) -> u64 {
        self.virt_base.wrapping_add(pfn * PAGE)
    }

    /// The page tables' contents, given each frame's machine frame. Page tables themselves are mapped read-only.
    pub fn fill_tables(&self, p2m: &[u64]) -> Vec<Table> {
        let mfn = |pfn: u64| usize::try_from(pfn).ok().and_then(|pfn| p2m.get(pfn).copied());
        let stretches = self.stretches();
        self.order
            .iter()
            .zip(self.tables.clone())
            .map(|((level, base), pfn)| {
                let entries = match level {
                    1 => (0..512)
                        .map(|slot| self.leaf(base + slot * PAGE, &stretches, &mfn))
                        .collect(),
                    _ => (0..512).map(|slot| self.entry(*level, *base, slot, &mfn)).collect(),
                };
                Table { pfn, entries }
            })
            .collect()
    }

    fn entry(&self, level: u32, base: u64, slot: u64, mfn: &impl Fn(u64) -> Option<u64>) -> u64 {
        let address = base + slot * span(level - 1);
        let below = self.order.iter().position(|(l, b)| (*l, *b) == (level - 1, address));
        let flags = if level == 4 { TOP_FLAGS } else { TABLE_FLAGS };
        below
            .and_then(|at| mfn(self.tables.start + at as u64))
            .map_or(0, |mfn| (mfn * PAGE) | flags)
    }

    /// The entry for a page at a 48-bit address (see [`low48`]).
    fn leaf(&self, address: u64, stretches: &[Stretch; 2], mfn: &impl Fn(u64) -> Option<u64>) -> u64 {
        let Some(pfn) = stretches.iter().find_map(|stretch| stretch.frame_at(address)) else {
            return 0;
        };
        let flags = if self.tables.contains(&pfn) {
            PAGE_FLAGS & !WRITABLE
        } else {
            PAGE_FLAGS
        };
        mfn(pfn).map_or(0, |mfn| (mfn * PAGE) | flags)
    }

    /// What is mapped: from `virt_base` on, and the P2M where that is apart.
    fn stretches(&self) -> [Stretch; 2] {
        let stretch = |vaddr: u64, bytes: u64, first| {
            let addresses = low48(vaddr)..low48(vaddr) + bytes;
            Stretch { addresses, first }
        };
        let mapped = (self.mapped.end - self.mapped.start).min(self.frames * PAGE);
        let apart = match self.p2m_is_apart {
            true => (self.p2m.end - self.p2m.start) * PAGE,
            false => 0,
        };
        [
            stretch(self.mapped.start, mapped, 0),
            stretch(self.p2m_vaddr, apart, self.p2m.start),
        ]
    }
}

/// Addresses that are mapped to frames in a row.
struct Stretch {
    addresses: Range<u64>,
    first: u64,
}

impl Stretch {
    fn frame_at(&self, address: u64) -> Option<u64> {
        let is_here = self.addresses.contains(&address);
        is_here.then(|| self.first + (address - self.addresses.start) / PAGE)
    }
}

/// The bits of an address that the tables look at.
fn low48(address: u64) -> u64 {
    address & ((1 << 48) - 1)
}

/// Bytes that a table of this level maps; level 0 is a page.
fn span(level: u32) -> u64 {
    PAGE << (9 * level)
}

/// Which tables are needed, top level first, and what is mapped from `virt_base` on; each depends on the other.
fn tables(wishes: &Wishes, first_table: u64, p2m_frames: u64) -> Option<(Order, Range<u64>)> {
    let mut count = 0;
    loop {
        let behind_stack = wishes.virt_base.checked_add((first_table + count + 1) * PAGE)?;
        let end = behind_stack.checked_add(SLACK)?.checked_next_multiple_of(MAP_ALIGN)?;
        let from = |address: u64, len: u64| low48(address)..low48(address) + len;
        let mapped = from(wishes.virt_base, end - wishes.virt_base);
        let apart = wishes.init_p2m.map(|apart| from(apart, p2m_frames * PAGE));
        let ranges: Vec<_> = std::iter::once(mapped).chain(apart).collect();
        if ranges.iter().any(|range| range.end > 1 << 48) {
            return None;
        }
        let mut order = Vec::new();
        for level in [4, 3, 2, 1] {
            let bases: BTreeSet<u64> = ranges
                .iter()
                .flat_map(|range| {
                    let first = range.start / span(level);
                    let last = (range.end - 1) / span(level);
                    (first..=last).map(|at| at * span(level))
                })
                .collect();
            order.extend(bases.into_iter().map(|base| (level, base)));
        }
        if order.len() as u64 <= count {
            return Some((order, wishes.virt_base..end));
        }
        count = order.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(frames_mib: u64, initrd: u64) -> Result<Layout, NoPlace> {
        let wishes = Wishes {
            virt_base: 0xffff_ffff_8000_0000,
            kernel: 0x100_0000..0x340_0000,
            init_p2m: Some(0x80_0000_0000),
            takes_unmapped_initrd: true,
        };
        Layout::plan(&wishes, frames_mib * 256, initrd)
    }

    fn old(initrd: u64) -> Layout {
        let wishes = Wishes {
            virt_base: 0,
            kernel: 0..0x40_0000,
            init_p2m: None,
            takes_unmapped_initrd: false,
        };
        Layout::plan(&wishes, 16384, initrd).expect("64 MiB suffice")
    }

    fn audit(layout: &Layout, kernel_end: u64) {
        let mut parts = vec![0..kernel_end / PAGE, layout.p2m.clone(), layout.tables.clone()];
        parts.extend(layout.initrd.clone());
        for pfn in [layout.start_info, layout.store, layout.console, layout.stack] {
            parts.push(pfn..pfn + 1);
        }
        parts.sort_by_key(|part| part.start);
        for pair in parts.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{layout:?}");
        }
        assert!(parts.iter().all(|part| part.end <= layout.frames));
    }

    /// What the tables say of an address, as a CPU would walk them, with the p2m being pfn + 0x1000.
    fn walk(layout: &Layout, address: u64) -> Option<(u64, bool)> {
        let p2m: Vec<u64> = (0..layout.frames).map(|pfn| pfn + 0x1000).collect();
        let tables = layout.fill_tables(&p2m);
        let mut pfn = layout.tables.start;
        for level in [4, 3, 2, 1u32] {
            let table = tables.iter().find(|table| table.pfn == pfn)?;
            let entry = table.entries[(address / span(level - 1)) as usize % 512];
            if entry & 1 == 0 {
                return None;
            }
            pfn = (entry & 0x000f_ffff_ffff_f000) / PAGE - 0x1000;
            if level == 1 {
                return Some((pfn, entry & WRITABLE != 0));
            }
        }
        None
    }

    #[test]
    fn a_modern_linux_finds_all_where_the_interface_says() {
        let layout = linux(128, 30 << 20).expect("128 MiB suffice");
        audit(&layout, 0x340_0000);
        assert_eq!(
            walk(&layout, layout.address_of(layout.start_info)),
            Some((layout.start_info, true))
        );
        assert_eq!(
            walk(&layout, layout.address_of(layout.tables.start)),
            Some((layout.tables.start, false))
        );
        assert_eq!(
            walk(&layout, layout.p2m_vaddr + 5 * PAGE),
            Some((layout.p2m.start + 5, true))
        );
        assert_eq!(walk(&layout, layout.mapped.end), None);
        assert!(layout.mapped.end - layout.address_of(layout.stack + 1) >= SLACK);
        assert!(layout.mapped.end.is_multiple_of(MAP_ALIGN));
    }

    #[test]
    fn an_old_kernel_has_its_initrd_and_p2m_mapped_behind_it() {
        let layout = old(3 << 20);
        audit(&layout, 0x40_0000);
        assert_eq!(layout.initrd, Some(0x400..0x700));
        assert_eq!((layout.p2m.start, layout.p2m_vaddr), (0x700, 0x70_0000));
        assert_eq!(walk(&layout, 0x40_0000), Some((0x400, true)));
    }

    #[test]
    fn addresses_that_end_too_early_are_refused() {
        let wishes = |virt_base, init_p2m| Wishes {
            virt_base,
            kernel: 0..0x40_0000,
            init_p2m,
            takes_unmapped_initrd: true,
        };
        let plan = |wishes: Wishes| Layout::plan(&wishes, 16384, 0);
        assert_eq!(plan(wishes(!0 << 22, None)), Err(NoPlace::AddressesEnd));
        assert_eq!(plan(wishes(0, Some((1 << 48) - PAGE))), Err(NoPlace::AddressesEnd));
        let huge = Wishes {
            kernel: 0..!0,
            ..wishes(0, None)
        };
        assert!(matches!(plan(huge), Err(NoPlace::TooSmall { .. })));
    }

    #[test]
    fn too_little_memory_is_told_with_what_would_do() {
        let Err(NoPlace::TooSmall { needed }) = linux(64, 30 << 20) else {
            panic!("64 MiB do not suffice")
        };
        assert!(needed > 64 * 256);
        assert!(linux(needed / 256 + 1, 30 << 20).is_ok());
    }
}
