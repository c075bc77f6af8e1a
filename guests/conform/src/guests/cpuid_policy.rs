//! CPUID as a PV kernel sees it: by the forced prefix, which asks the hypervisor, and as the instruction answers.
//!
//! A guest learns here which hypervisor it runs on, which features it may use, and that it must not try others: no
//! VMX, no SVM, no monitor, no MTRRs of its own. Promised by: public/arch-x86/cpuid.h, and "XEN_EMULATE_PREFIX" in
//! public/arch-x86/xen.h.

use pv::code::Code;
use pv::trap::General;
use pv::user;

use crate::report::{End, Hex, Report, Verdict};

/// `ud2; .ascii "xen"; cpuid`
const FORCED: [u8; 7] = [0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    code.set(&FORCED);
    let ask = |code: &Code, leaf: u64, subleaf: u64| {
        let mut registers = General { rax: leaf, rcx: subleaf, ..General::default() };
        code.in_kernel(&mut registers).map_err(|_| End::Fail("cpuid faults"))?;
        Ok::<[u64; 4], End>([registers.rax, registers.rbx, registers.rcx, registers.rdx])
    };
    let [last, vendor @ ..] = ask(&code, 0, 0)?;
    report.saw("highest leaf", format_args!("{last:x}"));
    report.saw_all("vendor", vendor.map(Hex));
    // Without the APIC's number, and without what changes as a guest goes (OSXSAVE is not among QEMU's features).
    let [version, brand, features_c, features_d] = ask(&code, 1, 0)?;
    report.saw("leaf 1", format_args!("{version:x} {:x} {features_c:x} {features_d:x}", brand & 0xff00));
    for (leaf, subleaf) in [(5, 0), (6, 0), (7, 0), (7, 1), (0xa, 0), (0xd, 0), (0xd, 1), (0xb, 0)] {
        let words = ask(&code, leaf, subleaf)?;
        // Leaf 0xb ends with the APIC's number.
        let shown = if leaf == 0xb { 3 } else { 4 };
        report.saw_all(format_args!("leaf {leaf:x}.{subleaf}"), words.into_iter().take(shown).map(Hex));
    }
    for leaf in [0x8000_0000, 0x8000_0001, 0x8000_0007, 0x8000_0008, 0x8000_000a, 0x8000_001e] {
        report.saw_all(format_args!("leaf {leaf:x}"), ask(&code, leaf, 0)?.map(Hex));
    }
    for leaf in [0x4000_0000, 0x4000_0001, 0x4000_0002, 0x4000_0004, 0x4000_0005, 0x4000_0006, 0x4000_0100, 0x5000_0000, 0xc000_0000] {
        let words = ask(&code, leaf, 0)?;
        report.saw_all(format_args!("leaf {leaf:x}"), words.map(Hex));
    }
    let [tsc_mode, ..] = ask(&code, 0x4000_0003, 0)?;
    report.saw("leaf 40000003: how the time-stamp counter is kept", format_args!("{tsc_mode:x}"));
    let mut registers = General { rax: 0x4000_0000, ..General::default() };
    let outcome = code.in_user(&mut registers);
    report.saw("forced in user mode", format_args!("{} {:x}", outcome.is_ok(), registers.rbx));
    let mut other = Code::new();
    other.set(&[0x0f, 0x0b, b'x', b'e', b'n', 0x90]);
    match other.in_kernel(&mut General::default()) {
        Ok(()) => report.saw("the prefix before another instruction", "done"),
        Err(frame) => report.saw("the prefix before another instruction", frame),
    }
    Ok(())
}
