//! Pages of our own, and who is behind them: virtual page, pfn, mfn.
//!
//! The domain builder maps pseudo-physical page `n` at virtual address `n << 12`, and leaves a list of the mfns
//! behind them. A [`Page`] comes from a pool inside the image, so it is mapped from the start; a guest is free
//! to put another frame, or none, behind its address ([`map`], [`unmap`]).

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use ferroxen_abi::xen::{MACH2PHYS_VIRT_START, StartInfo};

use crate::hypercall::{self, Answer, number};
use crate::insn;
use crate::start;
use crate::trap;

/// Bytes of a page.
pub const SIZE: u64 = 4096;
/// Pages in the pool.
const POOL: usize = 1024;

/// Bits of a page-table entry (SDM 3A "Paging").
#[expect(missing_docs, reason = "the manual's names")]
pub mod pte {
    pub const PRESENT: u64 = 1;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const WRITE_THROUGH: u64 = 1 << 3;
    pub const CACHE_DISABLE: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const LARGE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// The bits that name a frame.
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
}

/// Flags of a page that can be read, written and run.
pub const ORDINARY: u64 = pte::PRESENT | pte::WRITABLE | pte::USER | pte::ACCESSED | pte::DIRTY;
/// Flags of a page that can only be read and run.
pub const READ_ONLY: u64 = ORDINARY & !pte::WRITABLE;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[u64; 512]; POOL]>);

// SAFETY: nobody makes a reference into it but to atomics.
unsafe impl Sync for Pool {}

static PAGES: Pool = Pool(UnsafeCell::new([[0; 512]; POOL]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// A page of virtual memory, with the frame that the builder put behind it until somebody changes that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(u64);

impl Page {
    /// Takes a page from the pool. It is empty, and never goes back: a guest's life is short.
    ///
    /// # Panics
    /// When there are none left.
    pub fn new() -> Self {
        let index = USED.fetch_add(1, Ordering::SeqCst);
        assert!(index < POOL, "the pool of pages is empty");
        Self(PAGES.0.get().addr() as u64 + index as u64 * SIZE)
    }

    /// Names the page at `address`, which is mapped.
    pub fn at(address: u64) -> Self {
        Self(address & !(SIZE - 1))
    }

    /// Returns its virtual address.
    pub fn address(self) -> u64 {
        self.0
    }

    /// Returns the frame that the builder put behind it.
    pub fn mfn(self) -> u64 {
        mfn_of(self.0)
    }

    fn pointer<T>(self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= SIZE as usize && offset.is_multiple_of(align_of::<T>()));
        core::ptr::with_exposed_provenance_mut(self.0 as usize + offset)
    }

    /// Reads word `index` of 512.
    pub fn word(self, index: usize) -> u64 {
        self.atomic(index * 8).load(Ordering::SeqCst)
    }

    /// Writes word `index` of 512.
    pub fn set_word(self, index: usize, value: u64) {
        insn::poke(self.0 + index as u64 * 8, value);
    }

    /// Writes the byte at `offset`.
    pub fn set_byte(self, offset: usize, value: u8) {
        self.atomic8(offset).store(value, Ordering::SeqCst);
    }

    /// Writes all words.
    pub fn fill(self, value: u64) {
        for index in 0..512 {
            self.set_word(index, value);
        }
    }

    /// Returns eight bytes of it for sharing.
    pub fn atomic(self, offset: usize) -> &'static AtomicU64 {
        // SAFETY: within a page that is mapped, which lives as long as the guest, aligned; all bits are valid.
        unsafe { AtomicU64::from_ptr(self.pointer(offset)) }
    }

    /// Returns four bytes of it for sharing.
    pub fn atomic32(self, offset: usize) -> &'static AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.pointer(offset)) }
    }

    /// Returns one byte of it for sharing.
    pub fn atomic8(self, offset: usize) -> &'static AtomicU8 {
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(self.pointer(offset)) }
    }

    /// Makes it read-only, as a page must be that is to become a page table or a descriptor table.
    pub fn seal(self) -> Result<(), Answer> {
        map(self.0, self.mfn(), READ_ONLY).ok().map(drop)
    }

    /// Makes it writable again.
    pub fn unseal(self) -> Result<(), Answer> {
        map(self.0, self.mfn(), ORDINARY).ok().map(drop)
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the place of `pfn` in the list of frames.
fn list_entry(pfn: u64) -> u64 {
    start::info().mfn_list + pfn * 8
}

/// Returns the frame behind pseudo-physical page `pfn`.
pub fn p2m(pfn: u64) -> u64 {
    let StartInfo { nr_pages, .. } = *start::info();
    assert!(pfn < nr_pages, "pfn {pfn:#x} of {nr_pages:#x}");
    insn::peek(list_entry(pfn))
}

/// Notes that another frame is behind `pfn` now.
pub fn set_p2m(pfn: u64, mfn: u64) {
    assert!(pfn < start::info().nr_pages);
    insn::poke(list_entry(pfn), mfn);
}

/// Returns the frame that the builder put behind a virtual address.
pub fn mfn_of(address: u64) -> u64 {
    p2m(address / SIZE)
}

/// Asks the machine-to-physical table, which may not reach that far.
pub fn m2p(mfn: u64) -> Option<u64> {
    let place = mfn
        .checked_mul(8)
        .and_then(|offset| MACH2PHYS_VIRT_START.checked_add(offset))?;
    trap::attempt(|| insn::peek(place)).ok()
}

/// What `update_va_mapping` shall flush (`UVMF_*`).
pub const FLUSH_PAGE: u64 = 2;

/// Puts `entry` into the table that maps `address` (`update_va_mapping`).
#[inline(always)]
pub fn set_entry(address: u64, entry: u64) -> Answer {
    hypercall::call(number::UPDATE_VA_MAPPING, [address, entry, FLUSH_PAGE])
}

/// Maps frame `mfn` at `address`.
pub fn map(address: u64, mfn: u64, flags: u64) -> Answer {
    set_entry(address, mfn << 12 | flags)
}

/// Takes the mapping of `address` away.
pub fn unmap(address: u64) -> Answer {
    set_entry(address, 0)
}
