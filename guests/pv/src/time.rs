//! The paravirtual clock: nanoseconds since the host started (public/xen.h, `vcpu_time_info`).

use core::sync::atomic::{Ordering, fence};

use ferroxen_abi::xen::{VcpuTimeInfo, vcpu_info};

use crate::event;
use crate::insn;
use crate::vcpu;

/// Returns system time by the clock of the current vcpu.
pub fn now() -> u64 {
    now_by(vcpu::current())
}

/// Returns system time by the clock of `vcpu`.
pub fn now_by(vcpu: usize) -> u64 {
    let record = event::vcpu_info(vcpu)
        .wrapping_add(vcpu_info::TIME)
        .cast::<VcpuTimeInfo>();
    loop {
        // SAFETY: vcpu_info lies in a page of ours that is always mapped; the hypervisor may write it meanwhile,
        // which the version tells.
        let first = unsafe { record.read_volatile() };
        fence(Ordering::SeqCst);
        let ticks = insn::rdtsc().wrapping_sub(first.tsc_timestamp);
        // SAFETY: as above.
        let version = unsafe { (&raw const (*record).version).read_volatile() };
        if first.version == version && version & 1 == 0 {
            return first.system_time.wrapping_add(to_nanoseconds(ticks, &first));
        }
    }
}

fn to_nanoseconds(ticks: u64, record: &VcpuTimeInfo) -> u64 {
    let shift = u32::from(record.tsc_shift.unsigned_abs());
    let shifted = if record.tsc_shift < 0 {
        ticks >> shift
    } else {
        ticks << shift
    };
    ((u128::from(shifted) * u128::from(record.tsc_to_system_mul)) >> 32) as u64
}
