//! Grant tables. Upstream: `xen/include/public/grant_table.h`.

use core::mem::{offset_of, size_of};
use ferroxen_words::RawDomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `GNTTABOP_*`
pub mod gnttabop {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const MAP_GRANT_REF: u64 = 0;
    pub const UNMAP_GRANT_REF: u64 = 1;
    pub const SETUP_TABLE: u64 = 2;
    pub const DUMP_TABLE: u64 = 3;
    pub const TRANSFER: u64 = 4;
    pub const COPY: u64 = 5;
    pub const QUERY_SIZE: u64 = 6;
    pub const UNMAP_AND_REPLACE: u64 = 7;
    pub const SET_VERSION: u64 = 8;
    pub const GET_STATUS_FRAMES: u64 = 9;
    pub const GET_VERSION: u64 = 10;
    pub const SWAP_GRANT_REF: u64 = 11;
    pub const CACHE_FLUSH: u64 = 12;
}

/// `GNTMAP_*`
pub mod gntmap {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const DEVICE_MAP: u32 = 1 << 0;
    pub const HOST_MAP: u32 = 1 << 1;
    pub const READONLY: u32 = 1 << 2;
    pub const APPLICATION_MAP: u32 = 1 << 3;
    pub const CONTAINS_PTE: u32 = 1 << 4;
    pub const GUEST_AVAIL_SHIFT: u32 = 16;
}

/// `GNTCOPY_*`
pub mod gntcopy {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const SOURCE_GREF: u16 = 1 << 0;
    pub const DEST_GREF: u16 = 1 << 1;
}

/// `GNTTAB_RESERVED_CONSOLE`
pub const RESERVED_CONSOLE: u32 = 0;
/// `GNTTAB_RESERVED_XENSTORE`
pub const RESERVED_XENSTORE: u32 = 1;

/// `GNTST_*`: how one operation of a batch went.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct GrantStatus(pub i16);

#[allow(missing_docs, reason = "each is the header's name")]
impl GrantStatus {
    pub const OKAY: GrantStatus = GrantStatus(0);
    pub const GENERAL_ERROR: GrantStatus = GrantStatus(-1);
    pub const BAD_DOMAIN: GrantStatus = GrantStatus(-2);
    pub const BAD_GNTREF: GrantStatus = GrantStatus(-3);
    pub const BAD_HANDLE: GrantStatus = GrantStatus(-4);
    pub const BAD_VIRT_ADDR: GrantStatus = GrantStatus(-5);
    pub const BAD_DEV_ADDR: GrantStatus = GrantStatus(-6);
    pub const NO_DEVICE_SPACE: GrantStatus = GrantStatus(-7);
    pub const PERMISSION_DENIED: GrantStatus = GrantStatus(-8);
    pub const BAD_PAGE: GrantStatus = GrantStatus(-9);
    pub const BAD_COPY_ARG: GrantStatus = GrantStatus(-10);
    pub const ADDRESS_TOO_BIG: GrantStatus = GrantStatus(-11);
    pub const EAGAIN: GrantStatus = GrantStatus(-12);
    pub const NO_SPACE: GrantStatus = GrantStatus(-13);
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
    /// `grant_entry_v1`
    GrantEntryV1 { flags: u16, domid: RawDomId, frame: u32 } = 8;
    /// `gnttab_map_grant_ref`
    MapGrantRef {
        host_addr: u64,
        flags: u32,
        gref: u32,
        dom: RawDomId,
        status: GrantStatus,
        handle: u32,
        dev_bus_addr: u64,
    } = 32;
    /// `gnttab_unmap_grant_ref`
    UnmapGrantRef { host_addr: u64, dev_bus_addr: u64, handle: u32, status: GrantStatus, pad: u16 } = 24;
    /// `gnttab_setup_table`
    SetupTable { dom: RawDomId, pad0: u16, nr_frames: u32, status: GrantStatus, pad1: [u16; 3], frame_list: u64 } = 24;
    /// `gnttab_dump_table`
    DumpTable { dom: RawDomId, status: GrantStatus } = 4;
    /// `gnttab_transfer`
    Transfer { mfn: u64, domid: RawDomId, pad0: u16, gref: u32, status: GrantStatus, pad1: [u16; 3] } = 24;
    /// `gnttab_copy::source` and `dest`; `u` is a grant reference or a frame.
    CopyPtr { u: u64, domid: RawDomId, offset: u16, pad: u32 } = 16;
    /// `gnttab_copy`
    Copy { source: CopyPtr, dest: CopyPtr, len: u16, flags: u16, status: GrantStatus, pad: u16 } = 40;
    /// `gnttab_query_size`
    QuerySize { dom: RawDomId, pad0: u16, nr_frames: u32, max_nr_frames: u32, status: GrantStatus, pad1: u16 } = 16;
    /// `gnttab_unmap_and_replace`
    UnmapAndReplace { host_addr: u64, new_addr: u64, handle: u32, status: GrantStatus, pad: u16 } = 24;
    /// `gnttab_set_version`
    SetVersion { version: u32 } = 4;
    /// `gnttab_get_status_frames`
    GetStatusFrames { nr_frames: u32, dom: RawDomId, status: GrantStatus, frame_list: u64 } = 16;
    /// `gnttab_get_version`
    GetVersion { dom: RawDomId, pad: u16, version: u32 } = 8;
    /// `gnttab_swap_grant_ref`
    SwapGrantRef { ref_a: u32, ref_b: u32, status: GrantStatus, pad: u16 } = 12;
}
const _: () = assert!(offset_of!(MapGrantRef, handle) == 20 && offset_of!(Copy, dest) == 16);
