//! `physdev_op`: interrupts, PCI functions and I/O privileges, for the domain that owns the devices.
//!
//! What happens to an interrupt is [`crate::irq`]'s story; here is only who may ask for what.

use super::{Answer, Call};
use crate::access;
use crate::domain::{self, Domain};
use crate::guest::GuestPtr;
use crate::irq::{self, Function, MessageRequest, NotMapped};
use crate::pv::mm;
use alloc::sync::Arc;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::physdev::{self as abi, irqstat, map_pirq_type, pci_dev, physdevop};
use ferroxen_access::Operation;
use ferroxen_machine::ioapic;
use ferroxen_machine::port::PciFunction;
use ferroxen_words::{Maddr, Mfn, Pirq, Vaddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The highest number of I/O ports that a bitmap can cover.
const PORTS: u32 = 0x1_0000;
/// The most messages in a block.
const MAX_BLOCK: i32 = 32;

/// `physdev_op(command, operand)`.
pub fn physdev_op(call: &mut Call<'_>) -> Answer {
    let [command, operand, ..] = call.args();
    run(call, command, operand)
}

/// The older hypercall: the command stands before its operand, and only the first few exist.
pub fn physdev_op_compat(call: &mut Call<'_>) -> Answer {
    let at = GuestPtr::<abi::PhysdevOp>::new(call.args()[0]);
    let request = at.read()?;
    let operand = call.args()[0].checked_add(8).ok_or(Errno::EFAULT)?;
    match u64::from(request.cmd) {
        command @ (physdevop::IRQ_STATUS_QUERY
        | physdevop::SET_IOPL
        | physdevop::SET_IOBITMAP
        | physdevop::APIC_READ
        | physdevop::APIC_WRITE
        | physdevop::ALLOC_IRQ_VECTOR) => run(call, command, operand),
        physdevop::IRQ_UNMASK_NOTIFY => Err(Errno::EINVAL),
        _ => Err(Errno::EINVAL),
    }
}

fn run(call: &mut Call<'_>, command: u64, at: u64) -> Answer {
    let caller = call.caller.domain();
    match command {
        physdevop::EOI => eoi(caller, read(at)?)?,
        physdevop::IRQ_STATUS_QUERY => {
            let mut query: abi::IrqStatusQuery = read(at)?;
            if query.irq >= irq::MAX_PIRQS {
                return Err(Errno::EINVAL);
            }
            let status = irq::status(caller, Pirq::new(query.irq))?;
            query.flags = if status.needs_eoi { irqstat::NEEDS_EOI } else { 0 }
                | if status.is_shared { irqstat::SHARED } else { 0 };
            write(at, &query)?;
        }
        physdevop::SET_IOPL => {
            let wanted: abi::SetIopl = read(at)?;
            let iopl = u8::try_from(wanted.iopl)
                .ok()
                .filter(|iopl| *iopl <= 3)
                .ok_or(Errno::EINVAL)?;
            call.caller.pv.lock().iopl = iopl;
        }
        physdevop::SET_IOBITMAP => {
            let wanted: abi::SetIobitmap = read(at)?;
            let is_guests = wanted.nr_ports == 0 || mm::is_guest_address(Vaddr::new(wanted.bitmap));
            if wanted.nr_ports > PORTS || !is_guests {
                return Err(Errno::EINVAL);
            }
            call.caller.pv.lock().io_bitmap = (wanted.bitmap, wanted.nr_ports);
        }
        physdevop::ALLOC_IRQ_VECTOR => {
            // Vectors are ours alone; callers only want a number that stands for the line.
            let mut wanted: abi::Irq = read(at)?;
            if wanted.irq >= irq::line_count() {
                return Err(Errno::EINVAL);
            }
            wanted.vector = wanted.irq;
            write(at, &wanted)?;
        }
        physdevop::MAP_PIRQ => return map_pirq(caller, at),
        physdevop::UNMAP_PIRQ => {
            let wanted: abi::UnmapPirq = read(at)?;
            let subject = subject(caller, wanted.domid)?;
            access::to_host(caller, Operation::OwnDevices)?;
            irq::unmap(&subject, number(wanted.pirq)?)?;
        }
        physdevop::GET_FREE_PIRQ => {
            let mut wanted: abi::GetFreePirq = read(at)?;
            wanted.pirq = irq::free_pirq(caller, wanted.kind == map_pirq_type::GSI)?.raw();
            write(at, &wanted)?;
        }
        physdevop::PIRQ_EOI_GMFN_V1 | physdevop::PIRQ_EOI_GMFN_V2 => {
            let wanted: abi::PirqEoiGmfn = read(at)?;
            irq::set_eoi_page(caller, Mfn::new(wanted.gmfn), command == physdevop::PIRQ_EOI_GMFN_V1)?;
        }
        _ if PRIVILEGED.contains(&command) => {
            access::to_host(caller, Operation::OwnDevices)?;
            return run_privileged(command, at);
        }
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// What only the owner of the machine's devices may ask for.
const PRIVILEGED: [u64; 14] = [
    physdevop::APIC_READ,
    physdevop::APIC_WRITE,
    physdevop::SETUP_GSI,
    physdevop::MANAGE_PCI_ADD,
    physdevop::MANAGE_PCI_ADD_EXT,
    physdevop::MANAGE_PCI_REMOVE,
    physdevop::PCI_DEVICE_ADD,
    physdevop::PCI_DEVICE_REMOVE,
    physdevop::PCI_MMCFG_RESERVED,
    physdevop::RESTORE_MSI,
    physdevop::RESTORE_MSI_EXT,
    physdevop::PREPARE_MSIX,
    physdevop::RELEASE_MSIX,
    physdevop::DBGP_OP,
];

fn run_privileged(command: u64, at: u64) -> Answer {
    match command {
        physdevop::APIC_READ => {
            let mut wanted: abi::Apic = read(at)?;
            let base = Maddr::new(wanted.apic_physbase);
            wanted.value = ioapic::read_register(base, wanted.reg).ok_or(Errno::EINVAL)?;
            write(at, &wanted)?;
        }
        physdevop::APIC_WRITE => apic_write(read(at)?)?,
        physdevop::SETUP_GSI => {
            let wanted: abi::SetupGsi = read(at)?;
            let line = u32::try_from(wanted.gsi).map_err(|_| Errno::EINVAL)?;
            irq::set_up_line(line, wanted.triggering != 0, wanted.polarity != 0)?;
        }
        physdevop::MANAGE_PCI_ADD => {
            let device: abi::ManagePci = read(at)?;
            irq::add_function(on_segment_0(device), None)?;
        }
        physdevop::MANAGE_PCI_ADD_EXT => {
            let device: abi::ManagePciExt = read(at)?;
            if device.is_extfn > 1 || device.is_virtfn > 1 {
                return Err(Errno::EINVAL);
            }
            let owner = (device.is_virtfn != 0).then_some(on_segment_0(device.physfn));
            irq::add_function(
                on_segment_0(abi::ManagePci {
                    bus: device.bus,
                    devfn: device.devfn,
                }),
                owner,
            )?;
        }
        physdevop::MANAGE_PCI_REMOVE => {
            let device: abi::ManagePci = read(at)?;
            irq::remove_function(on_segment_0(device))?;
        }
        physdevop::PCI_DEVICE_ADD => pci_device_add(at)?,
        physdevop::PCI_DEVICE_REMOVE => irq::remove_function(function(read(at)?))?,
        physdevop::PCI_MMCFG_RESERVED => mmcfg_reserved(read(at)?)?,
        physdevop::RESTORE_MSI => {
            let device: abi::ManagePci = read(at)?;
            irq::restore_messages(on_segment_0(device))?;
        }
        physdevop::RESTORE_MSI_EXT => irq::restore_messages(function(read(at)?))?,
        physdevop::PREPARE_MSIX | physdevop::RELEASE_MSIX => irq::has_msix(function(read(at)?))?,
        // Domain 0 resets a USB controller that could be our debug port; it never is.
        physdevop::DBGP_OP => drop(read::<abi::DbgpOp>(at)?),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

fn eoi(caller: &Arc<Domain>, wanted: abi::Eoi) -> Result<(), Errno> {
    let port = irq::eoi(caller, Pirq::new(wanted.irq))?;
    if let Some(port) = port
        && irq::eoi_unmasks(caller)
    {
        // The port may have been closed since; then nothing is to be unmasked.
        let _ = super::event_channel::unmask(caller, port);
    }
    Ok(())
}

/// The domain that an operation is about: the caller, or for Domain 0 any.
fn subject(caller: &Arc<Domain>, id: ferroxen_words::RawDomId) -> Result<Arc<Domain>, Errno> {
    let subject = domain::resolve(caller, id)?;
    // What it may do to itself depends on the interrupts that it was given.
    if !Arc::ptr_eq(caller, &subject) {
        access::to_domain(caller, &subject, Operation::OwnDevices)?;
    }
    Ok(subject)
}

/// A pirq that the caller names; negative ones stand for nothing.
fn number(raw: i32) -> Result<Pirq, Errno> {
    u32::try_from(raw).map(Pirq::new).map_err(|_| Errno::EINVAL)
}

fn map_pirq(caller: &Arc<Domain>, at: u64) -> Answer {
    let mut request: abi::MapPirq = read(at)?;
    let subject = subject(caller, request.domid)?;
    // Any negative number asks for whichever is free.
    let wanted = u32::try_from(request.pirq).ok().map(Pirq::new);
    let mapped = match request.kind {
        map_pirq_type::GSI => {
            let line = u32::try_from(request.index).map_err(|_| Errno::EINVAL)?;
            if line >= irq::line_count() {
                return Err(Errno::EINVAL);
            }
            if !caller.io.lock().allows_irq(line) {
                return Err(Errno::EPERM);
            }
            irq::map_line(&subject, wanted, line)
        }
        map_pirq_type::MSI | map_pirq_type::MSI_SEG | map_pirq_type::MULTI_MSI => {
            access::to_host(caller, Operation::OwnDevices)?;
            match irq::map_messages(&subject, wanted, messages(&request)?) {
                Ok(pirq) => Ok(pirq),
                Err(NotMapped::Refused(why)) => Err(why),
                Err(NotMapped::OnlySoMany(count)) => {
                    // Upstream tells how many there could be, in the operand.
                    request.entry_nr = count.into();
                    write(at, &request)?;
                    Err(Errno::ENFILE)
                }
            }
        }
        _ => Err(Errno::EINVAL),
    }?;
    request.pirq = i32::try_from(mapped.raw()).map_err(|_| Errno::ENOSPC)?;
    if let Err(fault) = write(at, &request) {
        // The caller would never learn the number.
        let _ = irq::unmap(&subject, mapped);
        return Err(fault);
    }
    Ok(0)
}

/// What a request for messages asks of which device.
fn messages(request: &abi::MapPirq) -> Result<MessageRequest, Errno> {
    // An irq of the caller's choice was possible once; nobody can know a good one.
    if request.kind != map_pirq_type::MULTI_MSI && request.index != -1 {
        return Err(Errno::EINVAL);
    }
    let [bus, high, segment_low, segment_high] = request.bus.to_le_bytes();
    let devfn = u8::try_from(request.devfn).map_err(|_| Errno::EINVAL)?;
    let segment = u16::from_le_bytes([segment_low, segment_high]);
    if high != 0 || (request.kind == map_pirq_type::MSI && segment != 0) {
        return Err(Errno::EINVAL);
    }
    let function = Function {
        segment,
        at: PciFunction { bus, devfn },
    };
    if request.table_base != 0 && request.kind != map_pirq_type::MULTI_MSI {
        let entry = u16::try_from(request.entry_nr).map_err(|_| Errno::EINVAL)?;
        return Ok(MessageRequest::MsiX {
            function,
            entry,
            region: request.table_base,
        });
    }
    let count = if request.kind == map_pirq_type::MULTI_MSI {
        request.entry_nr
    } else {
        1
    };
    if request.table_base != 0 {
        return Err(Errno::EINVAL);
    }
    if !(1..=MAX_BLOCK).contains(&count) {
        return Err(Errno::EDOM);
    }
    Ok(MessageRequest::Msi {
        function,
        count: u8::try_from(count).map_err(|_| Errno::EDOM)?,
    })
}

/// Where a domain programs an IO-APIC itself, as kernels of long ago did, the pin is set up and mapped accordingly:
/// the low half of an unmasked entry carries the pirq in place of a vector. Everything else is no business of its.
fn apic_write(wanted: abi::Apic) -> Result<(), Errno> {
    const FIRST_ENTRY: u32 = 0x10;
    const MASKED: u32 = 1 << 16;
    const LEVEL: u32 = 1 << 15;
    const LOW: u32 = 1 << 13;
    const DELIVERY: u32 = 0b111 << 8;
    const LOWEST_PRIORITY: u32 = 0b001 << 8;
    let base = Maddr::new(wanted.apic_physbase);
    ioapic::read_register(base, 0).ok_or(Errno::EINVAL)?;
    let is_low_half = wanted.reg >= FIRST_ENTRY && wanted.reg & 1 == 0;
    if !is_low_half || wanted.value & MASKED != 0 {
        return Ok(());
    }
    if wanted.value & DELIVERY > LOWEST_PRIORITY {
        return Err(Errno::EINVAL);
    }
    let line = irq::line_of_pin(base, (wanted.reg - FIRST_ENTRY) / 2).ok_or(Errno::EINVAL)?;
    let dom0 = domain::by_id(ferroxen_words::DomId::DOM0).ok_or(Errno::ESRCH)?;
    match irq::set_up_line(line, wanted.value & LEVEL != 0, wanted.value & LOW != 0) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(why) => return Err(why),
    }
    if !dom0.io.lock().allows_irq(line) {
        return Err(Errno::EPERM);
    }
    let pirq = if line >= 256 { line } else { wanted.value & 0xff };
    match irq::map_line(&dom0, Some(Pirq::new(pirq)), line) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(why) => Err(why),
    }
}

fn pci_device_add(at: u64) -> Result<(), Errno> {
    let device: abi::PciDeviceAdd = read(at)?;
    if device.flags & !(pci_dev::EXTFN | pci_dev::VIRTFN | pci_dev::PXM) != 0 {
        crate::guest!(Debug, "pci_device_add: flags {:#x} mean nothing here", device.flags);
    }
    let name = |bus, devfn| Function {
        segment: device.seg,
        at: PciFunction { bus, devfn },
    };
    let owner = (device.flags & pci_dev::VIRTFN != 0).then(|| name(device.physfn.bus, device.physfn.devfn));
    irq::add_function(name(device.bus, device.devfn), owner)
}

/// Domain 0 has found a window to configuration space reserved, as it must be. We know the same windows from ACPI.
fn mmcfg_reserved(wanted: abi::PciMmcfgReserved) -> Result<(), Errno> {
    if wanted.start_bus > wanted.end_bus || wanted.flags & !abi::MMCFG_RESERVED != 0 {
        return Err(Errno::EINVAL);
    }
    let is_known = crate::firmware::platform().pci_windows.iter().any(|window| {
        let (first, last) = window.buses;
        window.segment == wanted.segment
            && window.base == wanted.address
            && first <= wanted.start_bus
            && wanted.end_bus <= last
    });
    if is_known { Ok(()) } else { Err(Errno::ENODEV) }
}

fn on_segment_0(device: abi::ManagePci) -> Function {
    Function {
        segment: 0,
        at: PciFunction {
            bus: device.bus,
            devfn: device.devfn,
        },
    }
}

fn function(device: abi::PciDevice) -> Function {
    Function {
        segment: device.seg,
        at: PciFunction {
            bus: device.bus,
            devfn: device.devfn,
        },
    }
}

fn read<T: FromBytes + IntoBytes + Immutable>(at: u64) -> Result<T, Errno> {
    GuestPtr::new(at).read()
}

fn write<T: FromBytes + IntoBytes + Immutable>(at: u64, value: &T) -> Result<(), Errno> {
    GuestPtr::new(at).write(value)
}
