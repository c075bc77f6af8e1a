//! Which vcpu runs where: carries out what `ferroxen_sched` decides.
//!
//! Every vcpu has its home in one CPU's queue. What the queue says about it (running, waiting, asleep) is
//! decided under that queue's lock. Whether its registers are still in a CPU is [`VcpuSched::is_on_cpu`]: set
//! under the lock when it is chosen, cleared when it has been saved; nobody moves it meanwhile.
//!
//! A vcpu waits ("blocks") by setting a bit in its `waits` word and asking its CPU to decide anew. Whoever
//! wakes it clears the bit and tells the home queue. Both the decision and the waking look at the bit under
//! the queue's lock, so no waking is lost.

mod balance;
pub mod control;
mod idle;
pub mod pools;
mod runstate;

pub use balance::{affinity, pin, set_affinity};
pub use idle::idle_ns;
pub(crate) use runstate::with_kernel_tables;
pub use runstate::{info as runstate_info, register_area, times};

use crate::cpu::{self, work};
use crate::domain::{Domain, Vcpu, VcpuRef, context};
use crate::lock::{Guard, Lock, Rank};
use crate::trace;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use ferroxen_abi::trace::sched as abi;
use ferroxen_machine::boot_slice::BootSlice;
use ferroxen_machine::{GuestFrame, MAX_CPUS, paging, smp};
use ferroxen_sched::{CapMeter, CpuMask, DEFAULT_WEIGHT, Goes, PoolId, RunQueue, RunState, Slot, Unit, Wake};
use ferroxen_words::{CpuId, DomId, Port, VcpuId};

/// Each CPU's.
static QUEUES: BootSlice<Lock<RunQueue<VcpuRef>>> = BootSlice::new();

/// Makes queues for as many CPUs as there may be. Once, before anybody wants to run.
pub fn init(cpus: usize) {
    let queues = (0..cpus).map(|_| Lock::new(Rank::RunQueue, RunQueue::new()));
    QUEUES.set(Vec::leak(queues.collect()));
}

/// What others may know about a CPU without its lock. Hints, but for `must_decide`.
struct CpuState {
    /// Decide anew, said another CPU.
    must_decide: AtomicBool,
    /// How many vcpus run or wait here.
    load: AtomicU32,
    /// When a vcpu was last passed on only for fairness' sake.
    rotated_ns: AtomicU64,
    idle: idle::IdleTime,
}

static CPUS: [CpuState; MAX_CPUS] = [const {
    CpuState {
        must_decide: AtomicBool::new(false),
        load: AtomicU32::new(0),
        rotated_ns: AtomicU64::new(0),
        idle: idle::IdleTime::new(),
    }
}; MAX_CPUS];

fn state(cpu: CpuId) -> &'static CpuState {
    &CPUS[cpu.0 as usize]
}

/// A domain's part of scheduling.
pub struct DomainSched {
    /// The number of its CPU pool.
    pool: AtomicU32,
    weight: AtomicU32,
    cap: Lock<CapMeter>,
    has_cap: AtomicBool,
    /// How many of its vcpus poll ports.
    pollers: AtomicU32,
    /// Its watchdogs.
    pub(crate) watchdogs: Lock<crate::time::Watchdogs>,
    /// The code that a later shutdown shall report (`SCHEDOP_shutdown_code`), plus 1.
    pub(crate) latched_code: AtomicU32,
}

impl DomainSched {
    /// What every domain begins with.
    #[expect(clippy::new_without_default, reason = "there is no default domain")]
    pub const fn new() -> Self {
        DomainSched {
            pool: AtomicU32::new(PoolId::FIRST.0),
            weight: AtomicU32::new(DEFAULT_WEIGHT),
            cap: Lock::new(Rank::Timers, CapMeter::new()),
            has_cap: AtomicBool::new(false),
            pollers: AtomicU32::new(0),
            watchdogs: Lock::new(Rank::VcpuTimers, crate::time::Watchdogs::new()),
            latched_code: AtomicU32::new(0),
        }
    }
}

/// A vcpu's part of scheduling.
pub struct VcpuSched {
    /// CPU and slot of its home, or [`NO_HOME`].
    home: AtomicU64,
    /// The CPU that has its registers, or [`NOWHERE`].
    on_cpu: AtomicU32,
    /// Why it waits: [`BLOCKED`], [`POLLING`].
    waits: AtomicU32,
    /// The port that it polls; [`ANY_PORT`] if several.
    polled: AtomicU32,
    /// It lets others go first, once.
    yields: AtomicBool,
    /// Where the guest wants its run state, or 0.
    runstate_area: AtomicU64,
    /// Affinity before a temporary pinning.
    unpinned: Lock<Option<CpuMask>>,
}

const NO_HOME: u64 = u64::MAX;
const NOWHERE: u32 = u32::MAX;
/// Waits for an event.
const BLOCKED: u32 = 1;
/// Waits for an event or a polled port.
const POLLING: u32 = 2;
/// Any port that becomes pending ends the polling.
const ANY_PORT: u32 = u32::MAX;

impl VcpuSched {
    /// A vcpu that waits for nothing and has no home yet.
    pub fn new(_domain: DomId, _vcpu: VcpuId) -> Self {
        VcpuSched {
            home: AtomicU64::new(NO_HOME),
            on_cpu: AtomicU32::new(NOWHERE),
            waits: AtomicU32::new(0),
            polled: AtomicU32::new(0),
            yields: AtomicBool::new(false),
            runstate_area: AtomicU64::new(0),
            unpinned: Lock::new(Rank::VcpuTimers, None),
        }
    }

    /// Whether a CPU has its registers.
    #[inline]
    pub fn is_on_cpu(&self) -> bool {
        self.on_cpu.load(Ordering::Acquire) != NOWHERE
    }

    /// The CPU that has its registers.
    #[inline]
    pub fn cpu(&self) -> Option<CpuId> {
        let cpu = self.on_cpu.load(Ordering::SeqCst);
        (cpu != NOWHERE).then_some(CpuId(cpu))
    }

    /// Whether it waits for an event.
    #[inline]
    fn is_waiting(&self) -> bool {
        self.waits.load(Ordering::SeqCst) != 0
    }
}

/// Gives a new vcpu its home. If there is no memory for that, it is tried again when it shall run.
pub fn admit(vcpu: &VcpuRef) {
    balance::admit(vcpu);
}

/// Takes a vcpu, which will not run again and is not running, out of its queue.
pub fn forget(vcpu: &VcpuRef) {
    vcpu.sched.runstate_area.store(0, Ordering::Relaxed);
    if let Some((cpu, slot, mut queue)) = home(vcpu) {
        let gone = queue.remove(slot);
        assert!(gone.is_some(), "{vcpu} runs and is to be forgotten");
        vcpu.sched.home.store(NO_HOME, Ordering::Release);
        note_load(cpu, &queue);
        drop(queue);
        drop(gone);
    }
}

/// Locks the queue in which a vcpu is at home.
fn home(vcpu: &VcpuRef) -> Option<(CpuId, Slot, Guard<'static, RunQueue<VcpuRef>>)> {
    loop {
        let home = vcpu.sched.home.load(Ordering::Acquire);
        if home == NO_HOME {
            return None;
        }
        let (cpu, slot) = (CpuId((home >> 32) as u32), Slot(home as u32));
        let queue = QUEUES.get(cpu.0 as usize)?.lock();
        if vcpu.sched.home.load(Ordering::Acquire) == home {
            return Some((cpu, slot, queue));
        }
    }
}

fn note_load(cpu: CpuId, queue: &RunQueue<VcpuRef>) {
    state(cpu).load.store(queue.load() as u32, Ordering::Relaxed);
}

/// Makes a CPU decide anew who runs on it, soon.
fn make_decide(cpu: CpuId) {
    if cpu == ferroxen_machine::cpu::cpu_id() {
        cpu::request(work::RESCHEDULE);
    } else {
        state(cpu).must_decide.store(true, Ordering::Release);
        smp::poke(cpu);
    }
}

/// Another CPU has interrupted this one: notes what it wants. Called from the interrupt.
pub fn poked() {
    if state(ferroxen_machine::cpu::cpu_id())
        .must_decide
        .load(Ordering::Acquire)
    {
        cpu::request(work::RESCHEDULE);
    }
    if let Some(vcpu) = cpu::local().current.get() {
        cpu::request(if vcpu.has_nmi() { work::NMI } else { 0 });
    }
}

/// A non-maskable interrupt waits for a vcpu: it shall be delivered soon.
pub fn nmi_raised(vcpu: &VcpuRef) {
    if vcpu.sched.cpu() == Some(ferroxen_machine::cpu::cpu_id()) {
        cpu::request(work::NMI);
    }
    kick(vcpu);
}

/// Lets a vcpu run, if nothing else keeps it from running: after an unpause, for example.
pub fn wake(vcpu: &VcpuRef) {
    if !vcpu.may_run() || vcpu.sched.is_waiting() {
        return;
    }
    balance::admit(vcpu);
    balance::prefer_idle_cpu(vcpu);
    let Some((cpu, slot, mut queue)) = home(vcpu) else {
        return;
    };
    if !vcpu.may_run() || vcpu.sched.is_waiting() {
        return;
    }
    let wake = queue.wake(slot, crate::time::now());
    note_load(cpu, &queue);
    drop(queue);
    if trace::is_on() && !matches!(wake, Wake::Already) {
        trace::vcpu(abi::WAKE, vcpu);
        trace::state_changes(trace::Who::of(Some(vcpu)), RunState::Blocked, RunState::Runnable);
    }
    match wake {
        Wake::Preempt => make_decide(cpu),
        Wake::Already | Wake::Queued => {}
    }
}

/// An event has come for a vcpu: ends its wait, or makes it look if it runs elsewhere.
#[inline]
pub fn kick(vcpu: &VcpuRef) {
    kick_in(vcpu.domain(), vcpu);
}

/// [`kick`] for a vcpu of a domain at hand.
#[inline(always)]
pub fn kick_in(domain: &Arc<Domain>, vcpu: &Vcpu) {
    // The event's bits were written by an atomic exchange before; `block` and the way back to a guest read
    // them after having told where the vcpu is. One of the two sides sees the other.
    if vcpu.sched.is_waiting() {
        unblock_in(domain, vcpu.id);
    } else if let Some(cpu) = vcpu.sched.cpu()
        && cpu != ferroxen_machine::cpu::cpu_id()
    {
        smp::poke(cpu);
    }
}

#[inline(never)]
fn unblock_in(domain: &Arc<Domain>, id: VcpuId) {
    if let Some(vcpu) = VcpuRef::of(domain, id) {
        unblock(&vcpu);
    }
}

/// Ends whatever a vcpu waits for.
pub fn unblock(vcpu: &VcpuRef) {
    let waits = vcpu.sched.waits.swap(0, Ordering::SeqCst);
    if waits & POLLING != 0 {
        vcpu.domain().sched.pollers.fetch_sub(1, Ordering::AcqRel);
    }
    if waits != 0 {
        wake(vcpu);
    }
}

/// The running vcpu waits for an event. `has_event` is asked after everybody can see that it waits.
pub fn block(vcpu: &VcpuRef, has_event: impl Fn() -> bool) {
    vcpu.sched.waits.fetch_or(BLOCKED, Ordering::SeqCst);
    if has_event() {
        vcpu.sched.waits.fetch_and(!BLOCKED, Ordering::SeqCst);
    } else {
        cpu::request(work::RESCHEDULE);
        if trace::is_on() {
            trace::vcpu(abi::BLOCK, vcpu);
        }
    }
}

/// The running vcpu waits for an event or for one of `ports`; false if there is one already.
pub fn poll(vcpu: &VcpuRef, port: Option<Port>, is_ready: impl Fn() -> bool) -> bool {
    vcpu.sched
        .polled
        .store(port.map_or(ANY_PORT, Port::raw), Ordering::Relaxed);
    vcpu.domain().sched.pollers.fetch_add(1, Ordering::SeqCst);
    vcpu.sched.waits.fetch_or(POLLING, Ordering::SeqCst);
    if is_ready() {
        if vcpu.sched.waits.fetch_and(!POLLING, Ordering::SeqCst) & POLLING != 0 {
            vcpu.domain().sched.pollers.fetch_sub(1, Ordering::AcqRel);
        }
        return false;
    }
    cpu::request(work::RESCHEDULE);
    true
}

/// A port has become pending: wakes the vcpus that poll it.
#[inline]
pub fn port_pending(domain: &Arc<Domain>, port: Port) {
    if domain.sched.pollers.load(Ordering::SeqCst) != 0 {
        wake_pollers(domain, port);
    }
}

#[cold]
fn wake_pollers(domain: &Arc<Domain>, port: Port) {
    for vcpu in VcpuRef::all(domain) {
        let polled = vcpu.sched.polled.load(Ordering::Relaxed);
        if vcpu.sched.waits.load(Ordering::SeqCst) & POLLING != 0 && (polled == ANY_PORT || polled == port.raw()) {
            unblock(&vcpu);
        }
    }
}

/// The running vcpu lets others go first.
pub fn yield_now(vcpu: &VcpuRef) {
    vcpu.sched.yields.store(true, Ordering::Relaxed);
    cpu::request(work::RESCHEDULE);
    if trace::is_on() {
        trace::vcpu(abi::YIELD, vcpu);
    }
}

/// Stops a vcpu that may not run any more; does not wait until it has left its CPU.
pub fn stop(vcpu: &VcpuRef) {
    let Some((cpu, slot, mut queue)) = home(vcpu) else {
        return;
    };
    let runs = queue.stop(slot, crate::time::now());
    note_load(cpu, &queue);
    drop(queue);
    if runs {
        make_decide(cpu);
    }
}

/// Stops a vcpu that may not run any more, and waits until its registers have been saved.
///
/// For the vcpu that runs here it cannot wait; that one stops before it returns to its guest.
pub fn stop_and_wait(vcpu: &VcpuRef) {
    stop(vcpu);
    let here = ferroxen_machine::cpu::cpu_id();
    while let Some(cpu) = vcpu.sched.cpu() {
        if cpu == here {
            return;
        }
        smp::service_requests();
        ferroxen_machine::cpu::relax();
    }
}

/// What tools want to know about a vcpu.
#[derive(Clone, Copy, Debug)]
pub struct VcpuState {
    /// It waits for an event.
    pub is_blocked: bool,
    /// It has a CPU.
    pub is_running: bool,
    /// How long it has run.
    pub run_ns: u64,
    /// The CPU that it runs on, or ran on last.
    pub cpu: CpuId,
}

/// What tools want to know about a vcpu.
pub fn state_of(vcpu: &VcpuRef) -> VcpuState {
    let is_blocked = vcpu.sched.is_waiting();
    match home(vcpu) {
        Some((cpu, slot, queue)) => {
            let times = queue.times(slot).map(|times| times.at(crate::time::now()));
            VcpuState {
                is_blocked,
                is_running: times.is_some_and(|times| times.state == RunState::Running),
                run_ns: times.map_or(0, |times| times.spent_ns[RunState::Running as usize]),
                cpu,
            }
        }
        None => VcpuState {
            is_blocked,
            is_running: false,
            run_ns: 0,
            cpu: CpuId(0),
        },
    }
}

/// Decides who runs on this CPU, and makes it so: on return the frame is that of the chosen vcpu.
///
/// While there is nobody, the CPU idles in here.
pub fn schedule(frame: &mut GuestFrame) {
    let here = ferroxen_machine::cpu::cpu_id();
    loop {
        let before = cpu::current();
        state(here).must_decide.store(false, Ordering::Release);
        let work = &cpu::local().work;
        work.set(work.get() & !(work::RESCHEDULE | work::STOP_CURRENT));
        let decision = decide(here, before.as_ref());
        if trace::is_on() {
            note_decision(before.as_ref(), decision.chosen.as_ref());
        }
        if let (Some(old), Some(new)) = (&before, &decision.chosen)
            && old.is(new)
        {
            return;
        }
        if let Some(old) = &before {
            leave(old, frame);
        }
        let is_idle = decision.chosen.is_none();
        match decision.chosen {
            Some(new) => enter(new, frame),
            None => paging::activate_own(),
        }
        // Not before: until here this CPU was on its page tables, which may go once it is nowhere.
        if let Some(old) = before {
            old.sched.on_cpu.store(NOWHERE, Ordering::SeqCst);
            if decision.must_move {
                balance::move_to_allowed(&old);
            }
        }
        if !is_idle {
            return;
        }
        idle::idle(here);
    }
}

/// Traces who goes and who comes.
#[cold]
fn note_decision(old: Option<&VcpuRef>, new: Option<&VcpuRef>) {
    let (from, to) = (trace::Who::of(old), trace::Who::of(new));
    if from == to {
        return trace::goes_on(from);
    }
    let left_in = match old {
        Some(vcpu) if vcpu.sched.is_waiting() => RunState::Blocked,
        Some(vcpu) if !vcpu.may_run() => RunState::Offline,
        _ => RunState::Runnable,
    };
    trace::switches(from, left_in, to);
}

/// What was decided, as far as it has to be carried out without the queue's lock.
struct Decision {
    chosen: Option<VcpuRef>,
    /// Who goes may not stay in this CPU's queue.
    must_move: bool,
}

/// Saves the registers of a vcpu that goes.
fn leave(old: &VcpuRef, frame: &GuestFrame) {
    runstate::update(old);
    context::save(old, frame);
    cpu::local().info.set(None);
    drop(cpu::local().current.replace(None));
}

/// Puts a vcpu onto this CPU, after it was chosen.
fn enter(new: VcpuRef, frame: &mut GuestFrame) {
    let local = cpu::local();
    drop(local.current.replace(Some(new)));
    let Some(new) = local.current.get() else { return };
    context::load(&new, frame);
    runstate::update(&new);
    crate::time::entered(&new);
    local.info.set(new.info());
    if new.has_nmi() {
        cpu::request(work::NMI);
    }
}

fn decide(here: CpuId, before: Option<&VcpuRef>) -> Decision {
    let now = crate::time::now();
    let mut queue = QUEUES[here.0 as usize].lock();
    let ran = queue.charge(now);
    let mut goes = Goes::Stays;
    let mut must_move = false;
    let old_slot = queue.running();
    if let (Some(vcpu), Some(slot)) = (before, old_slot) {
        if vcpu.domain().sched.has_cap.load(Ordering::Relaxed)
            && let Some(until) = vcpu.domain().sched.cap.lock().charge(ran, now)
        {
            queue.park(slot, until);
        }
        let yields = vcpu.sched.yields.swap(false, Ordering::Relaxed);
        must_move = !queue.unit(slot).is_some_and(|unit| balance::may_use(unit, here));
        goes = if vcpu.sched.is_waiting() {
            Goes::Blocks
        } else if must_move || !vcpu.may_run() {
            Goes::Stops
        } else if yields {
            Goes::Yields
        } else {
            Goes::Stays
        };
    }
    let next = queue.pick(goes, now);
    let chosen = next.slot.and_then(|slot| queue.unit(slot)).map(|unit| unit.who.clone());
    if let Some(vcpu) = &chosen {
        vcpu.sched.on_cpu.store(here.0, Ordering::SeqCst);
    }
    note_load(here, &queue);
    let waiting = queue.waiting();
    drop(queue);

    let mut until = next.until_ns;
    if let Some(vcpu) = &chosen
        && vcpu.domain().sched.has_cap.load(Ordering::Relaxed)
        && let Some(left) = vcpu.domain().sched.cap.lock().left_ns(now)
    {
        let spent = now.saturating_add(left);
        until = Some(until.map_or(spent, |until| until.min(spent)));
    }
    crate::time::set_slice_end(until);
    if waiting != 0 {
        balance::pass_on(here, now);
    }
    Decision { chosen, must_move }
}

/// A new unit for a vcpu's queue.
fn unit_of(vcpu: &VcpuRef) -> Unit<VcpuRef> {
    let mut unit = Unit::new(vcpu.clone(), crate::time::now());
    unit.set_weight(vcpu.domain().sched.weight.load(Ordering::Relaxed));
    unit
}
