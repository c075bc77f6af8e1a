//! XSA-444 (CVE-2023-34327 and 34328), XSA-156 (CVE-2015-8104) and XSA-308: breakpoints on what the hypervisor uses.
//!
//! A breakpoint on the live descriptor table fires when the processor delivers the very debug exception, and so for ever.
//! A guest's breakpoints must never match what the hypervisor touches: addresses in its half are refused, by hypercall
//! and by an emulated MOV to the register, for each of the four, and so are those with which a context starts. A
//! breakpoint on the guest's own page is shown to fire.

use pv::abi::vcpu::vcpuop;
use pv::code::Code;
use pv::hypercall::{call, number};
use pv::memory::Page;
use pv::trap::{Cause, General};
use pv::vcpu;

use crate::bad;
use crate::report::{Ended, Report, Verdict};

const PLACES: [u64; 5] = [
    bad::HYPERVISORS,
    bad::HYPERVISORS_TOO,
    0xffff_82d0_0000_0000,
    0xffff_8300_0000_0000,
    0xffff_87ff_ffff_ffff,
];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let word = Page::new();
    let set = |register: u64, value: u64| call(number::SET_DEBUGREG, [register, value]);
    let mut code = Code::new();
    for register in 0..4 {
        report.saw_all(format_args!("dr{register}"), PLACES.map(|place| set(register, place)));
        // mov drN, rax
        code.set(&[0x0f, 0x23, 0xc0 | (register as u8) << 3]);
        let ended = PLACES.map(|rax| Ended(code.in_kernel(&mut General { rax, ..General::default() })));
        report.saw_all("by the instruction", ended);
        let held = call(number::GET_DEBUGREG, [register]).0.cast_unsigned();
        report.check("none of it is there", !PLACES.contains(&held));
    }
    for place in PLACES {
        let mut context = vcpu::context();
        (context.debugreg[0], context.debugreg[7]) = (place, 0xf_0001);
        report.saw("a vcpu that starts with one", vcpu::op(vcpuop::INITIALISE, 1, &mut context));
    }
    report.expect("one of our own", set(0, word.address()), pv::Answer::OK);
    set(7, 0xf_0001).ok()?;
    code.set(&[0x48, 0x8b, 0x07, 0x90]);
    let fired = code.in_kernel(&mut General { rdi: word.address(), ..General::default() });
    report.check("fires", fired.is_err_and(|frame| frame.cause == Cause::Vector(1)));
    set(7, 0).ok()?;
    Ok(())
}
