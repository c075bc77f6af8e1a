//! CPU pools, carried out: which CPU and which domain are whose, and what moves when that changes.
//!
//! A change is made under the pools' lock. Where a vcpu may go is looked at without it: a CPU notes its pool, a domain
//! its own, and a vcpu enters a CPU's queue only if the two are the same, which is asked under that queue's lock. So
//! once a change is noted and the queues' locks have been free once, nobody enters who may not, and a walk over the
//! domains finds all who have to leave.

use super::balance;
use super::{QUEUES, make_decide};
use crate::domain::{self, Domain, VcpuRef};
use crate::lock::{Lock, Rank};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_machine::{MAX_CPUS, cpu};
use ferroxen_sched::{CpuMask, PoolId, PoolRefused, Pools};
use ferroxen_words::CpuId;

static POOLS: Lock<Pools> = Lock::new(Rank::Pools, Pools::new());
/// The pool of each CPU, or [`NO_POOL`].
static OF_CPU: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(PoolId::FIRST.0) }; MAX_CPUS];
const NO_POOL: u32 = u32::MAX;

/// Whether a CPU is one that the domain runs on.
#[inline]
pub fn is_in_pool(domain: &Domain, cpu: CpuId) -> bool {
    of_cpu(cpu).load(Ordering::SeqCst) == domain.sched.pool.load(Ordering::SeqCst)
}

/// Whether two CPUs run the same domains.
#[inline]
pub fn share_a_pool(one: CpuId, other: CpuId) -> bool {
    let pool = |cpu| of_cpu(cpu).load(Ordering::Relaxed);
    pool(one) == pool(other) && pool(one) != NO_POOL
}

/// The pool of a domain.
pub fn of_domain(domain: &Domain) -> PoolId {
    PoolId(domain.sched.pool.load(Ordering::SeqCst))
}

fn of_cpu(cpu: CpuId) -> &'static AtomicU32 {
    &OF_CPU[cpu.0 as usize]
}

/// A pool as tools see it.
pub struct Info {
    /// Its number.
    pub id: PoolId,
    /// Its CPUs.
    pub cpus: CpuMask,
    /// How many domains it has.
    pub domains: u32,
}

/// The first pool from that number on.
pub fn info(from: PoolId) -> Option<Info> {
    let pools = POOLS.lock();
    let id = pools.at_or_after(from)?;
    let cpus = pools.cpus(id)?.and(online());
    let domains = domain::list::all()
        .iter()
        .filter(|domain| of_domain(domain) == id)
        .count() as u32;
    Some(Info { id, cpus, domains })
}

/// Whether there is such a pool.
pub fn exists(id: PoolId) -> bool {
    POOLS.lock().cpus(id).is_some()
}

/// CPUs of no pool.
pub fn free() -> CpuMask {
    POOLS.lock().free()
}

/// Makes a pool, which has no CPU yet.
pub fn create(wanted: Option<PoolId>) -> Result<PoolId, Errno> {
    if ferroxen_machine::heap::free_bytes() < domain::list::HEAP_RESERVE {
        return Err(Errno::ENOMEM);
    }
    POOLS.lock().create(wanted).map_err(errno)
}

/// Ends a pool that nothing belongs to.
pub fn destroy(id: PoolId) -> Result<(), Errno> {
    let mut pools = POOLS.lock();
    let has_domains = has_domains(id);
    pools.destroy(id, has_domains).map_err(errno)
}

fn has_domains(id: PoolId) -> bool {
    domain::list::all().iter().any(|domain| of_domain(domain) == id)
}

/// Gives a pool a free CPU: this one, or any.
pub fn give_cpu(id: PoolId, wanted: Option<CpuId>) -> Result<(), Errno> {
    let mut pools = POOLS.lock();
    if pools.cpus(id).is_none() {
        return Err(Errno::ENOENT);
    }
    let cpu = pools.give(id, existing(wanted)?).map_err(errno)?;
    of_cpu(cpu).store(id.0, Ordering::SeqCst);
    // It looks for vcpus that wait elsewhere.
    make_decide(cpu);
    Ok(())
}

/// Takes a CPU from a pool: this one, or its last. Vcpus that run there leave at once; one that may run nowhere else
/// may run anywhere then, as upstream has it.
pub fn take_cpu(id: PoolId, wanted: Option<CpuId>) -> Result<(), Errno> {
    let mut pools = POOLS.lock();
    if pools.cpus(id).is_none() {
        return Err(Errno::ENOENT);
    }
    let has_domains = has_domains(id);
    let cpu = pools
        .take(id, existing(wanted)?, online(), has_domains)
        .map_err(errno)?;
    of_cpu(cpu).store(NO_POOL, Ordering::SeqCst);
    drop(QUEUES[cpu.0 as usize].lock());
    for domain in domain::list::all() {
        if of_domain(&domain) == id {
            VcpuRef::all(&domain).for_each(|vcpu| balance::leave_foreign_cpu(&vcpu));
        }
    }
    Ok(())
}

/// Moves a domain to another pool. Its vcpus may use all of that one's CPUs then.
pub fn move_domain(subject: &Arc<Domain>, to: PoolId) -> Result<(), Errno> {
    let pools = POOLS.lock();
    if of_domain(subject) == to {
        return Ok(());
    }
    if !has_cpus(&pools, to) {
        return Err(Errno::ENOENT);
    }
    subject.sched.pool.store(to.0, Ordering::SeqCst);
    for cpu in online().iter() {
        drop(QUEUES[cpu.0 as usize].lock());
    }
    VcpuRef::all(subject).for_each(|vcpu| balance::allow_everywhere(&vcpu));
    Ok(())
}

/// Makes a domain that runs in a pool: `ESRCH` if there is none, `ENODEV` if it has no CPU.
pub fn with_new_domain(id: PoolId, make: impl FnOnce() -> Result<Arc<Domain>, Errno>) -> Result<Arc<Domain>, Errno> {
    let pools = POOLS.lock();
    if pools.cpus(id).is_none() {
        return Err(Errno::ESRCH);
    }
    if !has_cpus(&pools, id) {
        return Err(Errno::ENODEV);
    }
    let domain = make()?;
    domain.sched.pool.store(id.0, Ordering::SeqCst);
    Ok(domain)
}

/// A domain that dies does not keep its pool.
pub fn leave(domain: &Domain) {
    domain.sched.pool.store(PoolId::FIRST.0, Ordering::SeqCst);
}

fn has_cpus(pools: &Pools, id: PoolId) -> bool {
    pools.cpus(id).is_some_and(|cpus| !cpus.and(online()).is_empty())
}

/// `EINVAL` for a CPU that the machine does not have.
fn existing(wanted: Option<CpuId>) -> Result<Option<CpuId>, Errno> {
    match wanted {
        Some(cpu) if cpu.0 >= cpu::cpus_online() => Err(Errno::EINVAL),
        other => Ok(other),
    }
}

fn online() -> CpuMask {
    (0..cpu::cpus_online()).map(CpuId).fold(CpuMask::NONE, |mut mask, cpu| {
        mask.insert(cpu);
        mask
    })
}

fn errno(refused: PoolRefused) -> Errno {
    match refused {
        PoolRefused::Exists => Errno::EEXIST,
        PoolRefused::NoSuchPool => Errno::ENOENT,
        PoolRefused::InUse | PoolRefused::LastCpu => Errno::EBUSY,
        PoolRefused::NotFree => Errno::ENODEV,
        PoolRefused::NotThere => Errno::EADDRNOTAVAIL,
        PoolRefused::NoCpu => Errno::EINVAL,
        PoolRefused::NoMemory => Errno::ENOMEM,
    }
}
