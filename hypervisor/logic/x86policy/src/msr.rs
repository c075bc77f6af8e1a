//! Model-specific registers of a PV guest: where a read's value comes from, and what a write means.

/// Where the value of a register comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    /// Always this.
    Value(u64),
    /// What the processor's register holds.
    Host,
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
    /// The exception #GP.
    Fault,
}

/// What a write does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Write {
    /// Nothing, and no exception: stock Xen lets it pass as well.
    Ignored,
    /// Only the value that the register has anyway passes; else #GP.
    OnlyUnchanged,
    /// Sets the guest's FS base.
    FsBase,
    /// Sets the GS base of the mode it is in.
    GsBase,
    /// Sets the other mode's GS base.
    ShadowGsBase,
    /// The exception #GP.
    Fault,
}

#[allow(missing_docs, reason = "the manual's names")]
pub mod number {
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const BIOS_UPDATE: u32 = 0x79;
    pub const BIOS_SIGNATURE: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const MISC_FEATURES: u32 = 0x140;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const PERF_STATUS: u32 = 0x198;
    pub const PERF_CONTROL: u32 = 0x199;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEFAULT: u32 = 0x2ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const PATCH_LEVEL: u32 = 0x8b;
    pub const NB_CFG: u32 = 0xc001_001f;
    pub const PSTATE_LIMIT: u32 = 0xc001_0061;
}

use number as n;

/// What a guest's RDMSR gives.
pub fn read(msr: u32, is_dom0: bool) -> Read {
    match msr {
        n::FS_BASE => Read::FsBase,
        n::GS_BASE => Read::GsBase,
        n::KERNEL_GS_BASE => Read::ShadowGsBase,
        n::EFER => Read::Efer,
        n::APIC_BASE => Read::ApicBase,
        n::PAT => Read::Host,
        n::BIOS_SIGNATURE | n::PLATFORM_ID => Read::Host,
        n::MISC_ENABLE => Read::Host,
        n::PLATFORM_INFO | n::MISC_FEATURES | n::MCG_STATUS => Read::Value(0),
        // No banks: a guest has nothing to look for.
        n::MCG_CAP => Read::Value(0),
        n::HWCR | n::SYSCFG | n::NB_CFG | n::PSTATE_LIMIT | n::PERF_STATUS if is_dom0 => Read::Host,
        n::HWCR => Read::Value(0),
        n::MTRR_CAP | n::MTRR_DEFAULT | 0x200..=0x20f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f if is_dom0 => Read::Host,
        _ => Read::Fault,
    }
}

/// What a guest's WRMSR does.
pub fn write(msr: u32, is_dom0: bool) -> Write {
    match msr {
        n::FS_BASE => Write::FsBase,
        n::GS_BASE => Write::GsBase,
        n::KERNEL_GS_BASE => Write::ShadowGsBase,
        n::EFER | n::PAT | n::APIC_BASE | n::MISC_ENABLE | n::HWCR => Write::OnlyUnchanged,
        // Asking for the microcode's revision begins with a write of 0 here.
        n::BIOS_SIGNATURE => Write::Ignored,
        n::BIOS_UPDATE | n::PERF_CONTROL if is_dom0 => Write::Ignored,
        n::MCG_STATUS => Write::Ignored,
        _ => Write::Fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unknown_is_readable_or_writable() {
        for msr in [0, 0x10, 0x6e0, 0xc000_0081, 0xc000_0082, 0xc001_0117] {
            assert_eq!(read(msr, true), Read::Fault, "{msr:#x}");
            assert_eq!(write(msr, true), Write::Fault, "{msr:#x}");
        }
    }

    #[test]
    fn only_domain_0_reads_memory_types() {
        assert_eq!(read(n::MTRR_CAP, false), Read::Fault);
        assert_eq!(read(n::MTRR_CAP, true), Read::Host);
    }
}
