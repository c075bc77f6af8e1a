//! Interrupts: from a vector on some CPU to an event channel of some domain.
//!
//! `logic/irqs` decides; this carries it out on the IO-APICs and in the devices' own registers. A level-triggered
//! line is masked when it interrupts and unmasked when the last domain that hears of it has said `PHYSDEVOP_eoi`: the
//! local APIC is never left in service, so a domain that does not answer holds back its own line and no other.
//! (Messages and edges are ended at once and want no answer.)
//!
//! One lock, `Rank::Vectors`, covers the descriptors, every domain's pirqs and the devices' message registers. It
//! ranks above event channels: a port is bound and unbound under its domain's event lock, while an interrupt drops
//! this lock before it rings.

mod devices;
mod permissions;
pub mod ports;

use crate::domain::{self, Domain, Life};
use crate::firmware::Platform;
use crate::lock::{Lock, Rank};
use crate::memory::{self, Held};

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_irqs::{
    Acknowledge, Arrival, Eoi, FreeKind, Irq, Irqs, Line, Lines, Moved, Override, Place, Polarity, Refused, Started,
    Status, Stopped, Target, Trigger,
};
use ferroxen_machine::apic::{self, ApicId, Vector, vectors};
use ferroxen_machine::{cpu, ioapic, serial, smp};
use ferroxen_words::{CpuId, DomId, Gsi, Maddr, Mfn, PAGE_SIZE, Pirq, Port};

pub use devices::{Function, MessageRequest, NotMapped};
pub use permissions::{
    FrameAccess, IoPermissions, frame_access, init_permissions, may_use_ports, permit_iomem, permit_pirq, permit_ports,
};

/// Pirqs that a domain can have at most; its event channels have room for as many.
pub const MAX_PIRQS: u32 = 1024;
/// Pirqs beyond the lines, for a domain that is given some of Domain 0's devices.
const EXTRA_PIRQS: u32 = 64;
/// By which the descriptors know the serial port.
const SERIAL: u32 = 1;
/// Strays that are reported; more of them say nothing new.
const STRAYS_REPORTED: u32 = 16;

/// What belongs to one domain's interrupts beside the descriptors.
#[derive(Default)]
pub struct DomainPirqs {
    eoi_page: Option<EoiPage>,
}

/// A page in which a domain reads which of its pirqs want a `PHYSDEVOP_eoi`: one bit for each.
struct EoiPage {
    held: Held,
    /// Registered by the first version of the operation: an EOI also unmasks the port.
    unmasks: bool,
}

impl DomainPirqs {
    /// Nothing set up.
    pub const fn new() -> DomainPirqs {
        DomainPirqs { eoi_page: None }
    }
}

/// Everything under the lock.
pub(crate) struct State {
    irqs: Irqs,
    devices: devices::Devices,
}

static STATE: spin::Once<Lock<State>> = spin::Once::new();
static STRAYS: AtomicU32 = AtomicU32::new(0);

/// Learns the lines from firmware's tables, and takes the console's for ourselves. Once, on the boot CPU, when the
/// controllers are set up.
pub fn init(platform: &Platform, is_synchronous: bool) {
    let cpus = u32::try_from(platform.madt.cpus.len()).unwrap_or(1).max(1);
    let lines = lines(platform);
    STATE.call_once(|| {
        Lock::new(
            Rank::Vectors,
            State {
                irqs: Irqs::new(cpus, &lines),
                devices: devices::Devices::default(),
            },
        )
    });
    take_console_line(is_synchronous);
}

fn lines(platform: &Platform) -> Lines {
    let count = ioapic::gsi_count();
    let absent = (0..count).map(Gsi::new).filter(|gsi| !ioapic::has(*gsi)).collect();
    let overrides = platform
        .madt
        .overrides
        .iter()
        .map(|found| Override {
            isa: found.irq,
            gsi: Gsi::new(found.gsi),
            // "As the bus has it" means ISA's custom here.
            trigger: if found.line.is_level() == Some(true) {
                Trigger::Level
            } else {
                Trigger::Edge
            },
            polarity: if found.line.is_active_low() == Some(true) {
                Polarity::Low
            } else {
                Polarity::High
            },
        })
        .collect();
    Lines {
        count,
        absent,
        overrides,
    }
}

fn take_console_line(is_synchronous: bool) {
    let Some(line) = serial::irq() else { return };
    let mut state = state();
    let claimed = state.irqs.claim(Irq::new(line.into()), SERIAL, cpu::cpu_id());
    match claimed.map(|started| state.carry_out_start(started)) {
        Ok(()) => {
            drop(state);
            serial::use_interrupt(is_synchronous);
        }
        Err(why) => {
            drop(state);
            crate::warn!("console: no interrupt for input ({why:?}); nothing typed will be heard");
        }
    }
}

#[track_caller]
fn state() -> crate::lock::Guard<'static, State> {
    match STATE.get() {
        Some(state) => state.lock(),
        None => panic!("interrupts were used before they were set up"),
    }
}

/// An external interrupt has arrived at this CPU, from a guest or from idling.
pub fn handle(vector: u8) {
    const TIMER: u8 = vectors::TIMER.number();
    const REQUEST: u8 = vectors::REQUEST.number();
    const POKE: u8 = vectors::POKE.number();
    const ERROR: u8 = vectors::ERROR.number();
    const SPURIOUS: u8 = vectors::SPURIOUS.number();
    match vector {
        TIMER => {
            apic::eoi();
            crate::time::timer_interrupt();
        }
        REQUEST => {
            apic::eoi();
            smp::service_requests();
        }
        POKE => {
            apic::eoi();
            crate::sched::poked();
        }
        // It wants no EOI.
        SPURIOUS => {}
        ERROR => {
            let errors = apic::take_errors();
            apic::eoi();
            crate::warn!("{}: local APIC errors {errors:#x}", cpu::cpu_id());
        }
        vectors::HIGHEST_CLASS.. => apic::eoi(),
        _ => device(vector),
    }
}

fn device(vector: u8) {
    let place = Place {
        cpu: cpu::cpu_id(),
        vector,
    };
    let mut state = state();
    match state.irqs.arrived(place) {
        Arrival::Guests(acknowledge, targets) => {
            if let Acknowledge::MaskAndEnd(gsi) = acknowledge {
                ioapic::mask(gsi);
            }
            drop(state);
            apic::eoi();
            targets.into_iter().flatten().for_each(ring);
        }
        Arrival::Hypervisors(token, _) => {
            drop(state);
            apic::eoi();
            if token == SERIAL {
                crate::console::input::serve();
            }
        }
        Arrival::Stray => {
            drop(state);
            stray(place);
        }
    }
}

/// The last interrupt of a line that was just given up, or of a message to a vector that moved on.
fn stray(place: Place) {
    // The silenced 8259s can still send one that no APIC has in service.
    if Vector::new(place.vector).is_some_and(apic::is_in_service) {
        apic::eoi();
    }
    if STRAYS.fetch_add(1, Ordering::Relaxed) < STRAYS_REPORTED {
        crate::debug!("{}: interrupt {:#x} is nobody's", place.cpu, place.vector);
    }
}

fn ring(target: Target) {
    if let Some(domain) = domain::by_id(target.domain) {
        crate::hypercall::event_channel::send_pirq(&domain, target.port, target.pirq);
    }
}

impl State {
    fn carry_out_start(&mut self, started: Started) {
        match started {
            Started::Already => {}
            Started::Line(line, place) => {
                if route(line, place) {
                    ioapic::unmask(line.gsi);
                }
            }
            Started::Message(irq) => self.devices.start(irq),
        }
    }

    fn carry_out_stop(&mut self, stopped: Stopped) {
        match stopped {
            Stopped::Nothing => {}
            Stopped::Unmask(gsi) => ioapic::unmask(gsi),
            Stopped::Line(gsi) => ioapic::mask(gsi),
            Stopped::Message(irq) => self.devices.stop(irq),
        }
    }

    fn carry_out_move(&mut self, moved: Moved) {
        match moved {
            Moved::Nowhere => {}
            Moved::Line { line, place, is_masked } => {
                if route(line, place) && !is_masked {
                    ioapic::unmask(line.gsi);
                }
            }
            Moved::Message(irq, place) => {
                if let Some(message) = message(place) {
                    self.devices.rewrite(irq, message);
                }
            }
        }
    }

    /// Makes sure that a domain has a table. A dying one gets none: nobody would take it back.
    fn table_for(&mut self, domain: &Domain) -> Result<(), Errno> {
        if domain.life() != Life::Alive {
            return Err(Errno::EINVAL);
        }
        let room = MAX_PIRQS.saturating_sub(self.irqs.lines());
        let extra = if domain.is_privileged {
            room
        } else {
            room.min(EXTRA_PIRQS)
        };
        self.irqs.add_domain(domain.id, extra);
        Ok(())
    }
}

/// Programs the pin, masked.
fn route(line: Line, place: Place) -> bool {
    let (Some(vector), Some(to)) = (Vector::new(place.vector), apic_of(place.cpu)) else {
        return false;
    };
    let trigger = match line.trigger {
        Trigger::Edge => ioapic::Trigger::Edge,
        Trigger::Level => ioapic::Trigger::Level,
    };
    let polarity = match line.polarity {
        Polarity::High => ioapic::Polarity::High,
        Polarity::Low => ioapic::Polarity::Low,
    };
    let done = ioapic::route(
        line.gsi,
        ioapic::Route {
            vector,
            to,
            trigger,
            polarity,
        },
    );
    if !done {
        crate::error!("{}: cannot be routed to {}", line.gsi, place.cpu);
    }
    done
}

fn message(place: Place) -> Option<ferroxen_machine::msi::Message> {
    ferroxen_machine::msi::compose(Vector::new(place.vector)?, apic_of(place.cpu)?)
}

fn apic_of(cpu: CpuId) -> Option<ApicId> {
    smp::apic_id_of(cpu).map(ApicId)
}

/// A CPU that interrupts may be sent to: the wanted one, if it runs and eight bits can name it, else the first.
fn usable(cpu: CpuId) -> CpuId {
    if apic_of(cpu).is_some_and(|id| id.0 < 0xff) {
        cpu
    } else {
        CpuId(0)
    }
}

/// Lets a pirq ring a port of the domain, at first on the CPU given. Under the domain's event lock or without.
pub fn bind_pirq(domain: &Domain, pirq: Pirq, port: Port, will_share: bool, cpu: CpuId) -> Result<(), Errno> {
    let mut state = state();
    let started = state
        .irqs
        .bind(domain.id, pirq, port, will_share, usable(cpu))
        .map_err(|why| match why {
            // What stands for no line is no line that the domain may use; most domains have none at all.
            Refused::NotMapped | Refused::NoSuchNumber => Errno::EPERM,
            why => errno(why),
        })?;
    state.carry_out_start(started);
    Ok(())
}

/// Takes a pirq from the port that it rang. Under the domain's event lock or without. Nothing happens if the pirq was
/// unmapped meanwhile.
pub fn unbind_pirq(domain: &Domain, pirq: Pirq) {
    let mut state = state();
    if let Ok(stopped) = state.irqs.unbind(domain.id, pirq) {
        state.carry_out_stop(stopped);
    }
}

/// Lets a pirq's interrupt arrive at the CPU where the vcpu it tells runs. Where there is no room it stays.
pub fn move_pirq(domain: &Domain, pirq: Pirq, cpu: CpuId) {
    let mut state = state();
    let Some(irq) = state.irqs.irq_of(domain.id, pirq) else {
        return;
    };
    if state.devices.can_move(irq)
        && let Ok(moved) = state.irqs.move_to(irq, usable(cpu))
    {
        state.carry_out_move(moved);
    }
}

/// `PHYSDEVOP_eoi`: the domain has dealt with the interrupt. Answers the port, if it is bound.
pub(crate) fn eoi(domain: &Domain, pirq: Pirq) -> Result<Option<Port>, Errno> {
    let mut state = state();
    let port = state.irqs.port_of(domain.id, pirq);
    match state.irqs.eoi(domain.id, pirq).map_err(errno)? {
        Eoi::Nothing => {}
        Eoi::Unmask(gsi) => ioapic::unmask(gsi),
    }
    Ok(port)
}

/// `PHYSDEVOP_irq_status_query`. `EINVAL` for a number that the domain cannot have.
pub(crate) fn status(domain: &Domain, pirq: Pirq) -> Result<Status, Errno> {
    let mut state = state();
    state.table_for(domain)?;
    if pirq.raw() >= state.irqs.pirq_limit(domain.id) {
        return Err(Errno::EINVAL);
    }
    Ok(state.irqs.status(domain.id, pirq))
}

/// Gives a domain a pirq for a line. The caller has been found to be allowed to.
pub(crate) fn map_line(subject: &Domain, wanted: Option<Pirq>, line: u32) -> Result<Pirq, Errno> {
    let mut state = state();
    state.table_for(subject)?;
    let irq = state.irqs.line_irq(line).map_err(errno)?;
    let pirq = state.irqs.map_line(subject.id, wanted, irq).map_err(errno)?;
    drop(state);
    refresh_eoi_page(subject);
    Ok(pirq)
}

/// Gives a domain pirqs for messages of a device, and writes the messages to the device, masked.
pub(crate) fn map_messages(subject: &Domain, wanted: Option<Pirq>, request: MessageRequest) -> Result<Pirq, NotMapped> {
    let mut state = state();
    state.table_for(subject)?;
    let State { irqs, devices } = &mut *state;
    let prepared = devices.prepare(request)?;
    let here = usable(cpu::cpu_id());
    let (pirq, irq, place) = irqs
        .map_messages(subject.id, wanted, request.count(), here)
        .map_err(|why| NotMapped::Refused(errno(why)))?;
    let Some(message) = message(place) else {
        let _ = irqs.unmap(subject.id, pirq);
        return Err(NotMapped::Refused(Errno::ENOSPC));
    };
    devices.add(irq, prepared, message);
    Ok(pirq)
}

/// Takes a pirq (or a block) from a domain.
pub(crate) fn unmap(subject: &Domain, pirq: Pirq) -> Result<(), Errno> {
    let mut state = state();
    let gone = state.irqs.unmap(subject.id, pirq).map_err(errno)?;
    state.carry_out_stop(gone.stopped);
    if gone.messages != 0 {
        state.devices.remove(gone.irq, gone.messages);
    }
    drop(state);
    refresh_eoi_page(subject);
    Ok(())
}

/// The page in which a domain reads which pirqs need an EOI, if it has one.
pub(crate) fn eoi_frame(domain: &Domain) -> Option<Mfn> {
    domain.pirqs.lock().eoi_page.as_ref().map(|page| page.held.page().mfn())
}

/// Takes a page of the domain's in which it wants to read which pirqs need an EOI (`PHYSDEVOP_pirq_eoi_gmfn`).
pub(crate) fn set_eoi_page(domain: &Domain, frame: Mfn, unmasks: bool) -> Result<(), Errno> {
    if domain.pirqs.lock().eoi_page.is_some() {
        return Err(Errno::EBUSY);
    }
    let held = memory::hold_writable(domain, frame).map_err(|_| Errno::EINVAL)?;
    let mut pirqs = domain.pirqs.lock();
    // Another vcpu may have been faster; then this page is given back, below the lock.
    let refused = match &mut pirqs.eoi_page {
        Some(_) => Some(held),
        page => {
            *page = Some(EoiPage { held, unmasks });
            None
        }
    };
    drop(pirqs);
    if refused.is_some() {
        return Err(Errno::EBUSY);
    }
    refresh_eoi_page(domain);
    Ok(())
}

/// Whether an EOI of the domain also unmasks the port.
pub(crate) fn eoi_unmasks(domain: &Domain) -> bool {
    domain.pirqs.lock().eoi_page.as_ref().is_some_and(|page| page.unmasks)
}

/// Writes the domain's page anew, after something about its pirqs changed.
fn refresh_eoi_page(domain: &Domain) {
    let pirqs = domain.pirqs.lock();
    let Some(EoiPage { held, .. }) = &pirqs.eoi_page else {
        return;
    };
    let mut words = [0u64; PAGE_SIZE / 8];
    let state = state();
    for pirq in state.irqs.needing_eoi(domain.id) {
        if let Some(word) = words.get_mut(pirq.raw() as usize / 64) {
            *word |= 1 << (pirq.raw() % 64);
        }
    }
    drop(state);
    for (index, word) in words.iter().enumerate() {
        held.page().store_u64(index, *word);
    }
}

/// Sets a free pirq aside (`PHYSDEVOP_get_free_pirq`).
pub(crate) fn free_pirq(domain: &Domain, is_line: bool) -> Result<Pirq, Errno> {
    let mut state = state();
    state.table_for(domain)?;
    let kind = if is_line { FreeKind::Line } else { FreeKind::Messages(1) };
    state.irqs.set_aside(domain.id, kind).map_err(errno)
}

/// Settles how a line signals (`PHYSDEVOP_setup_gsi`).
pub(crate) fn set_up_line(line: u32, is_level: bool, is_low: bool) -> Result<(), Errno> {
    let mut state = state();
    let irq = state.irqs.line_irq(line).map_err(errno)?;
    let trigger = if is_level { Trigger::Level } else { Trigger::Edge };
    let polarity = if is_low { Polarity::Low } else { Polarity::High };
    state.irqs.set_up_line(irq, trigger, polarity).map_err(errno)?;
    drop(state);
    // Only Domain 0 sets lines up, and before it shares them.
    if let Some(dom0) = domain::by_id(DomId::DOM0) {
        refresh_eoi_page(&dom0);
    }
    Ok(())
}

/// The line behind a controller's pin, in Domain 0's numbering.
pub(crate) fn line_of_pin(base: Maddr, pin: u32) -> Option<u32> {
    let gsi = ioapic::gsi_of_pin(base, pin)?;
    state().irqs.irq_by_gsi(gsi).map(Irq::raw)
}

/// How many lines there are, for bounds on what a domain names.
pub(crate) fn line_count() -> u32 {
    state().irqs.lines()
}

/// Writes a device's messages anew, after it lost them (`PHYSDEVOP_restore_msi`).
pub(crate) fn restore_messages(function: Function) -> Result<(), Errno> {
    let mut state = state();
    let State { irqs, devices } = &mut *state;
    if !devices.has_function(function) {
        return Err(Errno::ENODEV);
    }
    for irq in devices.messages_of(function) {
        if let Some(message) = irqs.place_of(irq).and_then(message) {
            devices.rewrite(irq, message);
        }
    }
    Ok(())
}

/// Learns of a function, or forgets one (`PHYSDEVOP_pci_device_add` and its elders).
pub(crate) fn add_function(function: Function, virtual_of: Option<Function>) -> Result<(), Errno> {
    state().devices.add_function(function, virtual_of)
}

/// Whether Domain 0 has told of a function.
pub(crate) fn has_function(function: Function) -> bool {
    state().devices.has_function(function)
}

/// Forgets a function and takes its messages away. `ENODEV` if it was never there.
pub(crate) fn remove_function(function: Function) -> Result<(), Errno> {
    state().devices.remove_function(function)
}

/// Whether a function has an MSI-X table to be protected (`PHYSDEVOP_prepare_msix`).
pub(crate) fn has_msix(function: Function) -> Result<(), Errno> {
    devices::has_msix(function)
}

/// Whether a pirq of the domain stands for an interrupt that the domain may pass on.
pub(crate) fn irq_of(domain: &Domain, pirq: Pirq) -> Option<u32> {
    state().irqs.irq_of(domain.id, pirq).map(Irq::raw)
}

/// Checks interrupts and vectors; says what is wrong, and how often.
pub fn audit() -> u64 {
    match state().irqs.audit() {
        Ok(()) => 0,
        Err(what) => {
            crate::error!("audit: {what}");
            1
        }
    }
}

/// Takes everything from a domain that dies.
pub fn release_all(domain: &Arc<Domain>) {
    let mut state = state();
    while let Some(gone) = state.irqs.unmap_any(domain.id) {
        state.carry_out_stop(gone.stopped);
        if gone.messages != 0 {
            state.devices.remove(gone.irq, gone.messages);
        }
    }
    drop(state);
    let page = domain.pirqs.lock().eoi_page.take();
    drop(page);
    permissions::forget(domain);
}

/// How many pirqs a domain may have: what `XEN_DOMCTL_getdomaininfo` and event channels bound numbers by.
pub fn pirq_limit(domain: DomId) -> u32 {
    state().irqs.pirq_limit(domain)
}

fn errno(why: Refused) -> Errno {
    match why {
        Refused::NoSuchNumber | Refused::NotMapped | Refused::NotTheFirst | Refused::NotBound | Refused::NoPin => {
            Errno::EINVAL
        }
        Refused::PirqTaken | Refused::IrqTaken | Refused::AlreadyBound | Refused::AlreadySetUp => Errno::EEXIST,
        Refused::HypervisorsOwn | Refused::NotShared | Refused::TooManySharers => Errno::EBUSY,
        Refused::NoneFree => Errno::ENOSPC,
    }
}
