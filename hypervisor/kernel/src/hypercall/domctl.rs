//! `domctl`: what a toolstack does to one domain. Domain 0 only.
//!
//! The whole request is read once; the subject is looked up; one function does the work on our copy; what the
//! command gives back is written at the end.

use super::{Answer, Call, cpu_policy, shadow_op, vcpu_state};
use crate::access;
use crate::cpu::CpuBitmap;
use crate::domain::death::{self, Progress};
use crate::domain::{self, Domain, Life, Limits, VcpuRef, context};
use crate::guest::GuestPtr;
use crate::{memory, sched};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use ferroxen_abi::domctl::{self as abi, Domctl, DomctlCmd, cdf, dominf};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_access::Operation;
use ferroxen_loader::options::Options;
use ferroxen_sched::PoolId;
use ferroxen_words::{DomId, Mfn, RawDomId, VcpuId};
use zerocopy::FromZeros;

/// `domctl(request)`.
///
/// `EPERM` for anyone but Domain 0, `EACCES` for another interface version, `ESRCH` where there is no such
/// domain, `ENOSYS` for commands that we do not know.
pub fn domctl(call: &mut Call<'_>) -> Answer {
    // Before anything is looked up: a guest shall not even learn which domains there are.
    let caller = call.caller.domain();
    let may_control = access::to_host(caller, Operation::ControlHost);
    if !caller.limits.is_xenstore {
        may_control?;
    }
    let at = GuestPtr::<Domctl>::new(call.args()[0]);
    let mut request = at.read()?;
    // Who serves xenstore may look.
    if request.cmd != DomctlCmd::GETDOMAININFO {
        may_control?;
    }
    if request.interface_version != abi::DOMCTL_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    if request.cmd == DomctlCmd::CREATEDOMAIN {
        let id = create(&request)?;
        request.domain = id.to_abi();
        at.write(&request)?;
        return Ok(0);
    }
    let subject = subject_of(&request)?;
    match run(call, &subject, &mut request)? {
        Reply::Done => Ok(0),
        Reply::Write => at.write(&request).map(|()| 0),
        Reply::Refused(why) => at.write(&request).and(Err(why)),
        Reply::Again => Err(Errno::ERESTART),
    }
}

fn subject_of(request: &Domctl) -> Result<Arc<Domain>, Errno> {
    match request.cmd {
        // Upstream finds the next domain here, so that a list can be walked.
        DomctlCmd::GETDOMAININFO => {
            let from = DomId::new(request.domain.0).ok_or(Errno::EINVAL)?;
            domain::list::at_or_after(from).ok_or(Errno::ESRCH)
        }
        // Whether a device could be given to anybody.
        DomctlCmd::TEST_ASSIGN_DEVICE if request.domain == RawDomId::INVALID => Err(refusal(request.cmd)),
        // By its number only: "myself" is nobody here.
        _ => DomId::new(request.domain.0).and_then(domain::by_id).ok_or(Errno::ESRCH),
    }
}

/// What is left to do after a command.
pub(super) enum Reply {
    /// Nothing.
    Done,
    /// Our copy of the request goes back to the caller.
    Write,
    /// As `Write`, but the command is refused.
    Refused(Errno),
    /// Time is up: the caller asks again.
    Again,
}

fn run(call: &Call<'_>, subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    let caller = call.caller.domain();
    let is_self = Arc::ptr_eq(caller, subject);
    match request.cmd {
        DomctlCmd::DESTROYDOMAIN => {
            if is_self || subject.id == DomId::DOM0 {
                return Err(Errno::EINVAL);
            }
            return Ok(match death::destroy(subject) {
                Progress::Done => Reply::Done,
                Progress::More => Reply::Again,
            });
        }
        DomctlCmd::PAUSEDOMAIN => {
            if is_self {
                return Err(Errno::EINVAL);
            }
            subject.pause_by_controller();
        }
        DomctlCmd::UNPAUSEDOMAIN => subject.unpause_by_controller()?,
        DomctlCmd::RESUMEDOMAIN => {
            if is_self {
                return Err(Errno::EINVAL);
            }
            resume(subject);
        }
        DomctlCmd::GETDOMAININFO => {
            let info = info_of(subject);
            request.domain = info.domain;
            request.set_payload(&info);
            return Ok(Reply::Write);
        }
        DomctlCmd::MAX_VCPUS if is_self => return Err(Errno::EINVAL),
        DomctlCmd::MAX_VCPUS => subject.set_max_vcpus(request.payload::<abi::MaxVcpus>().max)?,
        DomctlCmd::MAX_MEM => {
            memory::set_max_pages(subject, request.payload::<abi::MaxMem>().max_memkb / 4);
        }
        DomctlCmd::SETVCPUCONTEXT if is_self => return Err(Errno::EINVAL),
        DomctlCmd::SETVCPUCONTEXT => return set_context(subject, request.payload()),
        DomctlCmd::GETVCPUCONTEXT => return get_context(call.caller, subject, request.payload()),
        DomctlCmd::GETVCPUINFO => {
            let mut wanted: abi::Getvcpuinfo = request.payload();
            let vcpu = vcpu_of(subject, wanted.vcpu)?;
            let state = sched::state_of(&vcpu);
            wanted.online = u8::from(vcpu.is_online());
            wanted.blocked = u8::from(state.is_blocked);
            wanted.running = u8::from(state.is_running);
            wanted.cpu_time = state.run_ns;
            wanted.cpu = state.cpu.0;
            request.set_payload(&wanted);
            return Ok(Reply::Write);
        }
        DomctlCmd::SETVCPUAFFINITY => return set_affinity(subject, request),
        DomctlCmd::GETVCPUAFFINITY => return get_affinity(subject, request),
        DomctlCmd::SETNODEAFFINITY => {
            // There is one node: any set that has it will do.
            let nodes = CpuBitmap::read(&request.payload::<abi::Nodeaffinity>().nodemap)?;
            if !nodes.contains(0) {
                return Err(Errno::EINVAL);
            }
            // All that there could be are no wish.
            let wished = Some(nodes.first_word()).filter(|nodes| *nodes != u64::MAX);
            subject.nodes.store(wished.unwrap_or(0), Ordering::Relaxed);
        }
        DomctlCmd::GETNODEAFFINITY => {
            let wanted: abi::Nodeaffinity = request.payload();
            let nodes = subject.nodes.load(Ordering::Relaxed).max(1);
            CpuBitmap::of_word(nodes).write(&wanted.nodemap)?;
        }
        DomctlCmd::SCHEDULER_OP => {
            let mut wanted: abi::SchedulerOp = request.payload();
            sched::control::adjust(subject, &mut wanted)?;
            request.set_payload(&wanted);
            return Ok(Reply::Write);
        }
        DomctlCmd::SETDOMAINHANDLE => {
            *subject.handle.lock() = request.payload::<abi::Setdomainhandle>().handle;
        }
        DomctlCmd::IRQ_PERMISSION => {
            let wanted: abi::IrqPermission = request.payload();
            crate::irq::permit_pirq(caller, subject, wanted.pirq, wanted.allow_access != 0)?;
        }
        DomctlCmd::IOMEM_PERMISSION => {
            let wanted: abi::IomemPermission = request.payload();
            crate::irq::permit_iomem(
                caller,
                subject,
                Mfn::new(wanted.first_mfn),
                wanted.nr_mfns,
                wanted.allow_access != 0,
            )?;
        }
        DomctlCmd::IOPORT_PERMISSION => {
            let wanted: abi::IoportPermission = request.payload();
            crate::irq::permit_ports(
                caller,
                subject,
                wanted.first_port,
                wanted.nr_ports,
                wanted.allow_access != 0,
            )?;
        }
        DomctlCmd::HYPERCALL_INIT => {
            let wanted: abi::HypercallInit = request.payload();
            crate::pv::hypercall_page::fill(subject, Mfn::new(wanted.gmfn))?;
        }
        DomctlCmd::SETTIMEOFFSET => {
            let wanted: abi::Settimeoffset = request.payload();
            subject
                .time_offset
                .store(wanted.time_offset_seconds as u64, Ordering::Relaxed);
            crate::time::update_wallclock(subject);
        }
        DomctlCmd::SET_ADDRESS_SIZE => {
            // 32-bit PV guests are left out (docs/left-out.md).
            match request.payload::<abi::AddressSize>().size {
                64 => {}
                32 => return Err(Errno::EOPNOTSUPP),
                _ => return Err(Errno::EINVAL),
            }
        }
        DomctlCmd::GET_ADDRESS_SIZE => {
            request.set_payload(&abi::AddressSize { size: 64 });
            return Ok(Reply::Write);
        }
        DomctlCmd::GETTSCINFO | DomctlCmd::SETTSCINFO if is_self => return Err(Errno::EINVAL),
        DomctlCmd::GETTSCINFO => {
            request.set_payload(&crate::time::control::tsc_info(subject));
            return Ok(Reply::Write);
        }
        DomctlCmd::SETTSCINFO => crate::time::control::set_tsc_info(subject, &request.payload())?,
        DomctlCmd::GETPAGEFRAMEINFO3 => return page_types(subject, request),
        DomctlCmd::SENDTRIGGER => {
            let wanted: abi::Sendtrigger = request.payload();
            let vcpu = existing_vcpu(subject, wanted.vcpu)?;
            match wanted.trigger {
                abi::Trigger::NMI => crate::pv::trap::send_nmi(&vcpu),
                // Buttons that PV domains have not.
                abi::Trigger::POWER | abi::Trigger::SLEEP => return Err(Errno::EINVAL),
                _ => return Err(Errno::ENOSYS),
            }
        }
        DomctlCmd::GETVCPUEXTSTATE => return vcpu_state::get_states(call.caller, subject, request),
        DomctlCmd::SETVCPUEXTSTATE => return vcpu_state::set_states(call.caller, subject, request),
        DomctlCmd::GET_EXT_VCPUCONTEXT => return vcpu_state::get_extended(call.caller, subject, request),
        DomctlCmd::SET_EXT_VCPUCONTEXT => return vcpu_state::set_extended(call.caller, subject, request),
        DomctlCmd::GET_VCPU_MSRS => return vcpu_state::get_registers(call.caller, subject, request),
        DomctlCmd::SET_VCPU_MSRS => return vcpu_state::set_registers(call.caller, subject, request),
        DomctlCmd::GET_CPU_POLICY => {
            cpu_policy::of_domain(subject, request)?;
            return Ok(Reply::Write);
        }
        DomctlCmd::SET_CPU_POLICY => return cpu_policy::set(caller, subject, request),
        DomctlCmd::SET_VIRQ_HANDLER => {
            // Every global interrupt stays with Domain 0, who may be named but not replaced.
            let virq = request.payload::<abi::SetVirqHandler>().virq;
            if virq >= ferroxen_abi::xen::virq::COUNT || !ferroxen_evtchn::virq_is_global(virq) {
                return Err(Errno::EINVAL);
            }
            if subject.id != DomId::DOM0 {
                return Err(Errno::EOPNOTSUPP);
            }
        }
        DomctlCmd::SUBSCRIBE => {
            let port = request.payload::<abi::Subscribe>().port;
            subject.suspend_port.store(port, Ordering::Relaxed);
        }
        DomctlCmd::MEMORY_MAPPING => map_device_memory(&request.payload())?,
        DomctlCmd::SET_TARGET => {
            let target = DomId::new(request.payload::<abi::SetTarget>().target.0);
            let target = target.and_then(domain::by_id).ok_or(Errno::ESRCH)?;
            let is_itself = Arc::ptr_eq(&target, subject);
            // A domain that models devices for another, which would be HVM.
            return Err(if is_itself { Errno::EINVAL } else { Errno::EOPNOTSUPP });
        }
        // Registers of caches: the commands that there are.
        DomctlCmd::PSR_ALLOC if request.u[0] as u32 > PSR_GET_MBA => return Err(Errno::EOPNOTSUPP),
        DomctlCmd::SHADOW_OP => return shadow_op::shadow_op(call, subject, request),
        DomctlCmd::VM_EVENT_OP if is_self => return Err(Errno::EINVAL),
        command => return Err(refusal(command)),
    }
    Ok(Reply::Done)
}

/// The last of `XEN_DOMCTL_PSR_*`.
const PSR_GET_MBA: u32 = 9;

/// What upstream answers where the machine, or a PV domain, has not what a command is about.
fn refusal(command: DomctlCmd) -> Errno {
    match command {
        // No cache can be watched or shared out.
        DomctlCmd::PSR_CMT_OP | DomctlCmd::PSR_ALLOC => Errno::ENODEV,
        // Of HVM domains.
        DomctlCmd::GETHVMCONTEXT
        | DomctlCmd::SETHVMCONTEXT
        | DomctlCmd::GETHVMCONTEXT_PARTIAL
        | DomctlCmd::BIND_PT_IRQ
        | DomctlCmd::UNBIND_PT_IRQ
        | DomctlCmd::SOFT_RESET
        | DomctlCmd::SOFT_RESET_CONT
        | DomctlCmd::DEBUG_OP
        | DomctlCmd::VMTRACE_OP
        | DomctlCmd::SET_BROKEN_PAGE_P2M => Errno::EINVAL,
        DomctlCmd::IOPORT_MAPPING
        | DomctlCmd::SET_PAGING_MEMPOOL_SIZE
        | DomctlCmd::GET_PAGING_MEMPOOL_SIZE
        // There is no IOMMU of ours.
        | DomctlCmd::ASSIGN_DEVICE
        | DomctlCmd::DEASSIGN_DEVICE
        | DomctlCmd::TEST_ASSIGN_DEVICE
        | DomctlCmd::GET_DEVICE_GROUP => Errno::EOPNOTSUPP,
        _ => Errno::ENOSYS,
    }
}

/// `memory_mapping`: a PV domain maps a device's memory by its own tables, so nothing is to be done for frames that there
/// can be.
fn map_device_memory(wanted: &abi::MemoryMapping) -> Result<(), Errno> {
    let frames = 1u64 << (u32::from(ferroxen_machine::cpu::features().physical_bits) - ferroxen_words::PAGE_SHIFT);
    let end = |first: u64| wanted.nr_mfns.checked_sub(1).and_then(|more| first.checked_add(more));
    let is_there = end(wanted.first_mfn).is_some_and(|last| last < frames) && end(wanted.first_gfn).is_some();
    if is_there { Ok(()) } else { Err(Errno::EINVAL) }
}

/// One of the subject's vcpus, where upstream calls a wrong number a wrong argument.
fn vcpu_of(subject: &Arc<Domain>, id: u32) -> Result<VcpuRef, Errno> {
    VcpuRef::of(subject, VcpuId(id)).ok_or(Errno::EINVAL)
}

/// One of the subject's vcpus, where upstream says that there is none.
pub(super) fn existing_vcpu(subject: &Arc<Domain>, id: u32) -> Result<VcpuRef, Errno> {
    VcpuRef::of(subject, VcpuId(id)).ok_or(Errno::ESRCH)
}

/// `createdomain`: PV domains; HVM ones are refused as by a Xen on a machine without HVM.
fn create(request: &Domctl) -> Result<DomId, Errno> {
    let wanted: abi::Createdomain = request.payload();
    if !allows_pv() {
        return Err(Errno::EOPNOTSUPP);
    }
    // Without shadow tables, none is out of sync.
    if wanted.flags & !(cdf::XS_DOMAIN | cdf::OOS_OFF) != 0 || wanted.max_vcpus == 0 || wanted.max_vcpus > MAX_VCPUS {
        return Err(Errno::EINVAL);
    }
    if !matches!(wanted.grant_opts, 1 | 2) || wanted.max_grant_frames == 0 || wanted.iommu_opts != 0 {
        return Err(Errno::EINVAL);
    }
    let abi::ArchDomainconfig {
        emulation_flags,
        misc_flags,
    } = wanted.arch;
    if wanted.vmtrace_size != 0 || misc_flags & !abi::MSR_RELAXED != 0 || emulation_flags & !abi::emu::ALL != 0 {
        return Err(Errno::EINVAL);
    }
    if emulation_flags != 0 {
        // Devices of HVM domains; and no PV kernel has needed a timer of its own for long.
        return Err(Errno::EOPNOTSUPP);
    }
    let most = Limits {
        grant_frames: GRANT_FRAMES.load(Ordering::Relaxed),
        maptrack_frames: MAPTRACK_FRAMES.load(Ordering::Relaxed),
        ..Limits::default()
    };
    // Below 0: as many as there may be.
    let bounded = |value: i32, most: u32| match u32::try_from(value) {
        Err(_) => Ok(most),
        Ok(value) if value <= most => Ok(value),
        Ok(_) => Err(Errno::EINVAL),
    };
    let limits = Limits {
        vcpus: wanted.max_vcpus,
        evtchn_port: wanted.max_evtchn_port.min(ferroxen_abi::xen::EVTCHN_2L_PORTS - 1),
        grant_frames: bounded(wanted.max_grant_frames, most.grant_frames)?,
        maptrack_frames: bounded(wanted.max_maptrack_frames, most.maptrack_frames)?,
        is_xenstore: wanted.flags & cdf::XS_DOMAIN != 0,
        relaxed_registers: misc_flags & abi::MSR_RELAXED != 0,
    };
    let id = match request.domain {
        RawDomId(0) => None,
        RawDomId(id) => DomId::new(id),
    };
    let make = || domain::create(id, false, limits, wanted.handle);
    Ok(sched::pools::with_new_domain(PoolId(wanted.cpupool_id), make)?.id)
}

/// Whether PV guests may be made (`pv=`).
static ALLOWS_PV: AtomicBool = AtomicBool::new(true);
/// Most frames of a domain's grant table, and of its list of mappings (`gnttab_max_frames=`, `gnttab_max_maptrack_frames=`).
static GRANT_FRAMES: AtomicU32 = AtomicU32::new(0);
static MAPTRACK_FRAMES: AtomicU32 = AtomicU32::new(0);

/// Takes the host's policy from its command line.
pub fn configure(options: &Options<'_>) {
    ALLOWS_PV.store(options.pv, Ordering::Relaxed);
    let limits = Limits::default().with_options(options);
    GRANT_FRAMES.store(limits.grant_frames, Ordering::Relaxed);
    MAPTRACK_FRAMES.store(limits.maptrack_frames, Ordering::Relaxed);
}

/// Whether PV guests may be made.
pub fn allows_pv() -> bool {
    ALLOWS_PV.load(Ordering::Relaxed)
}

/// Most vcpus of a PV domain.
const MAX_VCPUS: u32 = 256;

/// A domain as `xl list` sees it.
pub fn info_of(subject: &Arc<Domain>) -> abi::Getdomaininfo {
    let mut flags = 0;
    let (mut is_blocked, mut is_running, mut cpu_time, mut online) = (true, false, 0u64, 0);
    for vcpu in VcpuRef::all(subject) {
        let state = sched::state_of(&vcpu);
        cpu_time = cpu_time.saturating_add(state.run_ns);
        if vcpu.is_online() {
            online += 1;
            is_running |= state.is_running;
            is_blocked &= state.is_blocked;
        }
    }
    let mut raise = |condition: bool, flag: u32| {
        if condition {
            flags |= flag;
        }
    };
    raise(subject.life() != Life::Alive, dominf::DYING);
    raise(subject.shutdown_code().is_some(), dominf::SHUTDOWN);
    raise(subject.is_paused_by_controller(), dominf::PAUSED);
    // Upstream: with no vcpu online, none waits either.
    raise(is_blocked && online != 0, dominf::BLOCKED);
    raise(is_running, dominf::RUNNING);
    raise(subject.limits.is_xenstore, dominf::XS_DOMAIN);
    // All ones: no reason yet.
    flags |= subject.shutdown_code().map_or(u32::MAX, u32::from) << dominf::SHUTDOWNSHIFT;
    let pages = memory::counts(subject);
    abi::Getdomaininfo {
        domain: subject.id.to_abi(),
        flags,
        tot_pages: pages.total,
        max_pages: pages.max,
        outstanding_pages: pages.claimed,
        shared_info_frame: subject.shared_info_mfn().raw(),
        cpu_time,
        nr_online_vcpus: online,
        max_vcpu_id: (subject.vcpus().len() as u32).wrapping_sub(1),
        cpupool: sched::pools::of_domain(subject).0,
        handle: *subject.handle.lock(),
        gpaddr_bits: ferroxen_machine::cpu::features().physical_bits as u8,
        ..abi::Getdomaininfo::default()
    }
}

fn set_context(subject: &Arc<Domain>, wanted: abi::Vcpucontext) -> Result<Reply, Errno> {
    let vcpu = vcpu_of(subject, wanted.vcpu)?;
    if wanted.ctxt == 0 {
        subject.pause();
        let reset = context::reset(&vcpu);
        subject.unpause();
        return reset.map(|()| Reply::Done);
    }
    let mut context = VcpuGuestContext::new_box_zeroed().map_err(|_| Errno::ENOMEM)?;
    *context = GuestPtr::<VcpuGuestContext>::new(wanted.ctxt).read()?;
    subject.pause();
    let set = context::set(&vcpu, &context);
    if set.is_ok() {
        vcpu.set_online(context.flags & ferroxen_abi::x86::vgcf::ONLINE != 0);
    }
    subject.unpause();
    set.map(|()| Reply::Done)
}

fn get_context(caller: &VcpuRef, subject: &Arc<Domain>, wanted: abi::Vcpucontext) -> Result<Reply, Errno> {
    let vcpu = vcpu_of(subject, wanted.vcpu)?;
    if caller.is(&vcpu) {
        return Err(Errno::EINVAL);
    }
    if !vcpu.is_initialised() {
        return Err(Errno::ENODATA);
    }
    let mut context: Box<VcpuGuestContext> = VcpuGuestContext::new_box_zeroed().map_err(|_| Errno::ENOMEM)?;
    vcpu.pause();
    context::get(&vcpu, &mut context);
    vcpu.unpause();
    GuestPtr::new(wanted.ctxt).write(&*context)?;
    Ok(Reply::Done)
}

fn set_affinity(subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    let wanted: abi::Vcpuaffinity = request.payload();
    let vcpu = vcpu_of(subject, wanted.vcpu)?;
    if wanted.flags == 0 {
        return Err(Errno::EINVAL);
    }
    if wanted.flags & abi::VCPUAFFINITY_FORCE != 0 {
        // If it is not pinned, there is nothing to undo.
        let _ = sched::pin(&vcpu, None);
    }
    let hard = (wanted.flags & abi::VCPUAFFINITY_HARD != 0)
        .then(|| CpuBitmap::read(&wanted.cpumap_hard))
        .transpose()?;
    let soft = (wanted.flags & abi::VCPUAFFINITY_SOFT != 0)
        .then(|| CpuBitmap::read(&wanted.cpumap_soft))
        .transpose()?;
    sched::set_affinity(&vcpu, hard.map(|set| set.cpus()), soft.map(|set| set.cpus()))?;
    // What is in force now goes back, as libxl compares it with what it asked for.
    write_affinity(&vcpu, &wanted)?;
    Ok(Reply::Done)
}

fn get_affinity(subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    let wanted: abi::Vcpuaffinity = request.payload();
    let vcpu = vcpu_of(subject, wanted.vcpu)?;
    if wanted.flags == 0 {
        return Err(Errno::EINVAL);
    }
    write_affinity(&vcpu, &wanted)?;
    Ok(Reply::Done)
}

fn write_affinity(vcpu: &VcpuRef, wanted: &abi::Vcpuaffinity) -> Result<(), Errno> {
    let (hard, soft) = sched::affinity(vcpu);
    if wanted.flags & abi::VCPUAFFINITY_HARD != 0 {
        CpuBitmap::of(&hard).write(&wanted.cpumap_hard)?;
    }
    if wanted.flags & abi::VCPUAFFINITY_SOFT != 0 {
        CpuBitmap::of(&soft).write(&wanted.cpumap_soft)?;
    }
    Ok(())
}

/// `getpageframeinfo3`: what each frame is to its domain, in place, up to 1024 at a time.
fn page_types(subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    let wanted: abi::Getpageframeinfo3 = request.payload();
    if wanted.num > 1024 {
        return Err(Errno::E2BIG);
    }
    let frames = GuestPtr::<u64>::new(wanted.array);
    for index in 0..wanted.num {
        let mfn = Mfn::new(frames.read_element(index)?);
        frames.write_element(index, &memory::frame_info(subject, mfn))?;
    }
    Ok(Reply::Done)
}

fn resume(subject: &Arc<Domain>) {
    if subject.shutdown_code().is_some() {
        subject.clear_shutdown();
        subject.unpause();
    }
}
