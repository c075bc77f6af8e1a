//! Address spaces: our own part of every root, loading roots, device registers.
//!
//! Our level-4 slots point to level-3 tables that are made at boot and stay; so every root that has the same
//! sixteen words sees the same hypervisor, whatever is mapped below them later.

use super::boot::ImageParts;
use super::cpu::features;
use super::fixups::on_fault;
use super::layout::*;
use super::memory::Page;
use super::{heap, m2p, percpu, tlb};
use crate::arithmetic::{is_guest_range, table_indices};
use crate::multiboot::Loader;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use ferroxen_words::{Maddr, Mfn, PAGE_SIZE, Vaddr};
use spin::mutex::SpinMutex;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const ACCESSED_DIRTY: u64 = 1 << 5 | 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const PAGE: u64 = PAGE_SIZE as u64;
const LARGE_PAGE: u64 = 2 << 20;

/// Physical address of the root that maps nothing but the hypervisor; the pattern for all others.
static OWN_ROOT: AtomicU64 = AtomicU64::new(0);

/// One past the last slot that the direct map has something in.
static DIRECT_MAP_END: AtomicUsize = AtomicUsize::new(LAST_SLOT + 1);

/// How something is mapped.
#[derive(Clone, Copy)]
pub(super) struct Access(u64);

impl Access {
    pub const CODE: Access = Access(PRESENT | GLOBAL | ACCESSED_DIRTY);
    pub const READ: Access = Access(PRESENT | GLOBAL | ACCESSED_DIRTY | NO_EXECUTE);
    pub const DATA: Access = Access(PRESENT | WRITABLE | GLOBAL | ACCESSED_DIRTY | NO_EXECUTE);
    pub const GUEST_READ: Access = Access(PRESENT | USER | GLOBAL | ACCESSED_DIRTY | NO_EXECUTE);
    pub const REGISTERS: Access = Access(PRESENT | WRITABLE | GLOBAL | ACCESSED_DIRTY | NO_EXECUTE | UNCACHED);
    /// Descriptor tables change with the guest, so they are flushed with it.
    pub const DESCRIPTORS: Access = Access(PRESENT | WRITABLE | ACCESSED_DIRTY | NO_EXECUTE);
    pub const DESCRIPTORS_EMPTY: Access = Access(PRESENT | ACCESSED_DIRTY | NO_EXECUTE);

    /// The entry's flags, less what this processor does not know.
    pub fn bits(self) -> u64 {
        let mut bits = self.0;
        if !features().nx {
            bits &= !NO_EXECUTE;
        }
        if !features().pge {
            bits &= !GLOBAL;
        }
        bits
    }
}

/// Takes frames for page tables: (count, alignment) to a physical address of zeroed memory.
pub(super) type TakeFrames<'a> = &'a mut dyn FnMut(u64, u64) -> u64;

fn table_entry(table: u64, index: usize) -> *mut u64 {
    (DIRECT_MAP + (table & ADDRESS) + 8 * index as u64) as *mut u64
}

/// The entry that maps `at` in our own root, at the level of 4 KiB (`stop` 3) or 2 MiB (`stop` 2) pages.
///
/// # Safety
/// `root` is a root made of our own tables.
#[inline(never)]
unsafe fn walk(root: u64, at: u64, stop: usize, frames: TakeFrames<'_>) -> *mut u64 {
    let indices = table_indices(at);
    let mut table = root;
    for &index in &indices[..stop] {
        let entry = table_entry(table, index);
        // SAFETY: an entry of one of our own tables, which lie in the direct map; only boot and the holder of
        // `WINDOWS` change them.
        unsafe {
            if *entry & PRESENT == 0 {
                // Only the guests' view of the M2P is theirs to see, and there the leaves decide.
                *entry = frames(1, PAGE) | PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
            }
            assert!(*entry & LARGE == 0, "{at:#x} is part of a large page");
            table = *entry;
        }
    }
    table_entry(table, indices[stop])
}

/// # Safety
/// As [`walk`]; and what the new mapping shows is not memory that safe code relies on, or it is mapped so
/// that it cannot be changed by it.
unsafe fn map(root: u64, at: u64, physical: u64, access: Access, frames: TakeFrames<'_>) {
    // SAFETY: by the caller.
    unsafe { *walk(root, at, 3, frames) = physical | access.bits() };
}

/// # Safety
/// As [`map`].
unsafe fn map_large(root: u64, at: u64, physical: u64, access: Access, frames: TakeFrames<'_>) {
    // SAFETY: by the caller.
    unsafe { *walk(root, at, 2, frames) = physical | access.bits() | LARGE };
}

/// Builds the tables that every root shares: image, direct map, machine-to-phys table, windows.
///
/// # Safety
/// Runs once, on the early tables; `frames` gives memory below 4 GiB that is nobody else's.
pub(super) unsafe fn build_own_root(image: &ImageParts, loader: &Loader, ram: &[(u64, u64)], frames: TakeFrames<'_>) {
    let root = frames(1, PAGE);
    // SAFETY: (all of this function) a fresh root, not in use yet; each mapping is what layout.rs says.
    unsafe {
        // The image, each part as it is used.
        let protection = |physical: u64| match physical {
            p if p < image.text_end => Access::CODE,
            p if p < image.rodata_end => Access::READ,
            p if p < image.data_end => Access::DATA,
            p if p < image.loaded_end => Access::READ,
            _ => Access::DATA,
        };
        for physical in (image.start..image.end).step_by(PAGE_SIZE) {
            map(root, IMAGE_OFFSET + physical, physical, protection(physical), frames);
        }
        // The direct map, in large pages; where the image lies, in small ones, so that its text cannot be
        // written here either.
        let image_chunks = image.start & !(LARGE_PAGE - 1)..image.end;
        let mut mapped = 0;
        let firmware = loader.memory_map.iter().filter(|range| matches!(range.kind, 1 | 3 | 4));
        let firmware = firmware.map(|range| (range.base, range.base.saturating_add(range.bytes)));
        let end = ram.last().map_or(0, |&(_, end)| end);
        let mut pieces = alloc_free_sorted(firmware, end);
        pieces.add(0, LARGE_PAGE);
        for &(start, end) in pieces.as_slice() {
            let start = (start & !(LARGE_PAGE - 1)).max(mapped);
            let end = (end.min(DIRECT_MAP_BYTES) + LARGE_PAGE - 1) & !(LARGE_PAGE - 1);
            for chunk in (start..end).step_by(LARGE_PAGE as usize) {
                if image_chunks.contains(&chunk) {
                    for physical in (chunk..chunk + LARGE_PAGE).step_by(PAGE_SIZE) {
                        let fixed =
                            image.contains(physical) && !matches!(protection(physical), a if a.0 & WRITABLE != 0);
                        let access = if fixed { Access::READ } else { Access::DATA };
                        map(root, DIRECT_MAP + physical, physical, access, frames);
                    }
                } else {
                    map_large(root, DIRECT_MAP + chunk, chunk, Access::DATA, frames);
                }
            }
            mapped = mapped.max(end);
        }
        let slots = mapped.div_ceil(SLOT_BYTES) as usize;
        DIRECT_MAP_END.store(DIRECT_MAP_SLOT + slots, Ordering::Relaxed);
        // The machine-to-phys table: 2 MiB of it tell of 1 GiB of RAM; a gigabyte without RAM has no piece.
        for (piece, gigabyte) in (0..end).step_by(1 << 30).enumerate() {
            if ram.iter().any(|&(s, e)| s < gigabyte + (1 << 30) && gigabyte < e) {
                let at = frames(LARGE_PAGE / PAGE, LARGE_PAGE);
                map_large(root, M2P + piece as u64 * LARGE_PAGE, at, Access::GUEST_READ, frames);
                m2p::set_piece(piece, at);
            }
        }
        // Slot 261's tables exist now; slots that have none stay empty for ever.
    }
    OWN_ROOT.store(root, Ordering::Release);
}

fn alloc_free_sorted(pieces: impl Iterator<Item = (u64, u64)>, end: u64) -> crate::ranges::Ranges {
    let mut sorted = crate::ranges::Ranges::new();
    for (s, e) in pieces {
        sorted.add(s, e.min(end));
    }
    sorted
}

/// The pattern's word for one of our slots.
#[inline]
fn own_slot(slot: usize) -> u64 {
    // SAFETY: our root's entries for our slots do not change after boot.
    unsafe { *table_entry(OWN_ROOT.load(Ordering::Relaxed), slot) }
}

/// A level-4 table that maps the hypervisor as every root must, and can therefore be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootTable(Mfn);

impl RootTable {
    /// Writes our slots into a level-4 table, and vouches for it.
    pub fn adopt(page: Page) -> RootTable {
        for slot in FIRST_SLOT..=LAST_SLOT {
            page.store_u64(slot, own_slot(slot));
        }
        RootTable(page.mfn())
    }

    /// Vouches for a table with our slots, as far as anything of ours is behind them: what a table has in others
    /// maps no more than the guest's own addresses do.
    #[inline(always)]
    pub fn check(mfn: Mfn) -> Option<RootTable> {
        let page = Page::new(mfn)?;
        let own = OWN_ROOT.load(Ordering::Relaxed);
        // SAFETY: our root's entries for our slots do not change after boot.
        let differ = |slot| page.load_u64(slot) ^ unsafe { *table_entry(own, slot) };
        let mut difference = differ(M2P_SLOT) | differ(IMAGE_SLOT) | differ(DIRECT_MAP_SLOT);
        for slot in DIRECT_MAP_SLOT + 1..DIRECT_MAP_END.load(Ordering::Relaxed) {
            difference |= differ(slot);
        }
        (difference & !ACCESSED_DIRTY == 0).then_some(RootTable(mfn))
    }

    /// The table's frame.
    #[inline]
    pub fn mfn(self) -> Mfn {
        self.0
    }
}

/// A level-1 entry of a guest's.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// The table that it stands in.
    pub table: Mfn,
    /// Its place there.
    pub index: usize,
    /// What it says.
    pub entry: u64,
}

/// Follows tables as the processor does, from `root` to the level-1 entry for one of a guest's addresses. `None`: the
/// address is no guest's, or no table is there for it.
///
/// Entries of the levels above are believed: where one names no table, what comes out means nothing, but nothing is
/// broken either.
#[inline(always)]
pub fn leaf(root: Mfn, at: Vaddr) -> Option<Leaf> {
    if !is_guest_range(at.raw(), 1) {
        return None;
    }
    let [in_4, in_3, in_2, in_1] = table_indices(at.raw());
    let mut failed = 0;
    let mut entry = root.maddr().raw();
    for index in [in_4, in_3, in_2] {
        entry = load(entry, index, &mut failed);
        if entry & PRESENT == 0 {
            return None;
        }
    }
    let leaf = Leaf {
        table: Maddr::new(entry & ADDRESS).mfn(),
        index: in_1,
        entry: load(entry, in_1, &mut failed),
    };
    (failed == 0).then_some(leaf)
}

/// A word of the table that an entry names; none (0) and `failed` where that lies outside of the direct map.
#[inline(always)]
fn load(table: u64, index: usize, failed: &mut u32) -> u64 {
    let value;
    // SAFETY: reads a word, which means nothing to us, or faults, which is fixed up.
    unsafe {
        asm!(
            "2: mov {value}, [{table} + {index} * 8]",
            on_fault!("xor {value:e}, {value:e}", "mov {failed:e}, 1"),
            table = in(reg) DIRECT_MAP.wrapping_add(table & ADDRESS),
            index = in(reg) index,
            value = out(reg) value,
            failed = inout(reg) *failed,
            options(nostack, readonly)
        );
    }
    value
}

/// Whether a level-4 slot is ours in every root.
#[inline]
pub const fn is_own_slot(slot: usize) -> bool {
    slot >= FIRST_SLOT && slot <= LAST_SLOT
}

/// Loads a guest's root, which flushes the TLB of guest addresses.
#[inline]
pub fn activate(root: &RootTable) {
    // SAFETY: a `RootTable` maps the hypervisor as the present root does.
    unsafe { load_root(root.0.maddr().raw()) };
}

/// [`activate`], for a guest that goes from one of its modes to the other: this flushes too, but the flush clock
/// does not count it, so that all CPUs need not share a word for each of their guests' system calls.
#[inline]
pub fn change_mode(root: &RootTable) {
    let root = root.0.maddr().raw();
    // SAFETY: a `RootTable` maps the hypervisor as the present root does.
    unsafe {
        (*percpu::info()).root = root;
        asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags));
    }
}

/// Loads the root that maps nothing but the hypervisor.
pub fn activate_own() {
    // SAFETY: our own root maps the image, and (once they are in use) the per-CPU blocks and the heap.
    unsafe { load_root(OWN_ROOT.load(Ordering::Acquire)) };
}

/// # Safety
/// The root maps the hypervisor as our own root does, for as long as it is loaded.
unsafe fn load_root(root: u64) {
    let time = tlb::begin();
    // SAFETY: by the caller.
    unsafe {
        (*percpu::info()).root = root;
        asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags));
    }
    tlb::finished(time);
}

/// The root that this CPU has loaded; `None` for our own.
#[inline]
pub fn active() -> Option<Mfn> {
    // SAFETY: this CPU's info.
    let root = unsafe { (*percpu::info()).root };
    (root != OWN_ROOT.load(Ordering::Relaxed)).then(|| Maddr::new(root).mfn())
}

/// Forgets this CPU's translations of guest addresses (those that are not global).
#[inline]
pub fn flush_local() {
    // SAFETY: the root that is loaded already.
    unsafe { load_root((*percpu::info()).root) };
}

/// Forgets all of this CPU's translations, global ones included.
pub fn flush_local_global() {
    if !features().pge {
        return flush_local();
    }
    const PGE: u64 = 1 << 7;
    let time = tlb::begin();
    // SAFETY: turning global pages off and on again changes no mapping (SDM 3A "Invalidation of TLBs").
    unsafe {
        let cr4: u64;
        asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags));
        asm!("mov cr4, {}", in(reg) cr4 & !PGE, options(nostack, preserves_flags));
        asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
    }
    tlb::finished(time);
}

/// Forgets this CPU's translation of one address.
#[inline]
pub fn invlpg(address: Vaddr) {
    // SAFETY: forgetting a translation changes none.
    unsafe { asm!("invlpg [{}]", in(reg) address.raw(), options(nostack, preserves_flags)) };
}

/// Writes back and empties this CPU's caches.
pub fn wbinvd() {
    // SAFETY: memory keeps its contents.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// Held by whoever changes the tables of the windows in slot 261; the value is the next free device page.
static WINDOWS: SpinMutex<u64> = SpinMutex::new(DEVICES);

fn lock_windows() -> spin::mutex::SpinMutexGuard<'static, u64> {
    loop {
        if let Some(guard) = WINDOWS.try_lock() {
            return guard;
        }
        super::smp::service_requests();
        core::hint::spin_loop();
    }
}

fn heap_frames(count: u64, align: u64) -> u64 {
    heap::take_pages(count as usize, align as usize).expect("no memory for the hypervisor's page tables")
}

/// Maps a fresh block for a CPU: all but the guard page. `None` without memory for it.
pub(super) fn map_cpu_block(cpu: usize) -> Option<u64> {
    let _windows = lock_windows();
    let memory = heap::take_pages((CPU_BLOCK / PAGE) as usize, PAGE_SIZE)?;
    let block = CPU_BLOCKS + cpu as u64 * CPU_BLOCK;
    for offset in (0..CPU_BLOCK).step_by(PAGE_SIZE) {
        if offset != percpu::GUARD_OFFSET {
            // SAFETY: fresh memory, at this CPU's place in the windows.
            unsafe {
                map(
                    own_root(),
                    block + offset,
                    memory + offset,
                    Access::DATA,
                    &mut heap_frames,
                )
            };
        }
    }
    Some(block)
}

/// Maps the page of stubs that holds this CPU's, if no CPU before has; answers where to write the stub.
pub(super) fn map_stub(cpu: usize) -> *mut u8 {
    let _windows = lock_windows();
    let at = STUBS + cpu as u64 * STUB_BYTES;
    // SAFETY: our own tables; fresh memory, executable at its place in the windows and writable only in the
    // direct map.
    unsafe {
        let entry = walk(own_root(), at, 3, &mut heap_frames);
        if *entry & PRESENT == 0 {
            *entry = heap_frames(1, PAGE) | Access::CODE.bits();
        }
        (DIRECT_MAP + (*entry & ADDRESS) + at % PAGE) as *mut u8
    }
}

/// The 32 entries that map a CPU's descriptor window.
pub(super) fn descriptor_entries(cpu: usize) -> *mut u64 {
    let _windows = lock_windows();
    let at = DESCRIPTORS + cpu as u64 * DESCRIPTOR_WINDOW;
    // SAFETY: our own tables. The window is aligned to its size, so its entries stand in one table.
    unsafe { walk(own_root(), at, 3, &mut heap_frames) }
}

pub(super) fn own_root() -> u64 {
    OWN_ROOT.load(Ordering::Acquire)
}

/// Shows a page of memory that is firmware's: not RAM that it gave up, nor the hypervisor's.
///
/// The low megabyte counts as firmware's: BIOS tables lie there. `false` if the page is none of these.
pub(super) fn with_firmware_page(mfn: Mfn, look: impl FnOnce(*const u8)) -> bool {
    let maddr = mfn.maddr().raw();
    if maddr >= 1 << 20 && super::memory::is_ram(mfn) || mfn.raw() >= 1 << (features().physical_bits - 12) {
        return false;
    }
    // Where the direct map has it (tables in the low megabyte or beside RAM), that will do.
    if maddr < DIRECT_MAP_BYTES && is_mapped(DIRECT_MAP + maddr) {
        look((DIRECT_MAP + maddr) as *const u8);
        return true;
    }
    let _windows = lock_windows();
    // The last page of the window is for looking at firmware's memory.
    let at = DEVICES_END - PAGE;
    // SAFETY: our own tables; a page that only the holder of the lock looks at, read-only.
    unsafe { map(own_root(), at, maddr, Access::READ, &mut heap_frames) };
    invlpg(Vaddr::new(at));
    look(at as *const u8);
    true
}

/// Whether our own root maps an address.
#[inline(never)]
pub(super) fn is_mapped(at: u64) -> bool {
    let mut table = own_root();
    for (level, index) in table_indices(at).into_iter().enumerate() {
        // SAFETY: our own tables, which only grow.
        let entry = unsafe { *table_entry(table, index) };
        if entry & PRESENT == 0 {
            return false;
        }
        if level == 3 || entry & LARGE != 0 {
            return true;
        }
        table = entry;
    }
    true
}

/// Device registers, mapped uncached. Accesses outside panic; they are never split or merged.
#[derive(Clone, Copy)]
pub(crate) struct Mmio {
    base: u64,
    bytes: usize,
}

/// Maps pages of device registers for this crate's own drivers.
///
/// # Panics
/// If any of it is RAM or the window is full: both come from a broken table of the firmware's or ours.
pub(crate) fn map_mmio(base: Maddr, pages: usize) -> Mmio {
    let mut next = lock_windows();
    let start = *next;
    let end = start + pages as u64 * PAGE;
    assert!(end < DEVICES_END - PAGE, "no room for more device registers");
    for page in 0..pages as u64 {
        let mfn = Mfn::new(base.mfn().raw() + page);
        assert!(
            mfn.maddr().raw() < 1 << 20 || !super::memory::is_ram(mfn),
            "a device at {base} would be RAM"
        );
        // SAFETY: a free place in the windows; no memory of ours, since it is not RAM.
        unsafe {
            map(
                own_root(),
                start + page * PAGE,
                mfn.maddr().raw(),
                Access::REGISTERS,
                &mut heap_frames,
            )
        };
    }
    *next = end;
    Mmio {
        base: start + base.offset() as u64,
        bytes: pages * PAGE_SIZE - base.offset(),
    }
}

macro_rules! register_access {
    ($raw:ty, $read:ident, $write:ident) => {
        #[allow(dead_code, reason = "which widths have users changes with the drivers")]
        impl Mmio {
            /// Reads a register.
            #[inline]
            #[track_caller]
            pub fn $read(&self, offset: usize) -> $raw {
                // SAFETY: within the mapping, which lasts for ever; devices are not Rust's memory.
                unsafe { self.register::<$raw>(offset).read_volatile() }
            }

            /// Writes a register. What the device does with it is the driver's to argue.
            #[inline]
            #[track_caller]
            pub fn $write(&self, offset: usize, value: $raw) {
                // SAFETY: within the mapping, which lasts for ever; devices are not Rust's memory.
                unsafe { self.register::<$raw>(offset).write_volatile(value) };
            }
        }
    };
}

register_access!(u8, read8, write8);
register_access!(u16, read16, write16);
register_access!(u32, read32, write32);
register_access!(u64, read64, write64);

impl Mmio {
    #[inline]
    #[track_caller]
    fn register<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(
            offset.checked_add(size).is_some_and(|end| end <= self.bytes),
            "no such device register"
        );
        assert!(offset.is_multiple_of(size), "a device register must be aligned");
        (self.base + offset as u64) as *mut T
    }
}
