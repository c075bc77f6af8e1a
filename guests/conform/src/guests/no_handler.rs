//! A trap that the kernel has no handler for.
//!
//! A kernel without a trap table gets no traps: what would be one ends the domain, as a triple fault resets a machine.
//! The same instruction with a table comes first. Promised by: public/xen.h (`set_trap_table`).

use pv::code::Code;
use pv::hypercall::{call, number};
use pv::trap::General;

use crate::report::{Ended, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let mut code = Code::new();
    code.set(&[0x0f, 0x0b]);
    report.saw("ud2 with a table", Ended(code.in_kernel(&mut General::default())));
    report.saw("the table is taken away", call(number::SET_TRAP_TABLE, [0]));
    // Does not come back: the domain dies.
    report.saw("ud2 without one", Ended(code.in_kernel(&mut General::default())));
    Ok(())
}
