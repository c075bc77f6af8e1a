//! What a domain's CPUID and registers say; `logic/x86policy` decides, this asks it.

use crate::domain::{Domain, VcpuRef};
use alloc::boxed::Box;
use core::sync::atomic::Ordering;
use ferroxen_loader::options::Options;
use ferroxen_machine::cpu::{self, GuestControl, GuestMsr};
use ferroxen_machine::{fpu, memory, time};
use ferroxen_words::{Maddr, Vaddr};
use ferroxen_x86policy::features::{self, FeatureSet};
use ferroxen_x86policy::levelling;
use ferroxen_x86policy::msr::{self, Read, Write};
use ferroxen_x86policy::{Asking, HostCpuid, Leaf, Misfit, Policy, Tsc};

/// The policies of this host, from which domains' are made.
pub struct HostPolicies {
    /// What the processor says.
    pub raw: Policy,
    /// What the hypervisor makes of it.
    pub host: Policy,
    /// The most that a PV guest can be given.
    pub pv_max: Policy,
    /// What a PV guest is given if nobody asks for more.
    pub pv_default: Policy,
}

/// Features that no guest gets (`cpuid=`).
static HIDDEN: spin::Once<FeatureSet> = spin::Once::new();

/// Takes the host's wishes from its command line.
pub fn configure(options: &Options<'_>) {
    let Some(words) = options.cpuid else { return };
    let unknown = |word: &str| crate::warn!("cpuid={word}: no feature is called that");
    HIDDEN.call_once(|| levelling::hidden(words, unknown));
}

/// The policies of this host.
pub fn of_host() -> &'static HostPolicies {
    static POLICIES: spin::Once<Box<HostPolicies>> = spin::Once::new();
    POLICIES.call_once(|| {
        let raw = Policy::raw(&Processor);
        let arch_caps = if raw.has(features::ARCH_CAPS) {
            cpu::read_host_msr(msr::number::ARCH_CAPABILITIES).unwrap_or(0)
        } else {
            0
        };
        let mut host = Policy::host(&raw, cpu::features().lfence_dispatches, arch_caps);
        if let Some(hidden) = HIDDEN.get() {
            host.hide(&raw, *hidden);
        }
        let pv_max = Policy::pv_max(&host);
        let pv_default = Policy::pv_default(&host, &pv_max);
        Box::new(HostPolicies {
            raw,
            host,
            pv_max,
            pv_default,
        })
    })
}

/// The processor under us, as it answers just now.
struct Processor;

impl HostCpuid for Processor {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        cpu::cpuid(leaf, subleaf)
    }
}

/// A domain's policy.
pub struct DomainPolicy {
    policy: Box<Policy>,
    is_privileged: bool,
}

impl DomainPolicy {
    /// The policy that every domain of that kind starts with.
    pub fn new(is_privileged: bool) -> Self {
        let HostPolicies {
            host,
            pv_max,
            pv_default,
            ..
        } = of_host();
        let mut start = pv_default.clone();
        if is_privileged && host.has(features::ITSC) {
            // It never moves.
            start.extended[7].d |= FeatureSet::NONE.with(features::ITSC).0[7];
        }
        start.clamp(host, pv_max);
        DomainPolicy {
            policy: Box::new(start),
            is_privileged,
        }
    }

    /// What it is now.
    pub fn get(&self) -> &Policy {
        &self.policy
    }

    /// Replaces it by one that a tool wrote, as far as that one fits; else says where it does not.
    pub fn replace(&mut self, mut wanted: Policy) -> Result<(), Misfit> {
        let HostPolicies { host, pv_max, .. } = of_host();
        wanted.clear_out_of_range();
        wanted.fits(pv_max)?;
        wanted.clamp(host, pv_max);
        *self.policy = wanted;
        Ok(())
    }
}

/// The states that a domain may switch on in XCR0; 0 without XSAVE.
pub fn states_of(domain: &Domain) -> u64 {
    domain.policy.lock().policy.xcr0() & cpu::xcr0()
}

/// CR4.OSXSAVE
pub const CR4_OSXSAVE: u64 = 1 << 18;

/// What the guest's CPUID gives. `forced`: it asked through the prefix, as PV kernels do.
pub fn cpuid(vcpu: &VcpuRef, leaf: u32, subleaf: u32, forced: bool) -> [u32; 4] {
    let (is_kernel, osxsave) = {
        let pv = vcpu.pv.lock();
        (vcpu.is_in_kernel(), pv.cr4 & CR4_OSXSAVE != 0)
    };
    let policy = vcpu.domain().policy.lock();
    let asking = Asking {
        osxsave: osxsave || (forced && is_kernel && policy.policy.has(features::XSAVE)),
        is_dom0_kernel: policy.is_privileged && is_kernel,
        machine_bits: u64::BITS - (memory::max_mfn() - 1).leading_zeros() + 12,
        tsc: tsc_of(vcpu.domain()),
    };
    let Leaf { a, b, c, d } = ferroxen_x86policy::cpuid(&policy.policy, &Processor, &asking, leaf, subleaf);
    [a, b, c, d]
}

fn tsc_of(domain: &Domain) -> Tsc {
    let features = cpu::features();
    let khz = (time::tsc_hz() / 1000) as u32;
    let host = Tsc {
        is_safe: features.invariant_tsc,
        has_rdtscp: features.rdtscp,
        host_khz: khz,
        ..Tsc::default()
    };
    if domain.is_privileged {
        return host;
    }
    let scale = time::moment().scale;
    Tsc {
        mode: domain.tsc_mode.load(Ordering::Relaxed),
        incarnation: domain.incarnation.load(Ordering::Relaxed),
        khz,
        mul: scale.mul_frac,
        shift: scale.shift,
        ..host
    }
}

/// The APIC base register's value on every PC, and its bits "boot processor" and "enabled".
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11;
const APIC_BASE_BSP: u64 = 1 << 8;
/// EFER's SVME bit, which no guest sees.
const EFER_SVME: u64 = 1 << 12;

/// What the guest's RDMSR gives; `None`: #GP.
pub fn read_msr(vcpu: &VcpuRef, number: u32) -> Option<u64> {
    let from = {
        let policy = vcpu.domain().policy.lock();
        msr::read(&policy.policy, number, policy.is_privileged)
    };
    Some(match from {
        Read::Value(value) => value,
        Read::Host => cpu::read_host_msr(number)?,
        Read::Tsc => cpu::tsc(),
        Read::TscAux => vcpu.pv.lock().tsc_aux.into(),
        Read::FsBase => cpu::read_msr(GuestMsr::FsBase),
        Read::GsBase => cpu::read_msr(GuestMsr::GsBase),
        Read::ShadowGsBase => cpu::read_msr(GuestMsr::KernelGsBase),
        Read::Efer => cpu::read_host_msr(number)? & !EFER_SVME,
        Read::ApicBase => APIC_BASE | if vcpu.id.0 == 0 { APIC_BASE_BSP } else { 0 },
        Read::MiscEnable => msr::misc_enable(cpu::read_host_msr(number)?),
        Read::Fault if is_forgiven(vcpu, number) => 0,
        Read::Fault => return None,
    })
}

/// Whether the domain need not fear a register that it does not have: its toolstack wants that, and the host has one.
#[cold]
fn is_forgiven(vcpu: &VcpuRef, number: u32) -> bool {
    vcpu.domain().limits.relaxed_registers && cpu::read_host_msr(number).is_some()
}

/// Does what the guest's WRMSR asks; `None`: #GP.
pub fn write_msr(vcpu: &VcpuRef, number: u32, value: u64) -> Option<()> {
    let effect = msr::write(&vcpu.domain().policy.lock().policy, number);
    // Every processor refuses a base that is not canonical, but not every emulated one.
    let base = |msr| (Vaddr::new(value).is_canonical() && cpu::write_msr(msr, value)).then_some(());
    match effect {
        Write::Ignored => Some(()),
        Write::Only(allowed) => (value == allowed).then_some(()),
        Write::OnlyUnchanged => (read_msr(vcpu, number)? == value).then_some(()),
        Write::TscAux => {
            let value = u32::try_from(value).ok()?;
            vcpu.pv.lock().tsc_aux = value;
            cpu::set_tsc_aux(value);
            Some(())
        }
        Write::FsBase => base(GuestMsr::FsBase),
        Write::GsBase => base(GuestMsr::GsBase),
        Write::ShadowGsBase => base(GuestMsr::KernelGsBase),
        Write::HypercallPage => {
            // There is one page, number 0.
            let at = Maddr::new(value);
            let fits = at.offset() == 0;
            fits.then(|| super::hypercall_page::fill(vcpu.domain(), at.mfn()).ok())?
        }
        Write::Fault => is_forgiven(vcpu, number).then_some(()),
    }
}

/// CR4 bits that a guest finds as we have them: PAE, MCE, OSFXSR, OSXMMEXCPT.
const CR4_OURS: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10;
/// CR4.TSD
pub const CR4_TSD: u64 = 1 << 2;
/// CR4.DE
pub const CR4_DE: u64 = 1 << 3;
/// CR4.FSGSBASE
pub const CR4_FSGSBASE: u64 = 1 << 16;

/// CR4 as a guest has it after it asked for `wanted`: what it may choose and has the feature for, and what it may see.
pub fn fit_cr4(domain: &Domain, wanted: u64) -> u64 {
    let set = domain.policy.lock().policy.feature_set();
    let choices = [
        (features::TSC, CR4_TSD),
        (features::DE, CR4_DE),
        (features::FSGSBASE, CR4_FSGSBASE),
        (features::XSAVE, CR4_OSXSAVE),
    ];
    choices
        .into_iter()
        .filter(|(feature, _)| set.has(*feature))
        .fold(CR4_OURS, |cr4, (_, bit)| cr4 | wanted & bit)
}

/// Puts a vcpu's choice of CR4 in force.
pub fn load_cr4(cr4: u64) {
    cpu::set_guest_control(GuestControl {
        counter_is_privileged: cr4 & CR4_TSD != 0,
        bases_are_usable: cr4 & CR4_FSGSBASE != 0,
    });
}

/// The XCR0 that a vcpu begins with: x87 and SSE.
pub const XCR0_INITIAL: u64 = 0b11;

/// Does what the guest's XSETBV asks. `None`: #GP.
pub fn write_xcr(vcpu: &VcpuRef, number: u32, value: u64) -> Option<()> {
    let states = states_of(vcpu.domain());
    (number == 0 && value & !states == 0 && fpu::set_xcr0(value)).then(|| vcpu.pv.lock().xcr0 = value)
}
