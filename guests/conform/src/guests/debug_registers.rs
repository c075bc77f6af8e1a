//! Debug registers, watchpoints and single steps.
//!
//! A guest may watch its own addresses, never the hypervisor's, and must not make the hypervisor stumble over a
//! watchpoint of its own. Promised by: public/xen.h (`set_debugreg`), SDM 3B "Debug". In the spirit of XSA-444 and
//! XSA-308.

use pv::code::Code;
use pv::hypercall::{call, number};
use pv::memory::Page;
use pv::trap::{Frame, General};
use pv::user;

use crate::bad;
use crate::report::{Hex, Report, Verdict};

fn set(index: u64, value: u64) -> pv::Answer {
    call(number::SET_DEBUGREG, [index, value])
}

fn get(index: u64) -> i64 {
    call(number::GET_DEBUGREG, [index]).0
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let page = Page::new();
    report.saw_all("after a start", (0..10).map(|index| Hex(get(index) as u64)));
    for index in 0..4 {
        report.saw_all(format_args!("dr{index}: ours, 0, the hypervisor's start, inside, its end, not canonical, the last"), [
            set(index, page.address()),
            set(index, 0),
            set(index, bad::HYPERVISORS),
            set(index, bad::HYPERVISORS_TOO),
            set(index, 0xffff_8800_0000_0000),
            set(index, bad::NON_CANONICAL),
            set(index, u64::MAX),
        ]);
        set(index, 0).ok()?;
    }
    report.saw_all("dr4, dr5, dr8, far", [4, 5, 8, 99].map(|index| set(index, 0)));
    for value in [0, 0xffff_0ff0, 0xffff_ffff, 0xffff_4ff0, 1 << 32, 0x4000] {
        let answer = set(6, value);
        report.saw(format_args!("dr6 {value:x}"), format_args!("{answer}, reads {:x}", get(6)));
    }
    for value in [0, 0x400, 0xff, 0x2000, 0xffff_ffff, 1 << 32, 0xf000, 0x2_0001, 0x1_0001, 0x8_0001, 0xb_0001, 0xf_0003, 0xdc00] {
        let answer = set(7, value);
        report.saw(format_args!("dr7 {value:x}"), format_args!("{answer}, reads {:x}", get(7)));
        set(7, 0).ok()?;
    }
    watching(report, page)?;
    stepping(report)
}

fn show(report: &Report, name: &str, outcome: Result<(), Frame>, at: u64) {
    match outcome {
        Ok(()) => report.saw(name, "nothing"),
        Err(frame) => report.saw(name, format_args!(
            "{frame} at byte {}, dr6 {:x}, user {}, trap flag {}",
            frame.rip.wrapping_sub(at), get(6), frame.was_in_user_mode(), frame.rflags >> 8 & 1
        )),
    }
    set(6, 0xffff_0ff0);
}

/// Breaks on a store, on a load, on an instruction, in both modes.
fn watching(report: &mut Report, page: Page) -> Verdict {
    let mut code = Code::new();
    // mov [rax], rax; nop; mov rbx, [rax]; nop
    code.set(&[0x48, 0x89, 0x00, 0x90, 0x48, 0x8b, 0x18, 0x90]);
    set(6, 0xffff_0ff0).ok()?;
    set(0, page.address()).ok()?;
    let registers = || General { rax: page.address(), ..General::default() };
    for (name, control) in [("a store watched", 0xd_0001), ("any access watched", 0xf_0001), ("one byte watched", 0x1_0001), ("nothing watched", 0xd_0000)] {
        set(7, control).ok()?;
        show(report, name, code.in_kernel(&mut registers()), code.address());
        show(report, name, code.in_user(&mut registers()), code.address());
    }
    set(0, page.address() + 64).ok()?;
    set(7, 0xd_0001).ok()?;
    show(report, "another place watched", code.in_kernel(&mut registers()), code.address());
    set(0, code.address() + 3).ok()?;
    set(7, 0x1).ok()?;
    show(report, "an instruction watched", code.in_kernel(&mut registers()), code.address());
    show(report, "an instruction watched", code.in_user(&mut registers()), code.address());
    // The hypervisor itself writes there, for a hypercall: that is nobody's business.
    set(0, page.address()).ok()?;
    set(7, 0xf_0001).ok()?;
    let answer = call(number::XEN_VERSION, [8, page.address()]);
    report.saw("a hypercall writes to what is watched", format_args!("{answer}"));
    let mut nothing = Code::new();
    nothing.set(&[0x90]);
    show(report, "the instruction after it", nothing.in_kernel(&mut registers()), nothing.address());
    set(7, 0).ok()?;
    set(0, 0).ok()?;
    Ok(())
}

fn stepping(report: &mut Report) -> Verdict {
    let mut code = Code::new();
    // pushf; or [rsp], 0x100; popf; nop; nop
    let step = [0x9c, 0x48, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90, 0x90];
    code.set(&step);
    show(report, "stepping", code.in_kernel(&mut General::default()), code.address());
    show(report, "stepping", code.in_user(&mut General::default()), code.address());
    let with = |tail: &[u8]| {
        let mut bytes = [0; 16];
        bytes[..10].copy_from_slice(&step[..10]);
        bytes[10..10 + tail.len()].copy_from_slice(tail);
        let mut code = Code::new();
        code.set(&bytes[..10 + tail.len()]);
        code
    };
    for (name, tail) in [
        ("stepping over a hypercall", &[0x0f, 0x05, 0x90][..]),
        ("stepping over cpuid", &[0x0f, 0xa2, 0x90]),
        ("stepping over an emulated instruction", &[0x0f, 0x20, 0xc3, 0x90]),
        ("stepping over ud2", &[0x0f, 0x0b, 0x90]),
        ("stepping over int3", &[0xcc, 0x90]),
        ("stepping over a load of ss", &[0x8c, 0xd3, 0x8e, 0xd3, 0x90]),
    ] {
        let code = with(tail);
        // A hypercall that does nothing: xen_version 0.
        let registers = || General { rax: 17, ..General::default() };
        show(report, name, code.in_kernel(&mut registers()), code.address());
    }
    let code = with(&[0x0f, 0x05, 0x90]);
    show(report, "stepping over syscall", code.in_user(&mut General::default()), code.address());
    Ok(())
}
