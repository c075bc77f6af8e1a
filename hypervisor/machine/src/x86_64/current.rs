//! A value that one CPU looks at all the time and replaces seldom.
//!
//! As a `RefCell` of an `Option`, but that nobody ever holds it for writing: it is replaced in one step, while nobody looks.
//! So a look is one count up and one down.

use core::cell::{Cell, UnsafeCell};
use core::ops::Deref;

/// A value, or none at the moment.
pub struct Current<T> {
    /// How many look at the value.
    looks: Cell<u64>,
    value: UnsafeCell<Option<T>>,
}

impl<T> Current<T> {
    /// None yet.
    #[expect(clippy::new_without_default, reason = "a CPU begins with none, which is no default")]
    pub const fn new() -> Self {
        Current {
            looks: Cell::new(0),
            value: UnsafeCell::new(None),
        }
    }

    /// Looks at the value, if there is one.
    #[inline(always)]
    pub fn get(&self) -> Option<Look<'_, T>> {
        // SAFETY: it is replaced in one step, by code of this CPU's.
        if unsafe { (*self.value.get()).is_none() } {
            return None;
        }
        self.looks.set(self.looks.get().wrapping_add(1));
        Some(Look { at: self })
    }

    /// Puts another value there, or none; answers the old one.
    ///
    /// # Panics
    /// If somebody looks at that.
    pub fn replace(&self, new: Option<T>) -> Option<T> {
        assert!(self.looks.get() == 0, "replaced under somebody's eyes");
        // SAFETY: nobody looks, and nothing comes in between: the type is no other CPU's (`UnsafeCell` is not `Sync`).
        core::mem::replace(unsafe { &mut *self.value.get() }, new)
    }
}

/// Looks at a value until dropped.
pub struct Look<'a, T> {
    at: &'a Current<T>,
}

impl<T> Deref for Look<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: there was one when the look began, and it is only replaced while nobody looks; a look counts as long as
        // it lasts. (64 bits are not counted through.)
        unsafe { (*self.at.value.get()).as_ref().unwrap_unchecked() }
    }
}

impl<T> Drop for Look<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.at.looks.set(self.at.looks.get().wrapping_sub(1));
    }
}
