//! What a domain's CPUID and registers say; `logic/x86policy` decides, this asks it.

use crate::domain::VcpuRef;
use ferroxen_machine::cpu::{self, GuestMsr};
use ferroxen_x86policy::msr::{self, Read, Write};
use ferroxen_x86policy::{HostCpuid, Tsc, View, pv_cpuid};

/// A domain's policy.
pub struct DomainPolicy {
    is_privileged: bool,
}

impl DomainPolicy {
    /// The policy that every domain of that kind starts with.
    pub fn new(is_privileged: bool) -> Self {
        DomainPolicy { is_privileged }
    }
}

struct Host;

impl HostCpuid for Host {
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        cpu::cpuid(leaf, subleaf)
    }
}

/// CR4.OSXSAVE
pub const CR4_OSXSAVE: u64 = 1 << 18;

/// What the guest's CPUID gives. `forced`: it asked through the prefix, as PV kernels do.
pub fn cpuid(vcpu: &VcpuRef, leaf: u32, subleaf: u32, forced: bool) -> [u32; 4] {
    let features = cpu::features();
    let scale = ferroxen_machine::time::moment().scale;
    let view = View {
        vcpu: vcpu.id.0,
        vcpus: vcpu.domain().vcpus().len() as u32,
        osxsave: forced || vcpu.pv.lock().cr4 & CR4_OSXSAVE != 0,
        xcr0: features.xcr0,
        fsgsbase: features.fsgsbase,
        machine_bits: features.physical_bits,
        tsc: Tsc {
            khz: (ferroxen_machine::time::tsc_hz() / 1000) as u32,
            mul: scale.mul_frac,
            shift: scale.shift,
        },
    };
    pv_cpuid(&Host, &view, leaf, subleaf)
}

/// EFER's SVME bit, which no guest sees.
const EFER_SVME: u64 = 1 << 12;
/// The APIC base register's value on every PC, and its bits "boot processor" and "enabled".
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11;
const APIC_BASE_BSP: u64 = 1 << 8;

/// What the guest's RDMSR gives; `None`: #GP.
pub fn read_msr(vcpu: &VcpuRef, number: u32) -> Option<u64> {
    let is_dom0 = vcpu.domain().policy.lock().is_privileged;
    Some(match msr::read(number, is_dom0) {
        Read::Value(value) => value,
        Read::Host => cpu::read_host_msr(number)?,
        Read::FsBase => cpu::read_msr(GuestMsr::FsBase),
        Read::GsBase => cpu::read_msr(GuestMsr::GsBase),
        Read::ShadowGsBase => cpu::read_msr(GuestMsr::KernelGsBase),
        Read::Efer => cpu::read_host_msr(number)? & !EFER_SVME,
        Read::ApicBase => APIC_BASE | if vcpu.id.0 == 0 { APIC_BASE_BSP } else { 0 },
        Read::Fault => return None,
    })
}

/// Does what the guest's WRMSR asks; `None`: #GP.
pub fn write_msr(vcpu: &VcpuRef, number: u32, value: u64) -> Option<()> {
    let is_dom0 = vcpu.domain().policy.lock().is_privileged;
    let base = |msr| {
        // A base that is not canonical is refused by the processor, as it would be on a machine of its own.
        cpu::write_msr(msr, value).then_some(())
    };
    match msr::write(number, is_dom0) {
        Write::Ignored => Some(()),
        Write::OnlyUnchanged => (read_msr(vcpu, number)? == value).then_some(()),
        Write::FsBase => base(GuestMsr::FsBase),
        Write::GsBase => base(GuestMsr::GsBase),
        Write::ShadowGsBase => base(GuestMsr::KernelGsBase),
        Write::Fault => None,
    }
}
