//! XSA-269 (CVE-2018-15468) and XSA-351 (CVE-2020-28368): registers that tell, or do, too much.
//!
//! DEBUGCTL can make the processor write a trace of branches to memory, past all page tables; the energy counters tell
//! what a neighbour computes. A guest may have neither. Each bit of DEBUGCTL is written and read back, and the registers
//! of performance, power and trace are read. What is let through must not stick, or must be harmless by its number.

use pv::code::Code;
use pv::trap::{Cause, General};

use crate::report::{Report, Verdict};

const DEBUGCTL: u64 = 0x1d9;
/// Of DEBUGCTL: BTS, BTINT, BTS_OFF_OS, BTS_OFF_USR, TR.
const TRACES: u64 = 0x7c0;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (mut read, mut write) = (Code::new(), Code::new());
    read.set(&[0x0f, 0x32]);
    write.set(&[0x0f, 0x30]);
    let get = |msr: u64| {
        let mut registers = General { rcx: msr, ..General::default() };
        read.in_kernel(&mut registers).map(|()| registers.rax & 0xffff_ffff | registers.rdx << 32)
    };
    let (mut written, mut stuck) = (0, 0);
    for bit in 0..64 {
        let value = 1_u64 << bit;
        let mut registers = General { rcx: DEBUGCTL, rax: value & 0xffff_ffff, rdx: value >> 32, ..General::default() };
        written += u32::from(write.in_kernel(&mut registers).is_ok());
        stuck += u32::from(get(DEBUGCTL).is_ok_and(|now| now & TRACES != 0));
    }
    report.saw("bits of DEBUGCTL that may be written", written);
    report.expect("times a trace was on", stuck, 0);
    for (name, msrs) in [
        ("energy", [0x606, 0x611, 0x619, 0x639, 0x641, 0x64d]),
        ("counters", [0xc1, 0xc2, 0x186, 0x38f, 0xc001_0004, 0xc001_0201]),
        ("trace and branches", [0x560, 0x570, 0x600, 0x680, 0x6c0, 0x1db]),
        ("frequency", [0xe7, 0xe8, 0x198, 0x19c, 0x1ad, 0x1b1]),
    ] {
        let refused = msrs.map(|msr| get(msr).is_err_and(|frame| frame.cause == Cause::Vector(13)));
        report.saw(format_args!("of {name} refused"), refused.iter().filter(|refused| **refused).count());
    }
    Ok(())
}
