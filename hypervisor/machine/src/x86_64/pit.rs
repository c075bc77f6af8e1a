//! The 8254's channel 2: a clock of last resort, or else the speaker of the domain that owns the devices.
//!
//! It counts at 1.193182 MHz and interrupts nobody. Channels 0 and 1 stay ours.

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

/// Speaker and gate, in [`GATE`].
const SPEAKER: u8 = 0b11;

/// Reads a port of the speaker's. `None`: it is none, or the channel is our clock, or the port cannot be read.
pub fn speaker_read(port: u16) -> Option<u8> {
    if !matches!(port, CHANNEL_2 | GATE) || is_clock() {
        return None;
    }
    // SAFETY: reading channel 2 only moves its latch; reading the gate has no effect.
    Some(unsafe { inb(port) })
}

/// Writes a port of the speaker's, as far as that concerns channel 2; the rest goes nowhere.
pub fn speaker_write(port: u16, value: u8) {
    const CHANNEL: u8 = 0b1100_0000;
    const READ_BACK: u8 = 0b1100_0000;
    const READ_BACK_CHANNELS: u8 = 0b0000_0111;
    if is_clock() {
        return;
    }
    // SAFETY: nobody of ours uses channel 2 while it is no clock; the other channels are left out.
    unsafe {
        match (port, value & CHANNEL) {
            (CHANNEL_2, _) => outb(CHANNEL_2, value),
            (CONTROL, 0b1000_0000) => outb(CONTROL, value),
            (CONTROL, READ_BACK) if value & 0b1000 != 0 => outb(CONTROL, value & !READ_BACK_CHANNELS),
            (GATE, _) => outb(GATE, (inb(GATE) & !SPEAKER) | (value & SPEAKER)),
            _ => {}
        }
    }
}

fn is_clock() -> bool {
    super::time::reference() == Some(super::time::Reference::Pit)
}
