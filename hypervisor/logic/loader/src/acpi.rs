//! The static ACPI tables that a hypervisor needs before Domain 0 interprets the rest.
//!
//! CPUs and interrupt controllers (MADT), timers and registers for reset and sleep (FADT, HPET), PCI
//! configuration windows (MCFG), and whether an IOMMU is described. No AML: that is Domain 0's.
//!
//! Nothing in a table can make us panic or read beyond it: reading goes through [`Memory`], by copy and with a check of
//! every bound; every table's checksum is verified, and nothing is allocated. (Why not by other people's crate:
//! docs/decisions/0005.)
//!
//! Source: "ACPI Specification 6.5" chapter 5.2; HPET and MCFG from their own specifications.

use arrayvec::ArrayVec;

/// Machine memory, as far as it is there.
pub trait Memory {
    /// Fills `bytes` from machine address `at`; `false` if not all of it can be read.
    fn read(&self, at: u64, bytes: &mut [u8]) -> bool;
}

/// CPUs taken in.
pub const MAX_CPUS: usize = 512;

/// Why a table cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadAcpi {
    /// No root pointer was found.
    NoRootPointer,
    /// Not readable, too short or longer than any table is.
    Malformed([u8; 4]),
    /// A checksum is wrong.
    Checksum([u8; 4]),
}

/// The root pointer's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootPointer {
    /// Address of the RSDT.
    pub rsdt: u64,
    /// Address of the XSDT, from ACPI 2 on.
    pub xsdt: Option<u64>,
}

impl RootPointer {
    /// Reads the structure, as a boot loader hands it over.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadAcpi> {
        const NAME: [u8; 4] = *b"RSDP";
        let first = bytes.get(..20).ok_or(BadAcpi::Malformed(NAME))?;
        if !first.starts_with(b"RSD PTR ") {
            return Err(BadAcpi::Malformed(NAME));
        }
        if sum(first) != 0 {
            return Err(BadAcpi::Checksum(NAME));
        }
        let rsdt = u64::from(u32_at(bytes, 16));
        let xsdt = match bytes.get(..36) {
            Some(all) if first[15] >= 2 && sum(all) == 0 => Some(u64_at(all, 24)).filter(|&at| at != 0),
            _ => None,
        };
        Ok(RootPointer { rsdt, xsdt })
    }

    /// Looks where a BIOS leaves it: the first KiB of the extended BIOS data area, and 0xe0000 on.
    pub fn search(memory: &impl Memory) -> Result<Self, BadAcpi> {
        let mut segment = [0; 2];
        let ebda = match memory.read(0x40e, &mut segment) {
            true => u64::from(u16::from_le_bytes(segment)) << 4,
            false => 0,
        };
        let ebda = if (0x400..0xa_0000).contains(&ebda) {
            ebda..ebda + 1024
        } else {
            0..0
        };
        for at in ebda.chain(0xe_0000..0x10_0000).step_by(16) {
            let mut bytes = [0; 36];
            if memory.read(at, &mut bytes[..8])
                && bytes.starts_with(b"RSD PTR ")
                && memory.read(at, &mut bytes)
                && let Ok(found) = RootPointer::from_bytes(&bytes)
            {
                return Ok(found);
            }
        }
        Err(BadAcpi::NoRootPointer)
    }
}

/// The tables behind a root pointer.
pub struct Tables<'m, M> {
    memory: &'m M,
    list: Table<'m, M>,
    entry_size: u64,
}

/// One table, checksum verified.
pub struct Table<'m, M> {
    memory: &'m M,
    /// Where it lies.
    pub at: u64,
    /// Its whole length.
    pub length: u64,
    /// Its signature.
    pub signature: [u8; 4],
}

/// A CPU that can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// ACPI's number, by which Domain 0 names CPUs.
    pub acpi_id: u32,
    /// The local APIC's id.
    pub apic_id: u32,
    /// Usable now; else it can only be brought online later.
    pub is_enabled: bool,
}

/// An IO-APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Its registers.
    pub address: u64,
    /// The GSI of its first input.
    pub gsi_base: u32,
}

/// Polarity and trigger as MPS INTI flags tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line(pub u16);

impl Line {
    /// Low means interrupt; `None`: as the bus has it.
    pub fn is_active_low(self) -> Option<bool> {
        match self.0 & 3 {
            1 => Some(false),
            3 => Some(true),
            _ => None,
        }
    }

    /// Level, not edge; `None`: as the bus has it.
    pub fn is_level(self) -> Option<bool> {
        match self.0 >> 2 & 3 {
            1 => Some(false),
            3 => Some(true),
            _ => None,
        }
    }
}

/// An ISA interrupt that is not identity mapped, or not edge and high.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Override {
    /// ISA interrupt.
    pub irq: u8,
    /// Where it arrives.
    pub gsi: u32,
    /// How it looks there.
    pub line: Line,
}

/// NMI on a local interrupt pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalNmi {
    /// ACPI's number of the CPU; `None` for all.
    pub acpi_id: Option<u32>,
    /// 0 or 1.
    pub lint: u8,
    /// How it looks there.
    pub line: Line,
}

/// CPUs and interrupt controllers. About 8 KiB.
#[derive(Clone, Debug, Default)]
pub struct Madt {
    /// Where the local APICs' registers are.
    pub lapic_address: u64,
    /// There are two 8259s to be masked.
    pub has_pics: bool,
    /// In the table's order, the boot CPU usually first.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// IO-APICs.
    pub ioapics: ArrayVec<IoApic, 32>,
    /// Interrupt source overrides.
    pub overrides: ArrayVec<Override, 32>,
    /// NMIs at GSIs.
    pub nmi_sources: ArrayVec<(u32, Line), 8>,
    /// NMIs at local pins.
    pub local_nmis: ArrayVec<LocalNmi, 32>,
    /// What found no room.
    pub dropped: usize,
}

/// A register, wherever it is (generic address structure).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// 0 memory, 1 I/O port, 2 PCI configuration.
    pub space: u8,
    /// Width in bits.
    pub bits: u8,
    /// Its address.
    pub address: u64,
}

impl Register {
    /// The port, if it is one.
    pub fn port(&self) -> Option<u16> {
        (self.space == 1).then(|| u16::try_from(self.address).ok()).flatten()
    }
}

/// Fixed hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fadt {
    /// GSI of the system control interrupt.
    pub sci: u16,
    /// 3.579545 MHz counter.
    pub pm_timer: Option<Register>,
    /// The counter has 32 bits, not 24.
    pub pm_timer_is_32_bit: bool,
    /// Event blocks: status, then enable.
    pub pm1a_event: Option<Register>,
    /// Second event block.
    pub pm1b_event: Option<Register>,
    /// Control registers, which start sleep.
    pub pm1a_control: Option<Register>,
    /// Second control register.
    pub pm1b_control: Option<Register>,
    /// Sleep control and status of hardware-reduced machines.
    pub sleep: Option<(Register, Register)>,
    /// What to write where for a reset.
    pub reset: Option<(Register, u8)>,
    /// Firmware control structure.
    pub facs: u64,
    /// The code table.
    pub dsdt: u64,
    /// No fixed hardware at all.
    pub is_hardware_reduced: bool,
    /// There is no VGA to write to.
    pub lacks_vga: bool,
    /// There is no CMOS clock.
    pub lacks_rtc: bool,
    /// Where in CMOS memory that clock keeps the century.
    pub century: Option<u8>,
}

/// The high precision timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hpet {
    /// Its registers.
    pub address: u64,
    /// Number of comparators.
    pub comparators: u8,
    /// Smallest tick in periodic mode.
    pub min_tick: u16,
}

/// A window to PCI configuration space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciWindow {
    /// Address of bus 0, wherever the window begins.
    pub base: u64,
    /// PCI segment.
    pub segment: u16,
    /// First and last bus.
    pub buses: (u8, u8),
}

impl<'m, M: Memory> Tables<'m, M> {
    /// Follows the root pointer, to the XSDT where there is one.
    pub fn new(memory: &'m M, root: &RootPointer) -> Result<Self, BadAcpi> {
        if let Some(list) = root
            .xsdt
            .and_then(|at| Table::at(memory, at).ok())
            .filter(|list| &list.signature == b"XSDT")
        {
            return Ok(Tables {
                memory,
                list,
                entry_size: 8,
            });
        }
        let list = Table::at(memory, root.rsdt)?;
        if &list.signature != b"RSDT" {
            return Err(BadAcpi::Malformed(*b"RSDT"));
        }
        Ok(Tables {
            memory,
            list,
            entry_size: 4,
        })
    }

    /// All tables that are readable and sound.
    pub fn iter(&self) -> impl Iterator<Item = Table<'m, M>> + '_ {
        let count = (self.list.length - HEADER) / self.entry_size;
        (0..count).filter_map(move |index| {
            let mut bytes = [0; 8];
            let target = bytes.get_mut(..self.entry_size as usize)?;
            self.list.read(HEADER + index * self.entry_size, target)?;
            Table::at(self.memory, u64::from_le_bytes(bytes)).ok()
        })
    }

    /// The first table of that signature.
    pub fn find(&self, signature: &[u8; 4]) -> Option<Table<'m, M>> {
        self.iter().find(|table| &table.signature == signature)
    }

    /// Whether an IOMMU is described (DMAR by Intel, IVRS by AMD).
    pub fn describes_iommu(&self) -> bool {
        self.find(b"DMAR").is_some() || self.find(b"IVRS").is_some()
    }

    /// CPUs and interrupt controllers.
    pub fn madt(&self) -> Option<Madt> {
        let table = self.find(b"APIC")?;
        let mut madt = Madt {
            lapic_address: u64::from(table.u32(36)?),
            has_pics: table.u32(40)? & 1 != 0,
            ..Madt::default()
        };
        let mut at = 44;
        while let (Some(kind), Some(length)) = (table.u8(at), table.u8(at + 1)) {
            if length < 2 || at + u64::from(length) > table.length {
                break;
            }
            madt.add(&table, kind, at, u64::from(length));
            at += u64::from(length);
        }
        Some(madt)
    }

    /// Fixed hardware.
    pub fn fadt(&self) -> Option<Fadt> {
        let table = self.find(b"FACP")?;
        let flags = table.u32(112)?;
        let boot = table.u16(109).unwrap_or(0);
        // The newer, wider field counts where it is there and not empty.
        let register = |wide: u64, old: u64, length: u64| {
            let legacy = || {
                let port = table.u32(old).filter(|&port| port != 0)?;
                Some(Register {
                    space: 1,
                    bits: table.u8(length)?.saturating_mul(8),
                    address: u64::from(port),
                })
            };
            table.register(wide).or_else(legacy)
        };
        let wide_or = |wide: u64, old: u64| {
            table
                .u64(wide)
                .filter(|&at| at != 0)
                .unwrap_or(u64::from(table.u32(old).unwrap_or(0)))
        };
        let reset = (flags & 1 << 10 != 0)
            .then(|| table.register(116).zip(table.u8(128)))
            .flatten();
        Some(Fadt {
            sci: table.u16(46)?,
            pm_timer: register(208, 76, 91),
            pm_timer_is_32_bit: flags & 1 << 8 != 0,
            pm1a_event: register(148, 56, 88),
            pm1b_event: register(160, 60, 88),
            pm1a_control: register(172, 64, 89),
            pm1b_control: register(184, 68, 89),
            sleep: table.register(244).zip(table.register(256)),
            reset,
            facs: wide_or(132, 36),
            dsdt: wide_or(140, 40),
            is_hardware_reduced: flags & 1 << 20 != 0,
            lacks_vga: boot & 1 << 2 != 0,
            lacks_rtc: boot & 1 << 5 != 0,
            century: table.u8(108).filter(|&index| index != 0),
        })
    }

    /// The high precision timer, if its registers are in memory.
    pub fn hpet(&self) -> Option<Hpet> {
        let table = self.find(b"HPET")?;
        let register = table.register(40).filter(|register| register.space == 0)?;
        let comparators = (table.u32(36)? >> 8 & 0x1f) as u8 + 1;
        Some(Hpet {
            address: register.address,
            comparators,
            min_tick: table.u16(53)?,
        })
    }

    /// Windows to PCI configuration space.
    pub fn pci_windows(&self) -> ArrayVec<PciWindow, 16> {
        let Some(table) = self.find(b"MCFG") else {
            return ArrayVec::new();
        };
        let windows = (0..16).map_while(|index| {
            let at = 44 + index * 16;
            Some(PciWindow {
                base: table.u64(at)?,
                segment: table.u16(at + 8)?,
                buses: (table.u8(at + 10)?, table.u8(at + 11)?),
            })
        });
        windows
            .filter(|window| window.base != 0 && window.buses.0 <= window.buses.1)
            .collect()
    }
}

impl Madt {
    fn add<M: Memory>(&mut self, table: &Table<'_, M>, kind: u8, at: u64, length: u64) {
        let cpu = |acpi_id, apic_id, flags: u32| {
            (flags & 3 != 0).then_some(Cpu {
                acpi_id,
                apic_id,
                is_enabled: flags & 1 != 0,
            })
        };
        let u8 = |offset| table.u8(at + offset).map_or(0, u32::from);
        let u16 = |offset| table.u16(at + offset).unwrap_or(0);
        let u32 = |offset| table.u32(at + offset).unwrap_or(0);
        let kept = match kind {
            0 if length >= 8 => cpu(u8(2), u8(3), u32(4)).is_none_or(|cpu| self.add_cpu(cpu)),
            1 if length >= 12 => {
                let ioapic = IoApic {
                    id: u8(2) as u8,
                    address: u64::from(u32(4)),
                    gsi_base: u32(8),
                };
                self.ioapics.try_push(ioapic).is_ok()
            }
            2 if length >= 10 => {
                let told = Override {
                    irq: u8(3) as u8,
                    gsi: u32(4),
                    line: Line(u16(8)),
                };
                self.overrides.try_push(told).is_ok()
            }
            3 if length >= 8 => self.nmi_sources.try_push((u32(4), Line(u16(2)))).is_ok(),
            4 if length >= 6 => {
                let acpi_id = Some(u8(2)).filter(|&id| id != 0xff);
                self.local_nmis
                    .try_push(LocalNmi {
                        acpi_id,
                        lint: u8(5) as u8,
                        line: Line(u16(3)),
                    })
                    .is_ok()
            }
            5 if length >= 12 => {
                self.lapic_address = table.u64(at + 4).unwrap_or(self.lapic_address);
                true
            }
            9 if length >= 16 => cpu(u32(12), u32(4), u32(8)).is_none_or(|cpu| self.add_cpu(cpu)),
            10 if length >= 12 => {
                let acpi_id = Some(u32(4)).filter(|&id| id != !0);
                self.local_nmis
                    .try_push(LocalNmi {
                        acpi_id,
                        lint: u8(8) as u8,
                        line: Line(u16(2)),
                    })
                    .is_ok()
            }
            _ => true,
        };
        self.dropped += usize::from(!kept);
    }

    /// Firmware may list a CPU as APIC and as x2APIC.
    fn add_cpu(&mut self, cpu: Cpu) -> bool {
        self.cpus.iter().any(|known| known.apic_id == cpu.apic_id) || self.cpus.try_push(cpu).is_ok()
    }
}

/// Length of the header that all tables share.
const HEADER: u64 = 36;
/// No table that we read is near this long; a longer one is garbage.
const LONGEST: u64 = 4 << 20;

impl<'m, M: Memory> Table<'m, M> {
    /// The table at that machine address.
    pub fn at(memory: &'m M, at: u64) -> Result<Self, BadAcpi> {
        let mut header = [0; 8];
        if at == 0 || !memory.read(at, &mut header) {
            return Err(BadAcpi::Malformed(*b"????"));
        }
        let signature = [header[0], header[1], header[2], header[3]];
        let length = u64::from(u32_at(&header, 4));
        if !(HEADER..=LONGEST).contains(&length) {
            return Err(BadAcpi::Malformed(signature));
        }
        let table = Table {
            memory,
            at,
            length,
            signature,
        };
        match table.sum() {
            Some(0) => Ok(table),
            Some(_) => Err(BadAcpi::Checksum(signature)),
            None => Err(BadAcpi::Malformed(signature)),
        }
    }

    /// Copies from the table; `None` beyond its end.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(bytes.len() as u64)?;
        (end <= self.length && self.memory.read(self.at.checked_add(offset)?, bytes)).then_some(())
    }

    fn sum(&self) -> Option<u8> {
        let mut total = 0u8;
        let mut chunk = [0; 256];
        let mut at = 0;
        while at < self.length {
            let part = chunk.get_mut(..(self.length - at).min(256) as usize)?;
            self.read(at, part)?;
            total = total.wrapping_add(sum(part));
            at += part.len() as u64;
        }
        Some(total)
    }

    fn bytes<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Some(bytes)
    }

    fn u8(&self, offset: u64) -> Option<u8> {
        self.bytes::<1>(offset).map(|[byte]| byte)
    }

    fn u16(&self, offset: u64) -> Option<u16> {
        self.bytes(offset).map(u16::from_le_bytes)
    }

    fn u32(&self, offset: u64) -> Option<u32> {
        self.bytes(offset).map(u32::from_le_bytes)
    }

    fn u64(&self, offset: u64) -> Option<u64> {
        self.bytes(offset).map(u64::from_le_bytes)
    }

    fn register(&self, offset: u64) -> Option<Register> {
        let register = Register {
            space: self.u8(offset)?,
            bits: self.u8(offset + 1)?,
            address: self.u64(offset + 4)?,
        };
        (register.address != 0).then_some(register)
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |total, byte| total.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |field| u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |field| u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    struct Ram(Vec<u8>);

    impl Memory for Ram {
        fn read(&self, at: u64, bytes: &mut [u8]) -> bool {
            let range = usize::try_from(at)
                .ok()
                .and_then(|at| Some(at..at.checked_add(bytes.len())?));
            match range.and_then(|range| self.0.get(range)) {
                Some(found) => {
                    bytes.copy_from_slice(found);
                    true
                }
                None => false,
            }
        }
    }

    impl Ram {
        fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }

        /// A table of signature and body, its checksum made right.
        fn table(&mut self, at: usize, signature: &[u8; 4], body: &[u8]) {
            let mut table = signature.to_vec();
            table.extend((36 + body.len() as u32).to_le_bytes());
            table.resize(36, 0);
            table.extend(body);
            table[9] = 0u8.wrapping_sub(sum(&table));
            self.put(at, &table);
        }
    }

    /// QEMU's q35 with two CPUs, in the main.
    fn machine() -> Ram {
        let mut ram = Ram(vec![0; 0x10_0000]);
        let mut madt = vec![0, 0, 0xe0, 0xfe, 1, 0, 0, 0];
        madt.extend([0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 1, 1, 0, 0, 0, 0, 8, 2, 2, 0, 0, 0, 0]);
        madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        madt.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 2, 10, 0, 9, 9, 0, 0, 0, 13, 0]);
        madt.extend([4, 6, 0xff, 0, 0, 1]);
        madt.extend([9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
        ram.table(0x1000, b"APIC", &madt);
        let mut fadt = vec![0; 244 - 36];
        let mut put = |at: usize, bytes: &[u8]| fadt[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
        put(40, &0x5000u32.to_le_bytes());
        put(46, &9u16.to_le_bytes());
        put(64, &0x604u32.to_le_bytes());
        put(76, &0x608u32.to_le_bytes());
        put(89, &[2]);
        put(91, &[4]);
        put(108, &[0x32]);
        put(112, &(1u32 << 10 | 1 << 8).to_le_bytes());
        put(116, &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 0x0f]);
        put(172, &[1, 16, 0, 2, 0x04, 0x06, 0, 0, 0, 0, 0, 0]);
        ram.table(0x2000, b"FACP", &fadt);
        ram.table(
            0x3000,
            b"HPET",
            &[
                1, 0xa2, 0x86, 0x80, 0, 0, 0, 0, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        );
        ram.table(
            0x4000,
            b"MCFG",
            &[
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0,
            ],
        );
        let list: Vec<u8> = [0x1000u64, 0x2000, 0x3000, 0x4000]
            .iter()
            .flat_map(|at| at.to_le_bytes())
            .collect();
        ram.table(0x6000, b"XSDT", &list);
        let mut root = b"RSD PTR \0BOCHS \x02".to_vec();
        root.extend(0u32.to_le_bytes());
        root[8] = 0u8.wrapping_sub(sum(&root));
        root.extend(36u32.to_le_bytes());
        root.extend(0x6000u64.to_le_bytes());
        root.resize(36, 0);
        root[32] = 0u8.wrapping_sub(sum(&root));
        ram.put(0xf_0040, &root);
        ram
    }

    #[test]
    fn a_machine_is_described() {
        let ram = machine();
        let root = RootPointer::search(&ram).unwrap();
        assert_eq!(root.xsdt, Some(0x6000));
        let tables = Tables::new(&ram, &root).unwrap();
        let madt = tables.madt().unwrap();
        assert_eq!((madt.lapic_address, madt.has_pics), (0xfee0_0000, true));
        let ids: Vec<_> = madt.cpus.iter().map(|cpu| (cpu.acpi_id, cpu.apic_id)).collect();
        assert_eq!(ids, [(0, 0), (1, 1), (7, 0x100)]);
        assert_eq!(
            madt.ioapics[0],
            IoApic {
                id: 0,
                address: 0xfec0_0000,
                gsi_base: 0
            }
        );
        assert_eq!((madt.overrides[0].irq, madt.overrides[0].gsi), (0, 2));
        assert_eq!(madt.overrides[1].line.is_level(), Some(true));
        assert_eq!(madt.overrides[1].line.is_active_low(), Some(false));
        assert_eq!(
            madt.local_nmis[0],
            LocalNmi {
                acpi_id: None,
                lint: 1,
                line: Line(0)
            }
        );
        let fadt = tables.fadt().unwrap();
        assert_eq!((fadt.sci, fadt.dsdt, fadt.century), (9, 0x5000, Some(0x32)));
        assert_eq!(fadt.pm_timer.unwrap().port(), Some(0x608));
        assert_eq!(fadt.pm1a_control.unwrap().port(), Some(0x604));
        assert_eq!(
            fadt.reset.map(|(register, value)| (register.port(), value)),
            Some((Some(0xcf9), 0x0f))
        );
        assert_eq!(
            tables.hpet().unwrap(),
            Hpet {
                address: 0xfed0_0000,
                comparators: 3,
                min_tick: 0
            }
        );
        assert_eq!(
            tables.pci_windows()[0],
            PciWindow {
                base: 0xb000_0000,
                segment: 0,
                buses: (0, 255)
            }
        );
        assert!(!tables.describes_iommu());
    }

    #[test]
    fn a_bad_checksum_hides_a_table() {
        let mut ram = machine();
        ram.0[0x1030] ^= 1;
        let root = RootPointer::search(&ram).unwrap();
        assert!(Tables::new(&ram, &root).unwrap().madt().is_none());
        assert_eq!(Table::at(&ram, 0x1000).err(), Some(BadAcpi::Checksum(*b"APIC")));
        ram.0[0xf_0041] = 0;
        assert_eq!(RootPointer::search(&ram), Err(BadAcpi::NoRootPointer));
    }

    proptest! {
        #[test]
        fn damaged_tables_never_hang_or_panic(changes in prop::collection::vec((36usize..0x100, 0usize..4, any::<u8>()), 1..6)) {
            let mut ram = machine();
            for (offset, table, byte) in changes {
                let base = 0x1000 * (table + 1);
                let at = base + offset;
                // Make up for it in a byte that means nothing, so that the checksum holds.
                let change = byte.wrapping_sub(ram.0[at]);
                ram.0[at] = byte;
                ram.0[base + 10] = ram.0[base + 10].wrapping_sub(change);
            }
            let root = RootPointer::search(&ram).unwrap();
            let tables = Tables::new(&ram, &root).unwrap();
            drop((tables.madt(), tables.fadt(), tables.hpet(), tables.pci_windows(), tables.describes_iommu()));
        }
    }
}
