//! ACPI's power management timer: 3.579545 MHz, 24 bits wide wherever it may be.

use core::sync::atomic::{AtomicU16, Ordering};

use super::port::inl;

/// Counts per second.
pub const HZ: u64 = 3_579_545;
/// Only the low 24 bits are to be relied upon; the FADT's promise of 32 has been wrong on real boards.
pub const MASK: u32 = 0x00ff_ffff;

static PORT: AtomicU16 = AtomicU16::new(0);

/// Takes the FADT's `PM_TMR_BLK` into use. Tells whether the counter moves.
pub fn start(port: u16) -> bool {
    if port == 0 {
        return false;
    }
    PORT.store(port, Ordering::Relaxed);
    let first = read();
    first != MASK && (0..1000).any(|_| read() != first)
}

/// The counter, modulo 2^24.
pub fn read() -> u32 {
    // SAFETY: reading the FADT's timer port has no side effect.
    unsafe { inl(PORT.load(Ordering::Relaxed)) & MASK }
}
