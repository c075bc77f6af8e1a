//! Locks with ranks.
//!
//! A CPU may take a lock only if its rank is above every rank that it holds (equal ranks: only through
//! [`Lock::lock_second`], whose caller orders by domid). `docs/locks.md` lists the ranks; debug builds check.
//!
//! The hypervisor runs with interrupts off, so a lock needs no "irqsave"; while it spins it serves the
//! requests of other CPUs (TLB flushes), so that two CPUs never wait for each other.

use core::ops::{Deref, DerefMut};
use ferroxen_machine::lock::{TicketGuard, TicketLock};

/// The order in which locks are taken: lower first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Rank {
    /// One control operation (domctl, sysctl) of a subject at a time.
    Control = 10,
    /// Which CPU is in which pool.
    Pools = 15,
    /// The list of domains.
    Domains = 20,
    /// A domain's grant table (two: lower domid first).
    Grants = 30,
    /// A domain's pirqs.
    Irqs = 35,
    /// A domain's event channels (two: lower domid first).
    Events = 40,
    /// Queues of one domain's event channels.
    EventQueues = 41,
    /// Page-table updates of one domain.
    PageTables = 42,
    /// A vcpu's own PV registers.
    Vcpu = 45,
    /// Where a vcpu's `vcpu_info` lies.
    VcpuInfo = 47,
    /// Which ports, frames and interrupts a domain may use.
    IoPermissions = 48,
    /// A domain's list and count of pages.
    Pages = 50,
    /// The allocator of machine pages.
    Heap = 55,
    /// Interrupt descriptors and vectors.
    Vectors = 60,
    /// A vcpu's (or a domain's) timers: which are armed, and where.
    VcpuTimers = 65,
    /// A CPU's run queue.
    RunQueue = 70,
    /// A CPU's timers.
    Timers = 75,
    /// A domain's mirrors of page tables: a fault may come under any of the above, where a guest's buffer is used.
    Mirrors = 80,
    /// The console ring.
    Console = 90,
}

/// A value that one CPU at a time may touch.
pub struct Lock<T> {
    inner: TicketLock<Ranked<T>>,
    rank: Rank,
}

/// What is locked, with the rank once more: so its guard is one address.
struct Ranked<T> {
    rank: Rank,
    value: T,
}

impl<T> Lock<T> {
    /// Makes a free lock around `value`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Lock {
            inner: TicketLock::new(Ranked { rank, value }),
            rank,
        }
    }

    /// Takes the lock, waiting for as long as it takes.
    #[inline(always)]
    #[track_caller]
    pub fn lock(&self) -> Guard<'_, T> {
        ranks::acquire(self.rank, false);
        Guard {
            inner: self.inner.lock(),
        }
    }

    /// Takes a second lock of a rank that this CPU holds already; the caller orders the two by domid.
    #[inline]
    #[track_caller]
    pub fn lock_second(&self) -> Guard<'_, T> {
        ranks::acquire(self.rank, true);
        Guard {
            inner: self.inner.lock(),
        }
    }

    /// Takes the lock if nobody holds it.
    #[inline]
    #[track_caller]
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let inner = self.inner.try_lock()?;
        ranks::acquire(self.rank, true);
        Some(Guard { inner })
    }
}

/// Holds a lock until dropped.
pub struct Guard<'a, T> {
    inner: TicketGuard<'a, Ranked<T>>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        &self.inner.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner.value
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        ranks::release(self.inner.rank);
    }
}

/// The check of ranks; costs nothing in release builds.
mod ranks {
    use super::Rank;

    #[cfg(debug_assertions)]
    static HELD: ferroxen_machine::PerCpu<core::cell::RefCell<alloc::vec::Vec<Rank>>> = ferroxen_machine::PerCpu::new();

    #[inline]
    #[track_caller]
    pub fn acquire(rank: Rank, same_is_fine: bool) {
        #[cfg(debug_assertions)]
        if let Some(held) = HELD.try_get() {
            let mut held = held.borrow_mut();
            if let Some(&top) = held.iter().max() {
                assert!(
                    top < rank || (same_is_fine && top == rank),
                    "lock of rank {rank:?} taken under {top:?}"
                );
            }
            held.push(rank);
        }
        #[cfg(not(debug_assertions))]
        let _ = (rank, same_is_fine);
    }

    #[inline]
    pub fn release(rank: Rank) {
        #[cfg(debug_assertions)]
        if let Some(held) = HELD.try_get() {
            let mut held = held.borrow_mut();
            if let Some(at) = held.iter().rposition(|&r| r == rank) {
                held.remove(at);
            }
        }
        #[cfg(not(debug_assertions))]
        let _ = rank;
    }
}
