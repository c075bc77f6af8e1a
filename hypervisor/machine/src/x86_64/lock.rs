//! A lock for one CPU at a time, in the order in which they came.
//!
//! Whoever waits serves other CPUs' requests meanwhile, so that two CPUs never wait for each other. The guard is one
//! address: it costs nothing to hand on.

use super::{cpu, smp};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

/// A value that one CPU at a time may touch.
pub struct TicketLock<T> {
    /// The number that the next CPU to come gets.
    next: AtomicU32,
    /// The number whose turn it is.
    serving: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: only the holder of the guard reaches the value, and there is one at a time.
unsafe impl<T: Send> Sync for TicketLock<T> {}

impl<T> TicketLock<T> {
    /// Makes a free lock around `value`.
    pub const fn new(value: T) -> Self {
        TicketLock {
            next: AtomicU32::new(0),
            serving: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock, waiting for as long as it takes.
    #[inline(always)]
    pub fn lock(&self) -> TicketGuard<'_, T> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        if self.serving.load(Ordering::Acquire) != ticket {
            self.wait(ticket);
        }
        TicketGuard { lock: self }
    }

    #[cold]
    #[inline(never)]
    fn wait(&self, ticket: u32) {
        while self.serving.load(Ordering::Acquire) != ticket {
            smp::service_requests();
            cpu::relax();
        }
    }

    /// Takes the lock if nobody holds it.
    #[inline]
    pub fn try_lock(&self) -> Option<TicketGuard<'_, T>> {
        // What the holder before did is seen by whoever sees that it is nobody's turn.
        let ticket = self.serving.load(Ordering::Acquire);
        self.next
            .compare_exchange(ticket, ticket.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed)
            .ok()
            .map(|_| TicketGuard { lock: self })
    }
}

/// Holds a lock until dropped.
pub struct TicketGuard<'a, T> {
    lock: &'a TicketLock<T>,
}

// SAFETY: as a reference to the value.
unsafe impl<T: Sync> Sync for TicketGuard<'_, T> {}

impl<T> Deref for TicketGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: it is this guard's turn, and no other's.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for TicketGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for TicketGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // Only the holder writes it.
        let ticket = self.lock.serving.load(Ordering::Relaxed);
        self.lock.serving.store(ticket.wrapping_add(1), Ordering::Release);
    }
}
