//! XSA-54 (CVE-2013-2078) and XSA-53 (CVE-2013-2077): `xsetbv` and `xrstor` with what the processor refuses.
//!
//! The hypervisor executes XSETBV for the guest, and restored a state that the guest had prepared; either faulted in
//! ring 0. Where the processor has no XSAVE the instructions do not exist, and must not for the guest either; where it
//! has, bad masks must fault in the guest. `fxrstor` of an image with reserved bits goes the same way.

use pv::code::Code;
use pv::memory::Page;
use pv::trap::{Cause, General};
use pv::user;

use crate::report::{Ended, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    code.set(&[0x0f, 0x01, 0xd1]);
    for (register, value) in [(0, 0), (0, 1), (0, 2), (0, 3), (0, 5), (0, u64::MAX), (1, 3), (0xffff_ffff, 3)] {
        let registers = || General {
            rcx: register,
            rax: value & 0xffff_ffff,
            rdx: value >> 32,
            ..General::default()
        };
        report.saw(format_args!("xsetbv {register:x} to {value:x}"), Ended(code.in_kernel(&mut registers())));
        let user = code.in_user(&mut registers());
        report.check_quietly("user mode may not", user.is_err_and(|frame| matches!(frame.cause, Cause::Vector(6 | 13))));
    }
    // The image's MXCSR: 24 bytes in. Only its lower 16 bits exist.
    let image = Page::new();
    for mxcsr in [0x1f80_u64, 0xffff_0000, 0x1_0000] {
        image.set_word(3, mxcsr);
        for (name, bytes) in [("fxrstor", [0x0f, 0xae, 0x0f]), ("xrstor", [0x0f, 0xae, 0x2f])] {
            code.set(&bytes);
            let mut registers = General { rdi: image.address(), rax: 3, ..General::default() };
            report.saw(format_args!("{name}, mxcsr {mxcsr:x}"), Ended(code.in_kernel(&mut registers)));
        }
    }
    code.set(&[0x0f, 0x77]);
    report.check("the FPU works", code.in_kernel(&mut General::default()).is_ok());
    Ok(())
}
