//! XSA-259 (CVE-2018-10471): `int 0x80`, on the short way.
//!
//! Linux enters by `int 0x80` from 32-bit programs, and the hypervisor has a way of its own for it, which looked for the
//! guest's handler in the wrong register once kernel and user mode had tables apart. Every state that handler can be in
//! is tried: none, one that user mode may not call, one that masks events, one at no canonical address, and a good one,
//! from the kernel and from user mode.

use pv::abi::x86::TrapInfo;
use pv::code::Code;
use pv::trap::{self, Cause, General};
use pv::user;

use crate::report::{Ended, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    code.set(&[0xcd, 0x80]);
    let good = trap::gate(0, 0x80);
    for (name, gate) in [
        ("as it starts", None),
        ("for the kernel alone", Some(TrapInfo { flags: 0, ..good })),
        ("for user mode", Some(TrapInfo { flags: 3, ..good })),
        ("that masks events", Some(TrapInfo { flags: 7, ..good })),
    ] {
        if let Some(gate) = gate {
            trap::set_table(&mut [gate, TrapInfo::default()]).ok()?;
        }
        report.saw(format_args!("a handler {name}, from the kernel"), Ended(code.in_kernel(&mut General::default())));
        report.saw("from user mode", Ended(code.in_user(&mut General::default())));
    }
    trap::set_table(&mut [TrapInfo { flags: 3, ..good }, TrapInfo::default()]).ok()?;
    let frame = code.in_user(&mut General::default()).err();
    report.check("a good one works in the end", frame.is_some_and(|frame| frame.cause == Cause::Vector(0x80)));
    Ok(())
}
