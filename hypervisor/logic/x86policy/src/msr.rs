//! Model-specific registers of a PV guest: where a read's value comes from, and what a write means.
//!
//! The answers are stock Xen's. A register that faults there faults here, since kernels have learnt to cope with it;
//! one whose writes are dropped there has kernels that would not survive the fault.

use crate::features;
use crate::policy::{Policy, Vendor};

/// Where the value of a register comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// Always this.
    Value(u64),
    /// What the processor's register holds.
    Host,
    /// The time stamp counter.
    Tsc,
    /// What RDTSCP gives beside the time.
    TscAux,
    /// The guest's FS base.
    FsBase,
    /// The guest's GS base in the mode it is in.
    GsBase,
    /// The GS base that the guest's other mode has.
    ShadowGsBase,
    /// EFER as a PV guest may see it: the host's without SVM.
    Efer,
    /// APIC base register: where it always is, and whether this is the first vcpu.
    ApicBase,
    /// The host's MISC_ENABLE without what watches the processor.
    MiscEnable,
    /// The exception #GP.
    Fault,
}

/// What a write does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// Nothing, and no exception.
    Ignored,
    /// Only this value passes; else #GP.
    Only(u64),
    /// Only the value that the register has anyway passes; else #GP.
    OnlyUnchanged,
    /// Sets what RDTSCP gives beside the time; 32 bits.
    TscAux,
    /// Sets the guest's FS base.
    FsBase,
    /// Sets the GS base of the mode it is in.
    GsBase,
    /// Sets the other mode's GS base.
    ShadowGsBase,
    /// Has the stubs of the hypercall page written to a frame.
    HypercallPage,
    /// The exception #GP.
    Fault,
}

#[allow(missing_docs, reason = "the manuals' names")]
pub mod number {
    pub const P5_MC_ADDR: u32 = 0x0;
    pub const P5_MC_TYPE: u32 = 0x1;
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const BIOS_UPDATE: u32 = 0x79;
    pub const BIOS_SIGNATURE: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MPERF: u32 = 0xe7;
    pub const APERF: u32 = 0xe8;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const MISC_FEATURES: u32 = 0x140;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MCG_CTL: u32 = 0x17b;
    pub const PERF_STATUS: u32 = 0x198;
    pub const PERF_CONTROL: u32 = 0x199;
    pub const THERM_CONTROL: u32 = 0x19a;
    pub const THERM_STATUS: u32 = 0x19c;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const ENERGY_PERF_BIAS: u32 = 0x1b0;
    pub const PAT: u32 = 0x277;
    pub const PERF_CAPABILITIES: u32 = 0x345;
    pub const HYPERCALL_PAGE: u32 = 0x4000_0000;
    pub const EFER: u32 = 0xc000_0080;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const DE_CFG: u32 = 0xc001_1029;
}

use number as n;

/// Banks in which a guest finds machine checks: none is ever reported.
const BANKS: u64 = 2;
/// MCG_CAP of Intel's: corrected errors interrupt, threshold based status, software recovers.
const MCG_CAP_INTEL: u64 = 1 << 10 | 1 << 11 | 1 << 24 | BANKS;
/// DE_CFG: LFENCE waits for all that went before.
const LFENCE_DISPATCHES: u64 = 1 << 1;

/// One register of a bank: control, status, address and miscellany follow each other.
enum Bank {
    Control,
    Other,
}

/// Which register of a bank that a guest has.
fn bank(msr: u32) -> Option<Bank> {
    let index = u64::from(msr.checked_sub(0x400)?);
    (index < BANKS * 4).then_some(if index.is_multiple_of(4) {
        Bank::Control
    } else {
        Bank::Other
    })
}

/// What a guest's RDMSR gives.
pub fn read(policy: &Policy, msr: u32, is_dom0: bool) -> Read {
    let (intel, amd) = (policy.vendor() == Vendor::Intel, policy.vendor() == Vendor::Amd);
    match msr {
        n::FS_BASE => Read::FsBase,
        n::GS_BASE => Read::GsBase,
        n::KERNEL_GS_BASE => Read::ShadowGsBase,
        n::EFER => Read::Efer,
        n::TSC => Read::Tsc,
        n::TSC_AUX if has_tsc_aux(policy) => Read::TscAux,
        n::APIC_BASE => Read::ApicBase,
        n::PAT => Read::Host,
        n::BIOS_SIGNATURE => Read::Host,
        n::PLATFORM_ID if intel => Read::Host,
        n::MISC_ENABLE => Read::MiscEnable,
        n::HYPERCALL_PAGE | n::PERF_CAPABILITIES | n::MISC_FEATURES => Read::Value(0),
        n::PLATFORM_INFO => Read::Value(policy.platform_info),
        n::ARCH_CAPABILITIES if policy.has(features::ARCH_CAPS) => Read::Value(policy.arch_caps),
        n::P5_MC_ADDR | n::P5_MC_TYPE | n::MCG_STATUS | n::MCG_CTL => Read::Value(0),
        n::MCG_CAP if intel => Read::Value(MCG_CAP_INTEL),
        n::MCG_CAP => Read::Value(BANKS),
        0x280..=0x29f => Read::Value(0),
        0x400..=0x47f => Read::Value(match bank(msr) {
            Some(Bank::Control) => !0,
            _ => 0,
        }),
        // Locked, without VMX.
        n::FEATURE_CONTROL if intel => Read::Value(1),
        n::PERF_STATUS | n::PERF_CONTROL | n::THERM_STATUS if intel => Read::Value(0),
        // No event is counted.
        0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30b | 0x38d..=0x390 if intel => Read::Value(0),
        0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b if amd => Read::Value(0),
        n::HWCR | n::NB_CFG | 0xc001_0061..=0xc001_0068 if amd => Read::Value(0),
        n::DE_CFG if amd => Read::Value(LFENCE_DISPATCHES),
        // How the host's memory is laid out.
        n::SYSCFG | 0xc001_0016..=0xc001_001a | 0xc001_001d | 0xc001_0112 | 0xc001_0113 if amd && is_dom0 => Read::Host,
        _ => Read::Fault,
    }
}

/// What a guest's WRMSR does.
pub fn write(policy: &Policy, msr: u32) -> Write {
    let (intel, amd) = (policy.vendor() == Vendor::Intel, policy.vendor() == Vendor::Amd);
    match msr {
        n::FS_BASE => Write::FsBase,
        n::GS_BASE => Write::GsBase,
        n::KERNEL_GS_BASE => Write::ShadowGsBase,
        n::HYPERCALL_PAGE => Write::HypercallPage,
        n::EFER => Write::OnlyUnchanged,
        n::TSC_AUX if has_tsc_aux(policy) => Write::TscAux,
        n::MISC_FEATURES => Write::Only(0),
        n::MISC_ENABLE | n::MPERF | n::APERF => Write::Ignored,
        n::MCG_CAP | n::MCG_STATUS | n::MCG_CTL | 0x280..=0x29f => Write::Ignored,
        0x400..=0x47f => match bank(msr) {
            Some(Bank::Other) => Write::Only(0),
            _ => Write::Ignored,
        },
        // Asking for the microcode's revision begins with a write of 0 to the signature.
        n::BIOS_UPDATE | n::BIOS_SIGNATURE if intel => Write::Ignored,
        n::PERF_CONTROL | n::THERM_CONTROL | n::ENERGY_PERF_BIAS if intel => Write::Ignored,
        0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x30b | 0x38d..=0x390 if intel => Write::Ignored,
        0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b if amd => Write::Ignored,
        n::HWCR | n::NB_CFG | n::DE_CFG | 0xc001_0061..=0xc001_0068 if amd => Write::Ignored,
        _ => Write::Fault,
    }
}

/// Whether a guest has the register that RDTSCP and RDPID read.
pub fn has_tsc_aux(policy: &Policy) -> bool {
    policy.has(features::RDTSCP) || policy.has(features::RDPID)
}

/// MISC_ENABLE as a guest sees it: no counters, no MONITOR; no branch records, no precise events, no priority
/// messages.
pub const fn misc_enable(host: u64) -> u64 {
    const SHOWN_OFF: u64 = 1 << 7 | 1 << 18;
    const SHOWN_ON: u64 = 1 << 11 | 1 << 12 | 1 << 23;
    host & !SHOWN_OFF | SHOWN_ON
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(vendor: &[u8; 12]) -> Policy {
        let mut policy = Policy::EMPTY;
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        (policy.basic[0].b, policy.basic[0].d, policy.basic[0].c) = (word(0), word(4), word(8));
        policy
    }

    #[test]
    fn nothing_unknown_is_readable_or_writable() {
        for vendor in [b"GenuineIntel", b"AuthenticAMD"] {
            for msr in [
                0x48,
                0xfe,
                0x174,
                0x200,
                0x2ff,
                0x6e0,
                0x800,
                0xc000_0081,
                0xc000_0082,
                0xc001_0117,
            ] {
                assert_eq!(read(&policy(vendor), msr, true), Read::Fault, "{msr:#x}");
                assert_eq!(write(&policy(vendor), msr), Write::Fault, "{msr:#x}");
            }
        }
    }

    #[test]
    fn each_vendors_registers_fault_on_the_others() {
        let (intel, amd) = (policy(b"GenuineIntel"), policy(b"AuthenticAMD"));
        for msr in [n::PLATFORM_ID, n::PERF_STATUS, 0xc1] {
            assert_eq!(read(&amd, msr, true), Read::Fault);
            assert_ne!(read(&intel, msr, true), Read::Fault);
        }
        for msr in [n::DE_CFG, 0xc001_0004, n::HWCR] {
            assert_eq!(read(&intel, msr, true), Read::Fault);
            assert_ne!(read(&amd, msr, true), Read::Fault);
        }
    }

    #[test]
    fn only_domain_0_learns_how_the_hosts_memory_is_laid_out() {
        let amd = policy(b"AuthenticAMD");
        assert_eq!(read(&amd, n::SYSCFG, false), Read::Fault);
        assert_eq!(read(&amd, n::SYSCFG, true), Read::Host);
    }

    #[test]
    fn tsc_aux_comes_with_rdtscp() {
        let mut amd = policy(b"AuthenticAMD");
        assert_eq!(
            (read(&amd, n::TSC_AUX, false), write(&amd, n::TSC_AUX)),
            (Read::Fault, Write::Fault)
        );
        amd.extended[1].d |= 1 << 27;
        assert_eq!(
            (read(&amd, n::TSC_AUX, false), write(&amd, n::TSC_AUX)),
            (Read::TscAux, Write::TscAux)
        );
    }

    #[test]
    fn banks_report_nothing_and_take_only_zeroes() {
        let amd = policy(b"AuthenticAMD");
        assert_eq!(read(&amd, n::MCG_CAP, false), Read::Value(2));
        assert_eq!(
            (read(&amd, 0x404, false), write(&amd, 0x404)),
            (Read::Value(!0), Write::Ignored)
        );
        assert_eq!(
            (read(&amd, 0x401, false), write(&amd, 0x401)),
            (Read::Value(0), Write::Only(0))
        );
        assert_eq!(
            (read(&amd, 0x413, false), write(&amd, 0x413)),
            (Read::Value(0), Write::Ignored)
        );
    }

    #[test]
    fn misc_enable_is_stock_xens() {
        assert_eq!(misc_enable(1), 0x80_1801);
    }
}
