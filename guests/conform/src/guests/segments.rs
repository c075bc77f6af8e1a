//! Segment bases: by hypercall, by MSR, in the kernel and in user mode.
//!
//! A 64-bit kernel has its per-CPU data behind GS; user mode's GS base is kept apart and swapped with each change of
//! mode. Promised by: public/xen.h (`set_segment_base`), public/arch-x86/xen-x86_64.h (`SEGBASE_*`).

use pv::code::Code;
use pv::hypercall::{call, number};
use pv::memory::Page;
use pv::trap::{Frame, General};
use pv::user;

use crate::bad;
use crate::report::{Ended, Report, Verdict};

const FS: u64 = 0;
const GS_USER: u64 = 1;
const GS_KERNEL: u64 = 2;
const GS_USER_SELECTOR: u64 = 3;

fn set(which: u64, base: u64) -> pv::Answer {
    call(number::SET_SEGMENT_BASE, [which, base])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let pages = [Page::new(), Page::new(), Page::new()];
    for (page, value) in pages.iter().zip([0xf5, 0x65, 0x6b]) {
        page.set_word(0, value);
    }
    report.saw_all("set FS, user GS, kernel GS", [FS, GS_USER, GS_KERNEL].map(|which| set(which, pages[which as usize].address())));
    let mut read = Code::new();
    // mov rbx, fs:[0]; mov rdx, gs:[0]
    read.set(&[0x64, 0x48, 0x8b, 0x1c, 0x25, 0, 0, 0, 0, 0x65, 0x48, 0x8b, 0x14, 0x25, 0, 0, 0, 0]);
    let show = |report: &Report, name: &str, outcome: Result<(), Frame>, registers: &General| match outcome {
        Ok(()) => report.saw(name, format_args!("fs {:x}, gs {:x}", registers.rbx, registers.rdx)),
        Err(frame) => report.saw(name, frame),
    };
    let mut registers = General::default();
    let outcome = read.in_kernel(&mut registers);
    show(report, "the kernel reads", outcome, &registers);
    let mut registers = General::default();
    let outcome = read.in_user(&mut registers);
    show(report, "user mode reads", outcome, &registers);
    let mut registers = General::default();
    let outcome = read.in_kernel(&mut registers);
    show(report, "the kernel again", outcome, &registers);

    for (name, which) in [("FS", FS), ("user GS", GS_USER), ("kernel GS", GS_KERNEL)] {
        report.saw_all(format_args!("{name}: not canonical, the hypervisor, 0, back"), [
            set(which, bad::NON_CANONICAL),
            set(which, bad::HYPERVISORS_TOO),
            set(which, 0),
            set(which, pages[which as usize].address()),
        ]);
    }
    report.saw_all("user GS selector: null, flat, the hypervisor's, far, of the LDT, with high bits", [
        set(GS_USER_SELECTOR, 0),
        set(GS_USER_SELECTOR, 0xe02b),
        set(GS_USER_SELECTOR, 0xe010),
        set(GS_USER_SELECTOR, 0xfffb),
        set(GS_USER_SELECTOR, 7),
        set(GS_USER_SELECTOR, 0x1_0000_0000),
    ]);
    report.saw_all("no such base", [4, 99, u64::MAX].map(|which| set(which, 0)));

    // By MSR, which the hypervisor carries out.
    let mut msr = Code::new();
    msr.set(&[0x0f, 0x30]);
    let write = |index: u64, value: u64| {
        let mut registers = General { rcx: index, rax: value & 0xffff_ffff, rdx: value >> 32, ..General::default() };
        msr.in_kernel(&mut registers)
    };
    for (name, index) in [("FS", 0xc000_0100), ("GS", 0xc000_0101), ("the other GS", 0xc000_0102)] {
        for (what, value) in [("a page", pages[0].address()), ("not canonical", bad::NON_CANONICAL), ("the hypervisor", bad::HYPERVISORS_TOO)] {
            let outcome = write(index, value);
            report.saw(format_args!("wrmsr {name}: {what}"), Ended(outcome));
        }
    }
    set(GS_KERNEL, pages[2].address()).ok()?;
    let mut registers = General::default();
    let outcome = read.in_user(&mut registers);
    show(report, "user mode reads", outcome, &registers);
    set(FS, 0).ok()?;
    set(GS_KERNEL, 0).ok()?;
    set(GS_USER, 0).ok()?;
    Ok(())
}
