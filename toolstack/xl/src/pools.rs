//! `xl cpupool-...`: which CPUs run which domains.

use crate::json::{self, Format};
use anyhow::{Context, bail};
use clap::Args;
use ferroxen_domains::cpupools::Cpupools;
use ferroxen_domains::inquiry::Pool;
use ferroxen_domains::xen::Xen;
use ferroxen_xlconfig::{CpuList, PoolConfig, Source, parse_cpu_list};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub struct CpupoolList {
    /// Output list of CPUs used by a pool
    #[arg(short = 'c', long = "cpus")]
    pub cpus: bool,
    #[command(flatten)]
    pub format: Format,
    /// Only this one
    #[arg(value_name = "CPU Pool")]
    pub pool: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "xl cpupool-create [OPTIONS] [<ConfigFile>] [KEY=VALUE]...",
    after_help = "Settings: name, sched, nodes, cpus (xlcpupool.cfg(5)). Its CPUs have to be free: `xl cpupool-cpu-remove` \
                  takes one from the pool that has it. Without `cpus` and `nodes` it gets the first free one."
)]
pub struct CpupoolCreate {
    /// The pool's file, and settings that override its own
    #[arg(value_name = "ConfigFile | KEY=VALUE")]
    pub words: Vec<String>,
    /// Use the given configuration file
    #[arg(short = 'f', long = "defconfig", value_name = "FILE")]
    pub defconfig: Option<PathBuf>,
    /// Dry run: print the resulting pool, make nothing
    #[arg(short = 'n', long = "dryrun")]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct OnePool {
    /// A CPU pool, by name or number
    #[arg(value_name = "CPU Pool")]
    pub pool: String,
}

#[derive(Debug, Args)]
pub struct CpupoolRename {
    /// A CPU pool, by name or number
    #[arg(value_name = "CPU Pool")]
    pub pool: String,
    /// What it shall be called
    #[arg(value_name = "new name")]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct CpupoolCpus {
    /// A CPU pool, by name or number
    #[arg(value_name = "CPU Pool")]
    pub pool: String,
    /// CPUs, such as 3 or 0-3,^1, or all of a node: node:0
    #[arg(value_name = "CPU nr | node:NODE nr")]
    pub cpus: String,
}

#[derive(Debug, Args)]
pub struct CpupoolMigrate {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// A CPU pool, by name or number
    #[arg(value_name = "CPU Pool")]
    pub pool: String,
}

/// `xl cpupool-list`
pub fn list(args: &CpupoolList) -> anyhow::Result<()> {
    let mut pools = Cpupools::open()?.all()?;
    if let Some(wanted) = &args.pool {
        pools.retain(|(name, pool)| name == wanted || pool.id.to_string() == *wanted);
        if pools.is_empty() {
            bail!("there is no CPU pool \"{wanted}\"; `xl cpupool-list` shows all");
        }
    }
    match args.format.json {
        true => json::print(pools.iter().map(record).collect()),
        false => crate::show(&table(&pools, args.cpus)),
    }
}

/// `xl cpupool-create`
pub fn create(args: &CpupoolCreate, dry: bool) -> anyhow::Result<()> {
    let (settings, files): (Vec<_>, Vec<_>) = args.words.iter().cloned().partition(|word| word.contains('='));
    let file = match (files.as_slice(), &args.defconfig) {
        ([], file) => file.clone(),
        ([file], None) => Some(PathBuf::from(file)),
        _ => bail!("one configuration file at a time; settings are written KEY=VALUE"),
    };
    let found = file
        .as_deref()
        .map(|file| ferroxen_xlconfig::find(file).unwrap_or_else(|| file.to_owned()));
    let read = match &found {
        Some(file) => ferroxen_xlconfig::load_pool(file, &settings),
        None => ferroxen_xlconfig::parse_pool(&Source::new("command line", ""), &settings),
    };
    let (config, notices) = read.map_err(|problem| anyhow::anyhow!("{problem}"))?;
    notices.iter().for_each(|notice| eprintln!("warning: {notice}"));
    let source = found.as_deref().unwrap_or(Path::new("command line"));
    let name = match (&config.name, found.as_deref().and_then(Path::file_name)) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name.to_string_lossy().into_owned(),
        (None, None) => bail!("Missing cpupool name!"),
    };
    let pools = Cpupools::open()?;
    let xen = Xen::open()?;
    let scheduler = ferroxen_domains::hyper::Hypervisor::scheduler(&xen).context("asking for the scheduler")?;
    let its_name = crate::host::scheduler_name(scheduler);
    if let Some(wanted) = config.scheduler.as_ref().filter(|wanted| **wanted != its_name) {
        bail!("`sched = \"{wanted}\"`: the hypervisor has one scheduler, {its_name}");
    }
    let cpus = chosen(&config, &pools.free()?, |node| of_nodes(&xen, &[node].into()))?;
    crate::show(&format!(
        "Using config file \"{}\"\ncpupool name:   {name}\nscheduler:      {its_name}\nnumber of cpus: {}\n",
        source.display(),
        cpus.len()
    ))?;
    if !dry && !args.dry_run {
        pools.create(&name, scheduler, &cpus)?;
    }
    Ok(())
}

/// The CPUs that a new pool gets.
fn chosen(
    config: &PoolConfig,
    free: &BTreeSet<u32>,
    of_node: impl Fn(u32) -> anyhow::Result<BTreeSet<u32>>,
) -> anyhow::Result<BTreeSet<u32>> {
    let cpus = match &config.cpus {
        Some(CpuList::All) => free.clone(),
        Some(CpuList::These(cpus)) => cpus.clone(),
        None if config.nodes.is_empty() => free.first().copied().into_iter().collect(),
        None => {
            let mut cpus = BTreeSet::new();
            for node in &config.nodes {
                cpus.extend(of_node(*node)?.intersection(free));
            }
            cpus
        }
    };
    if cpus.is_empty() {
        bail!("no free cpu found; `xl cpupool-cpu-remove` takes one from a pool");
    }
    match cpus.difference(free).next() {
        Some(cpu) => bail!("cpu {cpu} illegal or not free; `xl cpupool-cpu-remove` takes it from the pool that has it"),
        None => Ok(cpus),
    }
}

/// The CPUs of NUMA nodes.
fn of_nodes(xen: &Xen, nodes: &BTreeSet<u32>) -> anyhow::Result<BTreeSet<u32>> {
    let places = (0..).zip(xen.topology().context("asking where the CPUs are")?);
    let there = places.filter(|(_, place)| place.is_some_and(|place| nodes.contains(&place.node)));
    Ok(there.map(|(cpu, _)| cpu).collect())
}

/// `xl cpupool-destroy`
pub fn destroy(args: &OnePool) -> anyhow::Result<()> {
    let pools = Cpupools::open()?;
    Ok(pools.destroy(pools.find(&args.pool)?)?)
}

/// `xl cpupool-rename`
pub fn rename(args: &CpupoolRename) -> anyhow::Result<()> {
    let pools = Cpupools::open()?;
    Ok(pools.rename(pools.find(&args.pool)?, &args.name)?)
}

/// `xl cpupool-cpu-add`
pub fn add_cpus(args: &CpupoolCpus) -> anyhow::Result<()> {
    let pools = Cpupools::open()?;
    let id = pools.find(&args.pool)?;
    let free = pools.free()?;
    Ok(pools.add_cpus(id, &named(&args.cpus, &free)?)?)
}

/// `xl cpupool-cpu-remove`
pub fn remove_cpus(args: &CpupoolCpus) -> anyhow::Result<()> {
    let pools = Cpupools::open()?;
    let id = pools.find(&args.pool)?;
    let all = pools.all()?;
    let own = all.iter().find(|(_, pool)| pool.id == id).map(|(_, pool)| &pool.cpus);
    Ok(pools.remove_cpus(id, &named(&args.cpus, own.unwrap_or(&BTreeSet::new()))?)?)
}

/// The CPUs that a word means: of `node:N` (or `all`), those that are `there`.
fn named(word: &str, there: &BTreeSet<u32>) -> anyhow::Result<BTreeSet<u32>> {
    if let Some(nodes) = word.strip_prefix("node:").or_else(|| word.strip_prefix("nodes:")) {
        let CpuList::These(nodes) = parse_cpu_list(nodes).map_err(anyhow::Error::msg)? else {
            return Ok(there.clone());
        };
        return Ok(of_nodes(&Xen::open()?, &nodes)?.intersection(there).copied().collect());
    }
    match parse_cpu_list(word).map_err(anyhow::Error::msg)? {
        CpuList::All => Ok(there.clone()),
        CpuList::These(cpus) => Ok(cpus),
    }
}

/// `xl cpupool-migrate`
pub fn migrate(args: &CpupoolMigrate) -> anyhow::Result<()> {
    let tools = crate::tools()?;
    let domid = crate::domain(&tools, &args.domain)?;
    let pools = Cpupools::open()?;
    Ok(pools.move_domain(domid, pools.find(&args.pool)?)?)
}

/// `xl cpupool-numa-split`
pub fn split() -> anyhow::Result<()> {
    Ok(Cpupools::open()?.split_by_node()?)
}

fn record((name, pool): &(String, Pool)) -> serde_json::Value {
    serde_json::json!({
        "name": name,
        "id": pool.id,
        "scheduler": crate::host::scheduler_name(pool.scheduler),
        "domains": pool.domains,
        "cpus": pool.cpus,
    })
}

fn table(pools: &[(String, Pool)], with_cpus: bool) -> String {
    let mut text = match with_cpus {
        true => format!("{:<19}CPU list\n", "Name"),
        false => format!("{:<19}CPUs   Sched     Active   Domain count\n", "Name"),
    };
    for (name, pool) in pools {
        let _ = write!(text, "{name:<19}");
        let _ = match with_cpus {
            true => {
                let cpus: Vec<String> = pool.cpus.iter().map(u32::to_string).collect();
                writeln!(text, "{}", cpus.join(","))
            }
            false => {
                let scheduler = crate::host::scheduler_name(pool.scheduler);
                writeln!(
                    text,
                    "{:>3} {scheduler:>9}       y       {:>4}",
                    pool.cpus.len(),
                    pool.domains
                )
            }
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_abi::domctl::SchedulerId;

    #[test]
    fn lines_have_stock_xls_layout() {
        let pool = Pool {
            id: 0,
            scheduler: SchedulerId::CREDIT2,
            domains: 2,
            cpus: [0, 1].into(),
        };
        let pool = ("Pool-0".to_owned(), pool);
        assert_eq!(
            table(std::slice::from_ref(&pool), false),
            "Name               CPUs   Sched     Active   Domain count\n\
             Pool-0               2   credit2       y          2\n"
        );
        assert_eq!(
            table(&[pool], true),
            "Name               CPU list\nPool-0             0,1\n"
        );
    }

    #[test]
    fn a_new_pool_gets_what_is_asked_for_and_free() {
        let of_node = |node| Ok([node * 2, node * 2 + 1].into());
        let pool = |cpus: Option<&[u32]>, nodes: &[u32]| PoolConfig {
            cpus: cpus.map(|cpus| CpuList::These(cpus.iter().copied().collect())),
            nodes: nodes.iter().copied().collect(),
            ..Default::default()
        };
        let free = [1, 2, 3].into();
        let chosen = |config: &PoolConfig| chosen(config, &free, of_node).map_err(|error| error.to_string());
        assert_eq!(chosen(&pool(None, &[])), Ok([1].into()));
        assert_eq!(chosen(&pool(None, &[0, 1])), Ok([1, 2, 3].into()));
        assert_eq!(chosen(&pool(Some(&[2, 3]), &[])), Ok([2, 3].into()));
        assert!(
            chosen(&pool(Some(&[0, 1]), &[]))
                .expect_err("0 is taken")
                .contains("cpu 0 illegal or not free")
        );
        assert!(super::chosen(&pool(None, &[]), &BTreeSet::new(), of_node).is_err());
    }
}
