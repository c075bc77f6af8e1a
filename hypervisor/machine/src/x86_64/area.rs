//! A piece of a page that is looked at too often to be checked each time.
//!
//! An [`Area`] is checked when it is made: it lies within a nameable page and begins at a multiple of 8. Where
//! in it something stands is checked by the compiler, so an access is one instruction.

use super::layout::DIRECT_MAP;
use super::memory::Page;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use ferroxen_words::{Maddr, PAGE_SIZE};

/// `BYTES` bytes of a [`Page`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area<const BYTES: usize>(NonNull<u8>);

// SAFETY: an address in the direct map, which is the same on every CPU; all accesses are atomic.
unsafe impl<const BYTES: usize> Send for Area<BYTES> {}
// SAFETY: as above.
unsafe impl<const BYTES: usize> Sync for Area<BYTES> {}

impl<const BYTES: usize> Area<BYTES> {
    /// The bytes from `offset` on, unless that is no multiple of 8 or they go beyond the page.
    pub fn new(page: Page, offset: usize) -> Option<Self> {
        let fits = offset.is_multiple_of(8) && offset <= PAGE_SIZE.checked_sub(BYTES)?;
        let at = (DIRECT_MAP + page.mfn().maddr().raw()) as *mut u8;
        fits.then(|| NonNull::new(at.wrapping_add(offset)).map(Area))?
    }

    fn maddr(self) -> Maddr {
        Maddr::new(self.0.as_ptr() as u64 - DIRECT_MAP)
    }

    /// The page that it lies in.
    ///
    /// # Panics
    /// Never: a page that could be named stays so.
    pub fn page(self) -> Page {
        Page::new(self.maddr().mfn()).expect("an area lies in a page")
    }

    /// Where in the page it begins.
    pub fn offset(self) -> usize {
        self.maddr().offset()
    }
}

macro_rules! sized_access {
    ($raw:ty, $atomic:ty, $load:ident, $store:ident, $swap:ident, $or:ident) => {
        #[allow(dead_code, reason = "which sizes have users changes with the ABI")]
        impl<const BYTES: usize> Area<BYTES> {
            /// Reads at an offset, which is a multiple of the size.
            #[inline(always)]
            pub fn $load<const AT: usize>(self) -> $raw {
                const { assert!(AT.is_multiple_of(size_of::<$raw>()) && AT + size_of::<$raw>() <= BYTES) };
                // SAFETY: within the area, which is RAM in the direct map for ever; only accessed atomically.
                unsafe { self.0.add(AT).cast::<$atomic>().as_ref() }.load(Ordering::Acquire)
            }

            /// Writes at an offset, which is a multiple of the size.
            #[inline(always)]
            pub fn $store<const AT: usize>(self, value: $raw) {
                const { assert!(AT.is_multiple_of(size_of::<$raw>()) && AT + size_of::<$raw>() <= BYTES) };
                // SAFETY: as above.
                unsafe { self.0.add(AT).cast::<$atomic>().as_ref() }.store(value, Ordering::Release)
            }

            /// Replaces the value at an offset, and answers what it was.
            #[inline(always)]
            pub fn $swap<const AT: usize>(self, value: $raw) -> $raw {
                const { assert!(AT.is_multiple_of(size_of::<$raw>()) && AT + size_of::<$raw>() <= BYTES) };
                // SAFETY: as above.
                unsafe { self.0.add(AT).cast::<$atomic>().as_ref() }.swap(value, Ordering::SeqCst)
            }

            /// Sets bits at an offset, and answers what stood there.
            #[inline(always)]
            pub fn $or<const AT: usize>(self, bits: $raw) -> $raw {
                const { assert!(AT.is_multiple_of(size_of::<$raw>()) && AT + size_of::<$raw>() <= BYTES) };
                // SAFETY: as above.
                unsafe { self.0.add(AT).cast::<$atomic>().as_ref() }.fetch_or(bits, Ordering::SeqCst)
            }
        }
    };
}

sized_access!(u8, AtomicU8, load_u8, store_u8, swap_u8, fetch_or_u8);
sized_access!(u16, AtomicU16, load_u16, store_u16, swap_u16, fetch_or_u16);
sized_access!(u32, AtomicU32, load_u32, store_u32, swap_u32, fetch_or_u32);
sized_access!(u64, AtomicU64, load_u64, store_u64, swap_u64, fetch_or_u64);

/// An area that may be replaced by another, or be none.
pub struct AtomicArea<const BYTES: usize>(AtomicPtr<u8>);

impl<const BYTES: usize> AtomicArea<BYTES> {
    /// Begins as the area.
    pub fn new(area: Option<Area<BYTES>>) -> Self {
        AtomicArea(AtomicPtr::new(Self::raw(area)))
    }

    fn raw(area: Option<Area<BYTES>>) -> *mut u8 {
        area.map_or(ptr::null_mut(), |area| area.0.as_ptr())
    }

    /// The area now.
    #[inline(always)]
    pub fn load(&self) -> Option<Area<BYTES>> {
        NonNull::new(self.0.load(Ordering::Acquire)).map(Area)
    }

    /// Makes it another, or none.
    pub fn store(&self, area: Option<Area<BYTES>>) {
        self.0.store(Self::raw(area), Ordering::Release);
    }
}
