//! Address spaces: our own part of every root, loading roots, device registers.

use super::memory::Page;
use ferroxen_words::{Maddr, Mfn, Vaddr};

/// A level-4 table that maps the hypervisor as every root must, and can therefore be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootTable(Mfn);

impl RootTable {
    /// Writes our slots into a level-4 table, and vouches for it.
    pub fn adopt(page: Page) -> RootTable {
        let _ = page;
        todo!()
    }

    /// Vouches for a table whose slots 256 to 271 are already ours.
    pub fn check(mfn: Mfn) -> Option<RootTable> {
        let _ = mfn;
        todo!()
    }

    /// The table's frame.
    #[inline]
    pub fn mfn(self) -> Mfn {
        self.0
    }
}

/// Loads a guest's root, which flushes the TLB of guest addresses.
pub fn activate(root: &RootTable) {
    let _ = root;
    todo!()
}

/// Loads the root that maps nothing but the hypervisor.
pub fn activate_own() {
    todo!()
}

/// The root that this CPU has loaded; `None` for our own.
pub fn active() -> Option<Mfn> {
    todo!()
}

/// Whether a level-4 slot is ours in every root.
#[inline]
pub const fn is_own_slot(slot: usize) -> bool {
    slot >= super::layout::FIRST_SLOT && slot <= super::layout::LAST_SLOT
}

/// Forgets this CPU's translations of guest addresses (those that are not global).
pub fn flush_local() {
    todo!()
}

/// Forgets all of this CPU's translations, global ones included.
pub fn flush_local_global() {
    todo!()
}

/// Forgets this CPU's translation of one address.
pub fn invlpg(address: Vaddr) {
    let _ = address;
    todo!()
}

/// Writes back and empties this CPU's caches.
pub fn wbinvd() {
    todo!()
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
    let _ = (base, pages);
    todo!()
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
        assert!(offset.checked_add(size).is_some_and(|end| end <= self.bytes), "no such device register");
        assert!(offset.is_multiple_of(size), "a device register must be aligned");
        (self.base + offset as u64) as *mut T
    }
}
