//! The guests: a module each.

use crate::report::{Report, Verdict};

/// One of them.
pub struct Guest {
    /// As the command line has it.
    pub name: &'static str,
    /// What it does.
    pub act: fn(&mut Report) -> Verdict,
}

macro_rules! guests {
    ($($name:literal => $module:ident),* $(,)?) => {
        $(mod $module;)*

        /// All there are.
        pub const ALL: &[Guest] = &[$(Guest { name: $name, act: $module::act }),*];
    };
}

guests! {
    "ground" => ground,
    "version" => version,
    "numbers" => numbers,
    "console" => console,
    "multicall" => multicall,
    "evtchn-ops" => evtchn_ops,
    "evtchn-delivery" => evtchn_delivery,
    "evtchn-ports" => evtchn_ports,
    "sched-op" => sched_op,
    "vcpu-op" => vcpu_op,
    "timers" => timers,
    "mmu-update" => mmu_update,
    "mmuext" => mmuext,
    "pt-types" => pt_types,
    "pt-emulation" => pt_emulation,
    "tlb" => tlb,
    "memory-ops" => memory_ops,
    "balloon" => balloon,
    "registers" => registers,
    "grant-ops" => grant_ops,
    "grant-maps" => grant_maps,
    "grant-copy" => grant_copy,
    "instructions" => instructions,
    "vectors" => vectors,
    "user-returns" => user_returns,
    "descriptors" => descriptors,
    "segments" => segments,
    "debug-registers" => debug_registers,
    "io-ports" => io_ports,
    "callbacks" => callbacks,
    "cpuid" => cpuid_policy,
    "msrs" => msr_policy,
    "fpu" => fpu,
    "physdev" => physdev,
    "platform" => platform,
    "machine-frames" => machine_frames,
    "preemption" => preemption,
}
