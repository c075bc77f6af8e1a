//! The hypervisor's own heap, of a size fixed at boot.
//!
//! It lies in the direct map, so a block's physical address is arithmetic ([`physical`]). While boot has memory that
//! is nobody's yet, it can lend some of it ([`lend`], [`take_back`]).

use super::layout::DIRECT_MAP;
use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use spin::mutex::SpinMutex;
use spin::relax::RelaxStrategy;
use talc::{ErrOnOom, Span, Talc};

/// Waits for the heap while serving other CPUs, as every wait must.
struct Serve;

impl RelaxStrategy for Serve {
    #[inline]
    fn relax() {
        super::smp::service_requests();
        core::hint::spin_loop();
    }
}

struct Heap {
    talc: SpinMutex<Talc<ErrOnOom>, Serve>,
    free: AtomicUsize,
    total: AtomicUsize,
}

#[global_allocator]
static HEAP: Heap = Heap {
    talc: SpinMutex::new(Talc::new(ErrOnOom)),
    free: AtomicUsize::new(0),
    total: AtomicUsize::new(0),
};

// SAFETY: talc's own promises, under a lock. The counter is only for people.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises a layout that is not empty.
        match unsafe { self.talc.lock().malloc(layout) } {
            Ok(block) => {
                self.free.fetch_sub(layout.size(), Ordering::Relaxed);
                block.as_ptr()
            }
            Err(()) => ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(block) = ptr::NonNull::new(block) {
            self.free.fetch_add(layout.size(), Ordering::Relaxed);
            // SAFETY: the caller promises that this block came from `alloc` with this layout.
            unsafe { self.talc.lock().free(block, layout) };
        }
    }
}

/// The heap's size for a host with so much RAM: a 32nd, but enough for a small host's domains.
pub(super) fn size_for(ram: u64) -> u64 {
    (ram / 32).clamp(12 << 20, 1 << 30) & !0xf_ffff
}

/// Gives the heap its memory.
///
/// # Safety
/// The memory is in the direct map, nobody else's, for ever. Called once.
pub(super) unsafe fn init(start: *mut u8, bytes: usize) {
    // SAFETY: by the caller.
    let claimed = unsafe { HEAP.talc.lock().claim(Span::from_base_size(start, bytes)) };
    assert!(claimed.is_ok(), "the heap cannot use its memory");
    HEAP.free.store(bytes, Ordering::Relaxed);
    HEAP.total.store(bytes, Ordering::Relaxed);
}

/// Lets the heap use more memory.
///
/// # Safety
/// The memory is in the direct map and nobody else's, until [`take_back`] says that it is not the heap's any more.
pub(super) unsafe fn lend(start: *mut u8, bytes: usize) -> Option<Span> {
    // SAFETY: by the caller.
    let span = unsafe { HEAP.talc.lock().claim(Span::from_base_size(start, bytes)) }.ok()?;
    HEAP.free.fetch_add(bytes, Ordering::Relaxed);
    HEAP.total.fetch_add(bytes, Ordering::Relaxed);
    Some(span)
}

/// Ends a loan of so many bytes, and answers `true`; but not while a block still lies in it.
pub(super) fn take_back(span: Span, bytes: usize) -> bool {
    let mut talc = HEAP.talc.lock();
    // SAFETY: as `claim` returned it, and never truncated or extended.
    let unused = unsafe { talc.get_allocated_span(span) }.is_empty();
    if unused {
        // SAFETY: as above; nothing is allocated in it, under the same lock.
        unsafe { talc.truncate(span, Span::empty()) };
        HEAP.free.fetch_sub(bytes, Ordering::Relaxed);
        HEAP.total.fetch_sub(bytes, Ordering::Relaxed);
    }
    unused
}

/// Bytes that are free.
pub fn free_bytes() -> usize {
    HEAP.free.load(Ordering::Relaxed)
}

/// Bytes in all.
pub fn total_bytes() -> usize {
    HEAP.total.load(Ordering::Relaxed)
}

/// The physical address of something on the heap.
pub(super) fn physical<T>(block: *const T) -> u64 {
    block as u64 - DIRECT_MAP
}

/// Takes zeroed pages for ever; the address is a multiple of `align`.
pub(super) fn take_pages(count: usize, align: usize) -> Option<u64> {
    let layout = Layout::from_size_align(count * 4096, align.max(4096)).ok()?;
    // SAFETY: the layout is not empty.
    let block = unsafe { alloc::alloc::alloc_zeroed(layout) };
    (!block.is_null()).then(|| physical(block))
}
