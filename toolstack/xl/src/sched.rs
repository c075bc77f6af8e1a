//! `xl sched-credit` and `xl sched-credit2`: shares of CPU time.

use crate::json::{self, Format};
use anyhow::{Context, bail};
use clap::Args;
use ferroxen_abi::domctl::{SchedCredit as Credit, SchedulerId};
use ferroxen_domains::Toolstack;
use ferroxen_domains::cpupools;
use ferroxen_domains::xen::Xen;
use ferroxen_words::DomId;
use serde_json::json;
use std::fmt::Write as _;

#[derive(Debug, Args)]
pub struct SchedCredit {
    /// The domain to look at or change; all if none is named
    #[arg(short = 'd', long = "domain", value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Its share among domains, from 1 to 65535
    #[arg(short = 'w', long = "weight", value_name = "WEIGHT", requires = "domain", value_parser = clap::value_parser!(u16).range(1..))]
    pub weight: Option<u16>,
    /// The most it may use, in percent of one CPU; 0: no limit
    #[arg(short = 'c', long = "cap", value_name = "CAP", requires = "domain")]
    pub cap: Option<u16>,
    /// Look at the scheduler instead of domains
    #[arg(short = 's', long = "schedparam", conflicts_with_all = ["domain", "weight", "cap"])]
    pub scheduler: bool,
    /// Set how long a vcpu runs at least, in microseconds
    #[arg(short = 'r', long = "ratelimit_us", value_name = "RLIMIT", requires = "scheduler")]
    pub ratelimit: Option<u32>,
    /// Set the time slice, in milliseconds (credit only)
    #[arg(short = 't', long = "tslice_ms", value_name = "TSLICE", requires = "scheduler")]
    pub tslice: Option<u32>,
    /// Set how long a vcpu that stopped counts as cache-hot, in microseconds (credit only)
    #[arg(short = 'm', long = "migration_delay_us", value_name = "DLY", requires = "scheduler")]
    pub migration_delay: Option<u32>,
    #[command(flatten)]
    pub format: Format,
    /// Restrict output to CPUPOOL
    #[arg(short = 'p', long = "cpupool", value_name = "CPUPOOL", conflicts_with = "domain")]
    pub pool: Option<String>,
}

/// `xl sched-credit2`
pub fn credit2(args: &SchedCredit) -> anyhow::Result<()> {
    run(args, SchedulerId::CREDIT2)
}

/// `xl sched-credit`
pub fn credit(args: &SchedCredit) -> anyhow::Result<()> {
    run(args, SchedulerId::CREDIT)
}

fn run(args: &SchedCredit, wanted: SchedulerId) -> anyhow::Result<()> {
    let xen = Xen::open()?;
    let tools = crate::tools()?;
    let scheduler = tools.hypervisor.scheduler().context("asking the scheduler")?;
    let changes = [args.weight.is_some(), args.cap.is_some(), args.ratelimit.is_some()].contains(&true)
        || [args.tslice.is_some(), args.migration_delay.is_some()].contains(&true);
    if scheduler != wanted {
        // As stock xl has it: there is nothing to list, but there is something to refuse.
        return match changes || args.domain.is_some() {
            true => bail!("the scheduler is {}", crate::host::scheduler_name(scheduler)),
            false => Ok(()),
        };
    }
    if args.tslice.is_some() || args.migration_delay.is_some() {
        bail!("the scheduler has neither time slice nor migration delay: -t and -m are for credit");
    }
    let pool = match &args.pool {
        None => 0,
        Some(word) => match cpupools::find(&tools.store, word)? {
            Some(id) => id,
            None => bail!("there is no CPU pool \"{word}\"; `xl cpupool-list` shows all"),
        },
    };
    let pool_name = cpupools::name(&tools.store, pool)?;
    if let Some(limit) = args.ratelimit {
        return xen
            .set_ratelimit_us(limit)
            .with_context(|| format!("setting the rate limit to {limit} us"));
    }
    let Some(word) = &args.domain else {
        let limit = xen.ratelimit_us().context("asking the scheduler")?;
        let heading = format!("Cpupool {pool_name}: ratelimit={limit}us\n");
        return match (args.scheduler, args.format.json) {
            (true, true) => json::print(vec![json!({"cpupool": pool_name, "ratelimit_us": limit})]),
            (true, false) => crate::show(&heading),
            (false, as_json) => {
                let infos = tools.hypervisor.domains().context("asking for the domains")?;
                let there = infos.iter().filter(|info| info.cpupool == pool);
                let domids = there.filter_map(|info| DomId::new(info.domain.0));
                print(&heading, &shares(&tools, domids)?, as_json)
            }
        };
    };
    let domid = crate::domain(&tools, word)?;
    if !changes {
        return print("", &shares(&tools, [domid])?, args.format.json);
    }
    let old = tools.hypervisor.sched_credit(domid).context("asking the scheduler")?;
    let new = Credit {
        weight: args.weight.unwrap_or(old.weight),
        cap: args.cap.unwrap_or(old.cap),
    };
    tools
        .hypervisor
        .set_sched_credit(domid, &new)
        .with_context(|| format!("setting weight {} and cap {}", new.weight, new.cap))
}

/// Name, number, and what each domain may have.
fn shares(tools: &Toolstack, domids: impl IntoIterator<Item = DomId>) -> anyhow::Result<Vec<(String, u16, Credit)>> {
    domids
        .into_iter()
        .map(|domid| {
            let credit = tools.hypervisor.sched_credit(domid).context("asking the scheduler")?;
            Ok((tools.name(domid), domid.raw(), credit))
        })
        .collect()
}

fn print(heading: &str, shares: &[(String, u16, Credit)], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let record = |(name, domid, credit): &(String, u16, Credit)| json!({"name": name, "domid": domid, "weight": credit.weight, "cap": credit.cap});
        return json::print(shares.iter().map(record).collect());
    }
    let mut text = format!("{heading}{:<33} {:>4} {:>6} {:>4}\n", "Name", "ID", "Weight", "Cap");
    for (name, domid, credit) in shares {
        let _ = writeln!(text, "{name:<33} {domid:>4} {:>6} {:>4}", credit.weight, credit.cap);
    }
    crate::show(&text)
}
