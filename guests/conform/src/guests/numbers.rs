//! Hypercall numbers: those that nobody has are refused as such, not mistaken for others, and leave the
//! registers alone that the ABI keeps.
//!
//! Promised by: public/xen.h (`__HYPERVISOR_*`), "Hypercall page" in arch-x86/xen-x86_64.h.

use pv::Answer;
use pv::abi::errno::Errno;
use pv::hypercall::call;

use crate::report::{Report, Verdict};

/// In none of upstream's tables, or taken out of them again.
const ABSENT: [u32; 12] = [11, 38, 43, 44, 45, 46, 47, 50, 55, 56, 63, 64];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    report.saw_all("numbers without a call", ABSENT.map(|number| call(number, [0; 5])));
    report.saw_all("far out", [65, 127, 128, 255, 4096, 0x7fff_ffff, 0x8000_0000, !0].map(|number| {
        call(number, [0; 5])
    }));
    let refused = ABSENT.iter().all(|number| call(*number, [1, 2, 3, 4, 5]) == Answer::refused(Errno::ENOSYS));
    report.check("all are refused as not there", refused);
    // Numbers of calls that stock builds leave out, or that only tools use.
    report.saw("xsm_op", call(27, [0; 1]));
    report.saw("xenoprof_op", call(31, [99, 0]));
    report.saw("kexec_op", call(37, [99, 0]));
    report.saw("argo_op", call(39, [99, 0, 0, 0, 0]));
    report.saw("xenpmu_op", call(40, [99, 0]));
    report.saw("dm_op", call(41, [0x7ff0, 0, 0]));
    report.saw("hypfs_op", call(42, [99, 0, 0, 0, 0]));
    report.saw("mca", call(48, [0]));
    report.saw("hvm_op", call(34, [99, 0]));
    report.saw("nmi_op", call(28, [99, 0]));
    Ok(())
}
