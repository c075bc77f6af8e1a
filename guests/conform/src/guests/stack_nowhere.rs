//! Entering a kernel whose stack is not there.
//!
//! The hypervisor writes the frame of an entry to the guest's stack. If nothing is mapped there, it cannot; there is no
//! other place, and no handler to tell, so the domain is at its end, and nobody else. What may be named as a stack, and a
//! good entry, come first. Promised by: public/arch-x86/xen-x86_64.h (`stack_switch`), in the spirit of XSA-215.

use pv::code::Code;
use pv::trap::General;
use pv::{user, vcpu};

use crate::bad;
use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    code.set(&[0x90]);
    report.check("user mode comes back on a good stack", code.in_user(&mut General::default()).is_ok());
    report.saw("one that is not mapped", vcpu::set_entry_stack(bad::UNMAPPED));
    // Does not come back: the domain dies.
    let ended = code.in_user(&mut General::default());
    report.check("no kernel runs on it", ended.is_err());
    Ok(())
}
