//! `xl list`

use crate::json::{self, Format};
use anyhow::Context;
use clap::Args;
use ferroxen_abi::domctl::{Getdomaininfo, dominf};
use ferroxen_domains::Toolstack;
use ferroxen_domains::control::Reason;
use ferroxen_domains::cpupools;
use ferroxen_words::DomId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use uuid::Uuid;

#[derive(Debug, Args)]
pub struct List {
    /// Output all VM details
    #[arg(short, long)]
    pub long: bool,
    /// Prints out UUIDs and security context
    #[arg(short, long)]
    pub verbose: bool,
    /// Prints out security context
    #[arg(short = 'Z', long)]
    pub context: bool,
    /// Prints the cpupool the domain is in
    #[arg(short, long)]
    pub cpupool: bool,
    /// Prints out NUMA node affinity
    #[arg(short, long)]
    pub numa: bool,
    #[command(flatten)]
    pub format: Format,
    /// Only these, by name or number
    #[arg(value_name = "Domain")]
    pub domains: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Sharing {
    #[command(flatten)]
    pub format: Format,
    /// Only this one
    #[arg(value_name = "Domain")]
    pub domain: Option<String>,
}

#[derive(Debug, Args)]
pub struct Whole {
    #[command(flatten)]
    pub format: Format,
}

/// `xl list`
pub fn run(tools: &Toolstack, args: &List) -> anyhow::Result<()> {
    let infos = infos(tools, &args.domains)?;
    if args.long {
        return crate::show(&json::domains(tools, &infos));
    }
    if args.format.json {
        return json::print(infos.iter().map(|info| record(tools, info)).collect());
    }
    let columns = Columns {
        verbose: args.verbose,
        context: args.context,
        claim: false,
        cpupool: args.cpupool,
        numa: args.numa,
    };
    table(tools, columns, &infos)
}

fn infos(tools: &Toolstack, only: &[String]) -> anyhow::Result<Vec<Getdomaininfo>> {
    if only.is_empty() {
        return tools.hypervisor.domains().context("asking for the domains");
    }
    let mut infos = Vec::new();
    for word in only {
        let info = tools.hypervisor.domain(crate::domain(tools, word)?);
        infos.extend(info.context("asking about the domain")?);
    }
    Ok(infos)
}

fn record(tools: &Toolstack, info: &Getdomaininfo) -> Value {
    json!({
        "name": name(tools, info),
        "domid": info.domain.0,
        "uuid": Uuid::from_bytes(info.handle).to_string(),
        "mem_mib": mib(info),
        "claimed_mib": info.outstanding_pages / 256,
        "shared_mib": info.shr_pages / 256,
        "vcpus": info.nr_online_vcpus,
        "state": state(info),
        "shutdown_reason": Reason::of(info).map(Reason::code),
        "cpu_seconds": info.cpu_time as f64 / 1e9,
        "cpupool": info.cpupool,
    })
}

fn table(tools: &Toolstack, columns: Columns, infos: &[Getdomaininfo]) -> anyhow::Result<()> {
    let mut text = heading(columns);
    let domids: Vec<_> = infos.iter().filter_map(|info| DomId::new(info.domain.0)).collect();
    let mut names = domids.iter().zip(tools.names(&domids)).peekable();
    let mut pools = BTreeMap::new();
    for info in infos {
        let name = names.next_if(|(domid, _)| domid.raw() == info.domain.0);
        let name = name.as_ref().map_or("(null)", |(_, name)| name);
        let pool = match pools.entry(info.cpupool) {
            Entry::Vacant(entry) if columns.cpupool => entry.insert(cpupools::name(&tools.store, info.cpupool)?),
            other => other.or_default(),
        };
        text.push_str(&row(columns, name, pool, info));
    }
    crate::show(&text)
}

fn name(tools: &Toolstack, info: &Getdomaininfo) -> String {
    DomId::new(info.domain.0).map_or_else(|| "(null)".to_owned(), |domid| tools.name(domid))
}

/// `xl sharing`
pub fn sharing(tools: &Toolstack, args: &Sharing) -> anyhow::Result<()> {
    let infos = infos(tools, args.domain.as_slice())?;
    if args.format.json {
        return json::print(infos.iter().map(|info| record(tools, info)).collect());
    }
    let mut text = "Name                                        ID   Mem Shared\n".to_owned();
    for info in infos {
        let (mem, shared) = (mib(&info), info.shr_pages / 256);
        let _ = writeln!(
            text,
            "{:<40} {:5} {mem:5}  {shared:5}",
            name(tools, &info),
            info.domain.0
        );
    }
    crate::show(&text)
}

/// `xl vm-list`
pub fn vms(tools: &Toolstack, args: &Whole) -> anyhow::Result<()> {
    let infos = infos(tools, &[])?;
    if args.format.json {
        return json::print(infos.iter().map(|info| record(tools, info)).collect());
    }
    let mut text = "UUID                                  ID    name\n".to_owned();
    for info in infos {
        let uuid = Uuid::from_bytes(info.handle);
        let _ = writeln!(text, "{uuid}  {}    {:<30}", info.domain.0, name(tools, &info));
    }
    crate::show(&text)
}

/// `xl claims`
pub fn claims(tools: &Toolstack, args: &Whole) -> anyhow::Result<()> {
    let infos = infos(tools, &[])?;
    if args.format.json {
        return json::print(infos.iter().map(|info| record(tools, info)).collect());
    }
    let columns = Columns {
        claim: true,
        ..Default::default()
    };
    table(tools, columns, &infos)
}

/// Which columns are wanted beside the usual.
#[derive(Clone, Copy, Default)]
struct Columns {
    verbose: bool,
    context: bool,
    claim: bool,
    cpupool: bool,
    numa: bool,
}

fn heading(columns: Columns) -> String {
    let mut text = "Name                                        ID   Mem VCPUs\tState\tTime(s)".to_owned();
    if columns.verbose {
        text.push_str("   UUID                            Reason-Code\tSecurity Label");
    }
    if columns.context && !columns.verbose {
        text.push_str("   Security Label");
    }
    if columns.claim {
        text.push_str("  Claimed");
    }
    if columns.cpupool {
        text.push_str("         Cpupool");
    }
    if columns.numa {
        text.push_str(" NODE Affinity");
    }
    text.push('\n');
    text
}

fn mib(info: &Getdomaininfo) -> u64 {
    info.tot_pages.saturating_add(info.outstanding_pages) / 256
}

fn row(columns: Columns, name: &str, pool: &str, info: &Getdomaininfo) -> String {
    let reason = Reason::of(info);
    let mut text = format!(
        "{name:<40} {:5} {:5} {:5}     {}  {:8.1}",
        info.domain.0,
        mib(info),
        info.nr_online_vcpus,
        state(info),
        info.cpu_time as f64 / 1e9,
    );
    // A String takes any text.
    if columns.verbose {
        let _ = write!(text, " {}", Uuid::from_bytes(info.handle));
        let _ = match reason {
            Some(reason) => write!(text, " {:8x}", reason.code()),
            None => write!(text, " {:>8}", "-"),
        };
    }
    if columns.claim {
        let _ = write!(text, " {:5}", info.outstanding_pages / 256);
    }
    if columns.verbose || columns.context {
        // No security labels without XSM.
        let _ = write!(text, " {:>16}", "-");
    }
    if columns.cpupool {
        let _ = write!(text, " {pool:>15}");
    }
    if columns.numa {
        text.push_str(" all");
    }
    text.push('\n');
    text
}

/// Six letters, or dashes for what is not so.
fn state(info: &Getdomaininfo) -> String {
    let flag = |bit: u32, letter: char| if info.flags & bit != 0 { letter } else { '-' };
    [
        flag(dominf::RUNNING, 'r'),
        flag(dominf::BLOCKED, 'b'),
        flag(dominf::PAUSED, 'p'),
        flag(dominf::SHUTDOWN, 's'),
        Reason::of(info).map_or('-', letter),
        flag(dominf::DYING, 'd'),
    ]
    .iter()
    .collect()
}

/// The fifth letter of the state.
fn letter(reason: Reason) -> char {
    match reason {
        Reason::PowerOff => '-',
        Reason::Reboot => 'r',
        Reason::Suspend => 's',
        Reason::Crash => 'c',
        Reason::Watchdog => 'w',
        Reason::SoftReset => 'S',
        Reason::Other(_) => '?',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_words::RawDomId;

    fn info(domain: u16, flags: u32, pages: u64, cpu_time: u64) -> Getdomaininfo {
        Getdomaininfo {
            domain: RawDomId(domain),
            flags,
            tot_pages: pages,
            cpu_time,
            nr_online_vcpus: 2,
            ..Default::default()
        }
    }

    #[test]
    fn rows_have_stock_xls_layout() {
        let crashed = dominf::SHUTDOWN | 3 << dominf::SHUTDOWNSHIFT;
        let rows = [
            ("Domain-0", info(0, dominf::RUNNING, 128_000, 4_649_000_000)),
            ("web1", info(7, dominf::BLOCKED, 65_537, 0)),
            (
                "a-name-that-is-longer-than-forty-characters",
                info(123, dominf::PAUSED, 4_000_000, 1_234_567_890_123),
            ),
            ("gone", info(8, crashed, 16_384, 900_000_000)),
            ("off", info(9, dominf::SHUTDOWN | dominf::DYING, 0, 1)),
        ];
        let mut text = String::new();
        for columns in [
            Columns::default(),
            Columns {
                verbose: true,
                ..Default::default()
            },
            Columns {
                cpupool: true,
                ..Default::default()
            },
        ] {
            text.push_str(&heading(columns));
            rows.iter()
                .for_each(|(name, info)| text.push_str(&row(columns, name, "Pool-0", info)));
        }
        insta::assert_snapshot!(text);
    }
}
