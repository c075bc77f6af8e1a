//! Memory and vcpus of running domains: `xl mem-set`, `xl mem-max`, `xl vcpu-set`, `xl vcpu-pin`.

use anyhow::{Context, bail};
use clap::Args;
use ferroxen_abi::domctl::INVALID_MAX_VCPU_ID;
use ferroxen_domains::Toolstack;
use ferroxen_domains::hyper::Affinity;
use ferroxen_words::DomId;
use ferroxen_xlconfig::{CpuList, parse_cpu_list};
use std::collections::BTreeSet;
use std::str::FromStr;

#[derive(Debug, Args)]
pub struct Memory {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// How much: MiB, or with a suffix b, k, m, g or t
    #[arg(value_name = "MemMB")]
    pub memory: Amount,
}

#[derive(Debug, Args)]
pub struct VcpuSet {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// How many
    #[arg(value_name = "vCPUs")]
    pub count: u32,
    /// Don't limit the vCPU based on the host CPU count
    #[arg(short = 'i', long = "ignore-host")]
    pub ignore_host: bool,
}

#[derive(Debug, Args)]
pub struct VcpuPin {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// A vcpu's number, or `all`
    #[arg(value_name = "VCPU|all")]
    pub vcpu: String,
    /// CPUs it may use, `all`, or `-` to leave that as it is
    #[arg(value_name = "Hard affinity|-|all", allow_hyphen_values = true)]
    pub hard: String,
    /// CPUs it would rather use, `all`, or `-`
    #[arg(value_name = "Soft affinity|-|all", allow_hyphen_values = true)]
    pub soft: Option<String>,
    /// Undo an override pinning done by the kernel
    #[arg(short = 'f', long = "force")]
    pub force: bool,
    /// Accepted for the sake of stock xl, which has such masks in its xl.conf
    #[arg(long)]
    ignore_global_affinity_masks: bool,
}

/// An amount of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount(u64);

impl Amount {
    /// In KiB.
    pub fn kib(self) -> u64 {
        self.0
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Amount, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let wrong = || format!("`{text}` is no amount of memory such as 512, 512m or 1g");
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let kib = match unit.to_ascii_lowercase().as_str() {
            "b" => Some(number / 1024),
            "k" => Some(number),
            "" | "m" => number.checked_mul(1 << 10),
            "g" => number.checked_mul(1 << 20),
            "t" => number.checked_mul(1 << 30),
            _ => None,
        };
        kib.filter(|kib| *kib > 0).map(Amount).ok_or_else(wrong)
    }
}

/// `xl mem-set`
pub fn set_memory(tools: &Toolstack, args: &Memory) -> anyhow::Result<()> {
    Ok(tools.set_memory_target(crate::domain(tools, &args.domain)?, args.memory.kib())?)
}

/// `xl mem-max`
pub fn set_max_memory(tools: &Toolstack, args: &Memory) -> anyhow::Result<()> {
    Ok(tools.set_memory_max(crate::domain(tools, &args.domain)?, args.memory.kib())?)
}

/// `xl vcpu-set`
pub fn set_vcpus(tools: &Toolstack, args: &VcpuSet) -> anyhow::Result<()> {
    let domid = crate::domain(tools, &args.domain)?;
    let cpus = tools.hypervisor.physinfo().context("asking about the host")?.nr_cpus;
    if args.count > cpus && !args.ignore_host {
        bail!(
            "You are overcommmitting! You have {cpus} physical CPUs and want {} vCPUs! Aborting, use --ignore-host to continue",
            args.count
        );
    }
    Ok(tools.set_vcpus(domid, args.count)?)
}

/// `xl vcpu-pin`
pub fn pin(tools: &Toolstack, args: &VcpuPin, dry: bool) -> anyhow::Result<()> {
    let domid = crate::domain(tools, &args.domain)?;
    let host = tools.hypervisor.physinfo().context("asking about the host")?.max_cpu_id;
    let vcpus = vcpus(tools, domid, &args.vcpu)?;
    let wishes = [(Affinity::Hard, Some(&args.hard)), (Affinity::Soft, args.soft.as_ref())];
    for (kind, text) in wishes {
        let Some(text) = text.filter(|text| *text != "-") else {
            continue;
        };
        let mut list = parse_cpu_list(text).map_err(anyhow::Error::msg)?;
        if kind == Affinity::Hard && !args.ignore_global_affinity_masks {
            list = tools.conf.masked(&list);
        }
        let cpus = match list {
            CpuList::All => None,
            CpuList::These(cpus) => Some(of_host(cpus, host)?),
        };
        for vcpu in vcpus.clone().filter(|_| !dry) {
            tools
                .hypervisor
                .set_affinity(domid, vcpu, kind, cpus.as_ref())
                .with_context(|| format!("pinning vcpu {vcpu} of domain {} to {text}", domid.raw()))?;
        }
    }
    Ok(())
}

fn vcpus(tools: &Toolstack, domid: DomId, word: &str) -> anyhow::Result<std::ops::Range<u32>> {
    let info = tools.hypervisor.domain(domid)?.context("the domain has gone")?;
    let count = match info.max_vcpu_id {
        INVALID_MAX_VCPU_ID => 0,
        highest => highest + 1,
    };
    if word == "all" {
        return Ok(0..count);
    }
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
    Ok(vcpu..vcpu + 1)
}

/// Those CPUs that the host has; a vcpu needs one.
fn of_host(cpus: BTreeSet<u32>, highest: u32) -> anyhow::Result<BTreeSet<u32>> {
    let there: BTreeSet<u32> = cpus.into_iter().filter(|cpu| *cpu <= highest).collect();
    if there.is_empty() {
        bail!("the host has CPUs 0 to {highest}, and none of these");
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_mib_unless_they_say_otherwise() {
        let kib = |text: &str| text.parse::<Amount>().map(Amount::kib).ok();
        assert_eq!(
            (kib("512"), kib("1g"), kib("64K"), kib("4096b")),
            (Some(524_288), Some(1 << 20), Some(64), Some(4))
        );
        assert_eq!(
            (kib("x"), kib("0"), kib("5q"), kib("99999999999999999t")),
            (None, None, None, None)
        );
    }
}
