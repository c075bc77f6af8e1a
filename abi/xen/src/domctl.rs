//! Control of one domain: the toolstack's hypercall, interface version 0x15.
//!
//! A request is a [`Domctl`]: a command, the subject's id and 128 bytes whose meaning depends on the
//! command ([`Domctl::payload`], [`Domctl::set_payload`]). Guest handles stand here as plain `u64`
//! addresses in the caller's address space.
//!
//! Upstream: xen/include/public/domctl.h. The serialised CPU policy and `xen_arch_domainconfig`
//! (arch-x86/xen.h) and `xenctl_bitmap` (xen.h) stand here too, since only control calls use them.

use core::mem::{offset_of, size_of};
use ferroxen_words::RawDomId;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What `interface_version` must say (`XEN_DOMCTL_INTERFACE_VERSION`).
pub const DOMCTL_INTERFACE_VERSION: u32 = 0x15;

/// Makes an open code: a newtype with constants, so that an unknown value is still a value.
macro_rules! codes {
    ($(#[$doc:meta])* $type:ident($raw:ty) { $($(#[$item_doc:meta])* $name:ident = $value:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $type(pub $raw);

        #[allow(missing_docs, reason = "upstream's own names; the type says what they number")]
        impl $type {
            $($(#[$item_doc])* pub const $name: $type = $type($value);)*

            /// Upstream's name, if the number has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $(x if x == $value => Some(stringify!($name)),)* _ => None }
            }
        }

        impl core::fmt::Debug for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($type), "({})"), self.0),
                }
            }
        }
    };
}

/// Makes an ABI structure: C layout, every bit pattern valid, no hidden padding.
macro_rules! shapes {
    ($($(#[$doc:meta])* pub struct $name:ident: $size:literal {
        $($(#[$field_doc:meta])* pub $field:ident: $type:ty),* $(,)?
    })*) => {
        $(
            $(#[$doc])*
            #[derive(
                Clone, Copy, Debug, PartialEq, Eq,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
            )]
            #[repr(C)]
            #[allow(missing_docs, reason = "upstream's own field names; odd ones carry a comment")]
            pub struct $name { $($(#[$field_doc])* pub $field: $type),* }

            impl Default for $name {
                /// All bytes zero, which is how a caller starts a request.
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }

            const _: () = assert!(core::mem::size_of::<$name>() == $size);
        )*
    };
}

/// Gives a structure whose last field is a union typed views of it.
macro_rules! union_access {
    ($name:ident, $field:ident) => {
        impl $name {
            /// Reads the union as `T`, a copy.
            pub fn payload<T: FromBytes + IntoBytes>(&self) -> T {
                const { assert!(size_of::<T>() <= size_of_val(&<$name>::ZERO.$field)) };
                let mut value = T::new_zeroed();
                let into = value.as_mut_bytes();
                into.copy_from_slice(&self.$field.as_bytes()[..into.len()]);
                value
            }

            /// Writes `value` at the start of the union; the bytes behind it stay.
            pub fn set_payload<T: IntoBytes + Immutable>(&mut self, value: &T) {
                const { assert!(size_of::<T>() <= size_of_val(&<$name>::ZERO.$field)) };
                let from = value.as_bytes();
                self.$field.as_mut_bytes()[..from.len()].copy_from_slice(from);
            }
        }
    };
}

pub(crate) use {codes, shapes, union_access};

codes! {
    /// Which domctl (`XEN_DOMCTL_*`).
    DomctlCmd(u32) {
        CREATEDOMAIN = 1, DESTROYDOMAIN = 2, PAUSEDOMAIN = 3, UNPAUSEDOMAIN = 4, GETDOMAININFO = 5,
        SETVCPUAFFINITY = 9, SHADOW_OP = 10, MAX_MEM = 11, SETVCPUCONTEXT = 12, GETVCPUCONTEXT = 13,
        GETVCPUINFO = 14, MAX_VCPUS = 15, SCHEDULER_OP = 16, SETDOMAINHANDLE = 17, SETDEBUGGING = 18,
        IRQ_PERMISSION = 19, IOMEM_PERMISSION = 20, IOPORT_PERMISSION = 21, HYPERCALL_INIT = 22,
        SOFT_RESET_CONT = 23, SETTIMEOFFSET = 24, GETVCPUAFFINITY = 25, REAL_MODE_AREA = 26,
        RESUMEDOMAIN = 27, SENDTRIGGER = 28, SUBSCRIBE = 29, GETHVMCONTEXT = 33, SETHVMCONTEXT = 34,
        SET_ADDRESS_SIZE = 35, GET_ADDRESS_SIZE = 36, ASSIGN_DEVICE = 37, BIND_PT_IRQ = 38,
        MEMORY_MAPPING = 39, IOPORT_MAPPING = 40, SET_EXT_VCPUCONTEXT = 42, GET_EXT_VCPUCONTEXT = 43,
        SET_OPT_FEATURE = 44, TEST_ASSIGN_DEVICE = 45, SET_TARGET = 46, DEASSIGN_DEVICE = 47,
        UNBIND_PT_IRQ = 48, GET_DEVICE_GROUP = 50, DEBUG_OP = 54, GETHVMCONTEXT_PARTIAL = 55,
        VM_EVENT_OP = 56, MEM_SHARING_OP = 57, GETTSCINFO = 59, SETTSCINFO = 60, GETPAGEFRAMEINFO3 = 61,
        SETVCPUEXTSTATE = 62, GETVCPUEXTSTATE = 63, SET_ACCESS_REQUIRED = 64, AUDIT_P2M = 65,
        SET_VIRQ_HANDLER = 66, SET_BROKEN_PAGE_P2M = 67, SETNODEAFFINITY = 68, GETNODEAFFINITY = 69,
        CACHEFLUSH = 71, GET_VCPU_MSRS = 72, SET_VCPU_MSRS = 73, SETVNUMAINFO = 74, PSR_CMT_OP = 75,
        MONITOR_OP = 77, PSR_ALLOC = 78, SOFT_RESET = 79, VUART_OP = 81, GET_CPU_POLICY = 82,
        SET_CPU_POLICY = 83, VMTRACE_OP = 84, GET_PAGING_MEMPOOL_SIZE = 85, SET_PAGING_MEMPOOL_SIZE = 86,
        GDBSX_GUESTMEMIO = 1000, GDBSX_PAUSEVCPU = 1001, GDBSX_UNPAUSEVCPU = 1002, GDBSX_DOMSTATUS = 1003,
    }
}

/// A domain's UUID as raw bytes (`xen_domain_handle_t`).
pub type DomainHandle = [u8; 16];

shapes! {
    /// A request about one domain (`struct xen_domctl`).
    pub struct Domctl: 144 {
        pub cmd: DomctlCmd,
        /// [`DOMCTL_INTERFACE_VERSION`], else the call is refused with `EACCES`.
        pub interface_version: u32,
        /// The subject; some commands write the id back here.
        pub domain: RawDomId,
        pub pad: [u16; 3],
        /// The union `u`; its alignment is C's.
        pub u: [u64; 16],
    }

    /// A bitmap in the caller's memory (`struct xenctl_bitmap`).
    pub struct XenctlBitmap: 16 {
        /// Address of the bytes, least significant bit first.
        pub bitmap: u64,
        pub nr_bits: u32,
        pub pad: u32,
    }

    /// What differs per architecture when a domain is made (`struct xen_arch_domainconfig`).
    pub struct ArchDomainconfig: 8 {
        /// `XEN_X86_EMU_*`: see [`emu`].
        pub emulation_flags: u32,
        /// [`MSR_RELAXED`] or 0.
        pub misc_flags: u32,
    }

    /// One CPUID leaf, serialised (`xen_cpuid_leaf_t`).
    pub struct CpuidLeaf: 24 {
        pub leaf: u32,
        /// [`CPUID_NO_SUBLEAF`] when the leaf has none.
        pub subleaf: u32,
        pub a: u32,
        pub b: u32,
        pub c: u32,
        pub d: u32,
    }

    /// One MSR, serialised (`xen_msr_entry_t`).
    pub struct MsrEntry: 16 {
        pub idx: u32,
        /// Reserved, zero.
        pub flags: u32,
        pub val: u64,
    }

    /// `XEN_DOMCTL_createdomain`.
    pub struct Createdomain: 64 {
        pub ssidref: u32,
        pub handle: DomainHandle,
        /// [`cdf`] bits.
        pub flags: u32,
        pub iommu_opts: u32,
        pub max_vcpus: u32,
        pub max_evtchn_port: u32,
        /// Below 0: the hypervisor's default.
        pub max_grant_frames: i32,
        /// Below 0: the hypervisor's default.
        pub max_maptrack_frames: i32,
        /// The highest grant table version in the low 4 bits.
        pub grant_opts: u32,
        pub vmtrace_size: u32,
        pub cpupool_id: u32,
        pub arch: ArchDomainconfig,
    }

    /// `XEN_DOMCTL_getdomaininfo`, also an element of sysctl's getdomaininfolist.
    pub struct Getdomaininfo: 112 {
        pub domain: RawDomId,
        pub pad1: u16,
        /// [`dominf`] bits.
        pub flags: u32,
        pub tot_pages: u64,
        pub max_pages: u64,
        pub outstanding_pages: u64,
        pub shr_pages: u64,
        pub paged_pages: u64,
        /// A gfn; for a PV domain that is an mfn.
        pub shared_info_frame: u64,
        /// Nanoseconds run by all vcpus together.
        pub cpu_time: u64,
        pub nr_online_vcpus: u32,
        /// [`INVALID_MAX_VCPU_ID`]: no vcpus.
        pub max_vcpu_id: u32,
        pub ssidref: u32,
        pub handle: DomainHandle,
        pub cpupool: u32,
        pub gpaddr_bits: u8,
        pub pad2: [u8; 7],
        pub arch_config: ArchDomainconfig,
    }

    /// `XEN_DOMCTL_getpageframeinfo3`: an array of frame numbers in, [`pfinfo`] types out.
    pub struct Getpageframeinfo3: 16 {
        pub num: u64,
        pub array: u64,
    }

    /// What a log-dirty call counted.
    pub struct ShadowOpStats: 8 {
        pub fault_count: u32,
        pub dirty_count: u32,
    }

    /// `XEN_DOMCTL_shadow_op`.
    pub struct ShadowOp: 40 {
        pub op: ShadowOpCmd,
        /// ENABLE: [`shadow_enable`]; PEEK and CLEAN: [`SHADOW_LOGDIRTY_FINAL`].
        pub mode: u32,
        pub mb: u32,
        pub pad: u32,
        pub dirty_bitmap: u64,
        /// Bits in the bitmap; set to what was written.
        pub pages: u64,
        pub stats: ShadowOpStats,
    }

    /// `XEN_DOMCTL_max_mem`.
    pub struct MaxMem: 8 {
        pub max_memkb: u64,
    }

    /// `XEN_DOMCTL_setvcpucontext`, `getvcpucontext`.
    pub struct Vcpucontext: 16 {
        pub vcpu: u32,
        pub pad: u32,
        /// Address of a `vcpu_guest_context`.
        pub ctxt: u64,
    }

    /// `XEN_DOMCTL_getvcpuinfo`.
    pub struct Getvcpuinfo: 24 {
        pub vcpu: u32,
        pub online: u8,
        pub blocked: u8,
        pub running: u8,
        pub pad1: u8,
        pub cpu_time: u64,
        pub cpu: u32,
        pub pad2: u32,
    }

    /// `XEN_DOMCTL_setnodeaffinity`, `getnodeaffinity`.
    pub struct Nodeaffinity: 16 {
        pub nodemap: XenctlBitmap,
    }

    /// `XEN_DOMCTL_setvcpuaffinity`, `getvcpuaffinity`.
    pub struct Vcpuaffinity: 40 {
        pub vcpu: u32,
        /// [`VCPUAFFINITY_HARD`], [`VCPUAFFINITY_SOFT`], [`VCPUAFFINITY_FORCE`].
        pub flags: u32,
        pub cpumap_hard: XenctlBitmap,
        pub cpumap_soft: XenctlBitmap,
    }

    /// `XEN_DOMCTL_max_vcpus`.
    pub struct MaxVcpus: 4 {
        pub max: u32,
    }

    /// Weight and cap (`struct xen_domctl_sched_credit`, `..._credit2`).
    pub struct SchedCredit: 4 {
        pub weight: u16,
        /// Percent of one CPU; 0: none.
        pub cap: u16,
    }

    /// `struct xen_domctl_sched_rtds`.
    pub struct SchedRtds: 12 {
        pub period: u32,
        pub budget: u32,
        pub flags: u32,
    }

    /// The member `v` of [`SchedulerOp`]'s union.
    pub struct SchedulerVcpus: 16 {
        pub vcpus: u64,
        pub nr_vcpus: u32,
        pub padding: u32,
    }

    /// `xen_domctl_schedparam_vcpu_t`.
    pub struct SchedparamVcpu: 16 {
        pub u: [u32; 3],
        pub vcpuid: u32,
    }

    /// `XEN_DOMCTL_scheduler_op`.
    pub struct SchedulerOp: 24 {
        pub sched_id: SchedulerId,
        pub cmd: SchedulerCmd,
        /// [`SchedCredit`], [`SchedRtds`] or [`SchedulerVcpus`].
        pub u: [u64; 2],
    }

    /// `XEN_DOMCTL_setdomainhandle`.
    pub struct Setdomainhandle: 16 {
        pub handle: DomainHandle,
    }

    /// `XEN_DOMCTL_setdebugging`.
    pub struct Setdebugging: 1 {
        pub enable: u8,
    }

    /// `XEN_DOMCTL_irq_permission`.
    pub struct IrqPermission: 8 {
        pub pirq: u32,
        pub allow_access: u8,
        pub pad: [u8; 3],
    }

    /// `XEN_DOMCTL_iomem_permission`.
    pub struct IomemPermission: 24 {
        pub first_mfn: u64,
        pub nr_mfns: u64,
        pub allow_access: u8,
        pub pad: [u8; 7],
    }

    /// `XEN_DOMCTL_ioport_permission`.
    pub struct IoportPermission: 12 {
        pub first_port: u32,
        pub nr_ports: u32,
        pub allow_access: u8,
        pub pad: [u8; 3],
    }

    /// `XEN_DOMCTL_hypercall_init`.
    pub struct HypercallInit: 8 {
        /// The frame to fill with hypercall stubs; for PV an mfn.
        pub gmfn: u64,
    }

    /// `XEN_DOMCTL_settimeoffset`.
    pub struct Settimeoffset: 8 {
        pub time_offset_seconds: i64,
    }

    /// `XEN_DOMCTL_gethvmcontext`, `sethvmcontext`.
    pub struct Hvmcontext: 16 {
        pub size: u32,
        pub pad: u32,
        pub buffer: u64,
    }

    /// `XEN_DOMCTL_gethvmcontext_partial`.
    pub struct HvmcontextPartial: 24 {
        pub type_: u32,
        pub instance: u32,
        pub bufsz: u64,
        pub buffer: u64,
    }

    /// `XEN_DOMCTL_set_address_size`, `get_address_size`: 32 or 64.
    pub struct AddressSize: 4 {
        pub size: u32,
    }

    /// `XEN_DOMCTL_sendtrigger`.
    pub struct Sendtrigger: 8 {
        pub trigger: Trigger,
        pub vcpu: u32,
    }

    /// `XEN_DOMCTL_assign_device`, `deassign_device`, `test_assign_device`, for a PCI device.
    pub struct AssignDevice: 24 {
        /// 0: PCI.
        pub dev: u32,
        pub flags: u32,
        /// Segment, bus, device, function.
        pub machine_sbdf: u32,
        pub pad: [u32; 3],
    }

    /// `XEN_DOMCTL_get_device_group`.
    pub struct GetDeviceGroup: 24 {
        pub machine_sbdf: u32,
        pub max_sdevs: u32,
        pub num_sdevs: u32,
        pub pad: u32,
        pub sdev_array: u64,
    }

    /// `XEN_DOMCTL_memory_mapping`.
    pub struct MemoryMapping: 32 {
        pub first_gfn: u64,
        pub first_mfn: u64,
        pub nr_mfns: u64,
        pub add_mapping: u32,
        pub padding: u32,
    }

    /// `XEN_DOMCTL_ioport_mapping`.
    pub struct IoportMapping: 16 {
        pub first_gport: u32,
        pub first_mport: u32,
        pub nr_ports: u32,
        pub add_mapping: u32,
    }

    /// A vcpu's virtual machine-check banks (`struct hvm_vmce_vcpu`).
    pub struct VmceVcpu: 32 {
        pub caps: u64,
        pub mci_ctl2_bank0: u64,
        pub mci_ctl2_bank1: u64,
        pub mcg_ext_ctl: u64,
    }

    /// `XEN_DOMCTL_set_ext_vcpucontext`, `get_ext_vcpucontext`.
    pub struct ExtVcpucontext: 64 {
        pub vcpu: u32,
        /// Bytes of this structure that are valid.
        pub size: u32,
        pub syscall32_callback_eip: u64,
        pub sysenter_callback_eip: u64,
        pub syscall32_callback_cs: u16,
        pub sysenter_callback_cs: u16,
        pub syscall32_disables_events: u8,
        pub sysenter_disables_events: u8,
        pub pad: u16,
        pub vmce: VmceVcpu,
    }

    /// `XEN_DOMCTL_set_target`.
    pub struct SetTarget: 2 {
        pub target: RawDomId,
    }

    /// `XEN_DOMCTL_get_cpu_policy`, `set_cpu_policy`.
    pub struct CpuPolicy: 40 {
        pub nr_leaves: u32,
        pub nr_msrs: u32,
        /// [`CpuidLeaf`]s.
        pub leaves: u64,
        /// [`MsrEntry`]s.
        pub msrs: u64,
        /// Where a refused policy is wrong; else all ones.
        pub err_leaf: u32,
        pub err_subleaf: u32,
        pub err_msr: u32,
        pub pad: u32,
    }

    /// `XEN_DOMCTL_subscribe`.
    pub struct Subscribe: 4 {
        pub port: u32,
    }

    /// `XEN_DOMCTL_debug_op`.
    pub struct DebugOp: 8 {
        pub op: u32,
        pub vcpu: u32,
    }

    /// `XEN_DOMCTL_gettscinfo`, `settscinfo`.
    pub struct TscInfo: 24 {
        pub tsc_mode: u32,
        pub gtsc_khz: u32,
        pub incarnation: u32,
        pub pad: u32,
        pub elapsed_nsec: u64,
    }

    /// `XEN_DOMCTL_gdbsx_guestmemio`.
    pub struct GdbsxMemio: 40 {
        pub pgd3val: u64,
        pub gva: u64,
        pub uva: u64,
        pub len: u32,
        /// 0: read, 1: write.
        pub gwr: u8,
        pub pad: [u8; 3],
        pub remain: u32,
        pub pad2: u32,
    }

    /// `XEN_DOMCTL_gdbsx_pausevcpu`, `gdbsx_unpausevcpu`.
    pub struct GdbsxPauseunpVcpu: 4 {
        pub vcpu: u32,
    }

    /// `XEN_DOMCTL_gdbsx_domstatus`.
    pub struct GdbsxDomstatus: 12 {
        pub paused: u8,
        pub pad: [u8; 3],
        pub vcpu_id: u32,
        pub vcpu_ev: u32,
    }

    /// `XEN_DOMCTL_vm_event_op`.
    pub struct VmEventOp: 12 {
        pub op: u32,
        pub mode: u32,
        /// The ring's port, or the interface version.
        pub port: u32,
    }

    /// `XEN_DOMCTL_set_virq_handler`.
    pub struct SetVirqHandler: 4 {
        pub virq: u32,
    }

    /// `XEN_DOMCTL_setvcpuextstate`, `getvcpuextstate`.
    pub struct Vcpuextstate: 32 {
        pub vcpu: u32,
        pub pad: u32,
        pub xfeature_mask: u64,
        pub size: u64,
        pub buffer: u64,
    }

    /// `XEN_DOMCTL_set_access_required`.
    pub struct SetAccessRequired: 1 {
        pub access_required: u8,
    }

    /// `XEN_DOMCTL_set_broken_page_p2m`.
    pub struct SetBrokenPageP2m: 8 {
        pub pfn: u64,
    }

    /// `XEN_DOMCTL_cacheflush`.
    pub struct Cacheflush: 16 {
        pub start_pfn: u64,
        pub nr_pfns: u64,
    }

    /// `XEN_DOMCTL_get_paging_mempool_size`, `set_paging_mempool_size`.
    pub struct PagingMempool: 8 {
        pub size: u64,
    }

    /// `xen_domctl_vcpu_msr_t`.
    pub struct VcpuMsr: 16 {
        pub index: u32,
        pub reserved: u32,
        pub value: u64,
    }

    /// `XEN_DOMCTL_get_vcpu_msrs`, `set_vcpu_msrs`.
    pub struct VcpuMsrs: 16 {
        pub vcpu: u32,
        pub msr_count: u32,
        /// [`VcpuMsr`]s.
        pub msrs: u64,
    }

    /// `XEN_DOMCTL_setvnumainfo`.
    pub struct Vnuma: 48 {
        pub nr_vnodes: u32,
        pub nr_vmemranges: u32,
        pub nr_vcpus: u32,
        pub pad: u32,
        pub vdistance: u64,
        pub vcpu_to_vnode: u64,
        pub vnode_to_pnode: u64,
        pub vmemrange: u64,
    }
}

const _: () = assert!(offset_of!(Domctl, domain) == 8 && offset_of!(Domctl, u) == 16);
const _: () = assert!(offset_of!(Createdomain, arch) == 56 && offset_of!(Createdomain, max_vcpus) == 28);
const _: () = assert!(offset_of!(Getdomaininfo, handle) == 76 && offset_of!(Getdomaininfo, gpaddr_bits) == 96);
const _: () = assert!(offset_of!(ExtVcpucontext, vmce) == 32 && offset_of!(CpuPolicy, err_leaf) == 24);

impl Domctl {
    const ZERO: Domctl = Domctl {
        cmd: DomctlCmd(0),
        interface_version: 0,
        domain: RawDomId(0),
        pad: [0; 3],
        u: [0; 16],
    };

    /// A request with an all-zero union.
    pub const fn new(cmd: DomctlCmd, domain: RawDomId) -> Domctl {
        Domctl {
            cmd,
            interface_version: DOMCTL_INTERFACE_VERSION,
            domain,
            ..Domctl::ZERO
        }
    }

    /// A request that carries `payload`.
    pub fn with<T: IntoBytes + Immutable>(cmd: DomctlCmd, domain: RawDomId, payload: &T) -> Domctl {
        let mut request = Domctl::new(cmd, domain);
        request.set_payload(payload);
        request
    }
}

union_access!(Domctl, u);

impl SchedulerOp {
    const ZERO: SchedulerOp = SchedulerOp {
        sched_id: SchedulerId(0),
        cmd: SchedulerCmd(0),
        u: [0; 2],
    };
}

union_access!(SchedulerOp, u);

/// `XEN_DOMCTL_CDF_*`: what kind of domain to make.
#[allow(missing_docs, reason = "upstream's own names")]
pub mod cdf {
    pub const HVM: u32 = 1 << 0;
    pub const HAP: u32 = 1 << 1;
    pub const S3_INTEGRITY: u32 = 1 << 2;
    pub const OOS_OFF: u32 = 1 << 3;
    pub const XS_DOMAIN: u32 = 1 << 4;
    pub const IOMMU: u32 = 1 << 5;
    pub const NESTED_VIRT: u32 = 1 << 6;
    pub const VPMU: u32 = 1 << 7;
}

/// `XEN_DOMINF_*`: a domain's state.
#[allow(missing_docs, reason = "upstream's own names")]
pub mod dominf {
    pub const DYING: u32 = 1 << 0;
    pub const HVM_GUEST: u32 = 1 << 1;
    pub const SHUTDOWN: u32 = 1 << 2;
    pub const PAUSED: u32 = 1 << 3;
    pub const BLOCKED: u32 = 1 << 4;
    pub const RUNNING: u32 = 1 << 5;
    pub const DEBUGGED: u32 = 1 << 6;
    pub const XS_DOMAIN: u32 = 1 << 7;
    pub const HAP: u32 = 1 << 8;
    /// The shutdown code's place.
    pub const SHUTDOWNMASK: u32 = 255;
    pub const SHUTDOWNSHIFT: u32 = 16;
}

/// `XEN_DOMCTL_PFINFO_*`: a frame's type as [`Getpageframeinfo3`] tells it.
#[allow(missing_docs, reason = "upstream's own names")]
pub mod pfinfo {
    pub const LTAB_SHIFT: u32 = 28;
    pub const NOTAB: u64 = 0;
    pub const L1TAB: u64 = 1 << 28;
    pub const L2TAB: u64 = 2 << 28;
    pub const L3TAB: u64 = 3 << 28;
    pub const L4TAB: u64 = 4 << 28;
    pub const LTABTYPE_MASK: u64 = 7 << 28;
    /// The table is pinned.
    pub const LPINTAB: u64 = 1 << 31;
    /// Not a frame of the domain.
    pub const XTAB: u64 = 0xf << 28;
    pub const XALLOC: u64 = 0xe << 28;
    pub const BROKEN: u64 = 0xd << 28;
    pub const LTAB_MASK: u64 = 0xf << 28;
}

/// `XEN_X86_EMU_*`: emulated devices (none for PV save the PIT in a PV domain's own way).
#[allow(missing_docs, reason = "upstream's own names")]
pub mod emu {
    pub const LAPIC: u32 = 1 << 0;
    pub const HPET: u32 = 1 << 1;
    pub const PM: u32 = 1 << 2;
    pub const RTC: u32 = 1 << 3;
    pub const IOAPIC: u32 = 1 << 4;
    pub const PIC: u32 = 1 << 5;
    pub const VGA: u32 = 1 << 6;
    pub const IOMMU: u32 = 1 << 7;
    pub const PIT: u32 = 1 << 8;
    pub const USE_PIRQ: u32 = 1 << 9;
    pub const VPCI: u32 = 1 << 10;
    pub const ALL: u32 = (1 << 11) - 1;
}

/// `XEN_DOMCTL_SHADOW_ENABLE_*`: modes of [`ShadowOpCmd::ENABLE`].
#[allow(missing_docs, reason = "upstream's own names")]
pub mod shadow_enable {
    pub const REFCOUNT: u32 = 1 << 1;
    pub const LOG_DIRTY: u32 = 1 << 2;
    pub const TRANSLATE: u32 = 1 << 3;
    pub const EXTERNAL: u32 = 1 << 4;
}

/// Accesses to MSRs that Xen does not handle are ignored instead of raising #GP (`XEN_X86_MSR_RELAXED`).
pub const MSR_RELAXED: u32 = 1;
/// `XEN_DOMCTL_IOMMU_no_sharept`.
pub const IOMMU_NO_SHAREPT: u32 = 1;
/// `XEN_INVALID_MAX_VCPU_ID`.
pub const INVALID_MAX_VCPU_ID: u32 = !0;
/// `XEN_CPUID_NO_SUBLEAF`.
pub const CPUID_NO_SUBLEAF: u32 = !0;
/// The final round of logging: writable mappings held by the hypervisor count as dirty.
pub const SHADOW_LOGDIRTY_FINAL: u32 = 1;
/// Get or set the hard affinity.
pub const VCPUAFFINITY_HARD: u32 = 1;
/// Get or set the soft affinity.
pub const VCPUAFFINITY_SOFT: u32 = 2;
/// Undo `SCHEDOP_pin_override`.
pub const VCPUAFFINITY_FORCE: u32 = 4;

codes! {
    /// `XEN_DOMCTL_SHADOW_OP_*`.
    ShadowOpCmd(u32) {
        OFF = 0, ENABLE_TEST = 1, ENABLE_LOGDIRTY = 2, ENABLE_TRANSLATE = 3, CLEAN = 11, PEEK = 12,
        GET_ALLOCATION = 30, SET_ALLOCATION = 31, ENABLE = 32,
    }
}

codes! {
    /// `XEN_SCHEDULER_*`.
    SchedulerId(u32) { CREDIT = 5, CREDIT2 = 6, ARINC653 = 7, RTDS = 8, NULL = 9 }
}

codes! {
    /// `XEN_DOMCTL_SCHEDOP_*`.
    SchedulerCmd(u32) { PUTINFO = 0, GETINFO = 1, PUTVCPUINFO = 2, GETVCPUINFO = 3 }
}

codes! {
    /// `XEN_DOMCTL_SENDTRIGGER_*`.
    Trigger(u32) { NMI = 0, RESET = 1, INIT = 2, POWER = 3, SLEEP = 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_comes_back_as_it_was_put() {
        let wish = MaxMem {
            max_memkb: 0x1234_5678_9abc,
        };
        let request = Domctl::with(DomctlCmd::MAX_MEM, RawDomId(7), &wish);
        assert_eq!(request.payload::<MaxMem>(), wish);
        assert_eq!(request.interface_version, 0x15);
    }

    #[test]
    fn an_unknown_command_is_still_a_value() {
        assert_eq!(DomctlCmd(6).name(), None);
        assert_eq!(DomctlCmd(15).name(), Some("MAX_VCPUS"));
    }
}
