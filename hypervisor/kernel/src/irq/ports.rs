//! What a domain's IN and OUT do, once they have trapped.
//!
//! Most go to the port if the domain may use it. Two pairs of ports are shared by all who use them, so each domain
//! has its own copy of the address half: PCI's 0xcf8 with 0xcfc, and the CMOS memory's 0x70 with 0x71. Where a
//! The speaker's ports reach channel 2 of the 8254, whose other channels are ours. Where a
//! domain may not touch a port it reads all ones and its writes go nowhere, as on a bus where nobody answers.

use super::IoPermissions;
use crate::domain::Domain;
use ferroxen_machine::port::{self, Width};
use ferroxen_machine::{pit, rtc};

const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: core::ops::RangeInclusive<u16> = 0xcfc..=0xcff;
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
const PCI_ENABLE: u32 = 1 << 31;

/// IN.
pub fn read(domain: &Domain, at: u16, width: Width) -> u32 {
    let io = domain.io.lock();
    match at {
        PCI_ADDRESS if width == Width::Dword && domain.is_privileged => io.pci_address,
        CMOS_INDEX if width == Width::Byte && io.allows_ports(CMOS_INDEX, 2) => io.cmos_index.into(),
        CMOS_DATA if width == Width::Byte && io.allows_ports(CMOS_INDEX, 2) => rtc::cmos_read(io.cmos_index).into(),
        _ if PCI_DATA.contains(&at) => {
            let Some(address) = configuration(domain, &io) else {
                return width.ones();
            };
            drop(io);
            port::pci_read_raw(address, (at & 3) as u8, width).unwrap_or(width.ones())
        }
        _ if is_speaker(domain, at, width) => pit::speaker_read(at).map_or(width.ones(), u32::from),
        _ if io.allows_ports(at, width.bytes()) => port::read(at, width),
        _ => width.ones(),
    }
}

/// OUT.
pub fn write(domain: &Domain, at: u16, width: Width, value: u32) {
    let mut io = domain.io.lock();
    match at {
        PCI_ADDRESS if width == Width::Dword && domain.is_privileged => io.pci_address = value,
        CMOS_INDEX if width == Width::Byte && io.allows_ports(CMOS_INDEX, 2) => io.cmos_index = value as u8,
        CMOS_DATA if width == Width::Byte && io.allows_ports(CMOS_INDEX, 2) => {
            rtc::cmos_write(io.cmos_index, value as u8);
        }
        _ if PCI_DATA.contains(&at) => {
            let Some(address) = configuration(domain, &io) else {
                return;
            };
            drop(io);
            let _ = port::pci_write_raw(address, (at & 3) as u8, width, value);
        }
        _ if is_speaker(domain, at, width) => pit::speaker_write(at, value as u8),
        _ if io.allows_ports(at, width.bytes()) => port::write(at, width, value),
        _ => {}
    }
}

/// Whether these are the ports of the speaker, which Domain 0 shares with our timer.
fn is_speaker(domain: &Domain, at: u16, width: Width) -> bool {
    domain.is_privileged && width == Width::Byte && matches!(at, 0x42 | 0x43 | 0x61)
}

/// The address by which configuration space is to be reached, if the domain may and it is switched on.
fn configuration(domain: &Domain, io: &IoPermissions) -> Option<u32> {
    (domain.is_privileged && io.pci_address & PCI_ENABLE != 0).then_some(io.pci_address)
}
