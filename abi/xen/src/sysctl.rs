//! Control of the host: the toolstack's hypercall, interface version 0x15.
//!
//! A request is a [`Sysctl`]: a command and 128 bytes whose meaning depends on it. Guest handles stand
//! here as plain `u64` addresses in the caller's address space.
//!
//! Upstream: xen/include/public/sysctl.h.

use crate::domctl::{SchedulerId, XenctlBitmap, codes, shapes, union_access};
use core::mem::{offset_of, size_of};
use ferroxen_words::RawDomId;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What `interface_version` must say (`XEN_SYSCTL_INTERFACE_VERSION`).
pub const SYSCTL_INTERFACE_VERSION: u32 = 0x15;

/// Sets all counters to 0 (`XEN_SYSCTL_PERFCOP_reset`).
pub const PERFCOP_RESET: u32 = 1;
/// Reads them (`XEN_SYSCTL_PERFCOP_query`).
pub const PERFCOP_QUERY: u32 = 2;

codes! {
    /// Which sysctl (`XEN_SYSCTL_*`).
    SysctlCmd(u32) {
        READCONSOLE = 1, TBUF_OP = 2, PHYSINFO = 3, SCHED_ID = 4, PERFC_OP = 5, GETDOMAININFOLIST = 6,
        DEBUG_KEYS = 7, GETCPUINFO = 8, AVAILHEAP = 9, GET_PMSTAT = 10, CPU_HOTPLUG = 11, PM_OP = 12,
        PAGE_OFFLINE_OP = 14, LOCKPROF_OP = 15, CPUTOPOINFO = 16, NUMAINFO = 17, CPUPOOL_OP = 18,
        SCHEDULER_OP = 19, COVERAGE_OP = 20, PSR_CMT_OP = 21, PCITOPOINFO = 22, PSR_ALLOC = 23,
        GET_CPU_LEVELLING_CAPS = 25, GET_CPU_FEATURESET = 26, LIVEPATCH_OP = 27, GET_CPU_POLICY = 29,
    }
}

shapes! {
    /// A request about the host (`struct xen_sysctl`).
    pub struct Sysctl: 136 {
        pub cmd: SysctlCmd,
        /// [`SYSCTL_INTERFACE_VERSION`], else the call is refused with `EACCES`.
        pub interface_version: u32,
        /// The union `u`; its alignment is C's.
        pub u: [u64; 16],
    }

    /// `XEN_SYSCTL_readconsole`.
    pub struct Readconsole: 24 {
        pub clear: u8,
        /// Not 0: start at `index`.
        pub incremental: u8,
        pub pad0: u8,
        pub pad1: u8,
        pub index: u32,
        pub buffer: u64,
        pub count: u32,
        pub pad: u32,
    }

    /// `XEN_SYSCTL_tbuf_op`.
    pub struct TbufOp: 48 {
        pub cmd: u32,
        pub pad: u32,
        pub cpu_mask: XenctlBitmap,
        pub evt_mask: u32,
        pub pad2: u32,
        pub buffer_mfn: u64,
        pub size: u32,
        pub pad3: u32,
    }

    /// `XEN_SYSCTL_physinfo`.
    pub struct Physinfo: 112 {
        pub threads_per_core: u32,
        pub cores_per_socket: u32,
        pub nr_cpus: u32,
        pub max_cpu_id: u32,
        pub nr_nodes: u32,
        pub max_node_id: u32,
        pub cpu_khz: u32,
        /// [`physcap`] bits.
        pub capabilities: u32,
        pub arch_capabilities: u32,
        pub pad: u32,
        pub total_pages: u64,
        pub free_pages: u64,
        pub scrub_pages: u64,
        pub outstanding_pages: u64,
        pub max_mfn: u64,
        /// CPUID feature words, for show.
        pub hw_cap: [u32; 8],
    }

    /// `XEN_SYSCTL_sched_id`.
    pub struct SchedId: 4 {
        pub sched_id: SchedulerId,
    }

    /// `XEN_SYSCTL_perfc_op`.
    pub struct PerfcOp: 32 {
        pub cmd: u32,
        pub nr_counters: u32,
        pub nr_vals: u32,
        pub pad: u32,
        pub desc: u64,
        pub val: u64,
    }

    /// `xen_sysctl_perfc_desc`: a counter's name, ended by a zero byte, and how many values it has.
    pub struct PerfcDesc: 84 {
        pub name: [u8; 80],
        pub nr_vals: u32,
    }

    /// `XEN_SYSCTL_getdomaininfolist`.
    pub struct Getdomaininfolist: 24 {
        pub first_domain: RawDomId,
        pub pad: u16,
        pub max_domains: u32,
        /// [`crate::domctl::Getdomaininfo`]s.
        pub buffer: u64,
        pub num_domains: u32,
        pub pad2: u32,
    }

    /// `XEN_SYSCTL_debug_keys`.
    pub struct DebugKeys: 16 {
        pub keys: u64,
        pub nr_keys: u32,
        pub pad: u32,
    }

    /// `xen_sysctl_cpuinfo_t`.
    pub struct Cpuinfo: 8 {
        /// Nanoseconds.
        pub idletime: u64,
    }

    /// `XEN_SYSCTL_getcpuinfo`.
    pub struct Getcpuinfo: 24 {
        pub max_cpus: u32,
        pub pad: u32,
        /// [`Cpuinfo`]s.
        pub info: u64,
        pub nr_cpus: u32,
        pub pad2: u32,
    }

    /// `XEN_SYSCTL_availheap`.
    pub struct Availheap: 24 {
        pub min_bitwidth: u32,
        pub max_bitwidth: u32,
        /// -1: all nodes.
        pub node: i32,
        pub pad: u32,
        pub avail_bytes: u64,
    }

    /// `pm_cx_stat`: what a CPU did in which state.
    pub struct PmStat: 56 {
        pub nr: u32,
        pub last: u32,
        pub idle_time: u64,
        pub triggers: u64,
        pub residencies: u64,
        pub nr_pc: u32,
        pub nr_cc: u32,
        pub pc: u64,
        pub cc: u64,
    }

    /// `XEN_SYSCTL_get_pmstat`, with what it has for C-states.
    pub struct GetPmstat: 64 {
        pub type_: u32,
        pub cpuid: u32,
        pub cx: PmStat,
    }

    /// `XEN_SYSCTL_pm_op`, with the one value that most of its commands have.
    pub struct PmOp: 16 {
        pub cmd: u32,
        pub cpuid: u32,
        pub value: u32,
        pub pad: u32,
    }

    /// `XEN_SYSCTL_page_offline_op`.
    pub struct PageOfflineOp: 24 {
        pub cmd: u32,
        pub start: u32,
        pub end: u32,
        pub pad: u32,
        pub status: u64,
    }

    /// `XEN_SYSCTL_livepatch_op`, as `XEN_SYSCTL_LIVEPATCH_LIST`.
    pub struct LivepatchList: 72 {
        pub cmd: u32,
        pub pad: u32,
        pub version: u32,
        pub idx: u32,
        pub nr: u32,
        pub pad2: u32,
        pub name_total_size: u32,
        pub metadata_total_size: u32,
        pub arrays: [u64; 5],
    }

    /// `XEN_SYSCTL_cpu_hotplug`.
    pub struct CpuHotplug: 8 {
        pub cpu: u32,
        /// 0 online, 1 offline, 2 SMT on, 3 SMT off.
        pub op: u32,
    }

    /// `xen_sysctl_cputopo_t`; a CPU that is offline has all ones.
    pub struct Cputopo: 12 {
        pub core: u32,
        pub socket: u32,
        pub node: u32,
    }

    /// `XEN_SYSCTL_cputopoinfo`.
    pub struct Cputopoinfo: 16 {
        pub num_cpus: u32,
        pub pad: u32,
        /// [`Cputopo`]s, or null to ask for the number.
        pub cputopo: u64,
    }

    /// `xen_sysctl_meminfo_t`, in bytes.
    pub struct Meminfo: 16 {
        pub memsize: u64,
        pub memfree: u64,
    }

    /// `XEN_SYSCTL_numainfo`.
    pub struct Numainfo: 24 {
        pub num_nodes: u32,
        pub pad: u32,
        /// [`Meminfo`]s, or null.
        pub meminfo: u64,
        /// `num_nodes` squared `u32`s, or null.
        pub distance: u64,
    }

    /// `XEN_SYSCTL_cpupool_op`.
    pub struct CpupoolOp: 40 {
        pub op: CpupoolCmd,
        pub cpupool_id: u32,
        pub sched_id: SchedulerId,
        pub domid: u32,
        pub cpu: u32,
        pub n_dom: u32,
        pub cpumap: XenctlBitmap,
    }

    /// `struct xen_sysctl_credit_schedule`.
    pub struct CreditSchedule: 12 {
        pub tslice_ms: u32,
        pub ratelimit_us: u32,
        pub vcpu_migr_delay_us: u32,
    }

    /// `struct xen_sysctl_credit2_schedule`.
    pub struct Credit2Schedule: 4 {
        pub ratelimit_us: u32,
    }

    /// `XEN_SYSCTL_scheduler_op`.
    pub struct SchedulerOp: 32 {
        pub cpupool_id: u32,
        pub sched_id: SchedulerId,
        /// 0: put, 1: get.
        pub cmd: u32,
        pub pad: u32,
        /// [`CreditSchedule`] or [`Credit2Schedule`].
        pub u: [u64; 2],
    }

    /// `XEN_SYSCTL_psr_cmt_op`.
    pub struct PsrCmtOp: 16 {
        pub cmd: u32,
        pub flags: u32,
        pub data: u64,
    }

    /// `XEN_SYSCTL_psr_alloc`.
    pub struct PsrAlloc: 20 {
        pub cmd: u32,
        pub target: u32,
        pub info: [u32; 3],
    }

    /// `XEN_SYSCTL_pcitopoinfo`.
    pub struct Pcitopoinfo: 24 {
        pub num_devs: u32,
        pub pad: u32,
        pub devs: u64,
        pub nodes: u64,
    }

    /// `XEN_SYSCTL_get_cpu_levelling_caps`.
    pub struct CpuLevellingCaps: 4 {
        pub caps: u32,
    }

    /// `XEN_SYSCTL_get_cpu_featureset`.
    pub struct CpuFeatureset: 16 {
        pub index: FeaturesetIndex,
        pub nr_features: u32,
        pub features: u64,
    }

    /// `XEN_SYSCTL_get_cpu_policy`.
    pub struct CpuPolicy: 32 {
        pub index: CpuPolicyIndex,
        pub nr_leaves: u32,
        pub nr_msrs: u32,
        pub rsvd: u32,
        /// [`crate::domctl::CpuidLeaf`]s, or null.
        pub leaves: u64,
        /// [`crate::domctl::MsrEntry`]s, or null.
        pub msrs: u64,
    }
}

const _: () = assert!(offset_of!(Sysctl, u) == 8 && offset_of!(Physinfo, total_pages) == 40);
const _: () = assert!(offset_of!(Physinfo, hw_cap) == 80 && offset_of!(CpupoolOp, cpumap) == 24);

impl Sysctl {
    const ZERO: Sysctl = Sysctl {
        cmd: SysctlCmd(0),
        interface_version: 0,
        u: [0; 16],
    };

    /// A request with an all-zero union.
    pub const fn new(cmd: SysctlCmd) -> Sysctl {
        Sysctl {
            cmd,
            interface_version: SYSCTL_INTERFACE_VERSION,
            ..Sysctl::ZERO
        }
    }

    /// A request that carries `payload`.
    pub fn with<T: IntoBytes + Immutable>(cmd: SysctlCmd, payload: &T) -> Sysctl {
        let mut request = Sysctl::new(cmd);
        request.set_payload(payload);
        request
    }
}

union_access!(Sysctl, u);

impl SchedulerOp {
    const ZERO: SchedulerOp = SchedulerOp {
        cpupool_id: 0,
        sched_id: SchedulerId(0),
        cmd: 0,
        pad: 0,
        u: [0; 2],
    };
}

union_access!(SchedulerOp, u);

/// `XEN_SYSCTL_PHYSCAP_*`: what the host can do.
#[allow(missing_docs, reason = "upstream's own names")]
pub mod physcap {
    pub const HVM: u32 = 1 << 0;
    pub const PV: u32 = 1 << 1;
    pub const DIRECTIO: u32 = 1 << 2;
    pub const HAP: u32 = 1 << 3;
    pub const SHADOW: u32 = 1 << 4;
    pub const IOMMU_HAP_PT_SHARE: u32 = 1 << 5;
    pub const VMTRACE: u32 = 1 << 6;
    pub const VPMU: u32 = 1 << 7;
    pub const GNTTAB_V1: u32 = 1 << 8;
    pub const GNTTAB_V2: u32 = 1 << 9;
}

/// `XEN_SYSCTL_CPU_LEVELCAP_*`: leaves of CPUID that can be masked.
#[allow(missing_docs, reason = "upstream's own names")]
pub mod levelcap {
    pub const FAULTING: u32 = 1 << 0;
    pub const ECX: u32 = 1 << 1;
    pub const EDX: u32 = 1 << 2;
    pub const EXTD_ECX: u32 = 1 << 3;
    pub const EXTD_EDX: u32 = 1 << 4;
    pub const XSAVE_EAX: u32 = 1 << 5;
    pub const THERMAL_ECX: u32 = 1 << 6;
    pub const L7S0_EAX: u32 = 1 << 7;
    pub const L7S0_EBX: u32 = 1 << 8;
}

/// `PMSTAT_*`
#[allow(missing_docs, reason = "upstream's own names")]
pub mod pmstat {
    pub const GET_MAX_CX: u32 = 0x21;
    pub const GET_CXSTAT: u32 = 0x22;
    pub const RESET_CXSTAT: u32 = 0x23;
}

/// `XEN_SYSCTL_pm_op_*`
#[allow(missing_docs, reason = "upstream's own names")]
pub mod pm {
    pub const CATEGORY: u32 = 0xf0;
    pub const CPUFREQ: u32 = 0x10;
    pub const SET_SCHED_OPT_SMT: u32 = 0x21;
    pub const GET_MAX_CSTATE: u32 = 0x22;
    pub const SET_MAX_CSTATE: u32 = 0x23;
    pub const ENABLE_TURBO: u32 = 0x26;
    pub const DISABLE_TURBO: u32 = 0x27;
}

/// `XEN_SYSCTL_CX_UNLIMITED`
pub const CX_UNLIMITED: u32 = !0;

/// `sysctl_page_offline`
pub const PAGE_OFFLINE: u32 = 1;
/// `sysctl_page_online`
pub const PAGE_ONLINE: u32 = 2;
/// `sysctl_query_page_offline`
pub const QUERY_PAGE_OFFLINE: u32 = 3;
/// What that answers of a page in use: none of `PG_OFFLINE_STATUS_*`, as Xen 4.17 does, not even `..._ONLINE`.
pub const PAGE_IS_ONLINE: u32 = 0;

/// `XEN_SYSCTL_LIVEPATCH_*`
#[allow(missing_docs, reason = "upstream's own names")]
pub mod livepatch {
    pub const UPLOAD: u32 = 0;
    pub const GET: u32 = 1;
    pub const LIST: u32 = 2;
    pub const ACTION: u32 = 3;
}

/// `XEN_SYSCTL_CPU_HOTPLUG_*`
#[allow(missing_docs, reason = "upstream's own names")]
pub mod hotplug {
    pub const ONLINE: u32 = 0;
    pub const OFFLINE: u32 = 1;
}

/// "No such core, socket or node" in [`Cputopo`].
pub const INVALID_TOPOLOGY_ID: u32 = !0;
/// "Unknown" among the nodes of [`Pcitopoinfo`].
pub const INVALID_NODE_ID: u32 = !0;
/// "No such device" there.
pub const INVALID_DEV: u32 = INVALID_NODE_ID - 1;
/// "Unknown" in a distance of [`Numainfo`].
pub const INVALID_NODE_DIST: u32 = !0;
/// `XEN_SYSCTL_CPUPOOL_PAR_ANY`.
pub const CPUPOOL_PAR_ANY: u32 = !0;

codes! {
    /// `XEN_SYSCTL_CPUPOOL_OP_*`.
    CpupoolCmd(u32) {
        CREATE = 1, DESTROY = 2, INFO = 3, ADDCPU = 4, RMCPU = 5, MOVEDOMAIN = 6, FREEINFO = 7,
    }
}

codes! {
    /// `XEN_SYSCTL_cpu_featureset_*`.
    FeaturesetIndex(u32) { RAW = 0, HOST = 1, PV = 2, HVM = 3, PV_MAX = 4, HVM_MAX = 5 }
}

codes! {
    /// `XEN_SYSCTL_cpu_policy_*`.
    CpuPolicyIndex(u32) { RAW = 0, HOST = 1, PV_MAX = 2, HVM_MAX = 3, PV_DEFAULT = 4, HVM_DEFAULT = 5 }
}
