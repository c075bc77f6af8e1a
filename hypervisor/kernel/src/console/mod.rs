//! The hypervisor's voice: levelled lines to the serial port and the screen, and a ring that tools can read.
//!
//! A line leads with its subject: `d4v1: grant 17 refused: not for d4`. What a guest can trigger goes through
//! [`Level`] with the guest's own threshold and a rate limit.

pub mod input;

use crate::lock::{Lock, Rank};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use ferroxen_machine::{serial, vga};

/// How much a line matters; the numbers are those of `loglvl=`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    /// Something asked for did not happen.
    Error = 0,
    /// Odd but harmless.
    Warn = 1,
    /// Rare and worth knowing.
    Info = 2,
    /// For us.
    Debug = 3,
}

/// Lines above this level are not printed.
static THRESHOLD: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Sets what is printed (`loglvl=`).
pub fn set_threshold(level: Level) {
    THRESHOLD.store(level as u8, Ordering::Relaxed);
}

/// Bytes kept for `xl dmesg`.
const RING_BYTES: usize = 32 * 1024;

struct Ring {
    bytes: [u8; RING_BYTES],
    /// Bytes ever written.
    produced: u32,
    /// Bytes dropped by a reader that asked to clear.
    cleared: u32,
}

static RING: Lock<Ring> = Lock::new(
    Rank::Console,
    Ring {
        bytes: [0; RING_BYTES],
        produced: 0,
        cleared: 0,
    },
);

impl Ring {
    fn push(&mut self, text: &[u8]) {
        for &byte in text {
            self.bytes[self.produced as usize % RING_BYTES] = byte;
            self.produced = self.produced.wrapping_add(1);
        }
    }
}

/// Whether Domain 0 shall hear of new bytes (once it has bound the interrupt).
static PRODUCED: AtomicU32 = AtomicU32::new(0);

/// Prints a line at a level.
pub fn print(level: Level, line: fmt::Arguments<'_>) {
    if level as u8 > THRESHOLD.load(Ordering::Relaxed) {
        return;
    }
    let mut ring = RING.lock();
    let mut out = Out {
        ring: &mut ring,
        at_start: true,
    };
    // Writing to the ring cannot fail.
    let _ = out.write_fmt(line);
    let _ = out.write_str("\n");
    PRODUCED.store(ring.produced, Ordering::Relaxed);
}

/// Passes a guest's words on, as they are.
pub fn write_raw(text: &[u8]) {
    let mut ring = RING.lock();
    ring.push(text);
    emit(text);
}

struct Out<'a> {
    ring: &'a mut Ring,
    at_start: bool,
}

impl Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            if core::mem::replace(&mut self.at_start, piece.ends_with('\n')) {
                self.ring.push(PREFIX);
                emit(PREFIX);
            }
            self.ring.push(piece.as_bytes());
            emit(piece.as_bytes());
        }
        Ok(())
    }
}

/// Stands before each of our lines, so that tools find them among Domain 0's.
const PREFIX: &[u8] = b"(XEN) ";

fn emit(text: &[u8]) {
    serial::write(text);
    vga::write(text);
}

/// Leaves the screen to Domain 0: row and column of the cursor, if there is a screen.
pub fn screen_cursor() -> Option<(u8, u8)> {
    vga::release()
}

/// Copies ring bytes from position `from` (modulo 2^32; clamped to what is kept) into `into`.
///
/// Answers the position after the last byte copied and how many were copied.
pub fn read_ring(from: Option<u32>, into: &mut [u8]) -> (u32, usize) {
    let ring = RING.lock();
    let kept = ring.produced.wrapping_sub(ring.cleared).min(RING_BYTES as u32);
    let oldest = ring.produced.wrapping_sub(kept);
    let start = match from {
        Some(from) if ring.produced.wrapping_sub(from) <= kept => from,
        _ => oldest,
    };
    let count = (ring.produced.wrapping_sub(start) as usize).min(into.len());
    for (offset, byte) in into.iter_mut().take(count).enumerate() {
        *byte = ring.bytes[start.wrapping_add(offset as u32) as usize % RING_BYTES];
    }
    (start.wrapping_add(count as u32), count)
}

/// Forgets what the ring holds.
pub fn clear_ring() {
    let mut ring = RING.lock();
    ring.cleared = ring.produced;
}

/// Prints at [`Level::Error`].
#[macro_export]
macro_rules! error {
    ($($text:tt)*) => { $crate::console::print($crate::console::Level::Error, format_args!($($text)*)) };
}

/// Prints at [`Level::Warn`].
#[macro_export]
macro_rules! warn {
    ($($text:tt)*) => { $crate::console::print($crate::console::Level::Warn, format_args!($($text)*)) };
}

/// Prints at [`Level::Info`].
#[macro_export]
macro_rules! info {
    ($($text:tt)*) => { $crate::console::print($crate::console::Level::Info, format_args!($($text)*)) };
}

/// Prints at [`Level::Debug`].
#[macro_export]
macro_rules! debug {
    ($($text:tt)*) => { $crate::console::print($crate::console::Level::Debug, format_args!($($text)*)) };
}
