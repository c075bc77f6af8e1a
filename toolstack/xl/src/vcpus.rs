//! `xl vcpu-list`

use crate::cli::Any;
use crate::json;
use anyhow::Context;
use ferroxen_abi::domctl::{Getvcpuinfo, INVALID_MAX_VCPU_ID};
use ferroxen_domains::Toolstack;
use ferroxen_domains::hyper::Affinity;
use ferroxen_words::DomId;
use serde_json::{Value, json};
use std::process::ExitCode;

/// `xl vcpu-list`
pub fn run(tools: &Toolstack, args: &Any) -> anyhow::Result<ExitCode> {
    let (domids, code) = crate::chosen(tools, &args.domains)?;
    let mut vcpus = Vec::new();
    for domid in domids {
        vcpus.extend(of_domain(tools, domid)?);
    }
    match args.format.json {
        true => json::print(vcpus.iter().map(record).collect())?,
        false => crate::show(&vcpus.iter().map(row).fold(heading(), |text, row| text + &row))?,
    }
    Ok(code)
}

/// One vcpu, as it was when we asked.
struct Vcpu {
    name: String,
    domid: u16,
    number: u32,
    state: Getvcpuinfo,
    hard: Vec<bool>,
    soft: Vec<bool>,
}

fn of_domain(tools: &Toolstack, domid: DomId) -> anyhow::Result<Vec<Vcpu>> {
    let asking = || format!("asking about the vcpus of domain {}", domid.raw());
    // Gone between the list and now: nothing to print.
    let Some(info) = tools.hypervisor.domain(domid).with_context(asking)? else {
        return Ok(Vec::new());
    };
    let count = if info.max_vcpu_id == INVALID_MAX_VCPU_ID {
        0
    } else {
        info.max_vcpu_id + 1
    };
    let name = tools.name(domid);
    let affinity = |number, kind| tools.hypervisor.affinity(domid, number, kind).with_context(asking);
    (0..count)
        .map(|number| {
            Ok(Vcpu {
                name: name.clone(),
                domid: domid.raw(),
                number,
                state: tools.hypervisor.vcpu(domid, number).with_context(asking)?,
                hard: affinity(number, Affinity::Hard)?,
                soft: affinity(number, Affinity::Soft)?,
            })
        })
        .collect()
}

fn record(vcpu: &Vcpu) -> Value {
    let state = &vcpu.state;
    let is_online = state.online != 0;
    json!({
        "name": vcpu.name,
        "domid": vcpu.domid,
        "vcpu": vcpu.number,
        "cpu": is_online.then_some(state.cpu),
        "online": is_online,
        "running": state.running != 0,
        "blocked": state.blocked != 0,
        "cpu_seconds": state.cpu_time as f64 / 1e9,
        "hard_affinity": cpus(&vcpu.hard),
        "soft_affinity": cpus(&vcpu.soft),
    })
}

fn heading() -> String {
    let [name, id, vcpu, cpu, state, time] = ["Name", "ID", "VCPU", "CPU", "State", "Time(s)"];
    format!("{name:<32} {id:>5} {vcpu:>5} {cpu:>5} {state:>5} {time:>9} Affinity (Hard / Soft)\n")
}

fn row(vcpu: &Vcpu) -> String {
    let Vcpu {
        name,
        domid,
        number,
        state,
        hard,
        soft,
    } = vcpu;
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
        "{name:<32} {domid:5} {number:5}{place}{time:9.1}  {} / {}\n",
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
        let vcpu = |name: &str, domid, number, state, hard: [bool; 4], soft: [bool; 4]| Vcpu {
            name: name.to_owned(),
            domid,
            number,
            state,
            hard: hard.into(),
            soft: soft.into(),
        };
        let some = [true, true, false, true];
        let text = [
            heading(),
            row(&vcpu("Domain-0", 0, 0, state(1, 1, 0), [true; 4], [true; 4])),
            row(&vcpu("web1", 12, 1, state(1, 0, 1), some, [true; 4])),
            row(&vcpu("web1", 12, 2, state(0, 0, 0), [true; 4], [false; 4])),
        ]
        .concat();
        insta::assert_snapshot!(text);
    }
}
