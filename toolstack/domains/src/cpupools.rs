//! CPU pools: which CPUs run which domains. The hypervisor numbers them, tools name them in xenstore, where libxl does:
//! `/local/pool/N/name`.
//!
//! Always true: a pool that could not be made as it was asked for is taken back, its CPUs with it.

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::inquiry::Pool;
use crate::xen::Xen;
use ferroxen_abi::domctl::SchedulerId;
use ferroxen_abi::sysctl::{CPUPOOL_PAR_ANY, CpupoolCmd, CpupoolOp, SysctlCmd};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Client, Result as StoreResult, Store};
use std::collections::BTreeSet;
use std::io;

/// The name of the pool that every CPU begins in.
pub const FIRST: &str = "Pool-0";
const POOLS: &str = "/local/pool";
/// The CPU is not free.
const ENODEV: i32 = 19;
/// Its domains would have no CPU left.
const EBUSY: i32 = 16;

/// What a pool is called.
pub fn name(store: &impl Store, id: u32) -> StoreResult<String> {
    let found = store.read_opt(&format!("{POOLS}/{id}/name"))?;
    Ok(found.unwrap_or_else(|| format!("Pool-{id}")))
}

/// The pool that a name or a number means, if there is one.
pub fn find(store: &impl Store, word: &str) -> StoreResult<Option<u32>> {
    let ids = store.directory_opt(POOLS)?;
    let ids: Vec<u32> = ids.iter().filter_map(|id| id.parse().ok()).collect();
    if let Ok(number) = word.parse() {
        return Ok(ids.contains(&number).then_some(number));
    }
    for id in ids {
        if name(store, id)? == word {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The pools of this host, to be changed.
pub struct Cpupools {
    xen: Xen,
    store: Client,
}

impl Cpupools {
    /// Connects to the hypervisor and to xenstore.
    pub fn open() -> Result<Cpupools> {
        Ok(Cpupools {
            xen: Xen::open()?,
            store: Client::connect().doing(|| "reaching xenstore".to_owned())?,
        })
    }

    /// The pools, in order, with their names.
    pub fn all(&self) -> Result<Vec<(String, Pool)>> {
        let doing = || "asking for the CPU pools".to_owned();
        let named = |pool: Pool| Ok((name(&self.store, pool.id).doing(doing)?, pool));
        self.xen.pools().doing(doing)?.into_iter().map(named).collect()
    }

    /// The pool that a name or a number means.
    pub fn find(&self, word: &str) -> Result<u32> {
        let doing = || format!("looking for CPU pool \"{word}\"");
        let found = find(&self.store, word).doing(doing)?;
        found.ok_or_else(|| Error::new(doing(), "there is none").way_out("`xl cpupool-list` shows all"))
    }

    /// CPUs that belong to no pool.
    pub fn free(&self) -> Result<BTreeSet<u32>> {
        self.xen.free_cpus().doing(|| "asking for free CPUs".to_owned())
    }

    /// Makes a pool with these CPUs, which are free.
    pub fn create(&self, name: &str, scheduler: SchedulerId, cpus: &BTreeSet<u32>) -> Result<u32> {
        let doing = || format!("making CPU pool \"{name}\"");
        if let Some(taken) = find(&self.store, name).doing(doing)? {
            return Err(Error::new(
                doing(),
                format!("Pool name \"{name}\" already exists: pool {taken}"),
            ));
        }
        let request = CpupoolOp {
            op: CpupoolCmd::CREATE,
            cpupool_id: CPUPOOL_PAR_ANY,
            sched_id: scheduler,
            ..Default::default()
        };
        let id = self.ask(&request).doing(doing)?.cpupool_id;
        let directory = format!("{POOLS}/{id}");
        let mut changes = Changes::default();
        changes.write(&format!("{directory}/uuid"), ferroxen_uuids::fresh().to_string());
        changes.write(&format!("{directory}/name"), name);
        let made = self.add_cpus(id, cpus).and_then(|()| {
            let written = self.store.transaction(|tx| tx.apply(&changes));
            written.doing(doing)
        });
        if made.is_err() {
            // The complaint that led here is the one worth reading.
            let _ = self.destroy(id);
        }
        made.map(|()| id)
    }

    /// Ends a pool that has no domains; its CPUs are free then.
    pub fn destroy(&self, id: u32) -> Result<()> {
        let doing = || format!("destroying CPU pool {id}");
        let pools = self.xen.pools().doing(doing)?;
        let Some(pool) = pools.into_iter().find(|pool| pool.id == id) else {
            return Err(Error::new(doing(), "there is no such pool"));
        };
        if pool.domains > 0 {
            return Err(Error::new(doing(), format!("it has {} domains", pool.domains))
                .way_out("move them to another one (`xl cpupool-migrate DOMAIN POOL`)"));
        }
        self.remove_cpus(id, &pool.cpus)?;
        let ended = self.change(CpupoolCmd::DESTROY, id, 0).doing(doing);
        if ended.is_err() {
            // As it was.
            let _ = self.add_cpus(id, &pool.cpus);
        }
        ended?;
        self.store.rm(&format!("{POOLS}/{id}")).doing(doing)
    }

    /// Gives a pool another name.
    pub fn rename(&self, id: u32, name: &str) -> Result<()> {
        let doing = || format!("renaming CPU pool {id} to \"{name}\"");
        let taken = self.store.transaction(|tx| match find(tx, name)? {
            Some(taken) if taken != id => Ok(Some(taken)),
            _ => tx.write(&format!("{POOLS}/{id}/name"), name).map(|()| None),
        });
        match taken.doing(doing)? {
            Some(taken) => Err(Error::new(doing(), format!("pool {taken} has that name"))),
            None => Ok(()),
        }
    }

    /// Gives a pool free CPUs.
    pub fn add_cpus(&self, id: u32, cpus: &BTreeSet<u32>) -> Result<()> {
        cpus.iter().try_for_each(|cpu| {
            let added = self.change(CpupoolCmd::ADDCPU, id, *cpu);
            let added = added.doing(|| format!("giving pool {id} CPU {cpu}"));
            added.map_err(|error| match error.errno() {
                Some(ENODEV) => error.way_out("it is another pool's: `xl cpupool-cpu-remove` takes it from there"),
                _ => error,
            })
        })
    }

    /// Takes CPUs from a pool.
    pub fn remove_cpus(&self, id: u32, cpus: &BTreeSet<u32>) -> Result<()> {
        cpus.iter().try_for_each(|cpu| {
            let removed = self.change(CpupoolCmd::RMCPU, id, *cpu);
            let removed = removed.doing(|| format!("taking CPU {cpu} from pool {id}"));
            removed.map_err(|error| match error.errno() {
                Some(EBUSY) => error.way_out("its domains need a CPU: move them to another pool first"),
                _ => error,
            })
        })
    }

    /// Lets a domain run in a pool.
    pub fn move_domain(&self, domid: DomId, id: u32) -> Result<()> {
        let request = CpupoolOp {
            op: CpupoolCmd::MOVEDOMAIN,
            cpupool_id: id,
            domid: u32::from(domid.raw()),
            ..Default::default()
        };
        let moved = self.ask(&request).map(drop);
        moved.doing(|| format!("moving domain {} to CPU pool {id}", domid.raw()))
    }

    /// A pool for each NUMA node.
    pub fn split_by_node(&self) -> Result<()> {
        let doing = || "splitting the host's CPUs by NUMA node".to_owned();
        let pools = self.xen.pools().doing(doing)?;
        let [first] = pools.as_slice() else {
            return Err(Error::new(doing(), "there is more than one CPU pool already"));
        };
        let places = self.xen.topology().doing(doing)?;
        let node_of = |cpu: u32| {
            places
                .get(cpu as usize)
                .copied()
                .flatten()
                .map_or(0, |place| place.node)
        };
        let nodes: BTreeSet<u32> = first.cpus.iter().map(|cpu| node_of(*cpu)).collect();
        // Domain 0 stays on the first.
        for node in nodes.iter().skip(1) {
            let cpus: BTreeSet<u32> = first
                .cpus
                .iter()
                .copied()
                .filter(|cpu| node_of(*cpu) == *node)
                .collect();
            self.remove_cpus(first.id, &cpus)?;
            self.create(&format!("Pool-node{node}"), first.scheduler, &cpus)?;
        }
        self.rename(first.id, &format!("Pool-node{}", nodes.first().copied().unwrap_or(0)))
    }

    fn change(&self, op: CpupoolCmd, cpupool_id: u32, cpu: u32) -> io::Result<()> {
        let request = CpupoolOp {
            op,
            cpupool_id,
            cpu,
            ..Default::default()
        };
        self.ask(&request).map(drop)
    }

    fn ask(&self, request: &CpupoolOp) -> io::Result<CpupoolOp> {
        self.xen.ask_host(SysctlCmd::CPUPOOL_OP, request)
    }
}

impl Toolstack {
    /// The number of the pool that a configuration names.
    pub(crate) fn pool_named(&self, word: &str) -> Result<u32> {
        let doing = || format!("looking for CPU pool \"{word}\"");
        let found = find(&self.store, word).doing(doing)?;
        found.ok_or_else(|| {
            Error::new(doing(), "Illegal pool specified: there is none of that name")
                .way_out("`xl cpupool-list` shows all")
        })
    }
}
