//! Physical devices: interrupts, I/O ports, PCI. Upstream: `xen/include/public/physdev.h`.

use core::mem::{offset_of, size_of};
use ferroxen_words::RawDomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `PHYSDEVOP_*`
pub mod physdevop {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const IRQ_UNMASK_NOTIFY: u64 = 4;
    pub const IRQ_STATUS_QUERY: u64 = 5;
    pub const SET_IOPL: u64 = 6;
    pub const SET_IOBITMAP: u64 = 7;
    pub const APIC_READ: u64 = 8;
    pub const APIC_WRITE: u64 = 9;
    pub const ALLOC_IRQ_VECTOR: u64 = 10;
    pub const FREE_IRQ_VECTOR: u64 = 11;
    pub const EOI: u64 = 12;
    pub const MAP_PIRQ: u64 = 13;
    pub const UNMAP_PIRQ: u64 = 14;
    pub const MANAGE_PCI_ADD: u64 = 15;
    pub const MANAGE_PCI_REMOVE: u64 = 16;
    pub const PIRQ_EOI_GMFN_V1: u64 = 17;
    pub const RESTORE_MSI: u64 = 19;
    pub const MANAGE_PCI_ADD_EXT: u64 = 20;
    pub const SETUP_GSI: u64 = 21;
    pub const GET_FREE_PIRQ: u64 = 23;
    pub const PCI_MMCFG_RESERVED: u64 = 24;
    pub const PCI_DEVICE_ADD: u64 = 25;
    pub const PCI_DEVICE_REMOVE: u64 = 26;
    pub const RESTORE_MSI_EXT: u64 = 27;
    pub const PIRQ_EOI_GMFN_V2: u64 = 28;
    pub const DBGP_OP: u64 = 29;
    pub const PREPARE_MSIX: u64 = 30;
    pub const RELEASE_MSIX: u64 = 31;
}

/// `XENIRQSTAT_*`
pub mod irqstat {
    /// Each interrupt wants a `PHYSDEVOP_eoi`.
    pub const NEEDS_EOI: u32 = 1 << 0;
    /// Another domain hears of it too.
    pub const SHARED: u32 = 1 << 1;
}

/// `MAP_PIRQ_TYPE_*`
pub mod map_pirq_type {
    /// A message of a device, or an entry of its MSI-X table; PCI segment 0.
    pub const MSI: i32 = 0;
    /// A line.
    pub const GSI: i32 = 1;
    /// Nobody knows.
    pub const UNKNOWN: i32 = 2;
    /// As [`MSI`], with the PCI segment in the upper half of `bus`.
    pub const MSI_SEG: i32 = 3;
    /// A block of messages, `entry_nr` of them.
    pub const MULTI_MSI: i32 = 4;
}

/// `XEN_PCI_DEV_*`
pub mod pci_dev {
    /// The function is not what its number suggests (ARI).
    pub const EXTFN: u32 = 1 << 0;
    /// A virtual function; `physfn` says of which.
    pub const VIRTFN: u32 = 1 << 1;
    /// `optarr[0]` holds a proximity domain.
    pub const PXM: u32 = 1 << 2;
}

/// `XEN_PCI_MMCFG_RESERVED`
pub const MMCFG_RESERVED: u32 = 1;

/// `PHYSDEVOP_DBGP_*`
pub mod dbgp {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const RESET_PREPARE: u8 = 1;
    pub const RESET_DONE: u8 = 2;
    pub const BUS_UNKNOWN: u8 = 0;
    pub const BUS_PCI: u8 = 1;
}

macro_rules! operands {
    ($($(#[$doc:meta])* $name:ident { $($field:ident : $shape:ty),* $(,)? } = $size:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[allow(missing_docs, reason = "the header's names")]
        pub struct $name { $(pub $field: $shape),* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

operands! {
    /// `physdev_eoi`
    Eoi { irq: u32 } = 4;
    /// `physdev_pirq_eoi_gmfn`
    PirqEoiGmfn { gmfn: u64 } = 8;
    /// `physdev_irq_status_query`
    IrqStatusQuery { irq: u32, flags: u32 } = 8;
    /// `physdev_set_iopl`
    SetIopl { iopl: u32 } = 4;
    /// `physdev_set_iobitmap`
    SetIobitmap { bitmap: u64, nr_ports: u32, pad: u32 } = 16;
    /// `physdev_apic`
    Apic { apic_physbase: u64, reg: u32, value: u32 } = 16;
    /// `physdev_irq`
    Irq { irq: u32, vector: u32 } = 8;
    /// `physdev_map_pirq`
    MapPirq {
        domid: RawDomId, pad0: u16, kind: i32, index: i32, pirq: i32,
        bus: i32, devfn: i32, entry_nr: i32, pad1: u32, table_base: u64,
    } = 40;
    /// `physdev_unmap_pirq`
    UnmapPirq { domid: RawDomId, pad: u16, pirq: i32 } = 8;
    /// `physdev_manage_pci`, `physdev_restore_msi`
    ManagePci { bus: u8, devfn: u8 } = 2;
    /// `physdev_manage_pci_ext`
    ManagePciExt { bus: u8, devfn: u8, pad0: [u8; 2], is_extfn: u32, is_virtfn: u32, physfn: ManagePci, pad1: [u8; 2] } = 16;
    /// `physdev_setup_gsi`; triggering 1 is level, polarity 1 is low.
    SetupGsi { gsi: i32, triggering: u8, polarity: u8, pad: [u8; 2] } = 8;
    /// `physdev_get_free_pirq`
    GetFreePirq { kind: i32, pirq: u32 } = 8;
    /// `physdev_pci_mmcfg_reserved`
    PciMmcfgReserved { address: u64, segment: u16, start_bus: u8, end_bus: u8, flags: u32 } = 16;
    /// `physdev_pci_device_add`, without `optarr`, which follows.
    PciDeviceAdd { seg: u16, bus: u8, devfn: u8, flags: u32, physfn: ManagePci, pad: [u8; 2] } = 12;
    /// `physdev_pci_device`
    PciDevice { seg: u16, bus: u8, devfn: u8 } = 4;
    /// `physdev_dbgp_op`
    DbgpOp { op: u8, bus: u8, pci: PciDevice } = 6;
    /// `physdev_op`, for the first five operations' older hypercall: `u` is the operand.
    PhysdevOp { cmd: u32, pad: u32, u: [u64; 2] } = 24;
}

const _: () = assert!(offset_of!(MapPirq, entry_nr) == 24 && offset_of!(MapPirq, table_base) == 32);
const _: () = assert!(offset_of!(ManagePciExt, is_extfn) == 4 && offset_of!(ManagePciExt, physfn) == 12);
const _: () = assert!(offset_of!(DbgpOp, pci) == 2 && offset_of!(PhysdevOp, u) == 8);
