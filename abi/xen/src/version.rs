//! What a guest may ask about the hypervisor: `HYPERVISOR_xen_version`.
//!
//! Upstream: xen/include/public/version.h.

use crate::domctl::{codes, shapes};

codes! {
    /// Which question (`XENVER_*`).
    VersionCmd(u32) {
        VERSION = 0, EXTRAVERSION = 1, COMPILE_INFO = 2, CAPABILITIES = 3, CHANGESET = 4,
        PLATFORM_PARAMETERS = 5, GET_FEATURES = 6, PAGESIZE = 7, GUEST_HANDLE = 8, COMMANDLINE = 9,
        BUILD_ID = 10,
    }
}

/// `xen_extraversion_t`: text, ended by a zero byte.
pub type Extraversion = [u8; 16];
/// `xen_capabilities_info_t`.
pub type CapabilitiesInfo = [u8; 1024];
/// `xen_changeset_info_t`.
pub type ChangesetInfo = [u8; 64];
/// `xen_commandline_t`.
pub type Commandline = [u8; 1024];

shapes! {
    /// `xen_compile_info_t`.
    pub struct CompileInfo: 144 {
        pub compiler: [u8; 64],
        pub compile_by: [u8; 16],
        pub compile_domain: [u8; 32],
        pub compile_date: [u8; 32],
    }

    /// `xen_platform_parameters_t`.
    pub struct PlatformParameters: 8 {
        /// Where the hypervisor's own virtual addresses start.
        pub virt_start: u64,
    }

    /// `xen_feature_info_t`: 32 feature bits at a time.
    pub struct FeatureInfo: 8 {
        pub submap_idx: u32,
        pub submap: u32,
    }

    /// The fixed head of `xen_build_id_t`; `len` bytes follow.
    pub struct BuildIdHead: 4 {
        pub len: u32,
    }
}
