//! Devices' own interrupt registers: MSI and MSI-X, programmed by us as upstream does.
//!
//! Domain 0 finds devices, places their regions and switches the capabilities on; which vector of which CPU a
//! message carries is ours alone to know. Only functions of PCI segment 0 can be reached.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use ferroxen_abi::errno::Errno;
use ferroxen_irqs::Irq;
use ferroxen_irqs::msi::{self, Configuration, Msi, MsiX, TABLE_ENTRY};
use ferroxen_machine::msi::{Message, TablePage};
use ferroxen_machine::port::{self, PciFunction, Width};
use ferroxen_words::{Maddr, PAGE_SIZE};

/// Pages of MSI-X tables that may be mapped: far more than any machine has.
const MAX_TABLE_PAGES: usize = 1024;
/// Functions that may be known.
const MAX_FUNCTIONS: usize = 65536;

/// A function's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Function {
    /// Segment ("domain", elsewhere).
    pub segment: u16,
    /// Bus and device.
    pub at: PciFunction,
}

impl core::fmt::Display for Function {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let PciFunction { bus, devfn } = self.at;
        write!(f, "{:04x}:{bus:02x}:{:02x}.{}", self.segment, devfn >> 3, devfn & 7)
    }
}

/// What a domain asks for.
#[derive(Clone, Copy, Debug)]
pub enum MessageRequest {
    /// So many messages by the MSI capability.
    Msi {
        /// Whose.
        function: Function,
        /// How many, 1 to 32.
        count: u8,
    },
    /// One entry of the MSI-X table.
    MsiX {
        /// Whose.
        function: Function,
        /// Which.
        entry: u16,
        /// Where Domain 0 says that the table's region lies (virtual functions do not say themselves).
        region: u64,
    },
}

impl MessageRequest {
    /// How many interrupts that makes.
    pub fn count(self) -> u8 {
        match self {
            MessageRequest::Msi { count, .. } => count,
            MessageRequest::MsiX { .. } => 1,
        }
    }
}

/// Why a request fails.
#[derive(Clone, Copy, Debug)]
pub enum NotMapped {
    /// Refused.
    Refused(Errno),
    /// The device has only so many messages.
    OnlySoMany(u8),
}

impl From<Errno> for NotMapped {
    fn from(why: Errno) -> NotMapped {
        NotMapped::Refused(why)
    }
}

/// Where one message is kept.
#[derive(Clone, Copy)]
pub(super) struct Source {
    function: Function,
    register: Register,
    /// Not masked by us.
    runs: bool,
}

#[derive(Clone, Copy)]
enum Register {
    Msi {
        capability: Msi,
        index: u8,
        count: u8,
    },
    MsiX {
        capability: MsiX,
        entry: u16,
        page: TablePage,
        slot: usize,
    },
}

/// All that is known of devices.
#[derive(Default)]
pub(super) struct Devices {
    functions: BTreeSet<Function>,
    /// Virtual functions, and whose they are.
    virtuals: BTreeMap<Function, Function>,
    sources: BTreeMap<Irq, Source>,
    tables: BTreeMap<u64, TablePage>,
}

/// A function's configuration space, first 256 bytes.
struct Space(PciFunction);

impl Configuration for Space {
    fn read8(&self, at: u8) -> u8 {
        port::pci_read(self.0, at, Width::Byte).map_or(0xff, |value| value as u8)
    }

    fn read16(&self, at: u8) -> u16 {
        port::pci_read(self.0, at, Width::Word).map_or(0xffff, |value| value as u16)
    }

    fn read32(&self, at: u8) -> u32 {
        port::pci_read(self.0, at, Width::Dword).unwrap_or(u32::MAX)
    }

    fn write16(&mut self, at: u8, value: u16) {
        let _ = port::pci_write(self.0, at, Width::Word, value.into());
    }

    fn write32(&mut self, at: u8, value: u32) {
        let _ = port::pci_write(self.0, at, Width::Dword, value);
    }
}

/// A function that answers.
fn present(function: Function) -> Result<Space, Errno> {
    let space = Space(function.at);
    if function.segment == 0 && msi::is_present(&space) {
        Ok(space)
    } else {
        Err(Errno::ENODEV)
    }
}

pub(super) fn has_msix(function: Function) -> Result<(), Errno> {
    MsiX::find(&present(function)?).map(|_| ()).ok_or(Errno::ENODEV)
}

impl Devices {
    /// Checks that the device can do what is asked; nothing is changed yet.
    pub(super) fn prepare(&mut self, request: MessageRequest) -> Result<Vec<(Function, Prepared)>, NotMapped> {
        match request {
            MessageRequest::Msi { function, count } => self.prepare_msi(function, count),
            MessageRequest::MsiX {
                function,
                entry,
                region,
            } => self.prepare_msix(function, entry, region),
        }
    }

    fn prepare_msi(&mut self, function: Function, count: u8) -> Result<Vec<(Function, Prepared)>, NotMapped> {
        let capability = Msi::find(&present(function)?).ok_or(Errno::ENODEV)?;
        if self.sources.values().any(|source| source.function == function) {
            return Err(Errno::EEXIST.into());
        }
        if count > capability.max_messages {
            return Err(NotMapped::OnlySoMany(capability.max_messages));
        }
        let register = |index| Register::Msi {
            capability,
            index,
            count,
        };
        Ok((0..count).map(|index| (function, Prepared(register(index)))).collect())
    }

    fn prepare_msix(
        &mut self,
        function: Function,
        entry: u16,
        region: u64,
    ) -> Result<Vec<(Function, Prepared)>, NotMapped> {
        let space = present(function)?;
        let capability = MsiX::find(&space).ok_or(Errno::ENODEV)?;
        if entry >= capability.entries {
            return Err(Errno::EINVAL.into());
        }
        let is_taken = |source: &Source| {
            source.function == function
                && match source.register {
                    Register::Msi { .. } => true,
                    Register::MsiX { entry: other, .. } => other == entry,
                }
        };
        if self.sources.values().any(is_taken) {
            return Err(Errno::EEXIST.into());
        }
        let is_virtual = self.virtuals.contains_key(&function);
        if !is_virtual && !msi::decodes_memory(&space) {
            return Err(Errno::ENXIO.into());
        }
        let table = if is_virtual {
            region.checked_add(capability.offset.into())
        } else {
            capability.table(&space)
        };
        let at = table
            .and_then(|table| table.checked_add(u64::from(entry) * TABLE_ENTRY))
            .ok_or(Errno::EINVAL)?;
        let page = self.table_page(at & !(PAGE_SIZE as u64 - 1))?;
        let slot = (at as usize % PAGE_SIZE) / TABLE_ENTRY as usize;
        let register = Register::MsiX {
            capability,
            entry,
            page,
            slot,
        };
        Ok(Vec::from([(function, Prepared(register))]))
    }

    /// The page of a table, mapped the first time that it is met.
    fn table_page(&mut self, at: u64) -> Result<TablePage, Errno> {
        if let Some(page) = self.tables.get(&at) {
            return Ok(*page);
        }
        if super::permissions::is_ram(at) || at >> ferroxen_machine::cpu::features().physical_bits != 0 {
            return Err(Errno::EINVAL);
        }
        if self.tables.len() >= MAX_TABLE_PAGES {
            return Err(Errno::ENOMEM);
        }
        let page = TablePage::map(Maddr::new(at)).ok_or(Errno::EINVAL)?;
        self.tables.insert(at, page);
        Ok(page)
    }

    /// Writes what was prepared, masked. The messages' irqs follow each other from `first`.
    pub(super) fn add(&mut self, first: Irq, prepared: Vec<(Function, Prepared)>, message: Message) {
        for ((function, Prepared(register)), number) in prepared.into_iter().zip(first.raw()..) {
            let source = Source {
                function,
                register,
                runs: false,
            };
            source.write(message);
            self.sources.insert(Irq::new(number), source);
        }
    }

    /// Lets a message through.
    pub(super) fn start(&mut self, irq: Irq) {
        let Some(source) = self.sources.get_mut(&irq) else {
            return;
        };
        source.runs = true;
        source.set_masked(false);
        source.enable(true);
    }

    /// Holds a message back, where the device can.
    pub(super) fn stop(&mut self, irq: Irq) {
        let Some(source) = self.sources.get_mut(&irq) else {
            return;
        };
        source.runs = false;
        source.set_masked(true);
    }

    /// Takes messages away from their device.
    pub(super) fn remove(&mut self, first: Irq, count: u8) {
        for number in (first.raw()..).take(count.into()) {
            let Some(source) = self.sources.remove(&Irq::new(number)) else {
                continue;
            };
            source.set_masked(true);
            if matches!(source.register, Register::Msi { .. }) {
                source.enable(false);
            }
        }
    }

    /// Tells whether a message can be changed without the device sending a mixture of old and new.
    pub(super) fn can_move(&self, irq: Irq) -> bool {
        !self.sources.get(&irq).is_some_and(
            |source| matches!(source.register, Register::Msi { capability, .. } if !capability.is_maskable),
        )
    }

    /// Writes another message in the old one's place.
    pub(super) fn rewrite(&mut self, irq: Irq, message: Message) {
        let Some(source) = self.sources.get(&irq) else { return };
        source.write(message);
        if source.runs {
            source.set_masked(false);
        }
    }

    /// A device's messages.
    pub(super) fn messages_of(&self, function: Function) -> Vec<Irq> {
        self.sources
            .iter()
            .filter(|(_, source)| source.function == function)
            .map(|(irq, _)| *irq)
            .collect()
    }

    pub(super) fn add_function(&mut self, function: Function, virtual_of: Option<Function>) -> Result<(), Errno> {
        if function.segment != 0 {
            return Err(Errno::ENODEV);
        }
        if self.functions.len() >= MAX_FUNCTIONS && !self.functions.contains(&function) {
            return Err(Errno::ENOMEM);
        }
        if let Some(owner) = virtual_of {
            self.virtuals.insert(function, owner);
        }
        self.functions.insert(function);
        Ok(())
    }

    pub(super) fn has_function(&self, function: Function) -> bool {
        self.functions.contains(&function)
    }

    pub(super) fn remove_function(&mut self, function: Function) -> Result<(), Errno> {
        self.virtuals.remove(&function);
        if !self.functions.remove(&function) && present(function).is_err() {
            return Err(Errno::ENODEV);
        }
        // Its pirqs stay its domain's until unmapped, but nothing arrives by them any more.
        for irq in self.messages_of(function) {
            self.stop(irq);
        }
        Ok(())
    }
}

/// A register that was found fit; only [`Devices::add`] takes it.
pub(super) struct Prepared(Register);

impl Source {
    fn space(&self) -> Space {
        Space(self.function.at)
    }

    /// Writes the message, and leaves it masked (where the device can mask).
    fn write(&self, message: Message) {
        match self.register {
            // The first message's register is the block's.
            Register::Msi {
                capability,
                index: 0,
                count,
            } => {
                capability.program(&mut self.space(), message.address, message.data, count);
            }
            Register::Msi { .. } => {}
            Register::MsiX {
                capability, page, slot, ..
            } => {
                // Some devices keep entries only while the capability is on.
                let mut space = self.space();
                let control = capability.hold(&mut space);
                page.set(slot, message);
                capability.restore(&mut space, control);
            }
        }
    }

    fn set_masked(&self, masked: bool) {
        match self.register {
            Register::Msi { capability, index, .. } => capability.mask(&mut self.space(), index, masked),
            // A device that was switched off answers nothing; writing to where it was does no harm.
            Register::MsiX { page, slot, .. } => page.mask(slot, masked),
        }
    }

    fn enable(&self, enabled: bool) {
        match self.register {
            Register::Msi { capability, .. } => capability.enable(&mut self.space(), enabled),
            Register::MsiX { capability, .. } => capability.enable(&mut self.space(), enabled),
        }
    }
}
