//! XSA-12 (CVE-2012-3494): a DR7 with bits that do not exist.
//!
//! The upper half of DR7 is reserved, and setting a bit of it faults in ring 0: the value went into the processor as the
//! guest gave it, and the host died. Each such bit is tried, alone and with a breakpoint that is in order; nothing of it
//! may be found in the register afterwards, and a value without them still works.

use pv::Answer;
use pv::hypercall::{call, number};
use pv::memory::Page;

use crate::report::{Report, Verdict};

fn set(register: u64, value: u64) -> Answer {
    call(number::SET_DEBUGREG, [register, value])
}

fn get(register: u64) -> u64 {
    call(number::GET_DEBUGREG, [register]).0.cast_unsigned()
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let page = Page::new();
    set(0, page.address()).ok()?;
    // Break on the execution of a page of data, which never happens.
    report.expect("a good one", set(7, 1), Answer::OK);
    report.expect("it is there", get(7) & 1, 1);
    let mut refused = 0;
    for bit in 32..64 {
        for value in [1 << bit, 1 << bit | 1] {
            refused += u32::from(!set(7, value).is_ok());
            report.check_quietly("no reserved bit is set", get(7) >> 32 == 0);
        }
    }
    report.saw("refused", refused);
    for value in [1 << 14, 1 << 15, 1 << 11, 1 << 12] {
        report.saw(format_args!("{value:x} of the lower half"), set(7, value));
        report.check_quietly("it is not set", get(7) & 0xd800 == 0);
    }
    report.expect("a good one again", set(7, 1), Answer::OK);
    report.expect("and none", set(7, 0), Answer::OK);
    Ok(())
}
