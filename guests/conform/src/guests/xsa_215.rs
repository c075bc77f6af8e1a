//! XSA-215 (CVE-2017-8905): a kernel stack in the hypervisor.
//!
//! The frame of an entry from user mode goes to the stack that the kernel named, of which the end was checked and not the
//! beginning: the failsafe callback's frame is the largest, and its first words went into the hypervisor. Stacks of that
//! kind are named here (naming is allowed: it is a number), and user mode then enters the kernel on one that reaches down
//! from a guest's address into the hypervisor's end. There is no kernel to run on, so the domain dies; that, and no more,
//! must come of it.

use pv::code::Code;
use pv::trap::General;
use pv::{user, vcpu};

use crate::bad;
use crate::report::{Report, Verdict};

/// The first address behind what is the hypervisor's.
const END: u64 = 0xffff_8800_0000_0000;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    code.set(&[0x90]);
    for (name, stack) in [
        ("ours", vcpu::entry_stack(0)),
        ("the hypervisor's", bad::HYPERVISORS_TOO),
        ("at the hypervisor's start", bad::HYPERVISORS),
        ("not canonical", bad::NON_CANONICAL),
        ("at the end of all", u64::MAX),
        ("nowhere", bad::UNMAPPED),
    ] {
        report.saw(format_args!("a stack that is {name}"), vcpu::set_entry_stack(stack));
    }
    vcpu::set_entry_stack(vcpu::entry_stack(0)).ok()?;
    report.check("user mode comes back on a good one", code.in_user(&mut General::default()).is_ok());
    report.saw("one that reaches into the hypervisor", vcpu::set_entry_stack(END + 16));
    // Does not come back: the domain dies.
    let ended = code.in_user(&mut General::default());
    report.check("no kernel runs on it", ended.is_err());
    Ok(())
}
