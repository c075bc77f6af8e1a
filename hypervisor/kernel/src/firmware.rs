//! What firmware's tables say of this machine, gathered once.

use crate::console::Level;
use alloc::boxed::Box;
use ferroxen_loader::acpi::{Fadt, Hpet, Madt, Memory, PciWindow, RootPointer, Tables};
use ferroxen_machine::handoff;
use ferroxen_words::Maddr;

/// The machine as ACPI describes it; empty where there are no tables.
#[derive(Default)]
pub struct Platform {
    /// CPUs and interrupt controllers.
    pub madt: Box<Madt>,
    /// Fixed hardware.
    pub fadt: Option<Fadt>,
    /// High precision timer.
    pub hpet: Option<Hpet>,
    /// Windows to PCI configuration space.
    pub pci_windows: alloc::vec::Vec<PciWindow>,
    /// An IOMMU is there (we do not use it yet).
    pub has_iommu: bool,
}

static PLATFORM: spin::Once<Platform> = spin::Once::new();

/// The machine as ACPI describes it.
pub fn platform() -> &'static Platform {
    PLATFORM.call_once(Platform::default)
}

struct Physical;

impl Memory for Physical {
    fn read(&self, at: u64, into: &mut [u8]) -> bool {
        handoff::read_firmware(Maddr::new(at), into)
    }
}

/// Reads the tables, from the root pointer that the loader gave or that is found where a BIOS leaves it.
pub fn read(root: Option<&[u8]>) -> &'static Platform {
    PLATFORM.call_once(|| {
        let found = match root {
            Some(bytes) => RootPointer::from_bytes(bytes),
            None => RootPointer::search(&Physical),
        };
        match found.and_then(|root| Tables::new(&Physical, &root)) {
            Ok(tables) => gather(&tables),
            Err(why) => {
                crate::console::print(Level::Warn, format_args!("ACPI: {why:?}: one CPU, no IO-APIC"));
                Platform::default()
            }
        }
    })
}

fn gather(tables: &Tables<'_, Physical>) -> Platform {
    let platform = Platform {
        madt: tables.madt().map(Box::new).unwrap_or_default(),
        fadt: tables.fadt(),
        hpet: tables.hpet(),
        pci_windows: tables.pci_windows().into_iter().collect(),
        has_iommu: tables.describes_iommu(),
    };
    if platform.madt.dropped != 0 {
        crate::warn!("ACPI: {} entries of the MADT found no room", platform.madt.dropped);
    }
    crate::info!(
        "ACPI: {} CPUs, {} IO-APICs, {} PCI windows{}",
        platform.madt.cpus.len(),
        platform.madt.ioapics.len(),
        platform.pci_windows.len(),
        if platform.has_iommu {
            ", an IOMMU (not used)"
        } else {
            ""
        }
    );
    platform
}
