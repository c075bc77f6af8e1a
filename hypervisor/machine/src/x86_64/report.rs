//! The end: a report that a person can use, and a machine that stands still or starts again.

use core::fmt;

/// Reports a panic: the message, registers, a symbolised back-trace; stops the other CPUs; ends.
pub fn panicked(message: &dyn fmt::Display) -> ! {
    let _ = message;
    loop {
        core::hint::spin_loop();
    }
}

/// Whether to stand still after a report instead of starting again (option `noreboot`).
pub fn set_stay_down(stay: bool) {
    let _ = stay;
    todo!()
}
