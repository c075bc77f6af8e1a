//! What of the host a domain may use beside what every domain has, and what its CPUID says.
//!
//! Ports, pages of devices and interrupts are given by number. That is all a PV kernel needs: it maps pages itself,
//! and binds the interrupt that it was given.

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use ferroxen_abi::domctl::{CPUID_NO_SUBLEAF, CpuidLeaf};
use ferroxen_words::DomId;
use ferroxen_xlconfig::{CpuidRule, DomainConfig, Register};

/// Gives a domain, which has not run, what its configuration names.
pub(crate) fn grant(tools: &Toolstack, domid: DomId, config: &DomainConfig) -> Result<()> {
    let hypervisor = &*tools.hypervisor;
    for ports in &config.ioports {
        let count = u32::from(ports.last - ports.first) + 1;
        hypervisor
            .permit_ports(domid, ports.first.into(), count)
            .doing(|| format!("giving it the I/O ports {:x} to {:x}", ports.first, ports.last))
            .map_err(|error| not_ours(error, "`ioports`"))?;
    }
    for memory in &config.iomem {
        hypervisor
            .permit_iomem(domid, memory.first, memory.pages)
            .doing(|| {
                format!(
                    "giving it {:x} pages of devices from {:x} on",
                    memory.pages, memory.first
                )
            })
            .map_err(|error| not_ours(error, "`iomem`"))?;
    }
    for irq in &config.irqs {
        hypervisor
            .permit_irq(domid, *irq)
            .doing(|| format!("giving it interrupt {irq}"))
            .map_err(|error| not_ours(error, "`irqs`"))?;
    }
    match config.cpuid.is_empty() {
        true => Ok(()),
        false => set_cpuid(tools, domid, config),
    }
}

fn not_ours(error: Error, setting: &str) -> Error {
    match error.errno() {
        Some(EPERM) => error.way_out(format!(
            "{setting}: the hypervisor keeps that for itself, or the host has none"
        )),
        _ => error,
    }
}

const EPERM: i32 = 1;

fn set_cpuid(tools: &Toolstack, domid: DomId, config: &DomainConfig) -> Result<()> {
    let doing = || "setting what its CPUID says".to_owned();
    let host = tools.hypervisor.cpuid_of_host().doing(doing)?;
    let (mut policy, _) = tools.hypervisor.cpu_policy(domid).doing(doing)?;
    for rule in config.cpuid.iter() {
        apply(&mut policy, &host, rule)?;
    }
    let refused = tools.hypervisor.set_cpu_policy(domid, &policy, &[]).doing(doing)?;
    // Features that the host cannot give are left out without a word.
    let (now, _) = tools.hypervisor.cpu_policy(domid).doing(doing)?;
    let lacking = || config.cpuid.iter().find_map(|rule| lacks(&now, rule));
    match refused.map(|(leaf, subleaf)| leaf_name(leaf, subleaf)).or_else(lacking) {
        None => Ok(()),
        Some(place) => Err(Error::new(
            doing(),
            format!("the host cannot give what is asked for in leaf {place}"),
        )
        .way_out("use x for such bits, or leave them out")),
    }
}

/// What a rule has asked for in vain.
fn lacks(policy: &[CpuidLeaf], rule: &CpuidRule) -> Option<String> {
    let subleaf = rule.subleaf.unwrap_or(0);
    let leaf = policy
        .iter()
        .find(|leaf| (leaf.leaf, number_of(leaf)) == (rule.leaf, subleaf))?;
    let missing = rule.ones & !value(leaf, rule.register);
    (missing != 0).then(|| {
        let (name, register) = (leaf_name(leaf.leaf, leaf.subleaf), rule.register.name());
        format!("{name}, bits {missing:#x} of {register}")
    })
}

/// A leaf without subleaves is its own first.
fn number_of(leaf: &CpuidLeaf) -> u32 {
    if leaf.subleaf == CPUID_NO_SUBLEAF {
        0
    } else {
        leaf.subleaf
    }
}

fn apply(policy: &mut [CpuidLeaf], host: &[CpuidLeaf], rule: &CpuidRule) -> Result<()> {
    // Without a subleaf, the first or only one is meant.
    let wanted = rule.subleaf.unwrap_or(0);
    let is_it = |leaf: &CpuidLeaf| (leaf.leaf, number_of(leaf)) == (rule.leaf, wanted);
    let hosts = host
        .iter()
        .find(|leaf| is_it(leaf))
        .map_or(0, |leaf| value(leaf, rule.register));
    let Some(leaf) = policy.iter_mut().find(|leaf| is_it(leaf)) else {
        let name = leaf_name(rule.leaf, rule.subleaf.unwrap_or(CPUID_NO_SUBLEAF));
        return match rule.ones {
            // It reads as zero.
            0 => Ok(()),
            _ => Err(Error::new(
                "setting what its CPUID says",
                format!("the domain has no leaf {name}"),
            )),
        };
    };
    let register = match rule.register {
        Register::Eax => &mut leaf.a,
        Register::Ebx => &mut leaf.b,
        Register::Ecx => &mut leaf.c,
        Register::Edx => &mut leaf.d,
    };
    *register = *register & !(rule.zeroes | rule.host) | rule.ones | hosts & rule.host;
    Ok(())
}

fn value(leaf: &CpuidLeaf, register: Register) -> u32 {
    match register {
        Register::Eax => leaf.a,
        Register::Ebx => leaf.b,
        Register::Ecx => leaf.c,
        Register::Edx => leaf.d,
    }
}

fn leaf_name(leaf: u32, subleaf: u32) -> String {
    match subleaf {
        CPUID_NO_SUBLEAF => format!("{leaf:#x}"),
        subleaf => format!("{leaf:#x},{subleaf}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroxen_xlconfig::{Source, parse};

    fn leaf(leaf: u32, subleaf: u32, [a, b, c, d]: [u32; 4]) -> CpuidLeaf {
        CpuidLeaf {
            leaf,
            subleaf,
            a,
            b,
            c,
            d,
        }
    }

    fn applied(setting: &str) -> Result<Vec<u32>> {
        let loaded = parse(Source::new("web.cfg", format!("cpuid = {setting}\n")), &[]);
        let rules = loaded.unwrap_or_else(|problem| panic!("{problem}")).config.cpuid;
        let host = [leaf(1, CPUID_NO_SUBLEAF, [0, 0, 0xff, 0]), leaf(7, 0, [0, 0xff, 0, 0])];
        let mut policy = [leaf(1, CPUID_NO_SUBLEAF, [0, 0, 0x0f, 0]), leaf(7, 0, [0, 0x0f, 0, 0])];
        rules.iter().try_for_each(|rule| apply(&mut policy, &host, rule))?;
        Ok(vec![policy[0].c, policy[1].b])
    }

    #[test]
    fn bits_are_set_cleared_left_and_taken_from_the_host() {
        let bits = |last: &str| format!("['1:ecx={}{last}']", "x".repeat(32 - last.len()));
        assert_eq!(applied(&bits("k0x01")).expect("can be had"), [0b1_0101, 0x0f]);
        assert_eq!(applied("'host,bmi1=0,avx2=k'").expect("can be had"), [0x0f, 0x27]);
    }

    #[test]
    fn a_leaf_that_is_not_there_reads_as_zero() {
        assert!(applied("'host,xop=0'").is_ok());
        let error = applied("'host,xop=1'").expect_err("there is no such leaf").to_string();
        assert!(error.contains("0x80000001"), "{error}");
    }

    #[test]
    fn what_was_asked_for_in_vain_is_named() {
        let loaded = parse(Source::new("web.cfg", "cpuid = 'host,bmi1=1,avx2=1'\n"), &[]);
        let rules = loaded.unwrap_or_else(|problem| panic!("{problem}")).config.cpuid;
        let now = [leaf(7, 0, [0, 1 << 3, 0, 0])];
        let said: Vec<_> = rules.iter().filter_map(|rule| lacks(&now, rule)).collect();
        assert_eq!(said, ["0x7,0, bits 0x20 of ebx"]);
    }
}
