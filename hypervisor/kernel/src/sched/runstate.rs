//! Run states as guests see them: where did my time go?

use super::home;
use crate::domain::VcpuRef;
use core::sync::atomic::Ordering;
use ferroxen_abi::vcpu::{RUNSTATE_UPDATE, RunstateInfo};
use ferroxen_abi::xen::vm_assist;
use ferroxen_machine::{guest, paging};
use ferroxen_sched::Times;
use ferroxen_words::Vaddr;
use zerocopy::IntoBytes;

/// A vcpu's account of time, up to its last change of state.
pub fn times(vcpu: &VcpuRef) -> Option<Times> {
    let (_, slot, queue) = home(vcpu)?;
    queue.times(slot)
}

/// What `vcpu_runstate_info` says.
pub fn info(times: Times) -> RunstateInfo {
    RunstateInfo {
        state: times.state as u32,
        pad: 0,
        state_entry_time: times.since_ns,
        time: times.spent_ns,
    }
}

/// Where the guest wants its run state from now on; written at every change of the vcpu that runs.
pub fn register_area(vcpu: &VcpuRef, at: Vaddr) {
    vcpu.sched.runstate_area.store(at.raw(), Ordering::Relaxed);
}

/// Writes the run state of the vcpu whose page tables are loaded, if it asked for that.
#[inline]
pub(super) fn update(vcpu: &VcpuRef) {
    let area = vcpu.sched.runstate_area.load(Ordering::Relaxed);
    if area != 0
        && let Some(times) = times(vcpu)
    {
        write(vcpu, Vaddr::new(area), times);
    }
}

fn write(vcpu: &VcpuRef, at: Vaddr, times: Times) {
    let info = info(times);
    let flagged = vcpu.domain().assists(vm_assist::RUNSTATE_UPDATE_FLAG);
    with_kernel_tables(vcpu, || {
        // Whether it can be written is the guest's business: nothing depends on it here.
        let entry_time = Vaddr::new(
            at.raw()
                .wrapping_add(core::mem::offset_of!(RunstateInfo, state_entry_time) as u64),
        );
        if flagged {
            let _ = guest::copy_to_guest(entry_time, (info.state_entry_time | RUNSTATE_UPDATE).as_bytes());
            let flagged = RunstateInfo {
                state_entry_time: info.state_entry_time | RUNSTATE_UPDATE,
                ..info
            };
            let _ = guest::copy_to_guest(at, flagged.as_bytes());
            let _ = guest::copy_to_guest(entry_time, info.state_entry_time.as_bytes());
        } else {
            let _ = guest::copy_to_guest(at, info.as_bytes());
        }
    });
}

/// Runs something with the tables of the vcpu's kernel loaded: its user's do not map what it registered.
pub(crate) fn with_kernel_tables(vcpu: &VcpuRef, action: impl FnOnce()) {
    let pv = vcpu.pv.lock();
    let (kernel, user) = (pv.kernel_loads, pv.user_loads);
    drop(pv);
    let in_kernel = vcpu.is_in_kernel();
    match (kernel, user) {
        (Some(kernel), Some(user)) if !in_kernel => {
            paging::activate(&kernel);
            action();
            paging::activate(&user);
        }
        (Some(_), _) if in_kernel => action(),
        _ => {}
    }
}
