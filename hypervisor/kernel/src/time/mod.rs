//! Time: the clock that guests share with us, their timers, and this CPU's next interrupt.
//!
//! Each CPU has a queue of alarms and, while vcpus compete for it, the end of a slice; its local APIC is armed
//! for whichever is first, and not at all if there is neither. An alarm is armed on the CPU where its owner
//! asks, and moves along when the owner next runs elsewhere.

pub mod clock;
pub mod control;
mod watchdog;

pub use clock::{date, publish, set_wallclock, update_wallclock};
pub use watchdog::Watchdogs;
pub(crate) use watchdog::{set as set_watchdog, stop_all as stop_watchdogs};

use crate::cpu::{self, work};
use crate::domain::{Domain, VcpuRef};
use crate::lock::{Lock, Rank};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use ferroxen_abi::xen::virq;
use ferroxen_machine::apic;
use ferroxen_machine::boot_slice::BootSlice;
use ferroxen_timers::{TimerHandle, TimerQueue};
use ferroxen_words::{CpuId, Vaddr};

/// Nanoseconds since the host was started: "system time".
#[inline]
pub fn now() -> u64 {
    ferroxen_machine::time::now_ns()
}

/// What an alarm is for.
enum Alarm {
    /// `VCPUOP_set_singleshot_timer`, `set_timer_op`
    Singleshot(VcpuRef),
    /// `VCPUOP_set_periodic_timer`
    Periodic(VcpuRef),
    /// The end of a `SCHEDOP_poll`
    Poll(VcpuRef),
    /// `SCHEDOP_watchdog`
    Watchdog(Arc<Domain>, usize),
    /// The hypervisor's own.
    Call(fn()),
}

struct CpuTimers {
    alarms: Lock<TimerQueue<Alarm>>,
    /// When the slice of the running vcpu ends; [`NEVER`] without competition. Its own CPU's only.
    slice_end_ns: AtomicU64,
    /// What the local APIC is armed for. Its own CPU's only.
    armed_ns: AtomicU64,
}

const NEVER: u64 = u64::MAX;

/// Each CPU's.
static TIMERS: BootSlice<CpuTimers> = BootSlice::new();

/// Makes room for the alarms of as many CPUs as there may be. Once, before any is armed.
pub fn init(cpus: usize) {
    let timers = (0..cpus).map(|_| CpuTimers {
        alarms: Lock::new(Rank::Timers, TimerQueue::new()),
        slice_end_ns: AtomicU64::new(NEVER),
        armed_ns: AtomicU64::new(NEVER),
    });
    TIMERS.set(Vec::leak(timers.collect()));
}

fn here() -> (CpuId, &'static CpuTimers) {
    let cpu = ferroxen_machine::cpu::cpu_id();
    (cpu, &TIMERS[cpu.0 as usize])
}

/// An alarm that was armed and may have gone off since.
#[derive(Clone, Copy)]
struct Armed {
    cpu: CpuId,
    timer: TimerHandle,
    due_ns: u64,
}

/// A vcpu's clock and timers.
pub struct VcpuTime {
    timers: Lock<VcpuTimers>,
    /// A CPU that one of its timers is armed on, or [`NO_CPU`]: a hint for [`entered`].
    armed_on: AtomicU32,
    /// Its `vcpu_time_info` is up to date.
    is_published: AtomicBool,
    /// Where the guest wants a second copy of that, or 0.
    pub(crate) area: AtomicU64,
}

#[derive(Default)]
struct VcpuTimers {
    singleshot: Option<Armed>,
    periodic: Option<Armed>,
    period_ns: u64,
    poll: Option<Armed>,
}

const NO_CPU: u32 = u32::MAX;

impl VcpuTime {
    /// No timers.
    #[expect(clippy::new_without_default, reason = "there is no default vcpu")]
    pub fn new() -> Self {
        VcpuTime {
            timers: Lock::new(Rank::VcpuTimers, VcpuTimers::default()),
            armed_on: AtomicU32::new(NO_CPU),
            is_published: AtomicBool::new(false),
            area: AtomicU64::new(0),
        }
    }
}

/// Arms an alarm on this CPU.
///
/// `None` if there is no memory for it; the caller then lets it go off at once, which a guest takes for an
/// early interrupt.
fn arm(due_ns: u64, alarm: Alarm) -> Option<Armed> {
    let (cpu, timers) = here();
    let timer = timers.alarms.lock().arm(due_ns, alarm).ok()?;
    rearm_sooner(timers, due_ns);
    Some(Armed { cpu, timer, due_ns })
}

/// Disarms an alarm, if it has not gone off. The local APIC may still interrupt once for it.
fn disarm(armed: Armed) -> Option<Alarm> {
    TIMERS.get(armed.cpu.0 as usize)?.alarms.lock().cancel(armed.timer)
}

/// Makes sure that this CPU is interrupted at `due_ns` at the latest.
fn rearm_sooner(timers: &CpuTimers, due_ns: u64) {
    if due_ns < timers.armed_ns.load(Ordering::Relaxed) {
        timers.armed_ns.store(due_ns, Ordering::Relaxed);
        apic::timer_arm(ferroxen_machine::time::tsc_at(due_ns));
    }
}

/// The local APIC's timer has interrupted: alarms go off before this CPU returns or sleeps.
pub fn timer_interrupt() {
    cpu::request(work::TIMERS);
}

/// When the running vcpu's turn ends, if somebody else waits.
pub(crate) fn set_slice_end(until_ns: Option<u64>) {
    let timers = here().1;
    let until_ns = until_ns.unwrap_or(NEVER);
    timers.slice_end_ns.store(until_ns, Ordering::Relaxed);
    rearm_sooner(timers, until_ns);
}

/// Lets all alarms of this CPU go off that are due. Called after the local APIC's timer has interrupted.
pub fn run_timers() {
    let timers = here().1;
    // It may have come early, and is not armed any more in either case.
    timers.armed_ns.store(NEVER, Ordering::Relaxed);
    loop {
        let Some((due_ns, alarm)) = timers.alarms.lock().pop_due(now()) else {
            break;
        };
        go_off(due_ns, alarm);
    }
    let now = now();
    let mut slice_end_ns = timers.slice_end_ns.load(Ordering::Relaxed);
    if slice_end_ns <= now {
        slice_end_ns = NEVER;
        timers.slice_end_ns.store(NEVER, Ordering::Relaxed);
        cpu::request(work::RESCHEDULE);
    }
    let next = timers.alarms.lock().next_due().unwrap_or(NEVER);
    rearm_sooner(timers, next.min(slice_end_ns));
}

fn go_off(due_ns: u64, alarm: Alarm) {
    match alarm {
        Alarm::Singleshot(vcpu) => ring_timer(&vcpu),
        Alarm::Periodic(vcpu) => {
            ring_timer(&vcpu);
            next_period(&vcpu, due_ns);
        }
        Alarm::Poll(vcpu) => crate::sched::unblock(&vcpu),
        Alarm::Watchdog(domain, number) => watchdog::bark(&domain, number),
        Alarm::Call(function) => function(),
    }
}

fn ring_timer(vcpu: &VcpuRef) {
    crate::hypercall::event_channel::send_virq(vcpu, virq::TIMER);
}

/// Calls a function of the hypervisor's on this CPU, at or after `due_ns`, once. False if there is no memory.
pub fn call_at(due_ns: u64, function: fn()) -> bool {
    arm(due_ns, Alarm::Call(function)).is_some()
}

/// Sets the vcpu's one singleshot timer; one that is due rings at once.
pub fn set_singleshot(vcpu: &VcpuRef, due_ns: u64) {
    set_singleshot_at(vcpu, due_ns, now());
}

/// [`set_singleshot`] for a caller that has just looked at the clock.
#[inline]
pub fn set_singleshot_at(vcpu: &VcpuRef, due_ns: u64, now_ns: u64) {
    let mut timers = vcpu.time.timers.lock();
    if due_ns <= now_ns {
        if let Some(armed) = timers.singleshot.take() {
            drop_alarm(armed);
        }
        drop(timers);
        return ring_timer(vcpu);
    }
    if let Some(armed) = &mut timers.singleshot
        && postpone(armed, due_ns)
    {
        return;
    }
    if let Some(armed) = timers.singleshot.take() {
        drop_alarm(armed);
    }
    timers.singleshot = arm(due_ns, Alarm::Singleshot(vcpu.clone()));
    match timers.singleshot {
        Some(armed) => vcpu.time.armed_on.store(armed.cpu.0, Ordering::Relaxed),
        None => {
            drop(timers);
            ring_timer(vcpu);
        }
    }
}

/// Gives an alarm of this CPU another deadline; false if it has gone off or is another CPU's.
fn postpone(armed: &mut Armed, due_ns: u64) -> bool {
    let (cpu, timers) = here();
    if armed.cpu != cpu || !timers.alarms.lock().set_due(armed.timer, due_ns) {
        return false;
    }
    armed.due_ns = due_ns;
    rearm_sooner(timers, due_ns);
    true
}

/// Stops the vcpu's singleshot timer.
pub fn stop_singleshot(vcpu: &VcpuRef) {
    if let Some(armed) = vcpu.time.timers.lock().singleshot.take() {
        drop_alarm(armed);
    }
}

/// Sets the vcpu's periodic timer; a period of 0 stops it.
pub fn set_periodic(vcpu: &VcpuRef, period_ns: u64) {
    let mut timers = vcpu.time.timers.lock();
    if let Some(armed) = timers.periodic.take() {
        drop_alarm(armed);
    }
    timers.period_ns = period_ns;
    if period_ns != 0 {
        timers.periodic = arm(now().saturating_add(period_ns), Alarm::Periodic(vcpu.clone()));
        if let Some(armed) = timers.periodic {
            vcpu.time.armed_on.store(armed.cpu.0, Ordering::Relaxed);
        }
    }
}

fn next_period(vcpu: &VcpuRef, due_ns: u64) {
    let mut timers = vcpu.time.timers.lock();
    // Whoever set or stopped it meanwhile has disarmed the alarm that went off: then the period is another's.
    let ours = timers.periodic.is_some_and(|armed| armed.due_ns == due_ns);
    if timers.period_ns != 0 && ours {
        // Periods that were missed are not made up for.
        let missed = now().saturating_sub(due_ns) / timers.period_ns;
        let next = due_ns.saturating_add(timers.period_ns.saturating_mul(missed.saturating_add(1)));
        timers.periodic = arm(next, Alarm::Periodic(vcpu.clone()));
    }
}

/// Ends the running vcpu's poll at `due_ns`.
pub(crate) fn set_poll_timeout(vcpu: &VcpuRef, due_ns: u64) {
    let mut timers = vcpu.time.timers.lock();
    if let Some(armed) = timers.poll.take() {
        drop_alarm(armed);
    }
    timers.poll = arm(due_ns, Alarm::Poll(vcpu.clone()));
    let armed = timers.poll.is_some();
    drop(timers);
    if !armed {
        crate::sched::unblock(vcpu);
    }
}

/// Forgets the end of a poll that is over.
pub(crate) fn stop_poll_timeout(vcpu: &VcpuRef) {
    if let Some(armed) = vcpu.time.timers.lock().poll.take() {
        drop_alarm(armed);
    }
}

/// Stops all of a vcpu's timers: it is dying.
pub fn stop_all(vcpu: &VcpuRef) {
    let mut timers = vcpu.time.timers.lock();
    timers.period_ns = 0;
    let armed = [timers.singleshot.take(), timers.periodic.take(), timers.poll.take()];
    armed.into_iter().flatten().for_each(drop_alarm);
    vcpu.time.area.store(0, Ordering::Relaxed);
    drop(timers);
    if vcpu.id.0 == 0 {
        watchdog::stop_all(vcpu.domain());
    }
}

fn drop_alarm(armed: Armed) {
    drop(disarm(armed));
}

/// A vcpu has begun to run on this CPU: its timers follow, and its clock is in order.
#[inline]
pub(crate) fn entered(vcpu: &VcpuRef) {
    let armed_on = vcpu.time.armed_on.load(Ordering::Relaxed);
    if armed_on != NO_CPU && armed_on != ferroxen_machine::cpu::cpu_id().0 {
        follow(vcpu);
    }
    if !vcpu.time.is_published.load(Ordering::Relaxed) {
        vcpu.time.is_published.store(true, Ordering::Relaxed);
        publish(vcpu);
    }
}

#[cold]
fn follow(vcpu: &VcpuRef) {
    let here = ferroxen_machine::cpu::cpu_id();
    let mut timers = vcpu.time.timers.lock();
    let VcpuTimers {
        singleshot, periodic, ..
    } = &mut *timers;
    for timer in [singleshot, periodic] {
        if let Some(armed) = timer.filter(|armed| armed.cpu != here)
            && let Some(alarm) = disarm(armed)
        {
            *timer = arm(armed.due_ns, alarm);
        }
    }
    vcpu.time.armed_on.store(here.0, Ordering::Relaxed);
}

/// Where the guest wants a second copy of the vcpu's clock parameters from now on.
pub(crate) fn register_time_area(vcpu: &VcpuRef, at: Vaddr) {
    vcpu.time.area.store(at.raw(), Ordering::Relaxed);
    clock::write_area(vcpu);
}

/// The vcpu's `vcpu_info` has moved: its clock has to be written there.
pub(crate) fn info_moved(vcpu: &VcpuRef) {
    if cpu::local().current.get().is_some_and(|running| running.is(vcpu)) {
        cpu::local().info.set(vcpu.info());
    }
    vcpu.time.is_published.store(true, Ordering::Relaxed);
    publish(vcpu);
}
