//! Machine pages, through the direct map.
//!
//! A [`Page`] names a frame that holds somebody's data: RAM that is not the hypervisor's own. What may be
//! named is one bit per frame, set when boot hands the remaining memory over. Accesses are atomic or
//! byte-wise volatile, since a guest may write at the same time; nobody gets a reference into a page.

use super::layout::DIRECT_MAP;
use crate::ranges::Ranges;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use ferroxen_words::{Mfn, PAGE_SIZE};

/// A run of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RamRange {
    /// The first frame.
    pub first: Mfn,
    /// How many.
    pub count: u64,
}

/// One bit for each frame below the limit: may it be named as a [`Page`]?
static NAMEABLE: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// Sets the bitmap up; nothing is nameable yet.
///
/// # Safety
/// `bits` points to zeroed words for `limit` bits that are never freed; frames below `limit` that are
/// marked later are in the direct map.
pub(super) unsafe fn init_nameable(bits: *mut AtomicU64, limit: u64) {
    NAMEABLE.store(bits, Ordering::Release);
    LIMIT.store(limit, Ordering::Release);
}

/// Lets a run of frames be named from now on.
///
/// # Safety
/// The frames are RAM in the direct map and nothing of the hypervisor's lies in them.
pub(super) unsafe fn make_nameable(range: RamRange) {
    let bits = NAMEABLE.load(Ordering::Acquire);
    let limit = LIMIT.load(Ordering::Acquire);
    let end = range.first.raw().saturating_add(range.count).min(limit);
    let mut mfn = range.first.raw();
    while mfn < end {
        let some = (64 - mfn % 64).min(end - mfn);
        let mask = (!0u64 >> (64 - some)) << (mfn % 64);
        // SAFETY: below the limit, so the bitmap has this word.
        unsafe { (*bits.add((mfn / 64) as usize)).fetch_or(mask, Ordering::Relaxed) };
        mfn += some;
    }
}

/// One past the highest frame of RAM.
#[inline]
pub fn max_mfn() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// A frame of RAM that is not the hypervisor's own.
///
/// It says nothing about who owns the frame; that is the kernel's business.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(Mfn);

impl Page {
    /// The page at `mfn`, unless that is no RAM or the hypervisor's own.
    #[inline]
    pub fn new(mfn: Mfn) -> Option<Page> {
        let number = mfn.raw();
        if number >= LIMIT.load(Ordering::Relaxed) {
            return None;
        }
        let bits = NAMEABLE.load(Ordering::Relaxed);
        // SAFETY: below the limit, so the bitmap has this word.
        let word = unsafe { (*bits.add((number / 64) as usize)).load(Ordering::Relaxed) };
        (word >> (number % 64) & 1 != 0).then_some(Page(mfn))
    }

    /// The frame's number.
    #[inline(always)]
    pub fn mfn(self) -> Mfn {
        self.0
    }

    #[inline(always)]
    fn base(self) -> *mut u8 {
        (DIRECT_MAP + self.0.maddr().raw()) as *mut u8
    }

    /// # Panics
    /// If the element lies outside the page or is not aligned.
    #[inline(always)]
    #[track_caller]
    fn at<T>(self, offset: usize) -> *mut T {
        let fits = offset <= PAGE_SIZE - size_of::<T>() && offset.is_multiple_of(size_of::<T>());
        assert!(fits, "access outside of a page");
        self.base().wrapping_add(offset).cast()
    }

    #[inline(always)]
    #[track_caller]
    fn word(self, index: usize) -> &'static AtomicU64 {
        assert!(index < PAGE_SIZE / 8, "access outside of a page");
        // SAFETY: within the page, which is RAM in the direct map for ever; only accessed atomically.
        unsafe { &*self.base().cast::<AtomicU64>().add(index) }
    }

    /// Reads the page's word number `index` (of 512).
    #[inline(always)]
    #[track_caller]
    pub fn load_u64(self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Writes word number `index`.
    #[inline(always)]
    #[track_caller]
    pub fn store_u64(self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    /// Replaces word number `index` if it is `old`; else answers what it is.
    #[inline(always)]
    #[track_caller]
    pub fn cas_u64(self, index: usize, old: u64, new: u64) -> Result<u64, u64> {
        self.word(index)
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Replaces word number `index`, and answers what it was.
    #[inline(always)]
    #[track_caller]
    pub fn swap_u64(self, index: usize, value: u64) -> u64 {
        self.word(index).swap(value, Ordering::AcqRel)
    }

    /// Sets bits in word number `index`, and answers what it was.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_or_u64(self, index: usize, bits: u64) -> u64 {
        self.word(index).fetch_or(bits, Ordering::AcqRel)
    }

    /// Keeps only `bits` in word number `index`, and answers what it was.
    #[inline(always)]
    #[track_caller]
    pub fn fetch_and_u64(self, index: usize, bits: u64) -> u64 {
        self.word(index).fetch_and(bits, Ordering::AcqRel)
    }

    /// Copies bytes out, from `offset` on.
    ///
    /// # Panics
    /// If that goes beyond the page.
    #[track_caller]
    pub fn read_bytes(self, offset: usize, into: &mut [u8]) {
        assert!(
            offset <= PAGE_SIZE && into.len() <= PAGE_SIZE - offset,
            "access outside of a page"
        );
        // SAFETY: within the page; the destination is a reference, so it is not in a nameable frame.
        unsafe { copy_bytes(into.as_mut_ptr(), self.base().add(offset), into.len()) };
    }

    /// Copies bytes in, from `offset` on.
    ///
    /// # Panics
    /// If that goes beyond the page.
    #[track_caller]
    pub fn write_bytes(self, offset: usize, from: &[u8]) {
        assert!(
            offset <= PAGE_SIZE && from.len() <= PAGE_SIZE - offset,
            "access outside of a page"
        );
        // SAFETY: within the page, where nothing of the hypervisor's lies.
        unsafe { copy_bytes(self.base().add(offset), from.as_ptr(), from.len()) };
    }

    /// Copies `len` bytes from another page (or from elsewhere in this one).
    ///
    /// # Panics
    /// If that goes beyond either page.
    #[inline(always)]
    #[track_caller]
    pub fn copy_range(self, offset: usize, from: Page, from_offset: usize, len: usize) {
        let inside = |at: usize| at <= PAGE_SIZE && len <= PAGE_SIZE - at;
        assert!(inside(offset) && inside(from_offset), "access outside of a page");
        // SAFETY: within both pages. An overlap may give odd bytes, which are still just bytes.
        unsafe { copy_bytes(self.base().add(offset), from.base().add(from_offset), len) };
    }

    /// Copies another page as a whole.
    #[inline]
    pub fn copy_from(self, from: Page) {
        self.copy_range(0, from, 0, PAGE_SIZE);
    }

    /// Fills the page with zeroes.
    #[inline]
    pub fn clear(self) {
        // SAFETY: the page is nobody's memory in Rust's sense.
        unsafe {
            core::arch::asm!(
                "rep stosq",
                inout("rcx") PAGE_SIZE / 8 => _, inout("rdi") self.base() => _, in("rax") 0u64,
                options(nostack, preserves_flags)
            );
        }
    }
}

macro_rules! sized_access {
    ($raw:ty, $atomic:ty, $load:ident, $store:ident, $or:ident, $and:ident, $cas:ident, $swap:ident) => {
        impl Page {
            /// Reads at a byte offset, which is a multiple of the size.
            #[inline(always)]
            #[track_caller]
            pub fn $load(self, offset: usize) -> $raw {
                // SAFETY: checked to lie within the page, which is RAM for ever; only accessed atomically.
                unsafe { (*self.at::<$atomic>(offset)).load(Ordering::Acquire) }
            }

            /// Writes at a byte offset, which is a multiple of the size.
            #[inline(always)]
            #[track_caller]
            pub fn $store(self, offset: usize, value: $raw) {
                // SAFETY: as above.
                unsafe { (*self.at::<$atomic>(offset)).store(value, Ordering::Release) }
            }

            /// Sets bits at a byte offset, and answers what stood there.
            #[inline(always)]
            #[track_caller]
            pub fn $or(self, offset: usize, bits: $raw) -> $raw {
                // SAFETY: as above.
                unsafe { (*self.at::<$atomic>(offset)).fetch_or(bits, Ordering::AcqRel) }
            }

            /// Keeps only `bits` at a byte offset, and answers what stood there.
            #[inline(always)]
            #[track_caller]
            pub fn $and(self, offset: usize, bits: $raw) -> $raw {
                // SAFETY: as above.
                unsafe { (*self.at::<$atomic>(offset)).fetch_and(bits, Ordering::AcqRel) }
            }

            /// Replaces the value at a byte offset if it is `old`; else answers what it is.
            #[inline(always)]
            #[track_caller]
            pub fn $cas(self, offset: usize, old: $raw, new: $raw) -> Result<$raw, $raw> {
                // SAFETY: as above.
                unsafe { (*self.at::<$atomic>(offset)).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) }
            }

            /// Replaces the value at a byte offset, and answers what it was.
            #[inline(always)]
            #[track_caller]
            pub fn $swap(self, offset: usize, value: $raw) -> $raw {
                // SAFETY: as above.
                unsafe { (*self.at::<$atomic>(offset)).swap(value, Ordering::AcqRel) }
            }
        }
    };
}

sized_access!(
    u8,
    AtomicU8,
    load_u8_at,
    store_u8_at,
    fetch_or_u8_at,
    fetch_and_u8_at,
    cas_u8_at,
    swap_u8_at
);
sized_access!(
    u16,
    AtomicU16,
    load_u16_at,
    store_u16_at,
    fetch_or_u16_at,
    fetch_and_u16_at,
    cas_u16_at,
    swap_u16_at
);
sized_access!(
    u32,
    AtomicU32,
    load_u32_at,
    store_u32_at,
    fetch_or_u32_at,
    fetch_and_u32_at,
    cas_u32_at,
    swap_u32_at
);
sized_access!(
    u64,
    AtomicU64,
    load_u64_at,
    store_u64_at,
    fetch_or_u64_at,
    fetch_and_u64_at,
    cas_u64_at,
    swap_u64_at
);

/// Copies bytes that somebody else may be writing.
///
/// # Safety
/// Both ranges are mapped, and the destination holds nothing that Rust code relies on.
#[inline]
pub(super) unsafe fn copy_bytes(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: by the caller. Assembly, because a data race with a guest is not one that Rust defines.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) len & 7,
            inout("rcx") len >> 3 => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags)
        );
    }
}

static RAM: spin::Once<Ranges> = spin::Once::new();

/// Keeps the list of what is RAM at all.
pub(super) fn remember_ram(ram: Ranges) {
    RAM.call_once(|| ram);
}

/// Whether a frame is RAM, the hypervisor's own included.
pub fn is_ram(mfn: Mfn) -> bool {
    let Some(ram) = RAM.get() else { return true };
    let at = mfn.maddr().raw();
    ram.as_slice().iter().any(|&(start, end)| start <= at && at < end)
}
