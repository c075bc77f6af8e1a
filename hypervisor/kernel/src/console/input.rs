//! Keys that arrive on the serial line: for Domain 0, whose console this is, or for us.
//!
//! Three times the switch character (Ctrl-A, option `conswitch=`) passes the line from one to the other. While it is
//! ours, each key is a debug key.

use crate::lock::{Lock, Rank};
use core::sync::atomic::{AtomicU8, Ordering};
use ferroxen_machine::serial;

/// Room for what somebody pastes while Domain 0 has no time to read.
const BYTES: usize = 4096;
/// So many switch characters in a row pass the line on.
const SWITCHES: u8 = 3;
/// Rounds over the port's causes in one interrupt. A port that asks for more is broken, and will interrupt again.
const MAX_ROUNDS: u32 = 64;

/// What waits for Domain 0: [`Input`]'s, and only not in it because the image then need not hold so many zeroes.
static WAITING: [AtomicU8; BYTES] = [const { AtomicU8::new(0) }; BYTES];

struct Input {
    produced: usize,
    consumed: usize,
    switch: u8,
    switches: u8,
    is_ours: bool,
}

static INPUT: Lock<Input> = Lock::new(
    Rank::Console,
    Input {
        produced: 0,
        consumed: 0,
        switch: control(b'a'),
        switches: 0,
        is_ours: false,
    },
);

/// What a typed byte means.
enum Typed {
    /// It waits for Domain 0, or was lost for want of room, as on any serial line.
    Passed,
    /// A debug key.
    Key(u8),
    /// The line has changed hands.
    Switched { is_ours: bool },
    /// On the way to a switch.
    Nothing,
}

impl Input {
    fn take(&mut self, byte: u8) -> Typed {
        if byte == self.switch {
            self.switches += 1;
            if self.switches == SWITCHES {
                self.switches = 0;
                self.is_ours = !self.is_ours;
                return Typed::Switched { is_ours: self.is_ours };
            }
        } else {
            self.switches = 0;
        }
        if self.is_ours {
            return if byte == self.switch {
                Typed::Nothing
            } else {
                Typed::Key(byte)
            };
        }
        if self.produced - self.consumed < BYTES {
            let slot = self.produced % BYTES;
            WAITING[slot].store(byte, Ordering::Relaxed);
            self.produced += 1;
        }
        Typed::Passed
    }
}

const fn control(letter: u8) -> u8 {
    letter & 0x1f
}

/// Sets the letter that switches, with Ctrl, and whether the line is ours at first.
pub fn configure(letter: u8, is_ours: bool) {
    let mut input = INPUT.lock();
    input.switch = control(letter);
    input.is_ours = is_ours;
}

/// The letter of the switch character.
pub(super) fn switch_letter() -> u8 {
    INPUT.lock().switch | 0x60
}

/// Says whom the line belongs to now that Domain 0 runs.
pub fn announce() {
    let input = INPUT.lock();
    let (is_ours, letter) = (input.is_ours, (input.switch | 0x40) as char);
    drop(input);
    say_whose(is_ours, letter);
}

fn say_whose(is_ours: bool, letter: char) {
    let whose = if is_ours { "Xen" } else { "DOM0" };
    let other = if is_ours { "DOM0" } else { "Xen" };
    crate::info!("*** Serial input to {whose} (type 'CTRL-{letter}' three times to switch input to {other})");
}

/// The serial port has interrupted: takes what was typed, and sends more of what waits.
///
/// Domain 0 hears of its bytes through `VIRQ_CONSOLE`.
pub fn serve() {
    let mut any = false;
    for _ in 0..MAX_ROUNDS {
        while let Some(byte) = serial::read() {
            let mut input = INPUT.lock();
            let typed = input.take(byte);
            let letter = (input.switch | 0x40) as char;
            drop(input);
            match typed {
                Typed::Passed => any = true,
                Typed::Key(key) => crate::debug_keys::press(key),
                Typed::Switched { is_ours } => say_whose(is_ours, letter),
                Typed::Nothing => {}
            }
        }
        serial::send_waiting();
        if !serial::asks_for_attention() {
            break;
        }
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
        *byte = WAITING[input.consumed % BYTES].load(Ordering::Relaxed);
        input.consumed += 1;
    }
    count
}
