//! Machine checks, as Domain 0 asks for them. Upstream: `xen/include/public/arch-x86/xen-mca.h`.

use crate::domctl::{codes, shapes};

/// `XEN_MCA_INTERFACE_VERSION`
pub const INTERFACE_VERSION: u32 = 0x01ec_c003;

codes! {
    /// Which command (`XEN_MC_*`).
    McCmd(u32) {
        FETCH = 1, NOTIFYDOMAIN = 2, PHYSCPUINFO = 3, MSRINJECT = 4, MCEINJECT = 5, INJECT_V2 = 6,
    }
}

/// What a fetch asks for, and what it got (`XEN_MC_*`).
pub mod flags {
    /// Asked for: what was corrected.
    pub const NONURGENT: u32 = 1 << 0;
    /// Asked for: what was not.
    pub const URGENT: u32 = 1 << 1;
    /// The last one fetched has been dealt with.
    pub const ACK: u32 = 1 << 2;
    /// Got: nothing, as there is nothing.
    pub const NODATA: u32 = 1 << 1;
}

shapes! {
    /// What all commands begin with (`struct xen_mc`), and the head of the longest of them.
    pub struct Mc: 32 {
        pub cmd: McCmd,
        pub interface_version: u32,
        /// Of a fetch.
        pub flags: u32,
        pub pad: u32,
        pub fetch_id: u64,
        /// Where the records go.
        pub data: u64,
    }

    /// `struct xen_mc_physcpuinfo`, behind the command and the version.
    pub struct Physcpuinfo: 16 {
        /// How many CPUs there is room for, then how many there are.
        pub ncpus: u32,
        pub pad: u32,
        /// [`LogicalCpu`]s, or null.
        pub info: u64,
    }

    /// A register's value (`struct mcinfo_msr`).
    pub struct MsrValue: 16 {
        pub reg: u64,
        pub value: u64,
    }

    /// One CPU (`struct mcinfo_logical_cpu`).
    pub struct LogicalCpu: 304 {
        pub cpunr: u32,
        pub chipid: u32,
        pub coreid: u16,
        pub threadid: u16,
        pub apicid: u32,
        pub clusterid: u32,
        pub ncores: u32,
        pub ncores_active: u32,
        pub nthreads: u32,
        pub cpuid_level: i32,
        pub family: u32,
        /// 1: Intel, 2: AMD.
        pub vendor: u32,
        pub model: u32,
        pub step: u32,
        pub vendorid: [u8; 16],
        pub brandid: [u8; 64],
        /// Leaf 1's edx and ecx, leaf 0x80000001's edx and ecx, and three more.
        pub cpu_caps: [u32; 7],
        /// KiB of the last cache.
        pub cache_size: u32,
        pub cache_alignment: u32,
        pub nmsrvals: i32,
        pub pad: u32,
        pub msrvalues: [MsrValue; 8],
    }
}
