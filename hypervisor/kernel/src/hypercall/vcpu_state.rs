//! What of a vcpu's state is in no `vcpu_guest_context`: the states of XSAVE, the callbacks of 32-bit entries, registers.
//! For tools that save a domain and bring it back.

use super::domctl::{Reply, existing_vcpu};
use crate::domain::{Callback, Domain, VcpuRef};
use crate::guest::GuestPtr;
use crate::pv::policy;
use alloc::sync::Arc;
use ferroxen_abi::domctl::{self as abi, Domctl, VcpuMsr};
use ferroxen_abi::errno::Errno;
use ferroxen_machine::{cpu, fpu};
use ferroxen_words::Vaddr;
use ferroxen_x86policy::msr::{self, number};

/// XCR0 and what it ever was, in front of the states.
const HEAD: usize = 16;
/// The part of the states that is there with any XSAVE.
const LEAST: usize = 576;
/// The most that a caller may hand over: the states of processors that have more than this one.
const MOST: usize = 16 * 1024;

/// Bytes that `getvcpuextstate` gives.
fn state_bytes() -> usize {
    HEAD + if cpu::xcr0() == 0 { 0 } else { fpu::area_bytes() }
}

/// `XEN_DOMCTL_getvcpuextstate`: without a buffer, how much there is. `EINVAL` for the caller's own vcpu, or if it does
/// not ask for just as much.
pub(super) fn get_states(caller: &VcpuRef, subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    let mut wanted: abi::Vcpuextstate = request.payload();
    let vcpu = existing_vcpu(subject, wanted.vcpu)?;
    if caller.is(&vcpu) {
        return Err(Errno::EINVAL);
    }
    let size = state_bytes() as u64;
    if wanted.buffer == 0 || (wanted.size == 0 && wanted.xfeature_mask == 0) {
        (wanted.size, wanted.xfeature_mask) = (size, cpu::xcr0());
        request.set_payload(&wanted);
        return Ok(Reply::Write);
    }
    if wanted.size < size || wanted.xfeature_mask != cpu::xcr0() {
        return Err(Errno::EINVAL);
    }
    wanted.size = size;
    request.set_payload(&wanted);
    vcpu.pause();
    let given = give_states(&vcpu, wanted.buffer);
    vcpu.unpause();
    given.map(|()| Reply::Write)
}

fn give_states(vcpu: &VcpuRef, at: u64) -> Result<(), Errno> {
    let buffer = GuestPtr::<u64>::new(at);
    let pv = vcpu.pv.lock();
    buffer.write_slice(&[pv.xcr0, pv.xcr0])?;
    if cpu::xcr0() != 0 {
        buffer.element(2)?.cast().write_slice(pv.fpu.bytes())?;
    }
    Ok(())
}

/// `XEN_DOMCTL_setvcpuextstate`: `EINVAL` for states that the domain cannot have.
pub(super) fn set_states(caller: &VcpuRef, subject: &Arc<Domain>, request: &Domctl) -> Result<Reply, Errno> {
    let wanted: abi::Vcpuextstate = request.payload();
    let vcpu = existing_vcpu(subject, wanted.vcpu)?;
    let size = usize::try_from(wanted.size).map_err(|_| Errno::EINVAL)?;
    if caller.is(&vcpu) || !(HEAD..=MOST).contains(&size) {
        return Err(Errno::EINVAL);
    }
    let buffer = GuestPtr::<u64>::new(wanted.buffer);
    let mut head = [0; 2];
    buffer.read_slice(&mut head)?;
    if size == HEAD {
        return Ok(Reply::Done);
    }
    let [xcr0, ever] = head;
    let states = policy::states_of(subject);
    let fits = xcr0 & 1 != 0 && xcr0 & !ever == 0 && ever & !states == 0;
    if size < HEAD + LEAST || !fits {
        return Err(Errno::EINVAL);
    }
    let area = buffer.element(2)?.cast::<u8>();
    // The header behind the first 512 bytes: which states are there, how they are laid out, and nothing else.
    let mut header = [0; 8];
    area.element(512)?.cast::<u64>().read_slice(&mut header)?;
    let [present, rest @ ..] = header;
    if present & !ever != 0 || rest != [0; 7] {
        return Err(Errno::EINVAL);
    }
    vcpu.pause();
    let mut pv = vcpu.pv.lock();
    let bytes = pv.fpu.bytes_mut();
    let room = bytes.len().min(size - HEAD);
    let read = area.read_slice(&mut bytes[..room]);
    if read.is_ok() {
        // Our copy of the header, whatever stands in the caller's memory by now.
        bytes[512..520].copy_from_slice(&present.to_le_bytes());
        bytes[520..LEAST].fill(0);
        pv.xcr0 = xcr0;
    } else {
        pv.fpu.reset();
    }
    drop(pv);
    vcpu.unpause();
    read.map(|()| Reply::Done)
}

/// Machine-check capabilities of a vcpu: two banks.
const MACHINE_CHECKS: u64 = 2;

/// `XEN_DOMCTL_get_ext_vcpucontext`
pub(super) fn get_extended(caller: &VcpuRef, subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    let wanted: abi::ExtVcpucontext = request.payload();
    let vcpu = existing_vcpu(subject, wanted.vcpu)?;
    if caller.is(&vcpu) {
        return Err(Errno::ESRCH);
    }
    let pv = vcpu.pv.lock();
    let mut given = abi::ExtVcpucontext {
        vcpu: wanted.vcpu,
        size: size_of::<abi::ExtVcpucontext>() as u32,
        syscall32_callback_eip: pv.syscall32.address,
        sysenter_callback_eip: pv.sysenter.address,
        syscall32_callback_cs: pv.syscall32.cs,
        sysenter_callback_cs: pv.sysenter.cs,
        syscall32_disables_events: pv.syscall32.masks_events.into(),
        sysenter_disables_events: pv.sysenter.masks_events.into(),
        ..abi::ExtVcpucontext::default()
    };
    given.vmce.caps = MACHINE_CHECKS;
    request.set_payload(&given);
    Ok(Reply::Write)
}

/// What a saved vcpu may have had beside any number of banks: a control register; on Intel's also recovery by software
/// and events for one vcpu alone. A guest sees those of this host.
fn strange_checks(caps: u64) -> bool {
    const COUNT: u64 = 0xff;
    const CONTROL: u64 = 1 << 8;
    const INTEL: u64 = 1 << 24 | 1 << 27;
    let known = COUNT | CONTROL | if cpu::features().amd { 0 } else { INTEL };
    caps & !known != 0
}

/// `XEN_DOMCTL_set_ext_vcpucontext`: `EINVAL` for machine-check capabilities that no vcpu has.
pub(super) fn set_extended(caller: &VcpuRef, subject: &Arc<Domain>, request: &Domctl) -> Result<Reply, Errno> {
    /// Up to the machine checks.
    const WITHOUT_CHECKS: u32 = 32;
    let wanted: abi::ExtVcpucontext = request.payload();
    let vcpu = existing_vcpu(subject, wanted.vcpu)?;
    let addresses = [wanted.syscall32_callback_eip, wanted.sysenter_callback_eip];
    let is_canonical = addresses.into_iter().all(|at| Vaddr::new(at).is_canonical());
    if caller.is(&vcpu) {
        return Err(Errno::ESRCH);
    }
    if wanted.size < WITHOUT_CHECKS || !is_canonical {
        return Err(Errno::EINVAL);
    }
    if wanted.size > WITHOUT_CHECKS && strange_checks(wanted.vmce.caps) {
        return Err(Errno::EINVAL);
    }
    // Only who was saved somewhere has such a state, and may have had queues there.
    super::event_fifo::offer(subject)?;
    vcpu.pause();
    {
        let mut pv = vcpu.pv.lock();
        pv.syscall32 = Callback {
            cs: wanted.syscall32_callback_cs | 3,
            address: wanted.syscall32_callback_eip,
            masks_events: wanted.syscall32_disables_events != 0,
        };
        pv.sysenter = Callback {
            cs: wanted.sysenter_callback_cs | 3,
            address: wanted.sysenter_callback_eip,
            masks_events: wanted.sysenter_disables_events != 0,
        };
    }
    vcpu.unpause();
    Ok(Reply::Done)
}

/// Registers that are sent where they are not 0.
const REGISTERS: u32 = 1;

/// `XEN_DOMCTL_get_vcpu_msrs`: without an array, how many there can be; `ENOBUFS` if there are more than it holds.
pub(super) fn get_registers(caller: &VcpuRef, subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    let mut wanted: abi::VcpuMsrs = request.payload();
    let vcpu = existing_vcpu(subject, wanted.vcpu)?;
    if caller.is(&vcpu) {
        return Err(Errno::EINVAL);
    }
    let tsc_aux = vcpu.pv.lock().tsc_aux;
    let used = u32::from(tsc_aux != 0);
    let room = wanted.msr_count;
    wanted.msr_count = if wanted.msrs == 0 { REGISTERS } else { used };
    request.set_payload(&wanted);
    if wanted.msrs != 0 && used != 0 {
        if room < used {
            return Ok(Reply::Refused(Errno::ENOBUFS));
        }
        let given = VcpuMsr {
            index: number::TSC_AUX,
            reserved: 0,
            value: tsc_aux.into(),
        };
        GuestPtr::new(wanted.msrs).write(&given)?;
    }
    Ok(Reply::Write)
}

/// `XEN_DOMCTL_set_vcpu_msrs`: `EINVAL` for a register that vcpus do not have, and which of the list it is.
pub(super) fn set_registers(caller: &VcpuRef, subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    let mut wanted: abi::VcpuMsrs = request.payload();
    let vcpu = existing_vcpu(subject, wanted.vcpu)?;
    if caller.is(&vcpu) || wanted.msr_count > REGISTERS {
        return Err(Errno::EINVAL);
    }
    let has_tsc_aux = msr::has_tsc_aux(subject.policy.lock().get());
    let array = GuestPtr::<VcpuMsr>::new(wanted.msrs);
    for index in 0..wanted.msr_count {
        let given = array.read_element(index.into());
        let taken = given.and_then(
            |given| match (given.index, given.reserved, u32::try_from(given.value)) {
                (number::TSC_AUX, 0, Ok(value)) if has_tsc_aux => Ok(value),
                _ => Err(Errno::EINVAL),
            },
        );
        match taken {
            Ok(value) => {
                vcpu.pause();
                vcpu.pv.lock().tsc_aux = value;
                vcpu.unpause();
            }
            Err(why) => {
                wanted.msr_count = index;
                request.set_payload(&wanted);
                return Ok(Reply::Refused(why));
            }
        }
    }
    Ok(Reply::Done)
}
