//! What Linux' ioctls take. Upstream: `include/uapi/xen/{privcmd,evtchn,gntdev}.h`, `include/xen/xenbus_dev.h`.

use core::mem::{offset_of, size_of};

/// An ioctl number without a direction, which is how all of Xen's are made (`_IOC(_IOC_NONE, ..)`).
const fn none(kind: u8, nr: u32, size: usize) -> u64 {
    ((size as u64) << 16) | ((kind as u64) << 8) | nr as u64
}

/// `struct privcmd_hypercall`
#[repr(C)]
pub struct Hypercall {
    pub op: u64,
    pub arg: [u64; 5],
}
pub const PRIVCMD_HYPERCALL: u64 = none(b'P', 0, size_of::<Hypercall>());
const _: () = assert!(size_of::<Hypercall>() == 48 && PRIVCMD_HYPERCALL == 0x0030_5000);

/// `struct privcmd_mmapbatch_v2`
#[repr(C)]
pub struct MmapBatchV2 {
    pub num: u32,
    pub dom: u16,
    pub addr: u64,
    pub arr: *const u64,
    pub err: *mut i32,
}
pub const PRIVCMD_MMAPBATCH_V2: u64 = none(b'P', 4, size_of::<MmapBatchV2>());
const _: () = assert!(size_of::<MmapBatchV2>() == 32 && offset_of!(MmapBatchV2, addr) == 8);

/// `struct privcmd_dm_op_buf`
#[repr(C)]
pub struct DmOpBuf {
    pub uptr: *mut u8,
    pub size: usize,
}

/// `struct privcmd_dm_op`
#[repr(C)]
pub struct DmOp {
    pub dom: u16,
    pub num: u16,
    pub ubufs: *const DmOpBuf,
}
pub const PRIVCMD_DM_OP: u64 = none(b'P', 5, size_of::<DmOp>());
const _: () = assert!(size_of::<DmOp>() == 16 && size_of::<DmOpBuf>() == 16);

pub const PRIVCMD_RESTRICT: u64 = none(b'P', 6, size_of::<u16>());

/// `struct privcmd_mmap_resource`
#[repr(C)]
pub struct MmapResource {
    pub dom: u16,
    pub kind: u32,
    pub id: u32,
    pub idx: u32,
    pub num: u64,
    pub addr: u64,
}
pub const PRIVCMD_MMAP_RESOURCE: u64 = none(b'P', 7, size_of::<MmapResource>());
const _: () = assert!(size_of::<MmapResource>() == 32 && offset_of!(MmapResource, num) == 16);

pub const EVTCHN_BIND_VIRQ: u64 = none(b'E', 0, 4);
pub const EVTCHN_BIND_INTERDOMAIN: u64 = none(b'E', 1, 8);
pub const EVTCHN_BIND_UNBOUND_PORT: u64 = none(b'E', 2, 4);
pub const EVTCHN_UNBIND: u64 = none(b'E', 3, 4);
pub const EVTCHN_NOTIFY: u64 = none(b'E', 4, 4);
pub const EVTCHN_RESET: u64 = none(b'E', 5, 0);
pub const EVTCHN_RESTRICT_DOMID: u64 = none(b'E', 6, 2);

/// `struct ioctl_gntdev_grant_ref`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GrantRef {
    pub domid: u32,
    pub gref: u32,
}

/// `struct ioctl_gntdev_map_grant_ref` up to its array, of which the ioctl number counts one element.
#[repr(C)]
pub struct MapGrantRefHead {
    pub count: u32,
    pub pad: u32,
    pub index: u64,
}
pub const GNTDEV_MAP_GRANT_REF: u64 = none(b'G', 0, size_of::<MapGrantRefHead>() + size_of::<GrantRef>());
const _: () = assert!(size_of::<MapGrantRefHead>() == 16 && size_of::<GrantRef>() == 8);

/// `struct ioctl_gntdev_unmap_grant_ref`
#[repr(C)]
pub struct UnmapGrantRef {
    pub index: u64,
    pub count: u32,
    pub pad: u32,
}
pub const GNTDEV_UNMAP_GRANT_REF: u64 = none(b'G', 1, size_of::<UnmapGrantRef>());

/// `struct ioctl_gntdev_unmap_notify`
#[repr(C)]
pub struct GntdevUnmapNotify {
    pub index: u64,
    pub action: u32,
    pub event_channel_port: u32,
}
pub const GNTDEV_SET_UNMAP_NOTIFY: u64 = none(b'G', 7, size_of::<GntdevUnmapNotify>());
pub const UNMAP_NOTIFY_CLEAR_BYTE: u32 = 1;
pub const UNMAP_NOTIFY_SEND_EVENT: u32 = 2;
const _: () = assert!(size_of::<UnmapGrantRef>() == 16 && size_of::<GntdevUnmapNotify>() == 16);

pub const XENBUS_BACKEND_EVTCHN: u64 = none(b'B', 0, 0);
pub const XENBUS_BACKEND_SETUP: u64 = none(b'B', 1, 0);
