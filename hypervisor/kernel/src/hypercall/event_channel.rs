//! `event_channel_op`: doorbells between vcpus, domains and devices.
//!
//! A ring is carried out under the lock of the domain whose port it is, so that a port that is being closed is
//! not rung any more. Two domains' locks are taken in domid order.

use super::{Answer, Call, event_fifo};
use crate::cpu::{self, work};
use crate::domain::death::Progress;
use crate::domain::{self, Domain, Life, Vcpu, VcpuRef};
use crate::guest::GuestPtr;
use crate::lock::Guard;
use crate::sched;
use alloc::sync::Arc;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::event_channel::{self as abi, evtchnop, status};
use ferroxen_abi::xen::{shared_info, virq};
use ferroxen_evtchn::{
    Closed, FarEnd, PortTable, Refused, Rung, SharedBits, State, Target, Unsound, audit_pair, bind_interdomain,
    bind_loopback, virq_is_global,
};
use ferroxen_machine::memory::Page;
use ferroxen_words::{DomId, Pirq, Port, RawDomId, VcpuId};

fn errno(refused: Refused) -> Errno {
    match refused {
        Refused::NoPortLeft => Errno::ENOSPC,
        Refused::NoSuchVcpu => Errno::ENOENT,
        Refused::AlreadyBound => Errno::EEXIST,
        Refused::NoSuchPort
        | Refused::WrongState
        | Refused::NotOfferedToYou
        | Refused::NoSuchVirq
        | Refused::WrongVcpuForVirq
        | Refused::NoSuchPirq => Errno::EINVAL,
    }
}

/// The hypercall: a command, and where its operands are.
#[inline(always)]
pub fn event_channel_op(call: &mut Call<'_>) -> Answer {
    let [command, at, ..] = call.args();
    if command == evtchnop::SEND {
        let request = GuestPtr::<abi::Send>::new(at).read()?;
        return send(call.caller.domain(), Port::new(request.port)).map(|()| 0);
    }
    operate(&mut call.apart(), command, at)
}

/// The old form of the hypercall: command and operands in one structure.
pub fn event_channel_op_compat(call: &mut Call<'_>) -> Answer {
    let at = call.args()[0];
    let request = GuestPtr::<abi::Op>::new(at).read()?;
    if u64::from(request.cmd) > evtchnop::UNMASK {
        return Err(Errno::ENOSYS);
    }
    let operands = at
        .checked_add(core::mem::offset_of!(abi::Op, u) as u64)
        .ok_or(Errno::EFAULT)?;
    operate(call, u64::from(request.cmd), operands)
}

fn operate(call: &mut Call<'_>, command: u64, at: u64) -> Answer {
    let caller = call.caller;
    let domain = caller.domain();
    match command {
        evtchnop::ALLOC_UNBOUND => {
            let at = GuestPtr::<abi::AllocUnbound>::new(at);
            let request = at.read()?;
            let port = alloc_unbound(caller, &request)?;
            at.write(&abi::AllocUnbound {
                port: port.raw(),
                ..request
            })?;
        }
        evtchnop::BIND_INTERDOMAIN => {
            let at = GuestPtr::<abi::BindInterdomain>::new(at);
            let request = at.read()?;
            let port = bind_far(domain, &request)?;
            at.write(&abi::BindInterdomain {
                local_port: port.raw(),
                ..request
            })?;
        }
        evtchnop::BIND_VIRQ => {
            let at = GuestPtr::<abi::BindVirq>::new(at);
            let request = at.read()?;
            let port = bind_virq(domain, request.virq, VcpuId(request.vcpu))?;
            at.write(&abi::BindVirq {
                port: port.raw(),
                ..request
            })?;
        }
        evtchnop::BIND_IPI => {
            let at = GuestPtr::<abi::BindIpi>::new(at);
            let request = at.read()?;
            let vcpu = VcpuId(request.vcpu);
            domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
            let port = living(domain)?.bind_ipi(vcpu).map_err(errno)?;
            at.write(&abi::BindIpi {
                port: port.raw(),
                ..request
            })?;
        }
        evtchnop::BIND_PIRQ => {
            let at = GuestPtr::<abi::BindPirq>::new(at);
            let request = at.read()?;
            let will_share = request.flags & abi::BIND_PIRQ_WILL_SHARE != 0;
            let port = bind_pirq(domain, Pirq::new(request.pirq), will_share)?;
            at.write(&abi::BindPirq {
                port: port.raw(),
                ..request
            })?;
        }
        evtchnop::CLOSE => close(domain, Port::new(GuestPtr::<abi::Close>::new(at).read()?.port))?,
        evtchnop::SEND => send(domain, Port::new(GuestPtr::<abi::Send>::new(at).read()?.port))?,
        evtchnop::STATUS => {
            let at = GuestPtr::<abi::Status>::new(at);
            let answer = status_of(caller, at.read()?)?;
            at.write(&answer)?;
        }
        evtchnop::BIND_VCPU => {
            let request = GuestPtr::<abi::BindVcpu>::new(at).read()?;
            bind_vcpu(domain, Port::new(request.port), VcpuId(request.vcpu))?;
        }
        evtchnop::UNMASK => unmask(domain, Port::new(GuestPtr::<abi::Unmask>::new(at).read()?.port))?,
        evtchnop::RESET => return reset(call, GuestPtr::<abi::Reset>::new(at).read()?.dom),
        evtchnop::INIT_CONTROL => return event_fifo::init_control(domain, at),
        evtchnop::EXPAND_ARRAY => return event_fifo::expand_array(domain, at),
        evtchnop::SET_PRIORITY => return event_fifo::set_priority(domain, at),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// The domain that a caller may act on: itself, or any if it is privileged.
fn subject_of(caller: &VcpuRef, id: RawDomId) -> Result<Arc<Domain>, Errno> {
    let subject = domain::resolve(caller.domain(), id)?;
    if Arc::ptr_eq(&subject, caller.domain()) || caller.domain().is_privileged {
        Ok(subject)
    } else {
        Err(Errno::EPERM)
    }
}

/// Locks the ports of a domain that may get new ones.
fn living(domain: &Domain) -> Result<Guard<'_, PortTable>, Errno> {
    let ports = domain.ports.lock();
    if domain.life() == Life::Alive {
        Ok(ports)
    } else {
        Err(Errno::EINVAL)
    }
}

fn alloc_unbound(caller: &VcpuRef, request: &abi::AllocUnbound) -> Result<Port, Errno> {
    let subject = subject_of(caller, request.dom)?;
    let remote = match request.remote_dom {
        RawDomId::SELF => caller.domain().id,
        other => DomId::new(other.0).ok_or(Errno::EINVAL)?,
    };
    living(&subject)?.alloc_unbound(remote).map_err(errno)
}

fn bind_far(local: &Arc<Domain>, request: &abi::BindInterdomain) -> Result<Port, Errno> {
    let remote = domain::resolve(local, request.remote_dom)?;
    let remote_port = Port::new(request.remote_port);
    if Arc::ptr_eq(local, &remote) {
        let mut ports = living(local)?;
        let port = bind_loopback(local.id, &mut ports, remote_port).map_err(errno)?;
        ring(local, port, VcpuId(0));
        return Ok(port);
    }
    let (mut ours, mut theirs) = lock_both(local, &remote);
    if local.life() != Life::Alive || remote.life() != Life::Alive {
        return Err(Errno::EINVAL);
    }
    let port = bind_interdomain((local.id, &mut ours), (remote.id, &mut theirs), remote_port).map_err(errno)?;
    // Rings may have been lost while nobody was bound here.
    ring(local, port, VcpuId(0));
    Ok(port)
}

/// Locks two domains' ports, the lower domid first; they come back in the order asked for.
fn lock_both<'a>(one: &'a Domain, other: &'a Domain) -> (Guard<'a, PortTable>, Guard<'a, PortTable>) {
    if one.id < other.id {
        let first = one.ports.lock();
        let second = other.ports.lock_second();
        (first, second)
    } else {
        let first = other.ports.lock();
        let second = one.ports.lock_second();
        (second, first)
    }
}

fn bind_virq(domain: &Arc<Domain>, number: u32, vcpu: VcpuId) -> Result<Port, Errno> {
    if number >= virq::COUNT || (virq_is_global(number) && vcpu.0 != 0) {
        return Err(Errno::EINVAL);
    }
    domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    living(domain)?.bind_virq(number, vcpu).map_err(errno)
}

fn bind_pirq(domain: &Arc<Domain>, pirq: Pirq, will_share: bool) -> Result<Port, Errno> {
    let port = living(domain)?.bind_pirq(pirq).map_err(errno)?;
    let cpu = domain
        .vcpu(VcpuId(0))
        .and_then(|vcpu| vcpu.sched.cpu())
        .unwrap_or(ferroxen_machine::cpu::cpu_id());
    if let Err(refused) = crate::irq::bind_pirq(domain, pirq, port, will_share, cpu) {
        // The port was known to nobody but an interrupt that was never bound.
        let undone = domain.ports.lock().close(port);
        debug_assert!(undone.is_ok());
        return Err(refused);
    }
    Ok(port)
}

fn bind_vcpu(domain: &Arc<Domain>, port: Port, vcpu: VcpuId) -> Result<(), Errno> {
    let cpu = domain.vcpu(vcpu).ok_or(Errno::ENOENT)?.sched.cpu();
    let follows = domain.ports.lock().bind_vcpu(port, vcpu).map_err(errno)?;
    if let (Some(pirq), Some(cpu)) = (follows, cpu) {
        crate::irq::move_pirq(domain, pirq, cpu);
    }
    Ok(())
}

/// Rings one of a domain's ports, as the domain itself asks.
#[inline(always)]
fn send(domain: &Arc<Domain>, port: Port) -> Result<(), Errno> {
    let ports = domain.ports.lock();
    match ports.send(port).map_err(errno)? {
        Target::Own(vcpu) => ring_at_once(domain, port, vcpu),
        Target::Nobody => {}
        Target::Far(far) => {
            let by = FarEnd {
                domain: domain.id,
                port,
            };
            if far.domain == domain.id {
                if let Some(vcpu) = ports.rung_by(far.port, by) {
                    ring(domain, far.port, vcpu);
                }
                return Ok(());
            }
            drop(ports);
            ring_far(far, by);
        }
    }
    Ok(())
}

/// Rings one of a domain's ports for it; if it has closed it since, nobody is to hear.
#[cold]
pub fn send_if_open(domain: &Arc<Domain>, port: Port) {
    let _ = send(domain, port);
}

/// Rings another domain's port, if the two still name each other: either may have closed its end since, and then nobody
/// listens, which is no error.
#[inline(never)]
fn ring_far(far: FarEnd, by: FarEnd) {
    if let Some(remote) = domain::by_id(far.domain) {
        let theirs = remote.ports.lock();
        if let Some(vcpu) = theirs.rung_by(far.port, by) {
            ring(&remote, far.port, vcpu);
        }
    }
}

pub(crate) fn unmask(domain: &Arc<Domain>, port: Port) -> Result<(), Errno> {
    let ports = domain.ports.lock();
    let channel = ports.get(port).ok_or(Errno::EINVAL)?;
    if channel.state == State::Free {
        // Nobody's.
    } else if domain.fifo.is_on() {
        event_fifo::unmask(domain, port, channel.vcpu);
    } else {
        let bits = Bits::of(domain);
        let rung = ferroxen_evtchn::unmask(&bits, port, channel.vcpu);
        carry_out(&bits, port, rung);
    }
    Ok(())
}

/// Unmasks a port on the domain's behalf (`PHYSDEVOP_eoi` of a domain that asked for that).
pub fn unmask_port(domain: &Arc<Domain>, port: Port) {
    // A port that was closed meanwhile needs no unmasking.
    let _ = unmask(domain, port);
}

fn close(domain: &Arc<Domain>, port: Port) -> Result<(), Errno> {
    loop {
        let mut ports = domain.ports.lock();
        let far = match ports.used(port).map_err(errno)?.state {
            State::Interdomain(far) if far.domain != domain.id => far,
            _ => {
                let closed = ports.close(port).map_err(errno)?;
                clear_pending(domain, port);
                if let Closed::Far(far) = closed {
                    ports.far_end_closed(
                        far.port,
                        FarEnd {
                            domain: domain.id,
                            port,
                        },
                    );
                }
                drop(ports);
                if let Closed::Pirq(pirq) = closed {
                    crate::irq::unbind_pirq(domain, pirq);
                }
                return Ok(());
            }
        };
        drop(ports);
        let Some(remote) = domain::by_id(far.domain) else {
            // It is gone from the list, so it has closed its end, and ours changed its state meanwhile.
            ferroxen_machine::cpu::relax();
            continue;
        };
        let (mut ours, mut theirs) = lock_both(domain, &remote);
        if ours.used(port).map_err(errno)?.state == State::Interdomain(far) {
            // Nothing but the far end is left to be told of an interdomain port.
            let _ = ours.close(port).map_err(errno)?;
            clear_pending(domain, port);
            theirs.far_end_closed(
                far.port,
                FarEnd {
                    domain: domain.id,
                    port,
                },
            );
            return Ok(());
        }
    }
}

fn status_of(caller: &VcpuRef, request: abi::Status) -> Result<abi::Status, Errno> {
    let subject = domain::resolve(caller.domain(), request.dom)?;
    let ports = subject.ports.lock();
    let channel = ports.get(Port::new(request.port)).ok_or(Errno::EINVAL)?;
    if !Arc::ptr_eq(&subject, caller.domain()) && !caller.domain().is_privileged {
        return Err(Errno::EPERM);
    }
    let (status, u) = match channel.state {
        State::Free => (status::CLOSED, request.u),
        State::Unbound { remote } => (status::UNBOUND, [u32::from(remote.raw()), 0]),
        State::Interdomain(far) => (status::INTERDOMAIN, [u32::from(far.domain.raw()), far.port.raw()]),
        State::Pirq(pirq) => (status::PIRQ, [pirq.raw(), 0]),
        State::Virq { virq, .. } => (status::VIRQ, [u32::from(virq), 0]),
        State::Ipi => (status::IPI, request.u),
    };
    Ok(abi::Status {
        status,
        vcpu: channel.vcpu.0,
        u,
        ..request
    })
}

fn reset(call: &mut Call<'_>, id: RawDomId) -> Answer {
    let subject = subject_of(call.caller, id)?;
    let is_self = Arc::ptr_eq(&subject, call.caller.domain());
    if !is_self && !subject.is_paused_by_controller() {
        return Err(Errno::EINVAL);
    }
    match release_all(&subject) {
        Progress::Done => Ok(0),
        Progress::More => Err(Errno::ERESTART),
    }
}

/// Takes back all that a domain has of event channels, in steps: it is dying, or starts anew.
pub fn release_all(domain: &Arc<Domain>) -> Progress {
    while close_next(domain) {
        if ferroxen_machine::time::entry_budget_spent() {
            return Progress::More;
        }
    }
    event_fifo::release(domain);
    Progress::Done
}

fn close_next(domain: &Arc<Domain>) -> bool {
    let next = domain.ports.lock().next_used(Port::new(0));
    match next {
        // Closed by somebody else meanwhile is closed, too.
        Some(port) => {
            let _ = close(domain, port);
            true
        }
        None => false,
    }
}

/// Rings a vcpu's virtual interrupt, if the guest has bound it.
#[inline]
pub fn send_virq(vcpu: &VcpuRef, number: u32) {
    let domain = vcpu.domain();
    let ports = domain.ports.lock();
    if let Some((port, notified)) = ports.virq_port(number, vcpu.id) {
        ring(domain, port, notified);
    }
}

/// Global interrupts that are to be rung, one bit each.
static GLOBAL_VIRQS: AtomicU32 = AtomicU32::new(0);

/// Rings a virtual interrupt that concerns the whole host, at Domain 0. May be called under any lock: it is
/// carried out before this CPU next returns to a guest or sleeps.
pub fn send_global_virq(number: u32) {
    GLOBAL_VIRQS.fetch_or(1 << number, Ordering::AcqRel);
    cpu::request(work::EVENTS);
}

/// Carries out what [`send_global_virq`] was asked for.
pub fn deliver_global_virqs() {
    let mut asked = GLOBAL_VIRQS.swap(0, Ordering::AcqRel);
    let Some(host) = domain::by_id(DomId::DOM0) else { return };
    while asked != 0 {
        let number = asked.trailing_zeros();
        asked &= asked - 1;
        let ports = host.ports.lock();
        if let Some((port, notified)) = ports.virq_port(number, VcpuId(0)) {
            ring(&host, port, notified);
        }
    }
}

/// Rings the port of a physical interrupt, if it still is that.
pub fn send_pirq(domain: &Arc<Domain>, port: Port, pirq: Pirq) {
    let ports = domain.ports.lock();
    if let Some(channel) = ports.get(port)
        && channel.state == State::Pirq(pirq)
    {
        ring(domain, port, channel.vcpu);
    }
}

/// Whether one of a domain's ports is pending; `EINVAL` if it has no such port in use.
pub fn is_pending(domain: &Arc<Domain>, port: Port) -> Result<bool, Errno> {
    domain.ports.lock().used(port).map_err(|_| Errno::EINVAL)?;
    Ok(look(domain, port).0)
}

/// Whether a port is pending, and whether it is masked.
fn look(domain: &Arc<Domain>, port: Port) -> (bool, bool) {
    if domain.fifo.is_on() {
        return event_fifo::look(domain, port);
    }
    let bits = Bits::of(domain);
    (bits.is_pending(port), bits.is_masked(port))
}

/// A port's next owner is to hear no ghost.
fn clear_pending(domain: &Arc<Domain>, port: Port) {
    if domain.fifo.is_on() {
        event_fifo::clear_pending(domain, port);
    } else {
        Bits::of(domain).clear_pending(port);
    }
}

/// Prints a domain's ports.
pub fn print(domain: &Arc<Domain>) {
    let ports = domain.ports.lock();
    crate::info!("{}: {} ports in use", domain.id, ports.used_count());
    let mut next = ports.next_used(Port::new(1));
    while let Some(port) = next {
        if let Some(channel) = ports.get(port) {
            let (is_pending, is_masked) = look(domain, port);
            crate::info!(
                "  {port}: {:?}, {}{}{}",
                channel.state,
                channel.vcpu,
                if is_pending { ", pending" } else { "" },
                if is_masked { ", masked" } else { "" }
            );
        }
        next = port.raw().checked_add(1).and_then(|at| ports.next_used(Port::new(at)));
    }
}

/// Checks all domains' ports; says what is wrong, and how often.
pub fn audit(domains: &[Arc<Domain>]) -> u64 {
    let mut wrong = 0;
    let mut check = |of: &Domain, found: Result<(), Unsound>| {
        if let Err(Unsound { port, what }) = found {
            crate::error!("audit: {}: port {port}: {what}", of.id);
            wrong += 1;
        }
    };
    for (at, one) in domains.iter().enumerate() {
        let ports = one.ports.lock();
        check(one, ports.audit());
        check(one, audit_pair((one.id, &ports), (one.id, &ports)));
        for other in domains.get(at + 1..).unwrap_or_default() {
            let others = other.ports.lock_second();
            check(one, audit_pair((one.id, &ports), (other.id, &others)));
            check(other, audit_pair((other.id, &others), (one.id, &ports)));
        }
    }
    wrong
}

/// Makes a vcpu look at every port: its `vcpu_info` has moved, and something may have been lost on the way.
pub fn look_everywhere(domain: &Arc<Domain>, vcpu: &Vcpu) {
    if let Some(info) = vcpu.info() {
        info.select_all();
    }
    sched::kick_in(domain, vcpu);
}

/// Rings a port. The caller holds the lock of its table.
fn ring(domain: &Arc<Domain>, port: Port, id: VcpuId) {
    ring_at_once(domain, port, id);
}

/// [`ring`], for where it happens all the time.
#[inline(always)]
fn ring_at_once(domain: &Arc<Domain>, port: Port, id: VcpuId) {
    if domain.fifo.is_on() {
        return event_fifo::ring(domain, port, id);
    }
    let bits = Bits::of(domain);
    let rung = ferroxen_evtchn::ring(&bits, port, id);
    carry_out(&bits, port, rung);
}

/// Carries out what a ring came to.
#[inline(always)]
fn carry_out(bits: &Bits<'_>, port: Port, rung: Rung) {
    match rung {
        Rung::Already => {}
        Rung::Quiet => sched::port_pending(bits.domain, port),
        Rung::Upcall(_) => {
            if let Some(vcpu) = bits.told.get() {
                sched::kick_in(bits.domain, vcpu);
            }
            sched::port_pending(bits.domain, port);
        }
    }
}

/// The words that a domain shares with us.
pub(super) struct Bits<'a> {
    domain: &'a Arc<Domain>,
    page: Page,
    /// Whom a ring was for, once it was told.
    told: Cell<Option<&'a Vcpu>>,
}

impl<'a> Bits<'a> {
    #[inline(always)]
    pub(super) fn of(domain: &'a Arc<Domain>) -> Self {
        Bits {
            domain,
            page: domain.shared_info,
            told: Cell::new(None),
        }
    }
}

/// Byte offset and mask of a port's bit in an array that begins at `base`.
#[inline(always)]
fn place(base: usize, port: Port) -> (usize, u64) {
    let word = (port.raw() / 64) as usize & 63;
    (base + word * 8, 1 << (port.raw() % 64))
}

impl SharedBits for Bits<'_> {
    #[inline]
    fn test_and_set_pending(&self, port: Port) -> bool {
        let (at, bit) = place(shared_info::EVTCHN_PENDING, port);
        self.page.fetch_or_u64_at(at, bit) & bit != 0
    }

    #[inline]
    fn is_pending(&self, port: Port) -> bool {
        let (at, bit) = place(shared_info::EVTCHN_PENDING, port);
        self.page.load_u64_at(at) & bit != 0
    }

    #[inline]
    fn clear_pending(&self, port: Port) {
        let (at, bit) = place(shared_info::EVTCHN_PENDING, port);
        self.page.fetch_and_u64_at(at, !bit);
    }

    #[inline]
    fn is_masked(&self, port: Port) -> bool {
        let (at, bit) = place(shared_info::EVTCHN_MASK, port);
        self.page.load_u64_at(at) & bit != 0
    }

    #[inline]
    fn test_and_clear_mask(&self, port: Port) -> bool {
        let (at, bit) = place(shared_info::EVTCHN_MASK, port);
        self.page.fetch_and_u64_at(at, !bit) & bit != 0
    }

    #[inline]
    fn select(&self, vcpu: VcpuId, word: u32) -> bool {
        self.told.set(self.domain.vcpu(vcpu));
        // Without a place to look at it is told nothing; when it gets one, it looks everywhere.
        let info = self.told.get().and_then(Vcpu::info);
        info.is_some_and(|info| info.select(word))
    }
}
