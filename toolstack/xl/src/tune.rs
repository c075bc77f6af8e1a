//! `xl vcpu-pin` and `xl sched-credit2`

use crate::cli::{SchedCredit2, VcpuPin};
use anyhow::{Context, bail};
use ferroxen_abi::domctl::{INVALID_MAX_VCPU_ID, SchedCredit};
use ferroxen_domains::Toolstack;
use ferroxen_domains::hyper::Affinity;
use ferroxen_words::DomId;
use ferroxen_xlconfig::{CpuList, parse_cpu_list};

/// `xl vcpu-pin`
pub fn pin(tools: &Toolstack, args: &VcpuPin) -> anyhow::Result<()> {
    let domid = crate::domain(tools, &args.domain)?;
    let info = tools.hypervisor.domain(domid)?.context("the domain has gone")?;
    let count = if info.max_vcpu_id == INVALID_MAX_VCPU_ID {
        0
    } else {
        info.max_vcpu_id + 1
    };
    let vcpus = match args.vcpu.as_str() {
        "all" => 0..count,
        word => {
            let vcpu: u32 = word
                .parse()
                .with_context(|| format!("`{word}` is no vcpu: a number or `all`"))?;
            if vcpu >= count {
                bail!(
                    "domain {} has vcpus 0 to {}, not {vcpu}",
                    domid.raw(),
                    count.saturating_sub(1)
                );
            }
            vcpu..vcpu + 1
        }
    };
    let wishes = [(Affinity::Hard, Some(&args.hard)), (Affinity::Soft, args.soft.as_ref())];
    for (kind, text) in wishes {
        let Some(text) = text.filter(|text| *text != "-") else {
            continue;
        };
        let list = parse_cpu_list(text).map_err(anyhow::Error::msg)?;
        for vcpu in vcpus.clone() {
            match &list {
                CpuList::All => tools.hypervisor.clear_affinity(domid, vcpu, kind),
                CpuList::These(cpus) => tools.hypervisor.set_affinity(domid, vcpu, kind, cpus),
            }
            .with_context(|| format!("pinning vcpu {vcpu} of domain {} to {text}", domid.raw()))?;
        }
    }
    Ok(())
}

/// `xl sched-credit2`
pub fn sched_credit2(tools: &Toolstack, args: &SchedCredit2) -> anyhow::Result<()> {
    let Some(word) = &args.domain else {
        println!(
            "Cpupool Pool-0: ratelimit={}us",
            tools.hypervisor.ratelimit_us().context("asking the scheduler")?
        );
        heading();
        for info in tools.hypervisor.domains().context("asking for the domains")? {
            if let Some(domid) = DomId::new(info.domain.0) {
                row(tools, domid)?;
            }
        }
        return Ok(());
    };
    let domid = crate::domain(tools, word)?;
    if args.weight.is_none() && args.cap.is_none() {
        heading();
        return row(tools, domid);
    }
    let old = tools.hypervisor.sched_credit(domid).context("asking the scheduler")?;
    let new = SchedCredit {
        weight: args.weight.unwrap_or(old.weight),
        cap: args.cap.unwrap_or(old.cap),
    };
    tools
        .hypervisor
        .set_sched_credit(domid, &new)
        .with_context(|| format!("setting weight {} and cap {}", new.weight, new.cap))
}

fn heading() {
    println!("{:<33} {:>4} {:>6} {:>4}", "Name", "ID", "Weight", "Cap");
}

fn row(tools: &Toolstack, domid: DomId) -> anyhow::Result<()> {
    let credit = tools.hypervisor.sched_credit(domid).context("asking the scheduler")?;
    println!(
        "{:<33} {:>4} {:>6} {:>4}",
        tools.name(domid),
        domid.raw(),
        credit.weight,
        credit.cap
    );
    Ok(())
}
