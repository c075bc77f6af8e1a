//! XSA-106 (CVE-2014-7156): software interrupts without a look at the gate's privilege.
//!
//! The emulator delivered `int N` from user mode to handlers that user mode may not call, so that a process could enter
//! its kernel as if by a page fault or an interrupt. Every gate whose privilege level is below 3 must refuse, with an
//! error code that names the gate; the same gate at level 3 lets in, which shows that nothing else refuses. Vector 0 is
//! asked, since QEMU and the manual agree on its error code.

use pv::abi::x86::TrapInfo;
use pv::code::Code;
use pv::trap::{self, Cause, General};
use pv::user;

use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    code.set(&[0xcd, 0]);
    for level in 0..=3 {
        trap::set_table(&mut [TrapInfo { flags: level, ..trap::gate(0, 0) }, TrapInfo::default()]).ok()?;
        let Err(frame) = code.in_user(&mut General::default()) else {
            report.check("int 0 traps", false);
            continue;
        };
        let entered = frame.cause == Cause::Vector(0);
        report.saw(format_args!("user mode, gate of level {level}"), frame);
        report.check("it lets in user mode only at 3", entered == (level == 3));
    }
    Ok(())
}
