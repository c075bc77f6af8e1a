//! Masks of CPUID: what the processor itself answers to a vcpu's user mode. `logic/x86policy` says what; this loads it.

use super::policy;
use crate::cpu;
use crate::domain::Domain;
use core::sync::atomic::{AtomicU64, Ordering};
use ferroxen_abi::sysctl::levelcap;
use ferroxen_loader::options::Options;
use ferroxen_machine::cpu::{CpuidMask, probe_cpuid_mask, set_cpuid_mask};
use ferroxen_x86policy::Policy;
use ferroxen_x86policy::levelling::{Masks, OSXSAVE};
use spin::Once;

/// Which masks this host has.
struct Levelling {
    /// `XEN_SYSCTL_CPU_LEVELCAP_*`
    caps: u32,
    /// The most that a domain is told.
    most: Masks,
}

static HOST: Once<Levelling> = Once::new();

/// Looks which masks there are. Once, before any domain is made.
pub fn configure(options: &Options<'_>) {
    HOST.call_once(|| {
        let mut caps = 0;
        let mut probe = |mask: CpuidMask, named: u32| {
            let found = probe_cpuid_mask(mask);
            caps |= found.map_or(0, |_| named);
            found.unwrap_or(0)
        };
        let first = Masks {
            features: probe(CpuidMask::Features, levelcap::ECX | levelcap::EDX),
            extended: probe(CpuidMask::Extended, levelcap::EXTD_ECX | levelcap::EXTD_EDX),
            structured: probe(CpuidMask::Structured, levelcap::L7S0_EAX | levelcap::L7S0_EBX),
        };
        let most = first.limited(options.cpuid_masks);
        Levelling { caps, most }
    });
}

/// `XEN_SYSCTL_CPU_LEVELCAP_*`: what can be hidden from who executes CPUID.
pub fn caps() -> u32 {
    HOST.get().map_or(0, |host| host.caps)
}

/// A domain's masks, in the order of [`Masks`]; changed with its policy.
#[derive(Default)]
pub struct DomainMasks([AtomicU64; 3]);

impl DomainMasks {
    /// Those of a policy.
    pub fn of(policy: &Policy) -> Self {
        let masks = Self::default();
        masks.follow(policy);
        masks
    }

    /// Follows a new policy.
    pub fn follow(&self, policy: &Policy) {
        let Some(host) = HOST.get() else { return };
        let Masks {
            features,
            extended,
            structured,
        } = host.most.of(policy, &policy::of_host().host);
        for (mask, value) in self.0.iter().zip([features, extended, structured]) {
            mask.store(value, Ordering::Relaxed);
        }
    }
}

/// Puts a domain's masks in force on this CPU, for a vcpu that has XSAVE on or not.
#[inline]
pub fn load(domain: &Domain, has_xsave_on: bool) {
    if caps() == 0 {
        return;
    }
    let [features, extended, structured] = domain.cpuid_masks.0.each_ref().map(|mask| mask.load(Ordering::Relaxed));
    let wanted = Masks {
        features: if has_xsave_on { features } else { features & !OSXSAVE },
        extended,
        structured,
    };
    let loaded = &cpu::local().cpuid_masks;
    if loaded.get() != Some(wanted) {
        change(loaded.replace(Some(wanted)), wanted);
    }
}

#[cold]
fn change(from: Option<Masks>, to: Masks) {
    let caps = caps();
    let change = |mask: CpuidMask, needed: u32, of: fn(Masks) -> u64| {
        if caps & needed != 0 && from.map(of) != Some(of(to)) {
            // It was tried at boot.
            set_cpuid_mask(mask, of(to));
        }
    };
    change(CpuidMask::Features, levelcap::ECX, |masks| masks.features);
    change(CpuidMask::Extended, levelcap::EXTD_ECX, |masks| masks.extended);
    change(CpuidMask::Structured, levelcap::L7S0_EAX, |masks| masks.structured);
}
