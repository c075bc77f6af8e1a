//! The flush clock: which CPUs have forgotten a translation since a page was freed.
//!
//! Every flush of a CPU advances the clock and notes the new time for that CPU. A page remembers the time
//! at which it lost its last mapping; before it is used again, only CPUs whose last flush is not later
//! need another. (64 bits: it never wraps.)

use super::MAX_CPUS;
use core::sync::atomic::{AtomicU64, Ordering};
use ferroxen_words::CpuId;

static CLOCK: AtomicU64 = AtomicU64::new(1);
static FLUSHED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// The time now: a stamp for a page that has just lost a mapping.
#[inline]
pub fn now() -> u64 {
    CLOCK.load(Ordering::SeqCst)
}

/// Whether `cpu` may still hold translations from the time of `stamp` or before.
#[inline]
pub fn needs_flush(cpu: CpuId, stamp: u64) -> bool {
    FLUSHED
        .get(cpu.0 as usize)
        .is_some_and(|flushed| flushed.load(Ordering::SeqCst) <= stamp)
}

/// Begins a flush of this CPU: the value for [`finished`].
#[inline]
pub(super) fn begin() -> u64 {
    CLOCK.fetch_add(1, Ordering::SeqCst) + 1
}

/// Notes that the flush begun at `time` is done.
#[inline]
pub(super) fn finished(time: u64) {
    FLUSHED[super::percpu::cpu_number()].store(time, Ordering::SeqCst);
}
