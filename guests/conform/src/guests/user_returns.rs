//! Returns to user mode with everything that can be wrong in the frame.
//!
//! The `iret` hypercall takes its frame from the guest. Selectors, flags and addresses in it are loaded by the CPU in
//! the hypervisor's name, so that a bad one faults there, and must come out as the failsafe callback or a fault of the
//! guest's, never as the hypervisor's own. Flags must not carry what user mode may not have. Promised by:
//! public/arch-x86/xen-x86_64.h (`iret_context`), public/callback.h (failsafe). In the spirit of XSA-7 and XSA-286.

use pv::code::Code;
use pv::trap::{Cause, Frame, General};
use pv::user::{self, Start};

use crate::bad;
use crate::report::{Report, Verdict};

fn show(report: &Report, name: &str, frame: Frame) {
    let mode = if frame.was_in_user_mode() { "user" } else { "kernel" };
    let segments = if frame.cause == Cause::Failsafe { frame.segments.map(|s| s & 0xffff) } else { [0; 4] };
    report.saw(name, format_args!("{frame}, {mode}, cs {:x}, ss {:x}, segments {segments:x?}", frame.cs & 0xffff, frame.ss & 0xffff));
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    // pushfq; pop rax; syscall
    let mut code = Code::new();
    code.set(&[0x9c, 0x58, 0x0f, 0x05]);
    let at = Start::at_address(code.address(), General::default());
    let flags = |rflags: u64| {
        let frame = user::enter(&Start { rflags, ..at });
        (frame.cause, frame.general.rax, frame.rflags)
    };
    for (name, rflags) in [
        ("nothing", 0),
        ("interrupts", 0x200),
        ("carry, zero, sign, direction, overflow", 0xed5),
        ("IOPL 3", 0x3202),
        ("nested task", 0x4202),
        ("virtual 8086", 0x2_0202),
        ("alignment check", 0x4_0202),
        ("virtual interrupts", 0x18_0202),
        ("id", 0x20_0202),
        ("reserved bits", 0xffff_ffff_ffc0_8028),
    ] {
        let (cause, inside, after) = flags(rflags);
        report.saw(format_args!("flags: {name}"), format_args!("{cause}, inside {inside:x}, in the frame {after:x}"));
    }
    show(report, "single step", user::enter(&Start { rflags: 0x302, ..at }));

    let selectors: [(&str, u64); 9] = [
        ("null", 0),
        ("null, RPL 3", 3),
        ("the hypervisor's code, as it is", 0xe008),
        ("the hypervisor's code, RPL 3", 0xe00b),
        ("a task", 0xe043),
        ("32-bit code", 0xe023),
        ("data", 0xe02b),
        ("out of the table", 0xfffb),
        ("in a table that is not there", 0x7),
    ];
    for (name, selector) in selectors {
        // A selector with RPL 0 means the kernel: where that goes is another guest's business.
        if selector & 3 == 3 {
            let mut line = code;
            line.set(&[0x0f, 0x0b]);
            show(report, name, user::enter(&Start { cs: selector, ..at }));
            code.set(&[0x9c, 0x58, 0x0f, 0x05]);
        }
    }
    for (name, selector) in selectors {
        show(report, name, user::enter(&Start { ss: selector, ..at }));
    }
    for (name, rip) in [
        ("nowhere", bad::UNMAPPED),
        ("the hypervisor", bad::HYPERVISORS_TOO),
        ("not canonical", bad::NON_CANONICAL),
        ("the first that is not canonical", 1 << 47),
        ("the last byte of the lower half", (1 << 47) - 1),
        ("the last byte", u64::MAX),
    ] {
        show(report, name, user::enter(&Start { rip, ..at }));
    }
    for (name, rsp) in [
        ("a stack nowhere", bad::UNMAPPED),
        ("a stack in the hypervisor", bad::HYPERVISORS_TOO),
        ("a stack that is not canonical", bad::NON_CANONICAL),
        ("a stack at 0", 0),
    ] {
        show(report, name, user::enter(&Start { rsp, ..at }));
    }
    Ok(())
}
