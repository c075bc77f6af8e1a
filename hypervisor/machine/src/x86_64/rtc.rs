//! The battery-backed clock and its CMOS memory.
//!
//! Reading the date waits only while the chip says that an update is under way, never for the next second to begin.

use spin::Mutex;

use super::port::{inb, lock, outb};
use crate::calendar::{self, Registers};

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;

const UPDATE_IN_PROGRESS: u8 = 0x80;

/// An update takes at most about 2.2 ms; each poll costs about a microsecond on real hardware.
const UPDATE_POLLS: u32 = 10_000;

static PAIR: Mutex<()> = Mutex::new(());

/// Reads one byte of CMOS memory; the top bit of the index, which gates NMIs, is never set.
pub fn cmos_read(index: u8) -> u8 {
    let _pair = lock(&PAIR);
    read_locked(index)
}

/// Writes one byte of CMOS memory.
pub fn cmos_write(index: u8, value: u8) {
    let _pair = lock(&PAIR);
    // SAFETY: the lock makes index and data one access; CMOS memory is firmware's notebook, not ours.
    unsafe {
        outb(INDEX, index & 0x7f);
        outb(DATA, value);
    }
}

/// Reads the date in seconds since 1970 (UTC assumed). `century` is the FADT's index of the century byte, if it has one.
pub fn read_seconds(century: Option<u8>) -> Option<u64> {
    let _pair = lock(&PAIR);
    let mut before = registers(century);
    for _ in 0..4 {
        let again = registers(century);
        if again == before {
            return calendar::seconds(&again);
        }
        before = again;
    }
    None
}

fn registers(century: Option<u8>) -> Registers {
    for _ in 0..UPDATE_POLLS {
        if read_locked(STATUS_A) & UPDATE_IN_PROGRESS == 0 {
            break;
        }
    }
    Registers {
        second: read_locked(SECONDS),
        minute: read_locked(MINUTES),
        hour: read_locked(HOURS),
        day: read_locked(DAY),
        month: read_locked(MONTH),
        year: read_locked(YEAR),
        century: century.map(read_locked),
        status_b: read_locked(STATUS_B),
    }
}

fn read_locked(index: u8) -> u8 {
    // SAFETY: the caller holds the lock (or is the only CPU), so index and data are one access.
    unsafe {
        outb(INDEX, index & 0x7f);
        inb(DATA)
    }
}
