//! The guest's descriptor tables and segment registers.
//!
//! Each CPU has a window of 32 pages: the GDT, of which the guest's frames are pages 0 to 13 and ours page
//! 14 (selectors from 0xe000), and the LDT. Loading another guest's tables means mapping its frames there.

use super::fixups::{fixup, on_fault};
use super::layout::{DESCRIPTOR_WINDOW, DESCRIPTORS, DIRECT_MAP};
use super::memory::Page;
use super::paging::{self, Access};
use super::{MAX_CPUS, gdt, heap, percpu};
use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use ferroxen_words::{PAGE_SIZE, Vaddr};

/// Pages of a guest's GDT.
pub const GUEST_GDT_PAGES: usize = 14;
/// Pages of a guest's LDT.
pub const LDT_PAGES: usize = 16;
/// The most descriptors in an LDT.
pub const LDT_ENTRIES: u32 = 8192;

/// Flat ring-3 64-bit code (public ABI: `FLAT_RING3_CS64`).
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// Flat ring-3 stack and data (`FLAT_RING3_SS64`).
pub const FLAT_RING3_SS64: u16 = 0xe02b;
/// Flat ring-3 32-bit code (`FLAT_RING3_CS32`).
pub const FLAT_RING3_CS32: u16 = 0xe023;
/// Flat ring-3 32-bit stack and data (`FLAT_RING3_SS32`).
pub const FLAT_RING3_SS32: u16 = 0xe02b;

const LDT_FIRST: usize = 16;

/// What a CPU knows of its window; only that CPU uses it.
struct Window {
    /// The 32 entries that map it.
    entries: AtomicPtr<AtomicU64>,
    /// How many pages of the GDT are a guest's: the first ones.
    gdt_pages: AtomicUsize,
    /// Which pages of the LDT are mapped, a bit for each.
    ldt_pages: AtomicU16,
}

static WINDOWS: [Window; MAX_CPUS] = [const {
    Window {
        entries: AtomicPtr::new(ptr::null_mut()),
        gdt_pages: AtomicUsize::new(0),
        ldt_pages: AtomicU16::new(0),
    }
}; MAX_CPUS];

/// This CPU's.
#[inline(always)]
fn own_window() -> &'static Window {
    &WINDOWS[percpu::cpu_number()]
}

/// A page of zeroes, for what a guest's GDT leaves out: descriptors that fault when used.
static ZEROES: spin::Once<u64> = spin::Once::new();

/// Sets a CPU's window up: zeroes, and our page.
pub(super) fn init_window(cpu: usize, entries: *mut u64, our_page: u64) {
    let zeroes = *ZEROES.call_once(|| heap::take_pages(1, PAGE_SIZE).expect("no memory for descriptor tables"));
    WINDOWS[cpu].entries.store(entries.cast(), Ordering::Relaxed);
    for index in 0..LDT_FIRST {
        // SAFETY: the CPU's own window, which nobody uses yet.
        unsafe {
            (*entries.cast::<AtomicU64>().add(index))
                .store(zeroes | Access::DESCRIPTORS_EMPTY.bits(), Ordering::Relaxed)
        };
    }
    // SAFETY: as above.
    unsafe { (*entries.cast::<AtomicU64>().add(14)).store(our_page | Access::DESCRIPTORS.bits(), Ordering::Relaxed) };
}

/// This CPU's entry for page `index` of the window.
#[inline]
fn entry(index: usize) -> &'static AtomicU64 {
    debug_assert!(index < 32);
    let entries = own_window().entries.load(Ordering::Relaxed);
    // SAFETY: set up for this CPU before it runs any of the kernel; 32 entries.
    unsafe { &*entries.add(index) }
}

/// Replaces an entry; if something was mapped there, the CPU forgets it.
#[inline]
fn set_entry(index: usize, value: u64) {
    let old = entry(index).load(Ordering::Relaxed);
    if old != value {
        entry(index).store(value, Ordering::Relaxed);
        if old & 1 != 0 {
            let at = gdt::window(percpu::cpu_number()) + (index * PAGE_SIZE) as u64;
            paging::invlpg(Vaddr::new(at));
        }
    }
}

/// Maps a guest's GDT frames into this CPU's window; the other pages read as zeroes.
///
/// The frames' descriptors have been checked by the caller, and stay so while they are loaded. More frames
/// than [`GUEST_GDT_PAGES`] are ignored.
pub fn load_gdt_frames(frames: &[Page]) {
    let used = frames.len().min(GUEST_GDT_PAGES);
    let used_before = own_window().gdt_pages.load(Ordering::Relaxed);
    own_window().gdt_pages.store(used, Ordering::Relaxed);
    let flags = Access::DESCRIPTORS.bits();
    for (index, page) in frames.iter().take(used).enumerate() {
        set_entry(index, page.mfn().maddr().raw() | flags);
    }
    for index in used..used_before {
        let zeroes = ZEROES.get().copied().unwrap_or(0);
        set_entry(index, zeroes | Access::DESCRIPTORS_EMPTY.bits());
    }
}

/// Sets the LDT to `entries` descriptors, none of them mapped yet; 0 loads a null LDT.
///
/// More than [`LDT_ENTRIES`] count as that many.
pub fn load_ldt(entries: u32) {
    let mut mapped = own_window().ldt_pages.load(Ordering::Relaxed);
    while mapped != 0 {
        map_ldt_page(mapped.trailing_zeros() as usize, None);
        mapped &= mapped - 1;
    }
    let mut selector = 0u16;
    if entries != 0 {
        let cpu = percpu::cpu_number();
        let base = gdt::window(cpu) + (LDT_FIRST * PAGE_SIZE) as u64;
        let limit = u64::from(entries.min(LDT_ENTRIES)) * 8 - 1;
        let our_page = entry(14).load(Ordering::Relaxed) & 0x000f_ffff_ffff_f000;
        let at = (DIRECT_MAP + our_page + u64::from(gdt::LDT - gdt::FIRST_RESERVED)) as *mut [u64; 2];
        // SAFETY: the LDT's two words in this CPU's page of descriptors.
        unsafe { at.write_volatile([gdt::system_low(base, limit, 2), base >> 32]) };
        selector = gdt::LDT;
    }
    // SAFETY: null, or the descriptor just written: it covers this CPU's LDT window and nothing else.
    unsafe { asm!("lldt {:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// Maps a page of the LDT (of 16) whose descriptors have been checked; `None` takes it out.
///
/// # Panics
/// If there is no such page.
pub fn map_ldt_page(index: usize, page: Option<Page>) {
    assert!(index < LDT_PAGES, "an LDT has 16 pages");
    let mapped = own_window().ldt_pages.load(Ordering::Relaxed) & !(1 << index);
    let bit = u16::from(page.is_some()) << index;
    own_window().ldt_pages.store(mapped | bit, Ordering::Relaxed);
    let flags = Access::DESCRIPTORS.bits();
    set_entry(
        LDT_FIRST + index,
        page.map_or(0, |page| page.mfn().maddr().raw() | flags),
    );
}

/// Whether a faulting address lies in this CPU's LDT window: the byte within the LDT.
#[inline(always)]
pub fn ldt_window_offset(fault: Vaddr) -> Option<usize> {
    let in_any_window = DESCRIPTORS..DESCRIPTORS + MAX_CPUS as u64 * DESCRIPTOR_WINDOW;
    if in_any_window.contains(&fault.raw()) {
        offset_in_own_ldt(fault)
    } else {
        None
    }
}

#[cold]
fn offset_in_own_ldt(fault: Vaddr) -> Option<usize> {
    let start = gdt::window(percpu::cpu_number()) + (LDT_FIRST * PAGE_SIZE) as u64;
    let offset = fault.raw().checked_sub(start)? as usize;
    (offset < LDT_PAGES * PAGE_SIZE).then_some(offset)
}

/// Selectors of the data segment registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "registers by their own names")]
pub struct Selectors {
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
}

/// Reads the registers.
#[inline]
pub fn selectors() -> Selectors {
    let (ds, es, fs, gs): (u32, u32, u32, u32);
    // SAFETY: reading selectors changes nothing.
    unsafe {
        asm!(
            "mov {0:e}, ds", "mov {1:e}, es", "mov {2:e}, fs", "mov {3:e}, gs",
            out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs,
            options(nomem, nostack, preserves_flags)
        );
    }
    Selectors {
        ds: ds as u16,
        es: es as u16,
        fs: fs as u16,
        gs: gs as u16,
    }
}

macro_rules! load_selector {
    ($name:ident, $register:literal) => {
        #[inline]
        fn $name(selector: u16) -> bool {
            let failed: u32;
            // SAFETY: the hypervisor uses none of these registers; a fault is fixed up with a null selector.
            unsafe {
                asm!(
                    concat!("2: mov ", $register, ", {selector:e}"),
                    on_fault!(
                        "xor {failed:e}, {failed:e}",
                        concat!("mov ", $register, ", {failed:e}"),
                        "mov {failed:e}, 1"
                    ),
                    selector = in(reg) u32::from(selector),
                    failed = inout(reg) 0u32 => failed,
                    options(nostack)
                );
            }
            failed == 0
        }
    };
}

load_selector!(load_ds, "ds");
load_selector!(load_es, "es");
load_selector!(load_fs, "fs");
load_selector!(load_gs, "gs");

/// Loads the registers; one whose selector faults gets a null selector.
///
/// Answers whether all could be loaded. Loading FS and GS changes their bases (and GS's current one, not
/// the one that SWAPGS would bring): load those afterwards.
#[inline]
#[must_use]
pub fn load_selectors(selectors: Selectors) -> bool {
    let ds = load_ds(selectors.ds);
    let es = load_es(selectors.es);
    let fs = load_fs(selectors.fs);
    let gs = load_gs(selectors.gs);
    ds && es && fs && gs
}

/// Loads GS for a guest kernel's `SEGBASE_GS_USER_SEL`: the selector's base goes to KERNEL_GS_BASE.
#[must_use]
pub fn load_user_gs(selector: u16) -> bool {
    super::cpu::swap_guest_gs();
    let loaded = load_gs(selector);
    super::cpu::swap_guest_gs();
    loaded
}

/// Whether a code selector, looked up in the loaded tables, names a 64-bit segment.
pub fn is_64_bit_code(selector: u16) -> bool {
    const LONG: u32 = 1 << 21;
    let mut rights = 0u32;
    // SAFETY: LAR reads a descriptor, changes only its destination and the flags, and does not fault on a
    // selector that is no good. It does where the LDT has no page: that is fixed up.
    unsafe {
        asm!(
            "2: lar {rights:e}, {selector:e}",
            "3:",
            fixup!("2b" => "3b"),
            rights = inout(reg) rights, selector = in(reg) u32::from(selector), options(nostack)
        );
    }
    rights & LONG != 0
}
