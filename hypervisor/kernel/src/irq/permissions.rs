//! Who may touch which I/O port, which frame that is no RAM, and which interrupt.
//!
//! Domain 0 may touch everything but what the hypervisor itself uses; other domains only what Domain 0 passes on,
//! which it can only do with what it has.

use crate::domain::Domain;
use alloc::sync::Arc;
use alloc::vec::Vec;
use ferroxen_abi::errno::Errno;
use ferroxen_loader::memory_map::{Kind, Region};
use ferroxen_machine::{ioapic, serial};
use ferroxen_rangeset::{Full, Range, RangeSet};
use ferroxen_words::{Mfn, PAGE_SHIFT, Pirq};

/// Ranges that one domain's sets may grow to: devices come in dozens, not in thousands.
const MOST: usize = 256;
/// Messages to the local APICs go here, and only devices may write them.
const MESSAGES: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);
/// AMD's HyperTransport space, which swallows accesses.
const HYPERTRANSPORT: (u64, u64) = (0xfd_0000_0000, 0xff_ffff_ffff);

/// What one domain may use, and what it last wrote to the address registers that we keep for it.
pub struct IoPermissions {
    ports: RangeSet,
    frames: RangeSet,
    irqs: RangeSet,
    /// As port 0xcf8 reads back.
    pub(super) pci_address: u32,
    /// As written to port 0x70.
    pub(super) cmos_index: u8,
}

/// How a domain may map a frame that is no RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameAccess {
    /// Not at all.
    None,
    /// To look at.
    ReadOnly,
    /// As it likes.
    ReadWrite,
}

/// What only boot knows, kept for later.
struct Host {
    /// Byte ranges of RAM.
    ram: Vec<Range>,
    /// What Domain 0 may use.
    dom0: IoPermissions,
    /// Frames that may be looked at and no more.
    read_only: RangeSet,
}

static HOST: spin::Once<Host> = spin::Once::new();

impl IoPermissions {
    /// Nothing at all, or for Domain 0 what [`init_permissions`] left it.
    pub fn new(is_privileged: bool) -> IoPermissions {
        match HOST.get() {
            Some(host) if is_privileged => host.dom0.copy(),
            _ => IoPermissions::nothing(),
        }
    }

    const fn nothing() -> IoPermissions {
        IoPermissions {
            ports: RangeSet::new(MOST),
            frames: RangeSet::new(MOST),
            irqs: RangeSet::new(MOST),
            pci_address: 0,
            cmos_index: 0,
        }
    }

    fn copy(&self) -> IoPermissions {
        IoPermissions {
            ports: self.ports.clone(),
            frames: self.frames.clone(),
            irqs: self.irqs.clone(),
            ..IoPermissions::nothing()
        }
    }

    /// Whether all these ports may be used.
    #[inline]
    pub fn allows_ports(&self, first: u16, count: u16) -> bool {
        self.ports
            .contains_all(first.into(), u64::from(first) + u64::from(count.max(1)) - 1)
    }

    /// Whether an interrupt may be mapped.
    pub fn allows_irq(&self, irq: u32) -> bool {
        self.irqs.contains(irq.into())
    }
}

/// Settles what Domain 0 may use. Once, when controllers, console and clocks are chosen.
pub fn init_permissions(regions: &[Region]) {
    HOST.call_once(|| {
        let ram = regions
            .iter()
            .filter(|region| region.kind == Kind::RAM && region.end > region.start)
            .map(|region| Range {
                first: region.start,
                last: region.end - 1,
            })
            .collect();
        let mut read_only = RangeSet::new(MOST);
        let dom0 = dom0(&mut read_only).unwrap_or_else(|Full| panic!("too many exceptions to what Domain 0 may use"));
        Host { ram, dom0, read_only }
    });
}

fn dom0(read_only: &mut RangeSet) -> Result<IoPermissions, Full> {
    let platform = crate::firmware::platform();
    let mut all = IoPermissions::nothing();
    all.ports.insert(0, 0xffff)?;
    for (first, last) in hypervisors_ports() {
        all.ports.remove(first.into(), last.into())?;
    }
    let frames = 1u64 << (u32::from(ferroxen_machine::cpu::features().physical_bits) - PAGE_SHIFT);
    all.frames.insert(0, frames - 1)?;
    let mut deny = |first: u64, last: u64| all.frames.remove(first >> PAGE_SHIFT, last >> PAGE_SHIFT);
    if platform.madt.lapic_address != 0 {
        deny(platform.madt.lapic_address, platform.madt.lapic_address)?;
    }
    for (controller, _) in ioapic::all() {
        deny(controller.base.raw(), controller.base.raw())?;
    }
    deny(MESSAGES.0, MESSAGES.1)?;
    if ferroxen_machine::cpu::features().amd {
        deny(HYPERTRANSPORT.0, HYPERTRANSPORT.1)?;
    }
    if let Some(hpet) = &platform.hpet {
        read_only.insert(hpet.address >> PAGE_SHIFT, hpet.address >> PAGE_SHIFT)?;
    }
    let lines = super::line_count();
    all.irqs.insert(1, u64::from(lines) - 1)?;
    Ok(all)
}

/// The ports that stay ours: interrupt controllers, the 8254 with its gate, our clock, configuration space, the console.
fn hypervisors_ports() -> impl Iterator<Item = (u16, u16)> {
    let timer = crate::firmware::platform().fadt.and_then(|fadt| fadt.pm_timer?.port());
    let fixed = [(0x20, 0x21), (0xa0, 0xa1), (0x40, 0x43), (0x61, 0x61), (0xcfc, 0xcff)];
    fixed
        .into_iter()
        .chain(timer.map(|port| (port, port.saturating_add(3))))
        .chain(serial::base().map(|base| (base, base.saturating_add(7))))
}

/// Whether any byte of the page at this machine address is RAM.
pub(super) fn is_ram(page: u64) -> bool {
    let last = page | ((1 << PAGE_SHIFT) - 1);
    HOST.get()
        .is_none_or(|host| host.ram.iter().any(|range| range.first <= last && page <= range.last))
}

/// Whether a domain may use all the ports of an access.
#[inline]
pub fn may_use_ports(domain: &Domain, first: u16, count: u16) -> bool {
    domain.io.lock().allows_ports(first, count)
}

/// How a domain may map a frame that is no RAM.
pub fn frame_access(domain: &Domain, frame: Mfn) -> FrameAccess {
    if !domain.io.lock().frames.contains(frame.raw()) {
        FrameAccess::None
    } else if HOST.get().is_some_and(|host| host.read_only.contains(frame.raw())) {
        FrameAccess::ReadOnly
    } else {
        FrameAccess::ReadWrite
    }
}

/// `XEN_DOMCTL_ioport_permission`
pub fn permit_ports(
    caller: &Arc<Domain>,
    subject: &Arc<Domain>,
    first: u32,
    count: u32,
    allow: bool,
) -> Result<(), Errno> {
    let end = first
        .checked_add(count)
        .filter(|end| *end > first && *end <= 0x1_0000)
        .ok_or(Errno::EINVAL)?;
    let (first, last) = (u64::from(first), u64::from(end) - 1);
    pass_on(caller, subject, |of| &mut of.ports, first, last, allow)
}

/// `XEN_DOMCTL_iomem_permission`
pub fn permit_iomem(
    caller: &Arc<Domain>,
    subject: &Arc<Domain>,
    first: Mfn,
    count: u64,
    allow: bool,
) -> Result<(), Errno> {
    // As upstream: none from 0 is all that there are, and none from elsewhere is a range that ends before it begins.
    let last = Mfn::new(first.raw().wrapping_add(count).wrapping_sub(1));
    if last < first {
        return Err(Errno::EINVAL);
    }
    pass_on(caller, subject, |of| &mut of.frames, first.raw(), last.raw(), allow)
}

/// `XEN_DOMCTL_irq_permission`, which names the interrupt by the caller's pirq.
pub fn permit_pirq(
    caller: &Arc<Domain>,
    subject: &Arc<Domain>,
    pirq: impl Into<u32>,
    allow: bool,
) -> Result<(), Errno> {
    let pirq = pirq.into();
    if pirq >= super::MAX_PIRQS {
        return Err(Errno::EINVAL);
    }
    let irq = super::irq_of(caller, Pirq::new(pirq)).ok_or(Errno::EPERM)?;
    pass_on(caller, subject, |of| &mut of.irqs, irq.into(), irq.into(), allow)
}

/// Gives the subject what the caller has, or takes it away.
fn pass_on(
    caller: &Arc<Domain>,
    subject: &Arc<Domain>,
    set: impl Fn(&mut IoPermissions) -> &mut RangeSet,
    first: u64,
    last: u64,
    allow: bool,
) -> Result<(), Errno> {
    // One lock at a time: what the caller has only ever shrinks by its own word.
    if !set(&mut caller.io.lock()).contains_all(first, last) {
        return Err(Errno::EPERM);
    }
    let mut subject = subject.io.lock();
    let set = set(&mut subject);
    let done = if allow {
        set.insert(first, last)
    } else {
        set.remove(first, last)
    };
    done.map_err(|Full| Errno::ENOMEM)
}

/// A domain dies: it may use nothing any more.
pub(super) fn forget(domain: &Domain) {
    *domain.io.lock() = IoPermissions::nothing();
}
