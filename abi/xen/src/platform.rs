//! The machine under Domain 0: `HYPERVISOR_platform_op`.
//!
//! A request is a [`PlatformOp`]: a command and 128 bytes whose meaning depends on it. Guest handles
//! stand here as plain `u64` addresses in the caller's address space.
//!
//! Upstream: xen/include/public/platform.h.

use crate::domctl::{codes, shapes, union_access};
use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What `interface_version` must say (`XENPF_INTERFACE_VERSION`).
pub const PLATFORM_INTERFACE_VERSION: u32 = 0x0300_0001;

codes! {
    /// Which platform op (`XENPF_*`).
    PlatformCmd(u32) {
        SETTIME32 = 17, ADD_MEMTYPE = 31, DEL_MEMTYPE = 32, READ_MEMTYPE = 33, MICROCODE_UPDATE = 35,
        PLATFORM_QUIRK = 39, GET_CPU_VERSION = 48, EFI_RUNTIME_CALL = 49, FIRMWARE_INFO = 50,
        ENTER_ACPI_SLEEP = 51, CHANGE_FREQ = 52, GETIDLETIME = 53, SET_PROCESSOR_PMINFO = 54,
        GET_CPUINFO = 55, CPU_ONLINE = 56, CPU_OFFLINE = 57, CPU_HOTADD = 58, MEM_HOTADD = 59,
        CORE_PARKING = 60, RESOURCE_OP = 61, SETTIME64 = 62, GET_SYMBOL = 63,
    }
}

codes! {
    /// `XEN_FW_*`: which fact [`FirmwareInfo`] asks for.
    FirmwareType(u32) { DISK_INFO = 1, DISK_MBR_SIGNATURE = 2, VBEDDC_INFO = 3, EFI_INFO = 4, KBD_SHIFT_FLAGS = 5 }
}

codes! {
    /// `XEN_FW_EFI_*`: the index of a [`FirmwareType::EFI_INFO`] question.
    EfiInfo(u32) {
        VERSION = 0, CONFIG_TABLE = 1, VENDOR = 2, MEM_INFO = 3, RT_VERSION = 4, PCI_ROM = 5,
        APPLE_PROPERTIES = 6,
    }
}

codes! {
    /// `XEN_PM_*`: what [`SetProcessorPminfo`] tells.
    PmType(u32) { CX = 0, PX = 1, TX = 2, PDC = 3 }
}

codes! {
    /// `XEN_PX_*`: which parts of [`ProcessorPerformance`] are valid (bits).
    PxFlags(u32) { PCT = 1, PSS = 2, PPC = 4, PSD = 8 }
}

/// `XENPF_ACPI_SLEEP_EXTENDED`: the sleep registers of reduced-hardware ACPI.
pub const ACPI_SLEEP_EXTENDED: u32 = 1;
/// The CPU runs (`XEN_PCPU_FLAGS_ONLINE`).
pub const PCPU_FLAGS_ONLINE: u32 = 1;
/// No such CPU (`XEN_PCPU_FLAGS_INVALID`).
pub const PCPU_FLAGS_INVALID: u32 = 2;

shapes! {
    /// A request about the machine (`struct xen_platform_op`).
    pub struct PlatformOp: 136 {
        pub cmd: PlatformCmd,
        /// [`PLATFORM_INTERFACE_VERSION`], else the call is refused with `EACCES`.
        pub interface_version: u32,
        /// The union `u`; its alignment is C's.
        pub u: [u64; 16],
    }

    /// `XENPF_settime32`.
    pub struct Settime32: 16 {
        pub secs: u32,
        pub nsecs: u32,
        pub system_time: u64,
    }

    /// `XENPF_settime64`.
    pub struct Settime64: 24 {
        pub secs: u64,
        pub nsecs: u32,
        /// Zero.
        pub mbz: u32,
        pub system_time: u64,
    }

    /// `XENPF_add_memtype`.
    pub struct AddMemtype: 32 {
        pub mfn: u64,
        pub nr_mfns: u64,
        pub type_: u32,
        pub handle: u32,
        pub reg: u32,
        pub pad: u32,
    }

    /// `XENPF_del_memtype`.
    pub struct DelMemtype: 8 {
        pub handle: u32,
        pub reg: u32,
    }

    /// `XENPF_read_memtype`.
    pub struct ReadMemtype: 32 {
        pub reg: u32,
        pub pad: u32,
        pub mfn: u64,
        pub nr_mfns: u64,
        pub type_: u32,
        pub pad2: u32,
    }

    /// `XENPF_microcode_update`.
    pub struct MicrocodeUpdate: 16 {
        pub data: u64,
        pub length: u32,
        pub pad: u32,
    }

    /// `XENPF_platform_quirk`.
    pub struct PlatformQuirk: 4 {
        pub quirk_id: u32,
    }

    /// The head of `XENPF_efi_runtime_call`; its union is the last field.
    pub struct EfiRuntimeCall: 56 {
        pub function: u32,
        pub misc: u32,
        pub status: u64,
        pub u: [u64; 5],
    }

    /// `XENPF_firmware_info`.
    pub struct FirmwareInfo: 40 {
        pub type_: FirmwareType,
        pub index: u32,
        /// [`DiskInfo`], [`DiskMbrSignature`], [`VbeddcInfo`], one of the `Efi*` answers, or one byte of
        /// keyboard shift flags.
        pub u: [u64; 4],
    }

    /// `XEN_FW_DISK_INFO`.
    pub struct DiskInfo: 24 {
        pub device: u8,
        pub version: u8,
        pub interface_support: u16,
        pub legacy_max_cylinder: u16,
        pub legacy_max_head: u8,
        pub legacy_sectors_per_track: u8,
        /// Address of a buffer whose first `u16` holds its size.
        pub edd_params: u64,
        /// The union is as long as its longest member; nothing of ours stands here.
        pub pad: u64,
    }

    /// `XEN_FW_DISK_MBR_SIGNATURE`.
    pub struct DiskMbrSignature: 8 {
        pub device: u8,
        pub pad: [u8; 3],
        pub mbr_signature: u32,
    }

    /// `XEN_FW_VBEDDC_INFO`.
    pub struct VbeddcInfo: 16 {
        pub capabilities: u8,
        pub edid_transfer_time: u8,
        pub pad: [u8; 6],
        /// Address of 128 bytes.
        pub edid: u64,
    }

    /// `XENPF_enter_acpi_sleep`.
    pub struct EnterAcpiSleep: 12 {
        pub val_a: u16,
        pub val_b: u16,
        /// The n of Sn.
        pub sleep_state: u32,
        pub flags: u32,
    }

    /// `XENPF_change_freq`.
    pub struct ChangeFreq: 16 {
        pub flags: u32,
        pub cpu: u32,
        pub freq: u64,
    }

    /// `XENPF_getidletime`.
    pub struct Getidletime: 32 {
        pub cpumap_bitmap: u64,
        pub cpumap_nr_cpus: u32,
        pub pad: u32,
        pub idletime: u64,
        pub now: u64,
    }

    /// `struct xen_power_register`.
    pub struct PowerRegister: 24 {
        pub space_id: u32,
        pub bit_width: u32,
        pub bit_offset: u32,
        pub access_size: u32,
        pub address: u64,
    }

    /// `xen_processor_csd_t`.
    pub struct ProcessorCsd: 12 {
        pub domain: u32,
        pub coord_type: u32,
        pub num: u32,
    }

    /// `xen_processor_cx_t`.
    pub struct ProcessorCx: 48 {
        pub reg: PowerRegister,
        pub type_: u8,
        pub pad: [u8; 3],
        pub latency: u32,
        pub power: u32,
        pub dpcnt: u32,
        /// [`ProcessorCsd`]s, or null.
        pub dp: u64,
    }

    /// `struct xen_processor_power`.
    pub struct ProcessorPower: 16 {
        pub count: u32,
        /// Bits: bm_control, bm_check, has_cst, power_setup_done, bm_rld_set.
        pub flags: u32,
        /// [`ProcessorCx`]s.
        pub states: u64,
    }

    /// `struct xen_pct_register`.
    pub struct PctRegister: 16 {
        pub descriptor: u8,
        pub pad: u8,
        pub length: u16,
        pub space_id: u8,
        pub bit_width: u8,
        pub bit_offset: u8,
        pub reserved: u8,
        pub address: u64,
    }

    /// `xen_processor_px_t`.
    pub struct ProcessorPx: 48 {
        pub core_frequency: u64,
        pub power: u64,
        pub transition_latency: u64,
        pub bus_master_latency: u64,
        pub control: u64,
        pub status: u64,
    }

    /// `struct xen_psd_package`.
    pub struct PsdPackage: 40 {
        pub num_entries: u64,
        pub revision: u64,
        pub domain: u64,
        pub coord_type: u64,
        pub num_processors: u64,
    }

    /// `struct xen_processor_performance`.
    pub struct ProcessorPerformance: 104 {
        /// [`PxFlags`] bits.
        pub flags: u32,
        pub platform_limit: u32,
        pub control_register: PctRegister,
        pub status_register: PctRegister,
        pub state_count: u32,
        pub pad: u32,
        /// [`ProcessorPx`]s.
        pub states: u64,
        pub domain_info: PsdPackage,
        pub shared_type: u32,
        pub pad2: u32,
    }

    /// `XENPF_set_processor_pminfo`.
    pub struct SetProcessorPminfo: 112 {
        /// The ACPI id of the CPU.
        pub id: u32,
        pub type_: PmType,
        /// [`ProcessorPower`], [`ProcessorPerformance`], or the address of a _PDC buffer.
        pub u: [u64; 13],
    }

    /// `XENPF_get_cpuinfo`.
    pub struct PcpuInfo: 20 {
        pub xen_cpuid: u32,
        pub max_present: u32,
        pub flags: u32,
        pub apic_id: u32,
        pub acpi_id: u32,
    }

    /// `XENPF_get_cpu_version`.
    pub struct PcpuVersion: 32 {
        pub xen_cpuid: u32,
        pub max_present: u32,
        pub vendor_id: [u8; 12],
        pub family: u32,
        pub model: u32,
        pub stepping: u32,
    }

    /// `XENPF_cpu_online`, `XENPF_cpu_offline`.
    pub struct CpuOl: 4 {
        pub cpuid: u32,
    }

    /// `XENPF_cpu_hotadd`.
    pub struct CpuHotadd: 12 {
        pub apic_id: u32,
        pub acpi_id: u32,
        pub pxm: u32,
    }

    /// `XENPF_mem_hotadd`.
    pub struct MemHotadd: 24 {
        pub spfn: u64,
        pub epfn: u64,
        pub pxm: u32,
        pub flags: u32,
    }

    /// `XENPF_core_parking`.
    pub struct CoreParking: 8 {
        pub type_: u32,
        pub idle_nums: u32,
    }

    /// `xenpf_resource_entry_t`.
    pub struct ResourceEntry: 24 {
        /// In: 0 read MSR, 1 write MSR; out, for the entry that failed: a negated error number.
        pub cmd: u32,
        pub rsvd: u32,
        pub idx: u64,
        pub val: u64,
    }

    /// `XENPF_resource_op`.
    pub struct ResourceOp: 16 {
        pub nr_entries: u32,
        pub cpu: u32,
        /// [`ResourceEntry`]s.
        pub entries: u64,
    }

    /// `XENPF_get_symbol`.
    pub struct Symdata: 32 {
        pub namelen: u32,
        pub symnum: u32,
        pub name: u64,
        pub address: u64,
        pub type_: u8,
        pub pad: [u8; 7],
    }
}

const _: () = assert!(offset_of!(PlatformOp, u) == 8 && offset_of!(FirmwareInfo, u) == 8);
const _: () = assert!(offset_of!(ProcessorPerformance, states) == 48 && offset_of!(SetProcessorPminfo, u) == 8);

impl PlatformOp {
    const ZERO: PlatformOp = PlatformOp {
        cmd: PlatformCmd(0),
        interface_version: 0,
        u: [0; 16],
    };

    /// A request with an all-zero union.
    pub const fn new(cmd: PlatformCmd) -> PlatformOp {
        PlatformOp {
            cmd,
            interface_version: PLATFORM_INTERFACE_VERSION,
            ..PlatformOp::ZERO
        }
    }

    /// A request that carries `payload`.
    pub fn with<T: IntoBytes + Immutable>(cmd: PlatformCmd, payload: &T) -> PlatformOp {
        let mut request = PlatformOp::new(cmd);
        request.set_payload(payload);
        request
    }
}

union_access!(PlatformOp, u);

impl FirmwareInfo {
    const ZERO: FirmwareInfo = FirmwareInfo {
        type_: FirmwareType(0),
        index: 0,
        u: [0; 4],
    };
}

union_access!(FirmwareInfo, u);

impl SetProcessorPminfo {
    const ZERO: SetProcessorPminfo = SetProcessorPminfo {
        id: 0,
        type_: PmType(0),
        u: [0; 13],
    };
}

union_access!(SetProcessorPminfo, u);
