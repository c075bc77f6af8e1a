//! The High Precision Event Timer, as a clock only: its comparators stay off.

use ferroxen_words::Maddr;
use spin::Once;

use super::paging::{self, Mmio};
use crate::timescale::hz_from_period;

const CAPABILITIES: usize = 0x000;
const PERIOD: usize = 0x004;
const CONFIGURATION: usize = 0x010;
const COUNTER: usize = 0x0f0;

const ENABLE: u32 = 1 << 0;
const LEGACY_ROUTE: u32 = 1 << 1;

/// Only the low half of the counter is used: it is what every HPET has, and reads in one piece.
pub const MASK: u32 = u32::MAX;

/// The mapped page, and where in it the timer block begins.
static REGISTERS: Once<(Mmio, usize)> = Once::new();

/// Takes the HPET at `base` into use and returns its counts per second, if it is there, sane and moving.
pub fn start(base: Maddr) -> Option<u64> {
    if base.offset() & 0x3ff != 0 {
        return None;
    }
    let hpet = REGISTERS.call_once(|| (paging::map_mmio(base.mfn().maddr(), 1), base.offset()));
    let (registers, block) = hpet;
    let capabilities = registers.read32(block + CAPABILITIES);
    if capabilities == u32::MAX || capabilities & 0xff == 0 {
        return None;
    }
    let hz = hz_from_period(registers.read32(block + PERIOD))?;
    let configuration = registers.read32(block + CONFIGURATION);
    registers.write32(block + CONFIGURATION, (configuration & !LEGACY_ROUTE) | ENABLE);
    let first = read();
    (0..1000).any(|_| read() != first).then_some(hz)
}

/// The counter, modulo 2^32. Zero before [`start`].
pub fn read() -> u32 {
    REGISTERS
        .get()
        .map_or(0, |(registers, block)| registers.read32(block + COUNTER))
}
