//! The hypervisor's voice: levelled lines to the serial port and the screen, and a ring that tools can read.
//!
//! A line leads with its subject: `d4v1: grant 17 refused: not for d4`. What a guest can trigger goes through
//! [`guest!`](crate::guest!), which has a threshold of its own (`guest_loglvl=`) and a rate limit, so that no guest
//! can drown the others' lines or hold a CPU by talking.

pub mod input;
mod parameters;

pub use parameters::{CONSWITCH, GUEST_LOGLVL, LOGLVL, Parameter, TIMESTAMPS};

use crate::lock::{Lock, Rank};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use ferroxen_abi::xen::virq;
use ferroxen_loader::options::{self, Options, Timestamps};
use ferroxen_machine::calendar::Date;
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

/// The highest level of lines printed; one number lower than [`Level`]'s, so that 0 prints nothing.
struct Threshold(AtomicU8);

impl Threshold {
    const fn of(level: options::Level) -> Threshold {
        Threshold(AtomicU8::new(level as u8))
    }

    fn set(&self, level: options::Level) {
        self.0.store(level as u8, Ordering::Relaxed);
    }

    fn level(&self) -> options::Level {
        use options::Level::{Debug, Error, Info, None, Warning};
        let number = self.0.load(Ordering::Relaxed);
        let known = [None, Error, Warning, Info]
            .into_iter()
            .find(|level| *level as u8 == number);
        known.unwrap_or(Debug)
    }

    fn passes(&self, level: Level) -> bool {
        (level as u8) < self.0.load(Ordering::Relaxed)
    }
}

/// For our own lines.
static OURS: Threshold = Threshold::of(options::Level::Info);
/// For lines that guests cause: printed always, and printed as long as there are not too many.
static GUESTS_ALWAYS: Threshold = Threshold::of(options::Level::None);
static GUESTS_LIMITED: Threshold = Threshold::of(options::Level::Warning);

/// Bytes kept for `xl dmesg`, unless `conring_size=` says otherwise.
const RING_BYTES: u64 = 32 * 1024;

struct Ring {
    /// A power of two of them, or none yet.
    bytes: Vec<u8>,
    /// Bytes ever written.
    produced: u32,
    /// Bytes dropped by a reader that asked to clear.
    cleared: u32,
}

static RING: Lock<Ring> = Lock::new(
    Rank::Console,
    Ring {
        bytes: Vec::new(),
        produced: 0,
        cleared: 0,
    },
);

impl Ring {
    fn push(&mut self, text: &[u8]) {
        let Some(last) = self.bytes.len().checked_sub(1) else {
            return;
        };
        for &byte in text {
            self.bytes[self.produced as usize & last] = byte;
            self.produced = self.produced.wrapping_add(1);
        }
    }
}

/// Whether what Domain 0 writes is kept in the ring as well (`console_to_ring`).
static KEEPS_GUESTS_WORDS: AtomicBool = AtomicBool::new(false);
static STAMPS: AtomicU8 = AtomicU8::new(Timestamps::None as u8);

/// Makes the ring and sets what is printed, as told. Lines before this go to the serial port at most.
pub fn configure(options: &Options<'_>) {
    let bytes = options.conring_size.unwrap_or(RING_BYTES) as usize;
    let mut made = Vec::new();
    if made.try_reserve_exact(bytes).is_ok() {
        made.resize(bytes, 0);
        RING.lock().bytes = made;
    } else {
        crate::warn!("console: no memory for a ring of {bytes} bytes");
    }
    parameters::set_log_level(options.loglvl);
    parameters::set_guest_log_level(options.guest_loglvl);
    KEEPS_GUESTS_WORDS.store(options.console_to_ring, Ordering::Relaxed);
    STAMPS.store(options.console_timestamps as u8, Ordering::Relaxed);
    let (letter, is_ours) = options.conswitch;
    input::configure(letter, is_ours);
}

/// Prints a line at a level.
pub fn print(level: Level, line: fmt::Arguments<'_>) {
    if OURS.passes(level) {
        put(line);
    }
}

/// Prints a line that a guest caused, unless guests have caused too many of late.
pub fn print_for_guest(level: Level, line: fmt::Arguments<'_>) {
    if GUESTS_ALWAYS.passes(level) || (GUESTS_LIMITED.passes(level) && limit::may_print()) {
        put(line);
    }
}

fn put(line: fmt::Arguments<'_>) {
    let mut ring = RING.lock();
    let mut out = Out {
        ring: &mut ring,
        at_start: true,
    };
    // Writing to the ring cannot fail.
    let _ = out.write_fmt(line);
    let _ = out.write_str("\n");
    drop(ring);
    crate::hypercall::event_channel::send_global_virq(virq::CON_RING);
}

/// Passes Domain 0's words on, as they are.
pub fn write_raw(text: &[u8]) {
    let mut ring = RING.lock();
    if KEEPS_GUESTS_WORDS.load(Ordering::Relaxed) {
        ring.push(text);
    }
    emit(text);
}

/// At most ten lines in five seconds, as upstream has it.
mod limit {
    use super::{AtomicU64, Ordering};

    const LINES: u64 = 10;
    const EVERY_NS: u64 = 5_000_000_000 / LINES;

    /// When the lines printed so far would be used up if they had come evenly.
    static PAID_UNTIL_NS: AtomicU64 = AtomicU64::new(0);

    pub(super) fn may_print() -> bool {
        let now = crate::time::now();
        let pay = |until: u64| {
            let until = until.max(now) + EVERY_NS;
            (until <= now + LINES * EVERY_NS).then_some(until)
        };
        PAID_UNTIL_NS
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay)
            .is_ok()
    }
}

/// Writes what stands at the start of a line.
fn stamp(out: &mut impl Write) -> fmt::Result {
    out.write_str(PREFIX)?;
    let stamps = STAMPS.load(Ordering::Relaxed);
    if stamps == Timestamps::None as u8 {
        return Ok(());
    }
    if stamps == Timestamps::Raw as u8 {
        return write!(out, "[{:016x}] ", ferroxen_machine::cpu::tsc());
    }
    let up_ns = crate::time::now();
    let (seconds, ns) = crate::time::date();
    if stamps == Timestamps::Boot as u8 || seconds == 0 {
        return write!(out, "[{:5}.{:06}] ", up_ns / 1_000_000_000, up_ns / 1000 % 1_000_000);
    }
    let date = Date::from_seconds(seconds);
    let (hour, minute, second) = (date.second / 3600, date.second / 60 % 60, date.second % 60);
    write!(
        out,
        "[{}-{:02}-{:02} {hour:02}:{minute:02}:{second:02}",
        date.year, date.month, date.day
    )?;
    if stamps == Timestamps::DateMs as u8 {
        write!(out, ".{:03}", ns / 1_000_000)?;
    }
    out.write_str("] ")
}

struct Out<'a> {
    ring: &'a mut Ring,
    at_start: bool,
}

impl Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            if core::mem::replace(&mut self.at_start, piece.ends_with('\n')) {
                // The stamp itself is no start of a line.
                stamp(self)?;
                self.at_start = piece.ends_with('\n');
            }
            self.ring.push(piece.as_bytes());
            emit(piece.as_bytes());
        }
        Ok(())
    }
}

/// Stands before each of our lines, so that tools find them among Domain 0's.
const PREFIX: &str = "(XEN) ";

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
    let Some(last) = ring.bytes.len().checked_sub(1) else {
        return (0, 0);
    };
    let kept = ring.produced.wrapping_sub(ring.cleared).min(last as u32 + 1);
    let oldest = ring.produced.wrapping_sub(kept);
    let start = match from {
        Some(from) if ring.produced.wrapping_sub(from) <= kept => from,
        _ => oldest,
    };
    let count = (ring.produced.wrapping_sub(start) as usize).min(into.len());
    for (offset, byte) in into.iter_mut().take(count).enumerate() {
        *byte = ring.bytes[start.wrapping_add(offset as u32) as usize & last];
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

/// Prints what a guest caused, at a level and as often as guests may.
#[macro_export]
macro_rules! guest {
    ($level:ident, $($text:tt)*) => {
        $crate::console::print_for_guest($crate::console::Level::$level, format_args!($($text)*))
    };
}
