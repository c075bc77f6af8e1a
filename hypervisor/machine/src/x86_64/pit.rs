//! The 8254's channel 2 as a clock of last resort: it counts at 1.193182 MHz and interrupts nobody.

use super::port::{inb, outb};

/// Counts per second.
pub const HZ: u64 = 1_193_182;
/// The counter has 16 bits.
pub const MASK: u32 = 0xffff;

const CHANNEL_2: u16 = 0x42;
const CONTROL: u16 = 0x43;
const GATE: u16 = 0x61;

/// Lets channel 2 run freely, speaker off. Tells whether it moves.
pub fn start() -> bool {
    // SAFETY: the 8254 is ours (`port::OWNED`); of port 0x61 only the gate and speaker bits change.
    unsafe {
        outb(GATE, (inb(GATE) & !0x02) | 0x01);
        outb(CONTROL, 0b1011_0100); // channel 2, low then high byte, mode 2, binary
        outb(CHANNEL_2, 0); // 0 stands for 65536
        outb(CHANNEL_2, 0);
    }
    let first = read();
    (0..1000).any(|_| read() != first)
}

/// Counts since the start, modulo 2^16.
pub fn read() -> u32 {
    // SAFETY: latches and reads our own channel.
    let down = unsafe {
        outb(CONTROL, 0b1000_0000);
        u16::from(inb(CHANNEL_2)) | u16::from(inb(CHANNEL_2)) << 8
    };
    u32::from(0u16.wrapping_sub(down))
}
