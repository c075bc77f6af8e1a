//! Starting, stopping and asking about vcpus; their timers. Upstream: `xen/include/public/vcpu.h`.

use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VCPUOP_*`
pub mod vcpuop {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const INITIALISE: u64 = 0;
    pub const UP: u64 = 1;
    pub const DOWN: u64 = 2;
    pub const IS_UP: u64 = 3;
    pub const GET_RUNSTATE_INFO: u64 = 4;
    pub const REGISTER_RUNSTATE_MEMORY_AREA: u64 = 5;
    pub const SET_PERIODIC_TIMER: u64 = 6;
    pub const STOP_PERIODIC_TIMER: u64 = 7;
    pub const SET_SINGLESHOT_TIMER: u64 = 8;
    pub const STOP_SINGLESHOT_TIMER: u64 = 9;
    pub const REGISTER_VCPU_INFO: u64 = 10;
    pub const SEND_NMI: u64 = 11;
    pub const GET_PHYSID: u64 = 12;
    pub const REGISTER_VCPU_TIME_MEMORY_AREA: u64 = 13;
}

/// `vcpu_runstate_info`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RunstateInfo {
    /// `RUNSTATE_*`
    pub state: u32,
    /// Padding.
    pub pad: u32,
    /// When the state was entered, in ns of system time; bit 63: being updated ([`RUNSTATE_UPDATE`]).
    pub state_entry_time: u64,
    /// Nanoseconds in each state.
    pub time: [u64; 4],
}
const _: () = assert!(size_of::<RunstateInfo>() == 48 && offset_of!(RunstateInfo, state_entry_time) == 8);

/// `XEN_RUNSTATE_UPDATE`
pub const RUNSTATE_UPDATE: u64 = 1 << 63;

/// `vcpu_register_runstate_memory_area`, `vcpu_register_time_memory_area`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterMemoryArea {
    /// Guest virtual address.
    pub addr: u64,
}

/// `vcpu_set_periodic_timer`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct SetPeriodicTimer {
    pub period_ns: u64,
}

/// `vcpu_set_singleshot_timer`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct SetSingleshotTimer {
    pub timeout_abs_ns: u64,
    pub flags: u32,
    pub pad: u32,
}

/// `vcpu_register_vcpu_info`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs, reason = "the header's names")]
pub struct RegisterVcpuInfo {
    pub mfn: u64,
    pub offset: u32,
    pub rsvd: u32,
}

/// `vcpu_get_physid`
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetPhysid {
    /// APIC id in the low half, ACPI id in the high.
    pub phys_id: u64,
}
