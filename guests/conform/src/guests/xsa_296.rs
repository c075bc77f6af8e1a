//! XSA-296 (CVE-2019-18420): `VCPUOP_initialise` that must be continued.
//!
//! A vcpu's first root may have to be validated, which may take longer than a call may; the call is then made again. It
//! answered with a code that reached an assertion instead, and the host stopped. A root with a large tree below it,
//! validated by nobody yet, is given to a vcpu again and again, with contexts that fail at different places in between.
//! In the end the vcpu must start with it.

use core::sync::atomic::{AtomicU32, Ordering};

use pv::abi::vcpu::vcpuop;
use pv::memory::{ORDINARY, Page};
use pv::{Answer, tables, vcpu};

use crate::bad;
use crate::report::{End, Report, Verdict};

static RAN: AtomicU32 = AtomicU32::new(0);
/// Tables of level 1 below the root.
const LEAVES: usize = 200;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !vcpu::bare_op(vcpuop::IS_UP, 1).is_ok() {
        return Err(End::Skip("needs two vcpus"));
    }
    let (root, l3, l2) = (tables::copy_of_root(), Page::new(), Page::new());
    let data = Page::new();
    for index in 0..LEAVES {
        tables::hang_leaf(l2, index, data)?;
    }
    l2.seal()?;
    l3.set_word(0, l2.mfn() << 12 | ORDINARY);
    l3.seal()?;
    root.set_word(300, l3.mfn() << 12 | ORDINARY);
    root.seal()?;
    let initialise = |change: &dyn Fn(&mut pv::abi::x86::VcpuGuestContext)| {
        let mut context = vcpu::context();
        context.ctrlreg[3] = root.mfn() << 12;
        change(&mut context);
        vcpu::op(vcpuop::INITIALISE, 1, &mut context)
    };
    for _ in 0..4 {
        report.saw_all("with a bad user root, a bad GDT, a bad callback", [
            initialise(&|context| context.ctrlreg[1] = bad::NO_FRAME << 12 | 1),
            initialise(&|context| (context.gdt_ents, context.gdt_frames[0]) = (512, bad::NO_FRAME)),
            initialise(&|context| context.syscall_callback_eip = bad::NON_CANONICAL),
        ]);
    }
    // Any address counts, whether or not its lowest bit is set: what restores a domain gives it without.
    report.saw("with a bad user root's plain address", initialise(&|context| context.ctrlreg[1] = bad::NO_FRAME << 12));
    vcpu::set_work(|| RAN.store(1, Ordering::SeqCst));
    report.expect("with the large root", initialise(&|_| {}), Answer::OK);
    report.expect("up", vcpu::bare_op(vcpuop::UP, 1), Answer::OK);
    while RAN.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    report.check("it runs on it", true);
    Ok(())
}
