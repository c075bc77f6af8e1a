//! Keys that arrive on the serial line: for Domain 0, whose console this is.

use crate::lock::{Lock, Rank};
use ferroxen_machine::serial;

const BYTES: usize = 128;

struct Input {
    bytes: [u8; BYTES],
    produced: usize,
    consumed: usize,
}

static INPUT: Lock<Input> = Lock::new(
    Rank::Console,
    Input {
        bytes: [0; BYTES],
        produced: 0,
        consumed: 0,
    },
);

/// Takes what the serial port has received; Domain 0 hears of it through `VIRQ_CONSOLE`.
///
/// Bytes that find no room are lost, as on any serial line.
pub fn received() {
    let mut any = false;
    while let Some(byte) = serial::read() {
        let mut input = INPUT.lock();
        if input.produced - input.consumed < BYTES {
            let slot = input.produced % BYTES;
            input.bytes[slot] = byte;
            input.produced += 1;
        }
        any = true;
    }
    if any {
        crate::hypercall::event_channel::send_global_virq(ferroxen_abi::xen::virq::CONSOLE);
    }
}

/// Gives out waiting bytes, as many as fit; how many.
pub fn take(into: &mut [u8]) -> usize {
    let mut input = INPUT.lock();
    let count = (input.produced - input.consumed).min(into.len());
    for byte in into.iter_mut().take(count) {
        *byte = input.bytes[input.consumed % BYTES];
        input.consumed += 1;
    }
    count
}
