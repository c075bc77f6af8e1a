//! XSA-213 (CVE-2017-8903): an `iret` inside a multicall.
//!
//! Inside a multicall the hypervisor went on with the remaining calls after an `iret` had already taken the vcpu to user
//! mode, and these then changed page tables in the belief that the kernel's were loaded: another full escape. So the
//! multicall goes to user mode first and then wants to map a frame. Either the later call is not made, or it is made for
//! the kernel; user mode's own tables must not be touched, which the guest checks by giving user mode a root that lacks
//! the page.

use pv::code::Code;
use pv::hypercall::{address, entry, number};
use pv::memory::{self, ORDINARY, Page};
use pv::tables::{self, Slot};
use pv::trap::{Cause, General};
use pv::user::{self, Start};
use pv::Answer;

use crate::report::{End, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let page = Page::new();
    let slot = Slot::of(page.address(), 1).ok_or(End::Fail("no table"))?;
    let good = page.mfn() << 12 | ORDINARY;
    memory::unmap(page.address()).ok()?;
    let mut code = Code::new();
    // User mode: syscall at once.
    code.set(&[0x0f, 0x05]);
    let start = Start::at_address(code.address(), General::default());
    let mut calls = [
        entry(number::XEN_VERSION, [0]),
        entry(number::IRET, [0]),
        entry(number::UPDATE_VA_MAPPING, [page.address(), good, memory::FLUSH_PAGE]),
    ];
    calls[2].result = 99;
    let list = address(&mut calls);
    let frame = user::enter_by_multicall(&start, list, 3);
    report.saw("came back by", frame);
    report.check("the call before the iret was made", Answer(calls[0].result as i64).is_ok());
    let mapped = slot.get() & 1 == 1;
    let made = calls[2].result != 99;
    report.saw("the call behind it was made", made);
    report.check("it did what it says, or nothing", mapped == (made && calls[2].result == 0));
    report.check("the vcpu is where it seems", matches!(frame.cause, Cause::Syscall | Cause::Vector(_)));
    // The kernel's root must be what it was, whatever happened.
    memory::set_entry(page.address(), good).ok()?;
    page.set_word(0, 7);
    report.expect("the kernel maps the page", page.word(0), 7);
    report.expect("and its root is its own", tables::set_root(tables::root_mfn()), Answer::OK);
    let frame = user::enter(&start);
    report.check("user mode works as before", frame.cause == Cause::Syscall && frame.was_in_user_mode());
    Ok(())
}
