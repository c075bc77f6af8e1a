//! XSA-333 (CVE-2020-25602): reading MSR_IA32_MISC_ENABLE brings the host down.
//!
//! The register exists on some processors only; the hypervisor read it for the guest without being ready for the fault
//! where it does not. A guest reads and writes it, and a hundred other registers that may not exist, from the kernel and
//! from user mode. What is not there faults, in the guest; the kernel and user mode go on.

use pv::code::Code;
use pv::trap::{Cause, General};
use pv::user;

use crate::report::{Report, Verdict};

const MISC_ENABLE: u64 = 0x1a0;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let (mut read, mut write) = (Code::new(), Code::new());
    read.set(&[0x0f, 0x32]);
    write.set(&[0x0f, 0x30]);
    let (mut asked, mut odd) = (0, 0);
    let ranges = [MISC_ENABLE..MISC_ENABLE + 1, 0x100..0x140, 0x600..0x620, 0xc000_0080..0xc000_0088, 0xc001_0000..0xc001_0020];
    for number in ranges.into_iter().flatten() {
        for code in [&read, &write] {
            // Written with what a reading gave, where it gave something.
            let mut registers = General { rcx: number, ..General::default() };
            let reading = read.in_kernel(&mut registers);
            for outcome in [reading, code.in_kernel(&mut registers), code.in_user(&mut registers)] {
                asked += 1;
                odd += u32::from(outcome.is_err_and(|frame| frame.cause != Cause::Vector(13)));
            }
        }
    }
    report.saw("asked", asked);
    report.expect("anything but #GP", odd, 0);
    let mut nothing = Code::new();
    nothing.set(&[0x90]);
    report.check("user mode goes on", nothing.in_user(&mut General::default()).is_ok());
    Ok(())
}
