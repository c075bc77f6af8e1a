//! `xl vcpu-list`

use crate::cli::Any;
use anyhow::Context;
use ferroxen_abi::domctl::{Getvcpuinfo, INVALID_MAX_VCPU_ID};
use ferroxen_domains::Toolstack;
use ferroxen_domains::hyper::Affinity;
use ferroxen_words::DomId;
use std::process::ExitCode;

/// `xl vcpu-list`
pub fn run(tools: &Toolstack, args: &Any) -> anyhow::Result<ExitCode> {
    let (domids, code) = crate::chosen(tools, &args.domains)?;
    let mut text = heading();
    for domid in domids {
        text.push_str(&rows(tools, domid)?);
    }
    crate::show(&text)?;
    Ok(code)
}

fn rows(tools: &Toolstack, domid: DomId) -> anyhow::Result<String> {
    let asking = || format!("asking about the vcpus of domain {}", domid.raw());
    // Gone between the list and now: nothing to print.
    let Some(info) = tools.hypervisor.domain(domid).with_context(asking)? else {
        return Ok(String::new());
    };
    let count = if info.max_vcpu_id == INVALID_MAX_VCPU_ID {
        0
    } else {
        info.max_vcpu_id + 1
    };
    let name = tools.name(domid);
    let mut text = String::new();
    for vcpu in 0..count {
        let state = tools.hypervisor.vcpu(domid, vcpu).with_context(asking)?;
        let hard = tools
            .hypervisor
            .affinity(domid, vcpu, Affinity::Hard)
            .with_context(asking)?;
        let soft = tools
            .hypervisor
            .affinity(domid, vcpu, Affinity::Soft)
            .with_context(asking)?;
        text.push_str(&row(&name, domid.raw(), vcpu, &state, &hard, &soft));
    }
    Ok(text)
}

fn heading() -> String {
    let [name, id, vcpu, cpu, state, time] = ["Name", "ID", "VCPU", "CPU", "State", "Time(s)"];
    format!("{name:<32} {id:>5} {vcpu:>5} {cpu:>5} {state:>5} {time:>9} Affinity (Hard / Soft)\n")
}

fn row(name: &str, domid: u16, vcpu: u32, state: &Getvcpuinfo, hard: &[bool], soft: &[bool]) -> String {
    let place = if state.online == 0 {
        format!("{:>5} {:>3}{}{} ", '-', '-', '-', 'p')
    } else {
        let flag = |set: u8, letter: char| if set != 0 { letter } else { '-' };
        format!(
            "{:5} {:>3}{}- ",
            state.cpu,
            flag(state.running, 'r'),
            flag(state.blocked, 'b')
        )
    };
    let time = state.cpu_time as f64 / 1e9;
    format!(
        "{name:<32} {domid:5} {vcpu:5}{place}{time:9.1}  {} / {}\n",
        cpus(hard),
        cpus(soft)
    )
}

/// `all`, `none`, or ranges.
fn cpus(map: &[bool]) -> String {
    if map.iter().all(|cpu| *cpu) {
        return "all".to_owned();
    }
    let mut parts = Vec::new();
    let mut cpu = 0;
    while cpu < map.len() {
        let len = map[cpu..].iter().take_while(|set| **set).count();
        match len {
            0 => {}
            1 => parts.push(cpu.to_string()),
            len => parts.push(format!("{cpu}-{}", cpu + len - 1)),
        }
        cpu += len + 1;
    }
    if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_stock_xls_layout() {
        let state = |online, running, blocked| Getvcpuinfo {
            online,
            running,
            blocked,
            cpu: 3,
            cpu_time: 5_000_000_000,
            ..Default::default()
        };
        let some = [true, true, false, true];
        let text = [
            heading(),
            row("Domain-0", 0, 0, &state(1, 1, 0), &[true; 4], &[true; 4]),
            row("web1", 12, 1, &state(1, 0, 1), &some, &[true; 4]),
            row("web1", 12, 2, &state(0, 0, 0), &[true; 4], &[false; 4]),
        ]
        .concat();
        insta::assert_snapshot!(text);
    }
}
