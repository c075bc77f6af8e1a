//! What a CPU does when no vcpu wants it: cleans pages, then sleeps until an interrupt. No tick.

use super::{balance, state};
use crate::cpu::{self, work};
use core::sync::atomic::{AtomicU64, Ordering};
use ferroxen_machine::smp;
use ferroxen_words::CpuId;

/// How long a CPU has idled.
pub(super) struct IdleTime {
    before_ns: AtomicU64,
    /// When it began to idle this time; 0 while it does not.
    since_ns: AtomicU64,
}

impl IdleTime {
    pub(super) const fn new() -> Self {
        IdleTime {
            before_ns: AtomicU64::new(0),
            since_ns: AtomicU64::new(0),
        }
    }
}

/// How long a CPU has idled since it was started, in ns.
pub fn idle_ns(cpu: CpuId) -> u64 {
    let idle = &state(cpu).idle;
    let since = idle.since_ns.load(Ordering::Relaxed);
    let running = if since == 0 {
        0
    } else {
        crate::time::now().saturating_sub(since)
    };
    idle.before_ns.load(Ordering::Relaxed).saturating_add(running)
}

/// Idles, on page tables of our own, until this CPU has to decide anew.
pub(super) fn idle(here: CpuId) {
    let since = crate::time::now();
    state(here).idle.since_ns.store(since.max(1), Ordering::Relaxed);
    while !has_reason_to_decide(here) {
        smp::service_requests();
        if crate::memory::scrub_some() {
            ferroxen_machine::cpu::let_interrupts_in();
            continue;
        }
        ferroxen_machine::cpu::halt_until_interrupt();
    }
    let idled = crate::time::now().saturating_sub(since);
    state(here).idle.since_ns.store(0, Ordering::Relaxed);
    state(here).idle.before_ns.fetch_add(idled, Ordering::Relaxed);
}

fn has_reason_to_decide(here: CpuId) -> bool {
    let work = &cpu::local().work;
    if work.get() & work::EVENTS != 0 {
        work.set(work.get() & !work::EVENTS);
        crate::hypercall::event_channel::deliver_global_virqs();
    }
    if work.get() & work::TIMERS != 0 {
        work.set(work.get() & !work::TIMERS);
        crate::time::run_timers();
    }
    let told = work.get() & work::RESCHEDULE != 0 || state(here).must_decide.load(Ordering::Acquire);
    told || balance::steal(here, crate::time::now())
}
