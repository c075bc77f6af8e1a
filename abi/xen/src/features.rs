//! Feature flags that guest and hypervisor agree on. Upstream: `xen/include/public/features.h`.

use bitflags::bitflags;

bitflags! {
    /// A submap of `XENVER_get_features` (there is one: `XENFEAT_NR_SUBMAPS`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    #[repr(transparent)]
    pub struct Features: u32 {
        /// Page tables can be written directly and need no write protection.
        const WRITABLE_PAGE_TABLES = 1 << 0;
        /// Descriptor tables can be written directly.
        const WRITABLE_DESCRIPTOR_TABLES = 1 << 1;
        /// The hypervisor translates guest frames; the guest has no P2M list.
        const AUTO_TRANSLATED_PHYSMAP = 1 << 2;
        /// The guest kernel runs at CPL 0.
        const SUPERVISOR_MODE_KERNEL = 1 << 3;
        /// PAE page directories may lie above 4 GiB.
        const PAE_PGDIR_ABOVE_4GB = 1 << 4;
        /// `MMU_PT_UPDATE_PRESERVE_AD` exists.
        const MMU_PT_UPDATE_PRESERVE_AD = 1 << 5;
        /// `MMUEXT_CLEAR_PAGE` and `MMUEXT_COPY_PAGE` exist.
        const HIGHMEM_ASSIST = 1 << 6;
        /// Grant maps honour flags for the page-table bits left to the guest.
        const GNTTAB_MAP_AVAIL_BITS = 1 << 7;
        /// The vector type of the HVM event callback exists.
        const HVM_CALLBACK_VECTOR = 1 << 8;
        /// The paravirtual clock can be trusted in HVM guests.
        const HVM_SAFE_PVCLOCK = 1 << 9;
        /// HVM guests may use pirqs.
        const HVM_PIRQS = 1 << 10;
        /// Running as Domain 0 is supported (or asked for).
        const DOM0 = 1 << 11;
        /// `XENMEMF_vnode` is understood.
        const MEMORY_OP_VNODE_SUPPORTED = 1 << 13;
        /// Arm's SMC calling convention.
        const ARM_SMCCC_SUPPORTED = 1 << 14;
        /// The ACPI RSDP may be anywhere (PVH Linux).
        const LINUX_RSDP_UNRESTRICTED = 1 << 15;
        /// Guest frames differ from machine frames.
        const NOT_DIRECT_MAPPED = 1 << 16;
        /// Guest frames equal machine frames.
        const DIRECT_MAPPED = 1 << 17;
    }
}

impl Features {
    /// The feature of that name as it stands in ELF notes (`XENFEAT_` without the prefix).
    pub fn by_note_name(name: &str) -> Option<Features> {
        NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|&(_, feature)| feature)
    }
}

/// Names as ELF notes spell them.
const NAMES: [(&str, Features); 17] = [
    ("writable_page_tables", Features::WRITABLE_PAGE_TABLES),
    ("writable_descriptor_tables", Features::WRITABLE_DESCRIPTOR_TABLES),
    ("auto_translated_physmap", Features::AUTO_TRANSLATED_PHYSMAP),
    ("supervisor_mode_kernel", Features::SUPERVISOR_MODE_KERNEL),
    ("pae_pgdir_above_4gb", Features::PAE_PGDIR_ABOVE_4GB),
    ("mmu_pt_update_preserve_ad", Features::MMU_PT_UPDATE_PRESERVE_AD),
    ("highmem_assist", Features::HIGHMEM_ASSIST),
    ("gnttab_map_avail_bits", Features::GNTTAB_MAP_AVAIL_BITS),
    ("hvm_callback_vector", Features::HVM_CALLBACK_VECTOR),
    ("hvm_safe_pvclock", Features::HVM_SAFE_PVCLOCK),
    ("hvm_pirqs", Features::HVM_PIRQS),
    ("dom0", Features::DOM0),
    ("memory_op_vnode_supported", Features::MEMORY_OP_VNODE_SUPPORTED),
    ("ARM_SMCCC_supported", Features::ARM_SMCCC_SUPPORTED),
    ("linux_rsdp_unrestricted", Features::LINUX_RSDP_UNRESTRICTED),
    ("not_direct_mapped", Features::NOT_DIRECT_MAPPED),
    ("direct_mapped", Features::DIRECT_MAPPED),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_a_note_name() {
        for flag in Features::all().iter() {
            assert!(NAMES.iter().any(|&(_, known)| known == flag), "{flag:?}");
        }
        assert_eq!(
            Features::by_note_name("pae_pgdir_above_4gb"),
            Some(Features::PAE_PGDIR_ABOVE_4GB)
        );
        assert_eq!(Features::by_note_name("telepathy"), None);
    }
}
