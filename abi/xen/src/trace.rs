//! trace.h: what the trace rings hold.
//!
//! Each CPU's ring begins with two words (`t_buf`): how far the tool has read and how far the hypervisor has written, both
//! modulo twice the ring's size. A table (`t_info`) has the pages' frames: a number of pages, an offset for each CPU (both
//! of 16 bits), and at these offsets, in words, the frames (of 32 bits).

/// Classes and subclasses of events, as the mask of `XEN_SYSCTL_TBUFOP_set_evt_mask` has them.
pub mod class {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const ALL: u32 = 0x0ffff000;
    pub const CLS_SHIFT: u32 = 16;
    pub const SUBCLS_SHIFT: u32 = 12;
}

/// `TRC_64_FLAG`: addresses in the record have 64 bits.
pub const FLAG_64: u32 = 0x100;
/// `TRC_LOST_RECORDS`: how many, which vcpu ran, and since when.
pub const LOST_RECORDS: u32 = 0x1f001;
/// `TRC_TRACE_WRAP_BUFFER`: the rest of the ring is empty.
pub const WRAP_BUFFER: u32 = 0x1f002;

/// `TRC_SCHED_*`
pub mod sched {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const RUNSTATE_CHANGE: u32 = 0x21001;
    pub const CONTINUE_RUNNING: u32 = 0x21002;
    pub const DOM_ADD: u32 = 0x28001;
    pub const DOM_REM: u32 = 0x28002;
    pub const WAKE: u32 = 0x28004;
    pub const YIELD: u32 = 0x28005;
    pub const BLOCK: u32 = 0x28006;
    pub const SHUTDOWN: u32 = 0x28007;
    pub const SWITCH: u32 = 0x2800a;
}

/// `TRC_DOM0_*`
pub mod dom0 {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const DOM_ADD: u32 = 0x41001;
    pub const DOM_REM: u32 = 0x41002;
}

/// `TRC_PV_*`
pub mod pv {
    /// A hypercall: its number and some arguments, each of which a bit of the first word announces.
    pub const HYPERCALL_V2: u32 = 0x20100d;
    /// `TRC_PV_HYPERCALL_V2_ARG_32`: the record has 32 bits of argument `number`.
    pub const fn hypercall_arg_32(number: u32) -> u32 {
        1 << (20 + 2 * number)
    }
}

/// `XEN_SYSCTL_TBUFOP_*`
pub mod tbufop {
    #![allow(missing_docs, reason = "each is the header's name")]
    pub const GET_INFO: u32 = 0;
    pub const SET_CPU_MASK: u32 = 1;
    pub const SET_EVT_MASK: u32 = 2;
    pub const SET_SIZE: u32 = 3;
    pub const ENABLE: u32 = 4;
    pub const DISABLE: u32 = 5;
}
