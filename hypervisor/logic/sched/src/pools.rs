//! CPU pools: a CPU runs the domains of one pool, or of none.
//!
//! Always true ([`Pools::audit`]): every CPU is in exactly one pool, or free. Pool 0 is there from the start, has all
//! CPUs then, and never goes. Which domain is in which pool is the caller's to know.

use crate::CpuMask;
use alloc::vec::Vec;
use ferroxen_words::CpuId;

/// The number of a pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PoolId(pub u32);

impl PoolId {
    /// The one that is always there.
    pub const FIRST: PoolId = PoolId(0);
}

/// Why a pool stays as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolRefused {
    /// There is one of that number.
    Exists,
    /// There is none.
    NoSuchPool,
    /// It has CPUs or domains.
    InUse,
    /// The CPU is some pool's.
    NotFree,
    /// The CPU is not this pool's.
    NotThere,
    /// There is no CPU that could be meant.
    NoCpu,
    /// Its domains would have no CPU left.
    LastCpu,
    /// There is no memory for one more pool.
    NoMemory,
}

/// All pools.
#[derive(Debug)]
pub struct Pools {
    first: CpuMask,
    /// In the order of their numbers.
    others: Vec<(PoolId, CpuMask)>,
    free: CpuMask,
}

impl Default for Pools {
    fn default() -> Self {
        Self::new()
    }
}

impl Pools {
    /// The first pool with every CPU there can be.
    pub const fn new() -> Self {
        Pools {
            first: CpuMask::ALL,
            others: Vec::new(),
            free: CpuMask::NONE,
        }
    }

    /// A pool's CPUs, also those that no machine has.
    pub fn cpus(&self, id: PoolId) -> Option<CpuMask> {
        match id {
            PoolId::FIRST => Some(self.first),
            _ => self.position(id).ok().map(|at| self.others[at].1),
        }
    }

    /// CPUs of no pool.
    pub fn free(&self) -> CpuMask {
        self.free
    }

    /// The first pool from this number on.
    pub fn at_or_after(&self, id: PoolId) -> Option<PoolId> {
        match id {
            PoolId::FIRST => Some(id),
            _ => self.others.iter().map(|(id, _)| *id).find(|other| *other >= id),
        }
    }

    /// Makes a pool without CPUs; without a wish its number is above all others'.
    pub fn create(&mut self, wanted: Option<PoolId>) -> Result<PoolId, PoolRefused> {
        let last = self.others.last().map_or(PoolId::FIRST, |(id, _)| *id);
        let id = match wanted {
            Some(id) => id,
            None => PoolId(last.0.checked_add(1).ok_or(PoolRefused::NoMemory)?),
        };
        let at = match self.position(id) {
            Err(at) if id != PoolId::FIRST => at,
            _ => return Err(PoolRefused::Exists),
        };
        self.others.try_reserve(1).map_err(|_| PoolRefused::NoMemory)?;
        self.others.insert(at, (id, CpuMask::NONE));
        Ok(id)
    }

    /// Ends a pool that has neither CPUs nor domains.
    pub fn destroy(&mut self, id: PoolId, has_domains: bool) -> Result<(), PoolRefused> {
        let cpus = self.cpus(id).ok_or(PoolRefused::NoSuchPool)?;
        if has_domains || !cpus.is_empty() {
            return Err(PoolRefused::InUse);
        }
        self.others.retain(|(other, _)| *other != id);
        Ok(())
    }

    /// Gives a pool a free CPU: this one, or any.
    pub fn give(&mut self, id: PoolId, cpu: Option<CpuId>) -> Result<CpuId, PoolRefused> {
        let cpu = cpu.or_else(|| self.free.first()).ok_or(PoolRefused::NotFree)?;
        if !self.free.contains(cpu) {
            return Err(PoolRefused::NotFree);
        }
        self.cpus_mut(id).ok_or(PoolRefused::NoSuchPool)?.insert(cpu);
        self.free.remove(cpu);
        Ok(cpu)
    }

    /// Takes a CPU from a pool: this one, or its last. `online` are those that the machine has.
    pub fn take(
        &mut self,
        id: PoolId,
        cpu: Option<CpuId>,
        online: CpuMask,
        has_domains: bool,
    ) -> Result<CpuId, PoolRefused> {
        let cpus = self.cpus_mut(id).ok_or(PoolRefused::NoSuchPool)?;
        let here = cpus.and(online);
        let cpu = cpu.or_else(|| here.iter().last()).ok_or(PoolRefused::NoCpu)?;
        if !here.contains(cpu) {
            return Err(PoolRefused::NotThere);
        }
        if has_domains && here.count() == 1 {
            return Err(PoolRefused::LastCpu);
        }
        cpus.remove(cpu);
        self.free.insert(cpu);
        Ok(cpu)
    }

    fn cpus_mut(&mut self, id: PoolId) -> Option<&mut CpuMask> {
        match id {
            PoolId::FIRST => Some(&mut self.first),
            _ => self.position(id).ok().map(|at| &mut self.others[at].1),
        }
    }

    fn position(&self, id: PoolId) -> Result<usize, usize> {
        self.others.binary_search_by_key(&id, |(id, _)| *id)
    }

    /// Panics if anything that the module's page promises is not so.
    pub fn audit(&self) {
        let all = [self.first, self.free];
        for cpu in CpuMask::ALL.iter() {
            let of = all.iter().chain(self.others.iter().map(|(_, cpus)| cpus));
            assert_eq!(of.filter(|cpus| cpus.contains(cpu)).count(), 1, "{cpu:?}");
        }
        assert!(self.others.is_sorted_by(|a, b| a.0 < b.0));
        assert!(self.position(PoolId::FIRST).is_err());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONLINE: CpuMask = CpuMask::from_words([0b1111, 0, 0, 0]);

    #[test]
    fn a_cpu_goes_from_pool_to_pool_by_way_of_nobody() {
        let mut pools = Pools::new();
        let second = pools.create(None).unwrap();
        assert_eq!(second, PoolId(1));
        assert_eq!(pools.give(second, Some(CpuId(3))), Err(PoolRefused::NotFree));
        assert_eq!(pools.take(PoolId::FIRST, None, ONLINE, true), Ok(CpuId(3)));
        assert_eq!(
            pools.take(PoolId::FIRST, Some(CpuId(3)), ONLINE, true),
            Err(PoolRefused::NotThere)
        );
        assert_eq!(pools.give(second, None), Ok(CpuId(3)));
        assert_eq!(pools.destroy(second, false), Err(PoolRefused::InUse));
        assert_eq!(pools.take(second, None, ONLINE, true), Err(PoolRefused::LastCpu));
        assert_eq!(pools.take(second, None, ONLINE, false), Ok(CpuId(3)));
        assert_eq!(pools.destroy(second, true), Err(PoolRefused::InUse));
        assert_eq!(pools.destroy(second, false), Ok(()));
        assert_eq!(pools.give(second, None), Err(PoolRefused::NoSuchPool));
        pools.audit();
    }

    #[test]
    fn numbers_are_found_and_not_given_twice() {
        let mut pools = Pools::new();
        assert_eq!(pools.create(Some(PoolId(7))), Ok(PoolId(7)));
        assert_eq!(pools.create(Some(PoolId(7))), Err(PoolRefused::Exists));
        assert_eq!(pools.create(Some(PoolId::FIRST)), Err(PoolRefused::Exists));
        assert_eq!(pools.create(Some(PoolId(3))), Ok(PoolId(3)));
        assert_eq!(pools.create(None), Ok(PoolId(8)));
        assert_eq!(pools.at_or_after(PoolId(4)), Some(PoolId(7)));
        assert_eq!(pools.at_or_after(PoolId(9)), None);
        assert_eq!(pools.create(Some(PoolId(u32::MAX))), Ok(PoolId(u32::MAX)));
        assert_eq!(pools.create(None), Err(PoolRefused::NoMemory));
    }

    proptest! {
        #[test]
        fn every_cpu_stays_in_one_place(steps in prop::collection::vec((0u8..4, 0u32..4, 0u32..6, any::<bool>()), 0..60)) {
            let mut pools = Pools::new();
            for (what, pool, cpu, flag) in steps {
                let (pool, cpu) = (PoolId(pool), (cpu < 5).then_some(CpuId(cpu)));
                // Refusals are fine.
                let _ = match what {
                    0 => pools.create(flag.then_some(pool)).map(drop),
                    1 => pools.destroy(pool, flag),
                    2 => pools.give(pool, cpu).map(drop),
                    _ => pools.take(pool, cpu, ONLINE, flag).map(drop),
                };
                pools.audit();
            }
        }
    }
}
