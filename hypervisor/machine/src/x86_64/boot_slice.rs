//! A slice that boot hands out once and everybody reads ever after.

use core::ops::Index;
use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Empty until it is set, and then for ever what it was set to: reading an element costs no more than the check of
/// its index.
pub struct BootSlice<T: 'static> {
    start: AtomicPtr<T>,
    /// Written after `start`, so a length that is not 0 belongs to it.
    len: AtomicUsize,
}

impl<T: Sync> BootSlice<T> {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "only useful in a static")]
    pub const fn new() -> Self {
        BootSlice {
            start: AtomicPtr::new(ptr::null_mut()),
            len: AtomicUsize::new(0),
        }
    }

    /// Makes it `elements`.
    ///
    /// # Panics
    /// If it was set before.
    pub fn set(&self, elements: &'static [T]) {
        let start = ptr::from_ref(elements).cast::<T>().cast_mut();
        let first = self
            .start
            .compare_exchange(ptr::null_mut(), start, Ordering::AcqRel, Ordering::Relaxed);
        assert!(first.is_ok(), "a slice of boot's was set twice");
        self.len.store(elements.len(), Ordering::Release);
    }

    /// All elements.
    #[inline(always)]
    pub fn all(&self) -> &'static [T] {
        match self.len.load(Ordering::Acquire) {
            0 => &[],
            // SAFETY: the start and length of the one slice that was set; shared, since `T` is `Sync`.
            len => unsafe { slice::from_raw_parts(self.start.load(Ordering::Relaxed), len) },
        }
    }

    /// An element, if there are so many.
    #[inline(always)]
    pub fn get(&self, index: usize) -> Option<&'static T> {
        if index < self.len.load(Ordering::Acquire) {
            // SAFETY: within the one slice that was set; shared, since `T` is `Sync`.
            Some(unsafe { &*self.start.load(Ordering::Relaxed).add(index) })
        } else {
            None
        }
    }
}

impl<T: Sync> Index<usize> for BootSlice<T> {
    type Output = T;

    /// An element.
    ///
    /// # Panics
    /// If there are not so many.
    #[inline(always)]
    #[track_caller]
    fn index(&self, index: usize) -> &T {
        match self.get(index) {
            Some(element) => element,
            None => outside(index, self.len.load(Ordering::Relaxed)),
        }
    }
}

#[cold]
#[inline(never)]
#[track_caller]
fn outside(index: usize, len: usize) -> ! {
    panic!("element {index} of boot's {len}")
}
