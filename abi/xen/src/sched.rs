//! What a guest asks of the scheduler. Upstream: `xen/include/public/sched.h`.

use core::mem::{offset_of, size_of};
use ferroxen_words::RawDomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `SCHEDOP_*`
pub mod schedop {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const YIELD: u64 = 0;
    pub const BLOCK: u64 = 1;
    pub const SHUTDOWN: u64 = 2;
    pub const POLL: u64 = 3;
    pub const REMOTE_SHUTDOWN: u64 = 4;
    pub const SHUTDOWN_CODE: u64 = 5;
    pub const WATCHDOG: u64 = 6;
    pub const PIN_OVERRIDE: u64 = 7;
}

/// `sched_shutdown`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct Shutdown {
    pub reason: u32,
}

/// `sched_poll`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct Poll {
    /// Where the ports are.
    pub ports: u64,
    pub nr_ports: u32,
    pub pad: u32,
    /// Absolute system time in ns; 0 for none.
    pub timeout: u64,
}
const _: () = assert!(size_of::<Poll>() == 24 && offset_of!(Poll, timeout) == 16);

/// `sched_remote_shutdown`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct RemoteShutdown {
    pub domain_id: RawDomId,
    pub pad: u16,
    pub reason: u32,
}
const _: () = assert!(size_of::<RemoteShutdown>() == 8);

/// `sched_watchdog`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct Watchdog {
    pub id: u32,
    /// Seconds.
    pub timeout: u32,
}

/// `sched_pin_override`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PinOverride {
    /// The CPU; negative to undo.
    pub pcpu: i32,
}

/// `SHUTDOWN_*`
pub mod shutdown {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const POWEROFF: u32 = 0;
    pub const REBOOT: u32 = 1;
    pub const SUSPEND: u32 = 2;
    pub const CRASH: u32 = 3;
    pub const WATCHDOG: u32 = 4;
    pub const SOFT_RESET: u32 = 5;
    /// The greatest.
    pub const MAX: u32 = 5;
}
