//! Where vcpus are at home: chosen when they are made, changed when a CPU would be idle or unfairly full.

use super::pools::{is_in_pool, share_a_pool};
use super::{NO_HOME, QUEUES, home, make_decide, note_load, state, unit_of};
use crate::domain::{Domain, VcpuRef};
use crate::lock::Guard;
use core::sync::atomic::Ordering;
use ferroxen_abi::errno::Errno;
use ferroxen_machine::smp::CpuSet;
use ferroxen_sched::{CpuMask, RunQueue, RunState, Slot, Unit};
use ferroxen_words::CpuId;

/// At most so often a vcpu is passed on to a CPU that would then be as full as this one: with three that
/// compute on two CPUs, this lets each have its turn alone.
const ROTATE_NS: u64 = 100_000_000;

fn online() -> impl Iterator<Item = CpuId> {
    (0..ferroxen_machine::cpu::cpus_online()).map(CpuId)
}

fn load(cpu: CpuId) -> u32 {
    state(cpu).load.load(Ordering::Relaxed)
}

/// Whether a vcpu may be on a CPU: its domain's pool has that, and its affinity.
pub(super) fn may_use(unit: &Unit<VcpuRef>, cpu: CpuId) -> bool {
    unit.hard.contains(cpu) && is_in_pool(unit.who.domain(), cpu)
}

/// The CPU with the least load among those allowed to a vcpu of the domain; preferred ones win over others.
fn emptiest(domain: &Domain, hard: CpuMask, soft: CpuMask) -> Option<CpuId> {
    online()
        .filter(|cpu| hard.contains(*cpu) && is_in_pool(domain, *cpu))
        .min_by(|one, other| {
            let key = |cpu: CpuId| (!soft.contains(cpu), load(cpu));
            // Counting takes a queue's lock, so only where nothing else decides.
            key(*one).cmp(&key(*other)).then_with(|| live(*one).cmp(&live(*other)))
        })
}

fn live(cpu: CpuId) -> u32 {
    QUEUES[cpu.0 as usize].try_lock().map_or(u32::MAX, |queue| queue.live())
}

/// Gives a vcpu a home if it has none.
#[inline]
pub fn admit(vcpu: &VcpuRef) {
    if vcpu.sched.home.load(Ordering::Acquire) == NO_HOME {
        admit_homeless(vcpu);
    }
}

#[inline(never)]
fn admit_homeless(vcpu: &VcpuRef) {
    if vcpu.domain().life() != crate::domain::Life::Alive {
        return;
    }
    let unit = unit_of(vcpu);
    let (cpu, mut queue) = loop {
        let Some(cpu) = emptiest(vcpu.domain(), CpuMask::ALL, CpuMask::ALL) else {
            return;
        };
        let queue = QUEUES[cpu.0 as usize].lock();
        if is_in_pool(vcpu.domain(), cpu) {
            break (cpu, queue);
        }
    };
    // Two may try at once: whoever has a queue's lock and still sees no home gives it one.
    let refused = match queue.insert(unit) {
        Ok(slot) => {
            let ours = place(cpu, slot);
            let won = vcpu
                .sched
                .home
                .compare_exchange(NO_HOME, ours, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
            if won { None } else { queue.remove(slot) }
        }
        Err((_, unit)) => {
            crate::error!("{vcpu}: no memory to schedule it");
            Some(unit)
        }
    };
    drop(queue);
    drop(refused);
}

fn place(cpu: CpuId, slot: Slot) -> u64 {
    u64::from(cpu.0) << 32 | u64::from(slot.0)
}

/// Locks two CPUs' queues, the lower number first; they come back in the order asked for.
fn both(one: CpuId, other: CpuId) -> (Guard<'static, RunQueue<VcpuRef>>, Guard<'static, RunQueue<VcpuRef>>) {
    let lock = |cpu: CpuId| &QUEUES[cpu.0 as usize];
    if one.0 < other.0 {
        let first = lock(one).lock();
        let second = lock(other).lock_second();
        (first, second)
    } else {
        let first = lock(other).lock();
        let second = lock(one).lock_second();
        (second, first)
    }
}

/// Moves a vcpu, which is on no CPU, from one queue to another.
fn transfer(slot: Slot, from: &mut RunQueue<VcpuRef>, old: CpuId, to: &mut RunQueue<VcpuRef>, new: CpuId) -> bool {
    let Some(unit) = from.remove(slot) else { return false };
    let who = unit.who.clone();
    let moved = match to.insert(unit) {
        Ok(slot) => {
            who.sched.home.store(place(new, slot), Ordering::Release);
            true
        }
        Err((_, unit)) => {
            // It just left, so there is room for it.
            let back = from.insert(unit).map_err(|_| "no room in the queue that it left");
            who.sched
                .home
                .store(place(old, back.unwrap_or(slot)), Ordering::Release);
            false
        }
    };
    note_load(old, from);
    note_load(new, to);
    moved
}

/// Moves a vcpu to another CPU's queue, unless it is on a CPU. If it waits for its turn, the new CPU is told, which may
/// sleep: whoever wakes a vcpu that is awake does not tell it.
fn move_home(vcpu: &VcpuRef, to: CpuId) -> bool {
    loop {
        let at = vcpu.sched.home.load(Ordering::Acquire);
        if at == NO_HOME {
            return false;
        }
        let from = CpuId((at >> 32) as u32);
        if from == to {
            return true;
        }
        let (mut old, mut new) = both(from, to);
        if vcpu.sched.home.load(Ordering::Acquire) != at {
            continue;
        }
        if vcpu.sched.is_on_cpu() || !is_in_pool(vcpu.domain(), to) {
            return false;
        }
        let slot = Slot(at as u32);
        let wants_to_run = old.times(slot).is_some_and(|times| times.state == RunState::Runnable);
        let moved = transfer(slot, &mut old, from, &mut new, to);
        drop((old, new));
        if moved && wants_to_run {
            make_decide(to);
        }
        return moved;
    }
}

/// Before a vcpu wakes on a busy CPU: gives it an idle one if there is one that it may use.
#[inline]
pub fn prefer_idle_cpu(vcpu: &VcpuRef) {
    let at = vcpu.sched.home.load(Ordering::Acquire);
    if at != NO_HOME && load(CpuId((at >> 32) as u32)) != 0 && ferroxen_machine::cpu::cpus_online() > 1 {
        find_idle_cpu(vcpu);
    }
}

#[cold]
fn find_idle_cpu(vcpu: &VcpuRef) {
    let Some((hard, soft)) = masks(vcpu) else { return };
    if let Some(cpu) = emptiest(vcpu.domain(), hard, soft).filter(|cpu| load(*cpu) == 0) {
        move_home(vcpu, cpu);
    }
}

fn masks(vcpu: &VcpuRef) -> Option<(CpuMask, CpuMask)> {
    let (_, slot, queue) = home(vcpu)?;
    queue.unit(slot).map(|unit| (unit.hard, unit.soft))
}

/// A vcpu has left a CPU that is not allowed to it any more: it goes on where it is.
#[cold]
pub fn move_to_allowed(vcpu: &VcpuRef) {
    if let Some((hard, soft)) = masks(vcpu)
        && let Some(better) = emptiest(vcpu.domain(), hard, soft)
    {
        move_home(vcpu, better);
    }
    super::wake(vcpu);
}

/// More vcpus want this CPU than it can run: passes one on to a CPU with less to do.
pub fn pass_on(here: CpuId, now_ns: u64) {
    let mine = load(here);
    let others = online().filter(|cpu| *cpu != here && share_a_pool(here, *cpu));
    let Some(there) = others.min_by_key(|cpu| load(*cpu)) else {
        return;
    };
    let theirs = load(there);
    let for_fairness = theirs + 1 == mine;
    if theirs + 1 > mine {
        return;
    }
    if for_fairness {
        let last = state(here).rotated_ns.load(Ordering::Relaxed);
        if now_ns.saturating_sub(last) < ROTATE_NS {
            return;
        }
        state(here).rotated_ns.store(now_ns, Ordering::Relaxed);
        state(there).rotated_ns.store(now_ns, Ordering::Relaxed);
    }
    let (mut from, mut to) = both(here, there);
    let may_go = |unit: &Unit<VcpuRef>| may_use(unit, there) && !unit.who.sched.is_on_cpu();
    let passed = match from.spare(now_ns, may_go) {
        Some(slot) => transfer(slot, &mut from, here, &mut to, there),
        None => false,
    };
    drop((from, to));
    if passed {
        make_decide(there);
    }
}

/// An idle CPU looks for a vcpu that waits elsewhere; true if it has taken one over.
pub fn steal(here: CpuId, now_ns: u64) -> bool {
    for there in online().filter(|cpu| *cpu != here && load(*cpu) > 1 && share_a_pool(here, *cpu)) {
        let (mut to, mut from) = both(here, there);
        let may_go = |unit: &Unit<VcpuRef>| may_use(unit, here) && !unit.who.sched.is_on_cpu();
        if let Some(slot) = from.spare(now_ns, may_go)
            && transfer(slot, &mut from, there, &mut to, here)
        {
            return true;
        }
    }
    false
}

/// The CPUs that a vcpu may use, and those that it should.
pub fn affinity(vcpu: &VcpuRef) -> (CpuSet, CpuSet) {
    let (hard, soft) = masks(vcpu).unwrap_or((CpuMask::ALL, CpuMask::ALL));
    (online_set(hard), online_set(soft))
}

fn online_set(mask: CpuMask) -> CpuSet {
    online()
        .filter(|cpu| mask.contains(*cpu))
        .fold(CpuSet::EMPTY, |mut set, cpu| {
            set.insert(cpu);
            set
        })
}

/// The mask of a set; one that names every CPU that runs means every CPU there may be.
fn mask_of(set: CpuSet) -> CpuMask {
    if online().all(|cpu| set.contains(cpu)) {
        return CpuMask::ALL;
    }
    set.iter().fold(CpuMask::NONE, |mut mask, cpu| {
        mask.insert(cpu);
        mask
    })
}

/// Sets the CPUs that a vcpu may use, or should; `EINVAL` if none of them is one that its domain runs on, `EBUSY` while
/// it is pinned.
pub fn set_affinity(vcpu: &VcpuRef, hard: Option<CpuSet>, soft: Option<CpuSet>) -> Result<(), Errno> {
    let (hard, soft) = (hard.map(mask_of), soft.map(mask_of));
    let is_useless = |mask: CpuMask| !online().any(|cpu| mask.contains(cpu) && is_in_pool(vcpu.domain(), cpu));
    if hard.is_some_and(is_useless) || soft.is_some_and(is_useless) {
        return Err(Errno::EINVAL);
    }
    if hard.is_some() && vcpu.sched.unpinned.lock().is_some() {
        return Err(Errno::EBUSY);
    }
    apply(vcpu, hard, soft);
    Ok(())
}

fn apply(vcpu: &VcpuRef, hard: Option<CpuMask>, soft: Option<CpuMask>) {
    admit(vcpu);
    let Some((cpu, slot, mut queue)) = home(vcpu) else {
        return;
    };
    let Some(unit) = queue.unit_mut(slot) else { return };
    unit.hard = hard.unwrap_or(unit.hard);
    unit.soft = soft.unwrap_or(unit.soft);
    let stays = may_use(unit, cpu);
    drop(queue);
    if !stays {
        relocate(vcpu, cpu);
    }
}

/// Sends a vcpu away from the CPU where it is at home.
fn relocate(vcpu: &VcpuRef, from: CpuId) {
    let Some((hard, soft)) = masks(vcpu) else { return };
    let Some(better) = emptiest(vcpu.domain(), hard, soft) else {
        return;
    };
    if !move_home(vcpu, better) {
        // It runs: its CPU will find that it may not, and send it on.
        make_decide(from);
    }
}

/// Its domain has lost a CPU: a vcpu leaves it. One that could use no other may use all that are left.
pub(super) fn leave_foreign_cpu(vcpu: &VcpuRef) {
    let Some((cpu, slot, mut queue)) = home(vcpu) else {
        return;
    };
    let Some(unit) = queue.unit_mut(slot) else { return };
    if !online().any(|cpu| may_use(unit, cpu)) {
        unit.hard = CpuMask::ALL;
        crate::info!("{vcpu}: the CPUs that it was bound to are not its pool's any more: it may use all of that one's");
    }
    let stays = may_use(unit, cpu);
    drop(queue);
    if !stays {
        relocate(vcpu, cpu);
    }
}

/// Its domain has got other CPUs: a vcpu may use all of them.
pub(super) fn allow_everywhere(vcpu: &VcpuRef) {
    apply(vcpu, Some(CpuMask::ALL), Some(CpuMask::ALL));
}

/// Pins a vcpu to one CPU for a while (`SCHEDOP_pin_override`), or takes that back.
pub fn pin(vcpu: &VcpuRef, to: Option<CpuId>) -> Result<(), Errno> {
    let mut unpinned = vcpu.sched.unpinned.lock();
    match to {
        Some(cpu) => {
            if unpinned.is_some() {
                return Err(Errno::EBUSY);
            }
            if cpu.0 >= ferroxen_machine::cpu::cpus_online() || !is_in_pool(vcpu.domain(), cpu) {
                return Err(Errno::EINVAL);
            }
            let (hard, _) = masks(vcpu).ok_or(Errno::EINVAL)?;
            *unpinned = Some(hard);
            drop(unpinned);
            apply(vcpu, Some(CpuMask::of(cpu)), None);
        }
        None => {
            let hard = unpinned.take().ok_or(Errno::EINVAL)?;
            drop(unpinned);
            apply(vcpu, Some(hard), None);
        }
    }
    Ok(())
}
