//! The end of a guest: `SCHEDOP_shutdown`.

pub use ferroxen_abi::sched::shutdown::{CRASH, POWEROFF, REBOOT};
use ferroxen_abi::sched::{Shutdown, schedop};

use crate::console;
use crate::hypercall::{address, call, number};

/// Ends the domain for `reason`, after the console has been read.
///
/// Domain 0 asks for a restart whatever the reason: switching a machine off is ACPI's business, which no guest
/// of ours speaks, and the hypervisor would wait for a person after anything else.
pub fn off(reason: u32) -> ! {
    console::drain();
    let reason = if crate::start::is_dom0() { REBOOT } else { reason };
    loop {
        call(number::SCHED_OP, [schedop::SHUTDOWN, address(&mut Shutdown { reason })]);
    }
}
