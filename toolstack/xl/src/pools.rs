//! `xl cpupool-list`

use crate::json::{self, Format};
use anyhow::{Context, bail};
use clap::Args;
use ferroxen_domains::inquiry::Pool;
use ferroxen_domains::xen::Xen;
use std::fmt::Write as _;

/// The pool that every CPU begins in; hypervisors do not name pools, tools do.
pub const FIRST: &str = "Pool-0";

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

/// `xl cpupool-list`
pub fn list(args: &CpupoolList) -> anyhow::Result<()> {
    let pools = Xen::open()?.pools().context("asking for the CPU pools")?;
    let chosen: Vec<Pool> = pools
        .into_iter()
        .filter(|pool| args.pool.as_ref().is_none_or(|wanted| *wanted == name(pool)))
        .collect();
    if let (Some(wanted), true) = (&args.pool, chosen.is_empty()) {
        bail!("there is no CPU pool \"{wanted}\"; `xl cpupool-list` shows all");
    }
    match args.format.json {
        true => json::print(chosen.iter().map(record).collect()),
        false => crate::show(&table(&chosen, args.cpus)),
    }
}

fn record(pool: &Pool) -> serde_json::Value {
    serde_json::json!({
        "name": name(pool),
        "id": pool.id,
        "scheduler": crate::host::scheduler_name(pool.scheduler),
        "domains": pool.domains,
        "cpus": pool.cpus,
    })
}

/// As tools that make pools would call it.
fn name(pool: &Pool) -> String {
    match pool.id {
        0 => FIRST.to_owned(),
        id => format!("Pool-{id}"),
    }
}

fn table(pools: &[Pool], with_cpus: bool) -> String {
    let mut text = match with_cpus {
        true => format!("{:<19}CPU list\n", "Name"),
        false => format!("{:<19}CPUs   Sched     Active   Domain count\n", "Name"),
    };
    for pool in pools {
        let _ = write!(text, "{:<19}", name(pool));
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
}
