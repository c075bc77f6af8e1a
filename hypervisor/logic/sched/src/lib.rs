//! Who runs next: fair shares by weight, on queues that belong to CPUs.
//!
//! Each vcpu has a *virtual time* that advances while it runs, slower the greater its weight. A CPU runs the
//! runnable vcpu with the least. One that slept is not paid back for all of it: it starts at most
//! [`WAKE_CREDIT_NS`] behind the queue, which is enough to interrupt whoever computes, so that a spinning
//! guest cannot keep Domain 0 from its interrupts. Whoever is alone on a CPU runs without any tick.
//!
//! A [`RunQueue`] holds every vcpu that has its home on one CPU, running, waiting or asleep, together with
//! its account of time. It never looks at a clock and knows no lock; the caller passes `now_ns`.
//!
//! Always true ([`RunQueue::audit`]):
//! 1. At most one vcpu of a queue is running, and it is not on the ready list.
//! 2. The ready list holds exactly the vcpus in state runnable, each once.
//! 3. The four times of a vcpu add up to the time since it was made.
//! 4. The queue's own virtual time never goes back.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod cap;
mod mask;
mod pools;
mod queue;
mod unit;

pub use cap::CapMeter;
pub use mask::CpuMask;
pub use pools::{PoolId, PoolRefused, Pools};
pub use queue::{Goes, Next, NoMemory, RunQueue, Slot, Wake};
pub use unit::{RunState, Times, Unit};

/// How long a vcpu runs before another one that waits gets its turn.
pub const SLICE_NS: u64 = 10_000_000;
/// A vcpu that has just begun to run is not interrupted for less than this difference of virtual time, unless a tool sets
/// another (`xl sched-credit2 -s`).
pub const RATE_LIMIT_NS: u64 = 1_000_000;
/// How far behind the queue a vcpu may start after it slept.
pub const WAKE_CREDIT_NS: u64 = 6_000_000;
/// The weight that everybody has unless told otherwise (`CSCHED2_DEFAULT_WEIGHT`).
pub const DEFAULT_WEIGHT: u32 = 256;
/// Least and greatest weight that can be set.
pub const WEIGHTS: core::ops::RangeInclusive<u32> = 1..=65535;
