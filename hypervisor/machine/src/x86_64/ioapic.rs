//! The IO-APICs: for each interrupt line, which CPU hears of it and as which vector.
//!
//! Lines go by global system interrupt number ([`Gsi`]); which controller and pin that is, is settled at boot from the
//! MADT. All lines are masked by [`init`].

use ferroxen_words::{Gsi, Maddr};
use spin::{Mutex, Once};

use super::paging::{self, Mmio};
use super::port::lock;
pub use crate::interrupts::{Polarity, Route, Trigger};
use crate::interrupts::{RTE_LEVEL, RTE_MASKED};

/// Controllers that we can hold.
pub const MAX: usize = 16;

const SELECT: usize = 0x00;
const WINDOW: usize = 0x10;

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const FIRST_ENTRY: u8 = 0x10;

/// What firmware says of one controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Described {
    /// Its id in the MADT.
    pub id: u8,
    /// Where its registers are.
    pub base: Maddr,
    /// The interrupt number of its first pin.
    pub first_gsi: Gsi,
}

/// One controller as it was found.
struct Controller {
    described: Described,
    pins: u8,
    offset: usize,
    registers: Mutex<Mmio>,
}

static CONTROLLERS: Once<[Option<Controller>; MAX]> = Once::new();

/// What is wrong with the controllers that firmware describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// More of them than [`MAX`].
    TooMany,
    /// Nothing answers at this address.
    NobodyThere(Maddr),
}

/// Takes the controllers into use and masks every pin. Controllers that do not answer are left out; the last such is
/// the error, and the others work nevertheless.
pub fn init(described: &[Described]) -> Result<(), Unusable> {
    let mut trouble = if described.len() > MAX {
        Err(Unusable::TooMany)
    } else {
        Ok(())
    };
    CONTROLLERS.call_once(|| {
        let mut controllers = [const { None }; MAX];
        for (slot, described) in controllers.iter_mut().zip(described) {
            *slot = Controller::take(*described);
            if slot.is_none() {
                trouble = Err(Unusable::NobodyThere(described.base));
            }
        }
        controllers
    });
    trouble
}

impl Controller {
    fn take(described: Described) -> Option<Controller> {
        let offset = described.base.offset();
        if offset & 0xf != 0 || offset > 0xfe0 {
            return None;
        }
        let registers = paging::map_mmio(described.base.mfn().maddr(), 1);
        let mut controller = Controller {
            described,
            pins: 0,
            offset,
            registers: Mutex::new(registers),
        };
        let version = controller.read(VERSION);
        if version == u32::MAX {
            return None;
        }
        // 240 entries would reach the end of the register space.
        controller.pins = u8::try_from((version >> 16 & 0xff) + 1)
            .ok()
            .filter(|pins| *pins <= 120)?;
        for pin in 0..controller.pins {
            controller.write_entry(pin, RTE_MASKED, 0);
        }
        Some(controller)
    }

    fn read(&self, register: u8) -> u32 {
        let registers = lock(&self.registers);
        registers.write32(self.offset + SELECT, u32::from(register));
        registers.read32(self.offset + WINDOW)
    }

    /// Writes an entry while it is masked, then lets it be as it should.
    ///
    /// Becoming an edge for a moment makes the pin forget that a level of it is still in service somewhere: the EOI
    /// for that will carry the vector which the pin had before, and would no longer be recognised.
    fn write_entry(&self, pin: u8, low: u32, high: u32) {
        let registers = lock(&self.registers);
        let (low_register, high_register) = (entry(pin), entry(pin) + 1);
        let resting = (low | RTE_MASKED) & !RTE_LEVEL;
        let steps = [(low_register, resting), (high_register, high), (low_register, low)];
        for (register, value) in steps {
            registers.write32(self.offset + SELECT, u32::from(register));
            registers.write32(self.offset + WINDOW, value);
        }
    }

    /// Changes the mask bit and nothing else. Reports whether it was set.
    fn set_masked(&self, pin: u8, masked: bool) -> bool {
        let registers = lock(&self.registers);
        registers.write32(self.offset + SELECT, u32::from(entry(pin)));
        let low = registers.read32(self.offset + WINDOW);
        let new = if masked { low | RTE_MASKED } else { low & !RTE_MASKED };
        if new != low {
            registers.write32(self.offset + WINDOW, new);
        }
        low & RTE_MASKED != 0
    }
}

/// The register that holds the low half of a pin's entry.
const fn entry(pin: u8) -> u8 {
    FIRST_ENTRY + pin * 2
}

fn controllers() -> impl Iterator<Item = &'static Controller> {
    CONTROLLERS.get().into_iter().flatten().flatten()
}

fn find(gsi: Gsi) -> Option<(&'static Controller, u8)> {
    controllers().find_map(|controller| {
        let pin = gsi.raw().checked_sub(controller.described.first_gsi.raw())?;
        let pin = u8::try_from(pin).ok().filter(|pin| *pin < controller.pins)?;
        Some((controller, pin))
    })
}

/// One more than the highest interrupt number that any controller has a pin for.
pub fn gsi_count() -> u32 {
    controllers()
        .map(|controller| {
            controller
                .described
                .first_gsi
                .raw()
                .saturating_add(u32::from(controller.pins))
        })
        .max()
        .unwrap_or(0)
}

/// Tells whether any controller has a pin for the interrupt.
pub fn has(gsi: Gsi) -> bool {
    find(gsi).is_some()
}

/// Routes a line, leaving it masked. `false` if there is no such pin or eight bits cannot address the CPU.
#[must_use]
pub fn route(gsi: Gsi, route: Route) -> bool {
    let (Some((controller, pin)), Some((low, high))) = (find(gsi), route.entry()) else {
        return false;
    };
    controller.write_entry(pin, low, high);
    true
}

/// Masks a line. A level that is held stays noticed, and interrupts once the line is unmasked.
pub fn mask(gsi: Gsi) {
    if let Some((controller, pin)) = find(gsi) {
        controller.set_masked(pin, true);
    }
}

/// Lets a routed line interrupt. A line that was never routed stays masked.
pub fn unmask(gsi: Gsi) {
    if let Some((controller, pin)) = find(gsi)
        && controller.read(entry(pin)) & 0xff >= u32::from(crate::interrupts::vectors::LEGACY_FIRST)
    {
        controller.set_masked(pin, false);
    }
}

/// Masks every line, before the machine is handed on or reset.
pub fn mask_all() {
    for controller in controllers() {
        for pin in 0..controller.pins {
            controller.set_masked(pin, true);
        }
    }
}

/// A controller's registers as a domain may read them: those below 0x10 (id, version, arbitration) and the entries.
///
/// `None` if no controller is at `base`; other registers read as nought.
pub fn read_register(base: Maddr, register: u32) -> Option<u32> {
    let controller = controllers().find(|controller| controller.described.base == base)?;
    let end = u32::from(FIRST_ENTRY) + u32::from(controller.pins) * 2;
    match u8::try_from(register) {
        Ok(register @ (ID | VERSION | 2 | 3)) => Some(controller.read(register)),
        Ok(register) if (u32::from(FIRST_ENTRY)..end).contains(&u32::from(register)) => Some(controller.read(register)),
        _ => Some(0),
    }
}

/// The interrupt number of a controller's pin.
pub fn gsi_of_pin(base: Maddr, pin: u32) -> Option<Gsi> {
    let controller = controllers().find(|controller| controller.described.base == base)?;
    if pin >= u32::from(controller.pins) {
        return None;
    }
    controller.described.first_gsi.checked_add(pin)
}

/// The controllers in use: what firmware said, and their pins.
pub fn all() -> impl Iterator<Item = (Described, u8)> {
    controllers().map(|controller| (controller.described, controller.pins))
}
