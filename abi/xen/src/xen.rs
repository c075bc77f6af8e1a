//! The core of the ABI: hypercall numbers, shared memory, start of day. Upstream: `xen/include/public/xen.h`.

use core::mem::{offset_of, size_of};
use ferroxen_words::RawDomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Hypercall numbers (`__HYPERVISOR_*`).
pub mod hypercall {
    #![allow(
        missing_docs,
        reason = "each is the header's name in upper case; the header says what it does"
    )]
    pub const SET_TRAP_TABLE: u32 = 0;
    pub const MMU_UPDATE: u32 = 1;
    pub const SET_GDT: u32 = 2;
    pub const STACK_SWITCH: u32 = 3;
    pub const SET_CALLBACKS: u32 = 4;
    pub const FPU_TASKSWITCH: u32 = 5;
    pub const SCHED_OP_COMPAT: u32 = 6;
    pub const PLATFORM_OP: u32 = 7;
    pub const SET_DEBUGREG: u32 = 8;
    pub const GET_DEBUGREG: u32 = 9;
    pub const UPDATE_DESCRIPTOR: u32 = 10;
    pub const MEMORY_OP: u32 = 12;
    pub const MULTICALL: u32 = 13;
    pub const UPDATE_VA_MAPPING: u32 = 14;
    pub const SET_TIMER_OP: u32 = 15;
    pub const EVENT_CHANNEL_OP_COMPAT: u32 = 16;
    pub const XEN_VERSION: u32 = 17;
    pub const CONSOLE_IO: u32 = 18;
    pub const PHYSDEV_OP_COMPAT: u32 = 19;
    pub const GRANT_TABLE_OP: u32 = 20;
    pub const VM_ASSIST: u32 = 21;
    pub const UPDATE_VA_MAPPING_OTHERDOMAIN: u32 = 22;
    pub const IRET: u32 = 23;
    pub const VCPU_OP: u32 = 24;
    pub const SET_SEGMENT_BASE: u32 = 25;
    pub const MMUEXT_OP: u32 = 26;
    pub const XSM_OP: u32 = 27;
    pub const NMI_OP: u32 = 28;
    pub const SCHED_OP: u32 = 29;
    pub const CALLBACK_OP: u32 = 30;
    pub const XENOPROF_OP: u32 = 31;
    pub const EVENT_CHANNEL_OP: u32 = 32;
    pub const PHYSDEV_OP: u32 = 33;
    pub const HVM_OP: u32 = 34;
    pub const SYSCTL: u32 = 35;
    pub const DOMCTL: u32 = 36;
    pub const KEXEC_OP: u32 = 37;
    pub const TMEM_OP: u32 = 38;
    pub const ARGO_OP: u32 = 39;
    pub const XENPMU_OP: u32 = 40;
    pub const DM_OP: u32 = 41;
    pub const HYPFS_OP: u32 = 42;
    pub const MCA: u32 = 48;
    pub const PAGING_DOMCTL_CONT: u32 = 49;
    /// Slots in the hypercall page: 32 bytes each.
    pub const PAGE_SLOTS: u32 = 128;
}

/// Virtual interrupts (`VIRQ_*`).
pub mod virq {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const TIMER: u32 = 0;
    pub const DEBUG: u32 = 1;
    pub const CONSOLE: u32 = 2;
    pub const DOM_EXC: u32 = 3;
    pub const TBUF: u32 = 4;
    pub const DEBUGGER: u32 = 6;
    pub const XENOPROF: u32 = 7;
    pub const CON_RING: u32 = 8;
    pub const PCPU_STATE: u32 = 9;
    pub const MEM_EVENT: u32 = 10;
    pub const ARGO: u32 = 11;
    pub const ENOMEM: u32 = 12;
    pub const XENPMU: u32 = 13;
    pub const ARCH_0: u32 = 16;
    /// One more than the last.
    pub const COUNT: u32 = 24;
}

/// `HYPERVISOR_VIRT_START`: the first address that no PV guest may map (L4 slot 256).
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// One past the last address that belongs to the hypervisor (L4 slot 272).
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
/// `MACH2PHYS_VIRT_START`: where guests read the machine-to-physical table.
pub const MACH2PHYS_VIRT_START: u64 = HYPERVISOR_VIRT_START;
/// `MACH2PHYS_VIRT_END`: one past the last address of that table, however short it is.
pub const MACH2PHYS_VIRT_END: u64 = 0xffff_8040_0000_0000;
/// What the machine-to-physical table says of a frame that nobody counts.
pub const INVALID_M2P_ENTRY: u64 = !0;
/// `XEN_LEGACY_MAX_VCPUS`: the vcpus whose `vcpu_info` has a place in the shared page.
pub const LEGACY_MAX_VCPUS: usize = 32;
/// Event channels of a 64-bit domain under the 2-level ABI.
pub const EVTCHN_2L_PORTS: u32 = 4096;

/// Clock parameters of one vcpu (`vcpu_time_info`).
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names; see the module's upstream")]
pub struct VcpuTimeInfo {
    pub version: u32,
    pub pad0: u32,
    pub tsc_timestamp: u64,
    pub system_time: u64,
    pub tsc_to_system_mul: u32,
    pub tsc_shift: i8,
    pub flags: u8,
    pub pad1: [u8; 2],
}
const _: () = assert!(size_of::<VcpuTimeInfo>() == 32);

/// Byte offsets inside `struct vcpu_info`, which we only touch through atomic accesses.
pub mod vcpu_info {
    /// `evtchn_upcall_pending`, a byte.
    pub const UPCALL_PENDING: usize = 0;
    /// `evtchn_upcall_mask`, a byte.
    pub const UPCALL_MASK: usize = 1;
    /// `evtchn_pending_sel`, 64 bits.
    pub const PENDING_SEL: usize = 8;
    /// `arch.cr2`, 64 bits.
    pub const CR2: usize = 16;
    /// `time`, a [`super::VcpuTimeInfo`].
    pub const TIME: usize = 32;
    /// Bytes in all.
    pub const SIZE: usize = 64;
}

/// Byte offsets inside `struct shared_info`.
pub mod shared_info {
    /// `vcpu_info[32]`.
    pub const VCPU_INFO: usize = 0;
    /// `evtchn_pending[64]`, 64-bit words.
    pub const EVTCHN_PENDING: usize = 2048;
    /// `evtchn_mask[64]`, 64-bit words.
    pub const EVTCHN_MASK: usize = 2560;
    /// `wc_version`, 32 bits.
    pub const WC_VERSION: usize = 3072;
    /// `wc_sec`, 32 bits.
    pub const WC_SEC: usize = 3076;
    /// `wc_nsec`, 32 bits.
    pub const WC_NSEC: usize = 3080;
    /// `wc_sec_hi`, 32 bits.
    pub const WC_SEC_HI: usize = 3084;
    /// `arch.max_pfn`, 64 bits.
    pub const MAX_PFN: usize = 3088;
    /// `arch.pfn_to_mfn_frame_list_list`, 64 bits.
    pub const P2M_FRAME_LIST_LIST: usize = 3096;
    /// `arch.nmi_reason`, 64 bits.
    pub const NMI_REASON: usize = 3104;
    /// `arch.p2m_cr3`, 64 bits.
    pub const P2M_CR3: usize = 3112;
    /// `arch.p2m_vaddr`, 64 bits.
    pub const P2M_VADDR: usize = 3120;
    /// `arch.p2m_generation`, 64 bits.
    pub const P2M_GENERATION: usize = 3128;
}

/// One call of a multicall (`multicall_entry`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MulticallEntry {
    /// Hypercall number.
    pub op: u64,
    /// What it returned.
    pub result: u64,
    /// Its arguments.
    pub args: [u64; 6],
}
const _: () = assert!(size_of::<MulticallEntry>() == 64);

/// One page-table update (`mmu_update`); the low two bits of `ptr` are the command.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct MmuUpdate {
    pub ptr: u64,
    pub val: u64,
}

/// An extended MMU operation (`mmuext_op`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct MmuextOp {
    pub cmd: u32,
    pub pad: u32,
    /// `mfn` or `linear_addr`.
    pub arg1: u64,
    /// `nr_ents`, `vcpumask` or `src_mfn`.
    pub arg2: u64,
}
const _: () = assert!(size_of::<MmuextOp>() == 24);

/// What a PV kernel finds in `%rsi` at its first instruction (`start_info`).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct StartInfo {
    pub magic: [u8; 32],
    pub nr_pages: u64,
    pub shared_info: u64,
    pub flags: u32,
    pub pad0: u32,
    pub store_mfn: u64,
    pub store_evtchn: u32,
    pub pad1: u32,
    /// domU: the console's mfn; Dom0: `info_off` (low half) and `info_size` (high half).
    pub console: u64,
    /// domU: the console's event channel.
    pub console_evtchn: u32,
    pub pad2: u32,
    pub pt_base: u64,
    pub nr_pt_frames: u64,
    pub mfn_list: u64,
    pub mod_start: u64,
    pub mod_len: u64,
    pub cmd_line: [u8; 1024],
    pub first_p2m_pfn: u64,
    pub nr_p2m_frames: u64,
}
const _: () = assert!(size_of::<StartInfo>() == 32 + 8 * 13 + 1024 + 8 && offset_of!(StartInfo, pt_base) == 88);

impl StartInfo {
    /// `SIF_PRIVILEGED`.
    pub const PRIVILEGED: u32 = 1 << 0;
    /// `SIF_INITDOMAIN`.
    pub const INITDOMAIN: u32 = 1 << 1;
    /// `SIF_MULTIBOOT_MOD`.
    pub const MULTIBOOT_MOD: u32 = 1 << 2;
    /// `SIF_MOD_START_PFN`.
    pub const MOD_START_PFN: u32 = 1 << 3;
    /// `SIF_VIRT_P2M_4TOOLS`.
    pub const VIRT_P2M_4TOOLS: u32 = 1 << 4;
}

/// The text-mode part of `dom0_vga_console_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct VgaTextConsole {
    pub video_type: u8,
    pub pad: u8,
    pub font_height: u16,
    pub cursor_x: u16,
    pub cursor_y: u16,
    pub rows: u16,
    pub columns: u16,
}

/// `VMASST_TYPE_*` bits and `VMASST_CMD_*` numbers of `vm_assist`.
pub mod vm_assist {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const CMD_ENABLE: u64 = 0;
    pub const CMD_DISABLE: u64 = 1;
    pub const FOUR_GB_SEGMENTS: u32 = 0;
    pub const FOUR_GB_SEGMENTS_NOTIFY: u32 = 1;
    pub const WRITABLE_PAGETABLES: u32 = 2;
    pub const PAE_EXTENDED_CR3: u32 = 3;
    pub const ARCHITECTURAL_IOPL: u32 = 4;
    pub const RUNSTATE_UPDATE_FLAG: u32 = 5;
    pub const M2P_STRICT: u32 = 32;
}

/// A domain as named in a control structure, resolved by the caller of the hypercall.
pub type DomIdField = RawDomId;
