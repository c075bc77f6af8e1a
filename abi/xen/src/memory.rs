//! A domain's memory: `HYPERVISOR_memory_op`.
//!
//! Guest handles stand here as plain `u64` addresses. The command's upper bits
//! (`cmd >> `[`MEMOP_EXTENT_SHIFT`]) say where a continued call resumes.
//!
//! Upstream: xen/include/public/memory.h.

use crate::domctl::{codes, shapes};
use core::mem::offset_of;
use ferroxen_words::RawDomId;

/// Where a continued call keeps its progress in the command word.
pub const MEMOP_EXTENT_SHIFT: u32 = 6;
/// The command proper.
pub const MEMOP_CMD_MASK: u64 = (1 << MEMOP_EXTENT_SHIFT) - 1;

codes! {
    /// Which memory op (`XENMEM_*`).
    MemoryCmd(u32) {
        INCREASE_RESERVATION = 0, DECREASE_RESERVATION = 1, MAXIMUM_RAM_PAGE = 2, CURRENT_RESERVATION = 3,
        MAXIMUM_RESERVATION = 4, MACHPHYS_MFN_LIST = 5, POPULATE_PHYSMAP = 6, ADD_TO_PHYSMAP = 7,
        MEMORY_MAP = 9, MACHINE_MEMORY_MAP = 10, EXCHANGE = 11, MACHPHYS_MAPPING = 12, SET_MEMORY_MAP = 13,
        MAXIMUM_GPFN = 14, REMOVE_FROM_PHYSMAP = 15, SET_POD_TARGET = 16, GET_POD_TARGET = 17,
        GET_SHARING_FREED_PAGES = 18, GET_SHARING_SHARED_PAGES = 19, PAGING_OP = 20, ACCESS_OP = 21,
        SHARING_OP = 22, ADD_TO_PHYSMAP_BATCH = 23, CLAIM_PAGES = 24, MACHPHYS_COMPAT_MFN_LIST = 25,
        GET_VNUMAINFO = 26, RESERVED_DEVICE_MEMORY_MAP = 27, ACQUIRE_RESOURCE = 28,
    }
}

/// `XENMEMF_*`: wishes in [`MemoryReservation::mem_flags`].
pub mod memf {
    /// The low byte: how many address bits the frames may need (0: no limit).
    pub const ADDRESS_BITS_MASK: u32 = 0xff;
    /// The second byte: NUMA node plus one.
    pub const NODE_SHIFT: u32 = 8;
    /// Make the entries populate-on-demand.
    pub const POPULATE_ON_DEMAND: u32 = 1 << 16;
    /// Only from the node named.
    pub const EXACT_NODE_REQUEST: u32 = 1 << 17;
    /// The node named is a virtual one.
    pub const VNODE: u32 = 1 << 18;
}

codes! {
    /// `XENMAPSPACE_*`: what [`AddToPhysmap`] maps.
    MapSpace(u32) { SHARED_INFO = 0, GRANT_TABLE = 1, GMFN = 2, GMFN_RANGE = 3, GMFN_FOREIGN = 4, DEV_MMIO = 5 }
}

/// `XENMAPIDX_grant_table_status`.
pub const MAPIDX_GRANT_TABLE_STATUS: u64 = 0x8000_0000;

codes! {
    /// `XENMEM_resource_*`: what [`AcquireResource`] names.
    ResourceType(u16) { IOREQ_SERVER = 0, GRANT_TABLE = 1, VMTRACE_BUF = 2 }
}

/// `XENMEM_resource_grant_table_id_shared`.
pub const GRANT_TABLE_ID_SHARED: u32 = 0;
/// `XENMEM_resource_grant_table_id_status`.
pub const GRANT_TABLE_ID_STATUS: u32 = 1;

codes! {
    /// The type of an [`E820Entry`], as firmware numbers it.
    E820Type(u32) { RAM = 1, RESERVED = 2, ACPI = 3, NVS = 4, UNUSABLE = 5 }
}

shapes! {
    /// `xen_memory_reservation_t`.
    pub struct MemoryReservation: 32 {
        pub extent_start: u64,
        pub nr_extents: u64,
        /// Each extent is 2 to this power pages.
        pub extent_order: u32,
        /// [`memf`].
        pub mem_flags: u32,
        pub domid: RawDomId,
        pub pad: [u16; 3],
    }

    /// `xen_memory_exchange_t`.
    pub struct MemoryExchange: 72 {
        pub in_: MemoryReservation,
        pub out: MemoryReservation,
        pub nr_exchanged: u64,
    }

    /// `struct xen_memory_domain`.
    pub struct MemoryDomain: 2 {
        pub domid: RawDomId,
    }

    /// `xen_machphys_mfn_list_t`.
    pub struct MachphysMfnList: 24 {
        pub max_extents: u32,
        pub pad: u32,
        pub extent_start: u64,
        pub nr_extents: u32,
        pub pad2: u32,
    }

    /// `xen_machphys_mapping_t`.
    pub struct MachphysMapping: 24 {
        pub v_start: u64,
        pub v_end: u64,
        pub max_mfn: u64,
    }

    /// `xen_add_to_physmap_t`.
    pub struct AddToPhysmap: 24 {
        pub domid: RawDomId,
        /// Pages, for [`MapSpace::GMFN_RANGE`].
        pub size: u16,
        pub space: MapSpace,
        pub idx: u64,
        pub gpfn: u64,
    }

    /// `xen_add_to_physmap_batch_t`.
    pub struct AddToPhysmapBatch: 32 {
        pub domid: RawDomId,
        /// A [`MapSpace`] in 16 bits.
        pub space: u16,
        pub size: u16,
        /// For [`MapSpace::GMFN_FOREIGN`]; else 0.
        pub foreign_domid: RawDomId,
        pub idxs: u64,
        pub gpfns: u64,
        pub errs: u64,
    }

    /// `xen_remove_from_physmap_t`.
    pub struct RemoveFromPhysmap: 16 {
        pub domid: RawDomId,
        pub pad: [u16; 3],
        pub gpfn: u64,
    }

    /// `xen_memory_map_t`.
    pub struct MemoryMap: 16 {
        pub nr_entries: u32,
        pub pad: u32,
        /// [`E820Entry`]s.
        pub buffer: u64,
    }

    /// `xen_foreign_memory_map_t`.
    pub struct ForeignMemoryMap: 24 {
        pub domid: RawDomId,
        pub pad: [u16; 3],
        pub map: MemoryMap,
    }

    /// `xen_pod_target_t`.
    pub struct PodTarget: 40 {
        pub target_pages: u64,
        pub tot_pages: u64,
        pub pod_cache_pages: u64,
        pub pod_entries: u64,
        pub domid: RawDomId,
        pub pad: [u16; 3],
    }

    /// `xen_reserved_device_memory_t`.
    pub struct ReservedDeviceMemory: 16 {
        pub start_pfn: u64,
        pub nr_pages: u64,
    }

    /// `xen_reserved_device_memory_map_t`.
    pub struct ReservedDeviceMemoryMap: 24 {
        /// 1: all regions.
        pub flags: u32,
        pub nr_entries: u32,
        pub buffer: u64,
        pub seg: u16,
        pub bus: u8,
        pub devfn: u8,
        pub pad: u32,
    }

    /// `xen_mem_acquire_resource_t`.
    pub struct AcquireResource: 32 {
        pub domid: RawDomId,
        pub type_: ResourceType,
        pub id: u32,
        pub nr_frames: u32,
        /// Zero.
        pub pad: u32,
        pub frame: u64,
        pub frame_list: u64,
    }

    /// `xen_vmemrange_t`.
    pub struct Vmemrange: 24 {
        pub start: u64,
        pub end: u64,
        pub flags: u32,
        pub nid: u32,
    }

    /// `xen_vnuma_topology_info_t`.
    pub struct VnumaTopologyInfo: 40 {
        pub domid: RawDomId,
        pub pad: u16,
        pub nr_vnodes: u32,
        pub nr_vcpus: u32,
        pub nr_vmemranges: u32,
        pub vdistance: u64,
        pub vcpu_to_vnode: u64,
        pub vmemrange: u64,
    }
}

/// One range of a memory map, packed as the BIOS packs it (20 bytes).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
    zerocopy::Unaligned,
)]
#[repr(C, packed)]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub size: u64,
    /// What it is; see [`E820Type`].
    pub type_: u32,
}

const _: () = assert!(size_of::<E820Entry>() == 20 && offset_of!(E820Entry, type_) == 16);
const _: () = assert!(offset_of!(MemoryReservation, domid) == 24 && offset_of!(MemoryExchange, nr_exchanged) == 64);
const _: () = assert!(offset_of!(AcquireResource, frame_list) == 24 && offset_of!(ForeignMemoryMap, map) == 8);
