//! `xl uptime`

use crate::json::{self, Format};
use clap::Args;
use ferroxen_domains::{Toolstack, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store;
use serde_json::json;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, Args)]
pub struct Uptime {
    /// Domains, by name or number; all if none is named
    #[arg(value_name = "Domain")]
    pub domains: Vec<String>,
    /// One line in the manner of uptime(1) per domain
    #[arg(short = 's', long = "short")]
    pub short: bool,
    #[command(flatten)]
    pub format: Format,
}

/// `xl uptime`
pub fn run(tools: &Toolstack, args: &Uptime) -> anyhow::Result<ExitCode> {
    let (domids, code) = crate::chosen(tools, &args.domains)?;
    let mut text = match args.short {
        true => String::new(),
        false => format!("{:<33} {:>4} Uptime\n", "Name", "ID"),
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    if args.format.json {
        let record = |domid: &DomId| json!({"name": tools.name(*domid), "domid": domid.raw(), "uptime_seconds": seconds(tools, *domid, now)});
        json::print(domids.iter().map(record).collect())?;
        return Ok(code);
    }
    for domid in domids {
        let seconds = seconds(tools, domid, now).unwrap_or(0);
        let name = tools.name(domid);
        text.push_str(&match args.short {
            true => short(&name, domid.raw(), now, seconds),
            false => long(&name, domid.raw(), seconds),
        });
        text.push('\n');
    }
    crate::show(&text)?;
    Ok(code)
}

/// Domain 0 knows its own; of others it is noted when they were made.
fn seconds(tools: &Toolstack, domid: DomId, now: u64) -> Option<u64> {
    if domid == DomId::DOM0 {
        let text = std::fs::read_to_string("/proc/uptime").ok()?;
        return text.split('.').next()?.parse().ok();
    }
    let vm = tools.store.read_opt(&format!("{}/vm", nodes::domain(domid))).ok()??;
    let start = tools.store.read_opt(&format!("{vm}/start_time")).ok()??;
    Some(now.saturating_sub(start.split('.').next()?.parse().ok()?))
}

fn long(name: &str, domid: u16, seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:2}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    let time = match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    };
    format!("{name:<33} {domid:>4} {time}")
}

fn short(name: &str, domid: u16, now: u64, seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:2}:{:02}", rest / 3600, rest / 60 % 60);
    let time = match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    };
    let today = now % 86_400;
    format!(
        " {:02}:{:02}:{:02} up {time}, {name} ({domid})",
        today / 3600,
        today / 60 % 60,
        today % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_stock_xls_layout() {
        assert_eq!(
            long("Domain-0", 0, 4),
            "Domain-0                             0  0:00:04"
        );
        assert_eq!(
            long("web", 12, 100_000),
            "web                                 12 1 day,  3:46:40"
        );
        assert_eq!(short("Domain-0", 0, 9925, 4), " 02:45:25 up  0:00, Domain-0 (0)");
    }
}
