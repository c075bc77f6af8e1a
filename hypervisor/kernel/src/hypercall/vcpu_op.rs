//! `vcpu_op`: starts, stops and asks about a domain's own vcpus.

use super::{Answer, Call};
use crate::domain::{self, InfoArea, VcpuRef, context};
use crate::guest::GuestPtr;
use crate::hypercall::event_channel;
use crate::{memory, sched, time};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::vcpu::{self as abi, RunstateInfo, vcpuop};
use ferroxen_abi::x86::{VcpuGuestContext, vgcf};
use ferroxen_abi::xen::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, vcpu_info};
use ferroxen_sched::{RunState, Times};
use ferroxen_words::{Mfn, PAGE_SIZE, Vaddr, VcpuId};
use zerocopy::FromZeros;

/// Shorter periods are refused.
const SHORTEST_PERIOD_NS: u64 = 1_000_000;
/// So are longer ones (`STIME_DELTA_MAX`).
const LONGEST_PERIOD_NS: u64 = u64::MAX >> 2;

/// The hypercall: a command, the number of one of the caller's own vcpus, and where the operands are.
pub fn vcpu_op(call: &mut Call<'_>) -> Answer {
    let [command, number, at, ..] = call.args();
    let caller = call.caller;
    let vcpu = VcpuRef::of(caller.domain(), VcpuId(number as u32)).ok_or(Errno::ENOENT)?;
    match command {
        vcpuop::INITIALISE => initialise(&vcpu, GuestPtr::new(at))?,
        vcpuop::UP => {
            if !vcpu.is_initialised() {
                return Err(Errno::EINVAL);
            }
            vcpu.set_online(true);
            sched::wake(&vcpu);
        }
        vcpuop::DOWN => down(&vcpu),
        vcpuop::IS_UP => return Ok(u64::from(vcpu.is_online())),
        vcpuop::GET_RUNSTATE_INFO => GuestPtr::<RunstateInfo>::new(at).write(&runstate(&vcpu))?,
        vcpuop::REGISTER_RUNSTATE_MEMORY_AREA => {
            let area = area(at, size_of::<RunstateInfo>())?;
            sched::register_area(&vcpu, area);
            // Whether it can be written shows when it is.
            let _ = GuestPtr::<RunstateInfo>::new(area.raw()).write(&runstate(&vcpu));
        }
        vcpuop::REGISTER_VCPU_TIME_MEMORY_AREA => {
            let area = area(at, size_of::<ferroxen_abi::xen::VcpuTimeInfo>())?;
            time::register_time_area(&vcpu, area);
        }
        vcpuop::SET_PERIODIC_TIMER => {
            let period_ns = GuestPtr::<abi::SetPeriodicTimer>::new(at).read()?.period_ns;
            if !(SHORTEST_PERIOD_NS..=LONGEST_PERIOD_NS).contains(&period_ns) {
                return Err(Errno::EINVAL);
            }
            time::set_periodic(&vcpu, period_ns);
        }
        vcpuop::STOP_PERIODIC_TIMER => time::set_periodic(&vcpu, 0),
        vcpuop::SET_SINGLESHOT_TIMER => {
            if vcpu.id != caller.id {
                return Err(Errno::EINVAL);
            }
            // A timer that is due rings at once, whatever VCPU_SSHOTTMR_future says: the ABI lets us.
            let request = GuestPtr::<abi::SetSingleshotTimer>::new(at).read()?;
            time::set_singleshot(caller, request.timeout_abs_ns);
        }
        vcpuop::STOP_SINGLESHOT_TIMER => {
            if vcpu.id != caller.id {
                return Err(Errno::EINVAL);
            }
            time::stop_singleshot(caller);
        }
        vcpuop::REGISTER_VCPU_INFO => {
            let request = GuestPtr::<abi::RegisterVcpuInfo>::new(at).read()?;
            register_info(caller, &vcpu, &request)?;
        }
        vcpuop::SEND_NMI => crate::pv::trap::send_nmi(&vcpu),
        // Only of use to a vcpu that is pinned for good, and none is.
        vcpuop::GET_PHYSID => return Err(Errno::EINVAL),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

fn initialise(vcpu: &VcpuRef, at: GuestPtr<VcpuGuestContext>) -> Result<(), Errno> {
    if vcpu.info().is_none() {
        return Err(Errno::EINVAL);
    }
    let mut wanted = VcpuGuestContext::new_box_zeroed().map_err(|_| Errno::ENOMEM)?;
    at.read_slice(core::slice::from_mut(&mut *wanted))?;
    // Two may try at once.
    let _one_at_a_time = vcpu.domain().control.try_lock().ok_or(Errno::EBUSY)?;
    if vcpu.is_initialised() {
        return Err(Errno::EEXIST);
    }
    context::set(vcpu, &wanted)?;
    // As upstream, it counts as switched on at once if its context says so, and runs when it is told to.
    vcpu.set_online(wanted.flags & vgcf::ONLINE != 0);
    Ok(())
}

/// Switches a vcpu off. When the last one goes, so does the domain.
fn down(vcpu: &VcpuRef) {
    let domain = vcpu.domain();
    let another_is_up = VcpuRef::all(domain).any(|other| other.id != vcpu.id && other.is_online());
    if another_is_up {
        vcpu.set_online(false);
        sched::stop(vcpu);
    } else {
        domain.shut_down(domain::SHUTDOWN_POWEROFF);
    }
}

fn runstate(vcpu: &VcpuRef) -> RunstateInfo {
    let never = Times {
        state: RunState::Offline,
        since_ns: 0,
        spent_ns: [0; 4],
    };
    sched::runstate_info(sched::times(vcpu).unwrap_or(never).at(time::now()))
}

/// An address in the guest's part of the address space, where `size` bytes are to be written later.
fn area(at: u64, size: usize) -> Result<Vaddr, Errno> {
    let start = GuestPtr::<abi::RegisterMemoryArea>::new(at).read()?.addr;
    let last = start.checked_add(size as u64 - 1).ok_or(Errno::EFAULT)?;
    let is_ours = last >= HYPERVISOR_VIRT_START && start < HYPERVISOR_VIRT_END;
    if is_ours || !Vaddr::new(start).is_canonical() || !Vaddr::new(last).is_canonical() {
        return Err(Errno::EFAULT);
    }
    Ok(Vaddr::new(start))
}

/// Moves a vcpu's `vcpu_info` to a page of the guest's choice, once.
fn register_info(caller: &VcpuRef, vcpu: &VcpuRef, request: &abi::RegisterVcpuInfo) -> Result<(), Errno> {
    let offset = request.offset as usize;
    // Its words are accessed atomically, so they must not straddle.
    if offset > PAGE_SIZE - vcpu_info::SIZE || !offset.is_multiple_of(8) {
        return Err(Errno::ENXIO);
    }
    if vcpu.has_registered_info() || (vcpu.id != caller.id && vcpu.is_online()) {
        return Err(Errno::EINVAL);
    }
    let held = memory::hold_writable(vcpu.domain(), Mfn::new(request.mfn)).map_err(|_| Errno::EINVAL)?;
    let to = InfoArea::new(held.page(), offset).ok_or(Errno::EINVAL)?;
    let old = vcpu.info();
    if !vcpu.register_info(to, held) {
        return Err(Errno::EINVAL);
    }
    to.take_over(old);
    time::info_moved(vcpu);
    event_channel::look_everywhere(vcpu.domain(), vcpu);
    Ok(())
}
