//! hypfs.h: the hypervisor's file system.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `XEN_HYPFS_MAX_PATHLEN`
pub const MAX_PATHLEN: usize = 1024;
/// `XEN_HYPFS_ENC_PLAIN`
pub const ENC_PLAIN: u8 = 0;

/// What an entry holds (`XEN_HYPFS_TYPE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct EntryType(pub u8);

#[allow(missing_docs, reason = "upstream's own names")]
impl EntryType {
    pub const DIR: EntryType = EntryType(0);
    pub const STRING: EntryType = EntryType(2);
    pub const UINT: EntryType = EntryType(3);
}

/// Which operation (`XEN_HYPFS_OP_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HypfsCmd(pub u32);

#[allow(missing_docs, reason = "upstream's own names")]
impl HypfsCmd {
    pub const GET_VERSION: HypfsCmd = HypfsCmd(0);
    pub const READ: HypfsCmd = HypfsCmd(1);
    pub const WRITE_CONTENTS: HypfsCmd = HypfsCmd(2);
}

/// An entry as such (`xen_hypfs_direntry`); in a directory's contents the distance to the next follows, in 16 bits, and
/// its name with a zero byte, up to a multiple of four.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "upstream's own names")]
pub struct DirEntry {
    pub type_: EntryType,
    pub encoding: u8,
    pub pad: u16,
    pub content_len: u32,
    pub max_write_len: u32,
}
const _: () = assert!(size_of::<DirEntry>() == 12);
