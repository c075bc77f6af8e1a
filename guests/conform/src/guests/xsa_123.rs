//! XSA-123 (CVE-2015-2151): a segment prefix before an instruction that has no memory operand.
//!
//! The emulator kept "which segment" and "which register" in the same place, so that a prefix in front of an instruction
//! with a register operand wrote where it should not: an escape. Every prefix, and some in a row, goes in front of
//! instructions that the hypervisor carries out for the guest: a read of CR0, an MSR, CPUID, a port. What comes out must
//! not depend on the prefix, or the guest must get a fault.

use pv::code::Code;
use pv::trap::General;

use crate::report::{Ended, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let instructions: [(&str, &[u8], u64); 4] = [
        ("mov rdx, cr0", &[0x0f, 0x20, 0xc2], 0),
        ("mov rdx, cr4", &[0x0f, 0x20, 0xe2], 0),
        ("rdmsr", &[0x0f, 0x32], 0xc000_0080),
        ("cli", &[0xfa], 0),
    ];
    let prefixes: [(&str, &[u8]); 12] = [
        ("es", &[0x26]),
        ("cs", &[0x2e]),
        ("ss", &[0x36]),
        ("ds", &[0x3e]),
        ("fs", &[0x64]),
        ("gs", &[0x65]),
        ("16 bits", &[0x66]),
        ("32-bit addresses", &[0x67]),
        ("lock", &[0xf0]),
        ("repne", &[0xf2]),
        ("rep", &[0xf3]),
        ("gs, fs and rex.w", &[0x65, 0x64, 0x48]),
    ];
    for (name, bytes, rcx) in instructions {
        let mut code = Code::new();
        let run = |code: &Code| {
            let mut registers = General { rcx, ..General::default() };
            let ended = code.in_kernel(&mut registers);
            (ended, registers)
        };
        code.set(bytes);
        let (ended, plain) = run(&code);
        report.saw(name, Ended(ended));
        for (prefix, first) in prefixes {
            let mut line = [0; 8];
            line[..first.len()].copy_from_slice(first);
            line[first.len()..first.len() + bytes.len()].copy_from_slice(bytes);
            code.set(&line[..first.len() + bytes.len()]);
            let (ended, registers) = run(&code);
            let same = (registers.rax, registers.rdx, registers.rbx) == (plain.rax, plain.rdx, plain.rbx);
            report.saw(format_args!("{prefix}"), format_args!("{}, as without: {same}", Ended(ended)));
        }
    }
    Ok(())
}
