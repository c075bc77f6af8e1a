//! Event channels. Upstream: `xen/include/public/event_channel.h`.

use core::mem::{offset_of, size_of};
use ferroxen_words::RawDomId;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `EVTCHNOP_*`
pub mod evtchnop {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const BIND_INTERDOMAIN: u64 = 0;
    pub const BIND_VIRQ: u64 = 1;
    pub const BIND_PIRQ: u64 = 2;
    pub const CLOSE: u64 = 3;
    pub const SEND: u64 = 4;
    pub const STATUS: u64 = 5;
    pub const ALLOC_UNBOUND: u64 = 6;
    pub const BIND_IPI: u64 = 7;
    pub const BIND_VCPU: u64 = 8;
    pub const UNMASK: u64 = 9;
    pub const RESET: u64 = 10;
    pub const INIT_CONTROL: u64 = 11;
    pub const EXPAND_ARRAY: u64 = 12;
    pub const SET_PRIORITY: u64 = 13;
}

/// `BIND_PIRQ__WILL_SHARE`
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;

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
    /// `evtchn_alloc_unbound`
    AllocUnbound { dom: RawDomId, remote_dom: RawDomId, port: u32 } = 8;
    /// `evtchn_bind_interdomain`
    BindInterdomain { remote_dom: RawDomId, pad: u16, remote_port: u32, local_port: u32 } = 12;
    /// `evtchn_bind_virq`
    BindVirq { virq: u32, vcpu: u32, port: u32 } = 12;
    /// `evtchn_bind_pirq`
    BindPirq { pirq: u32, flags: u32, port: u32 } = 12;
    /// `evtchn_bind_ipi`
    BindIpi { vcpu: u32, port: u32 } = 8;
    /// `evtchn_close`
    Close { port: u32 } = 4;
    /// `evtchn_send`
    Send { port: u32 } = 4;
    /// `evtchn_status`; `u` is a domid (unbound), a domid and a port (interdomain), a pirq or a virq.
    Status { dom: RawDomId, pad: u16, port: u32, status: u32, vcpu: u32, u: [u32; 2] } = 24;
    /// `evtchn_bind_vcpu`
    BindVcpu { port: u32, vcpu: u32 } = 8;
    /// `evtchn_unmask`
    Unmask { port: u32 } = 4;
    /// `evtchn_reset`
    Reset { dom: RawDomId } = 2;
    /// `evtchn_init_control`
    InitControl { control_gfn: u64, offset: u32, vcpu: u32, link_bits: u8, pad: [u8; 7] } = 24;
    /// `evtchn_expand_array`
    ExpandArray { array_gfn: u64 } = 8;
    /// `evtchn_set_priority`
    SetPriority { port: u32, priority: u32 } = 8;
    /// `evtchn_op`, of the old way to call: a command and the operands of any of the above.
    Op { cmd: u32, u: [u32; 6] } = 28;
}
const _: () = assert!(offset_of!(Status, status) == 8 && offset_of!(Status, u) == 16);

/// `EVTCHNSTAT_*`
pub mod status {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const CLOSED: u32 = 0;
    pub const UNBOUND: u32 = 1;
    pub const INTERDOMAIN: u32 = 2;
    pub const PIRQ: u32 = 3;
    pub const VIRQ: u32 = 4;
    pub const IPI: u32 = 5;
}
