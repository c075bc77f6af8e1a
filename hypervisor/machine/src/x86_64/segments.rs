//! The guest's descriptor tables and segment registers.
//!
//! Each CPU has a window of 32 pages: the GDT, of which the guest's frames are pages 0 to 13 and ours page
//! 14 (selectors from 0xe000), and the LDT. Loading another guest's tables means mapping its frames there.

use super::memory::Page;
use ferroxen_words::Vaddr;

/// Pages of a guest's GDT.
pub const GUEST_GDT_PAGES: usize = 14;
/// Pages of a guest's LDT.
pub const LDT_PAGES: usize = 16;

/// Flat ring-3 64-bit code (public ABI: `FLAT_RING3_CS64`).
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// Flat ring-3 stack and data (`FLAT_RING3_SS64`).
pub const FLAT_RING3_SS64: u16 = 0xe02b;
/// Flat ring-3 32-bit code (`FLAT_RING3_CS32`).
pub const FLAT_RING3_CS32: u16 = 0xe023;

/// Maps a guest's GDT frames into this CPU's window; the other pages read as zeroes.
///
/// The frames' descriptors have been checked by the caller, and stay so while they are loaded.
pub fn load_gdt_frames(frames: &[Page]) {
    let _ = frames;
    todo!()
}

/// Sets the LDT to `entries` descriptors, none of them mapped yet; 0 loads a null LDT.
pub fn load_ldt(entries: u32) {
    let _ = entries;
    todo!()
}

/// Maps a page of the LDT (of 16); `None` takes it out.
pub fn map_ldt_page(index: usize, page: Option<Page>) {
    let _ = (index, page);
    todo!()
}

/// Whether a faulting address lies in this CPU's LDT window: the byte within the LDT.
pub fn ldt_window_offset(fault: Vaddr) -> Option<usize> {
    let _ = fault;
    todo!()
}

/// Whether a faulting address lies in this CPU's GDT window: the byte within the GDT.
pub fn gdt_window_offset(fault: Vaddr) -> Option<usize> {
    let _ = fault;
    todo!()
}

/// Selectors of the data segment registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Selectors {
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
}

/// Reads the registers.
pub fn selectors() -> Selectors {
    todo!()
}

/// Loads the registers; one whose selector faults gets a null selector.
///
/// Answers whether all could be loaded. Loading FS and GS changes their bases (and GS's current one, not
/// the one that SWAPGS would bring): load those afterwards.
#[must_use]
pub fn load_selectors(selectors: Selectors) -> bool {
    let _ = selectors;
    todo!()
}

/// Loads GS for a guest kernel's `SEGBASE_GS_USER_SEL`: the selector's base goes to KERNEL_GS_BASE.
#[must_use]
pub fn load_user_gs(selector: u16) -> bool {
    let _ = selector;
    todo!()
}
