//! Privileged and odd instructions, in the kernel and in user mode.
//!
//! A PV kernel runs deprivileged. Some privileged instructions are carried out for it as far as they make sense
//! (reading CR0, say); the others must fault, and all of them must fault in user mode. Promised by: the list in
//! upstream's xen/arch/x86/pv/emul-priv-op.c as far as guests rely on it, and SDM 2 for what faults on its own.

use pv::code::Code;
use pv::trap::General;
use pv::user;

use crate::report::{Report, Verdict};

/// Name and bytes.
const LIST: &[(&str, &[u8])] = &[
    ("nop", &[0x90]),
    ("cli", &[0xfa]),
    ("sti", &[0xfb]),
    ("pushf; popf", &[0x9c, 0x9d]),
    ("clts", &[0x0f, 0x06]),
    ("invd", &[0x0f, 0x08]),
    ("wbinvd", &[0x0f, 0x09]),
    ("invlpg [rax]", &[0x0f, 0x01, 0x38]),
    ("swapgs", &[0x0f, 0x01, 0xf8]),
    ("rdtscp", &[0x0f, 0x01, 0xf9]),
    ("rdpmc", &[0x0f, 0x33]),
    ("rdtsc", &[0x0f, 0x31]),
    ("lgdt [rsp]", &[0x0f, 0x01, 0x14, 0x24]),
    ("lidt [rsp]", &[0x0f, 0x01, 0x1c, 0x24]),
    ("lldt ax", &[0x0f, 0x00, 0xd0]),
    ("ltr ax", &[0x0f, 0x00, 0xd8]),
    ("lmsw ax", &[0x0f, 0x01, 0xf0]),
    ("mov cr0, rax", &[0x0f, 0x22, 0xc0]),
    ("mov cr2, rax", &[0x0f, 0x22, 0xd0]),
    ("mov cr4, rax", &[0x0f, 0x22, 0xe0]),
    ("mov cr8, rax", &[0x44, 0x0f, 0x22, 0xc0]),
    ("mov rbx, cr0", &[0x0f, 0x20, 0xc3]),
    ("mov rbx, cr1", &[0x0f, 0x20, 0xcb]),
    ("mov rbx, cr2", &[0x0f, 0x20, 0xd3]),
    ("mov rbx, cr3", &[0x0f, 0x20, 0xdb]),
    ("mov rbx, cr4", &[0x0f, 0x20, 0xe3]),
    ("mov rbx, cr8", &[0x44, 0x0f, 0x20, 0xc3]),
    ("mov rbx, dr0", &[0x0f, 0x21, 0xc3]),
    ("mov rbx, dr4", &[0x0f, 0x21, 0xe3]),
    ("mov rbx, dr7", &[0x0f, 0x21, 0xfb]),
    ("mov dr0, rax", &[0x0f, 0x23, 0xc0]),
    ("sysret", &[0x48, 0x0f, 0x07]),
    ("sysexit", &[0x0f, 0x35]),
    ("sysenter", &[0x0f, 0x34]),
    ("monitor", &[0x0f, 0x01, 0xc8]),
    ("mwait", &[0x0f, 0x01, 0xc9]),
    ("xgetbv", &[0x0f, 0x01, 0xd0]),
    ("xsetbv", &[0x0f, 0x01, 0xd1]),
    ("vmcall", &[0x0f, 0x01, 0xc1]),
    ("vmrun", &[0x0f, 0x01, 0xd8]),
    ("vmmcall", &[0x0f, 0x01, 0xd9]),
    ("clgi", &[0x0f, 0x01, 0xdd]),
    ("clac", &[0x0f, 0x01, 0xca]),
    ("stac", &[0x0f, 0x01, 0xcb]),
    ("wrfsbase rax", &[0xf3, 0x48, 0x0f, 0xae, 0xd0]),
    ("ud2", &[0x0f, 0x0b]),
    ("int3", &[0xcc]),
    ("icebp", &[0xf1]),
    ("lock nop", &[0xf0, 0x90]),
    ("push es", &[0x06]),
    ("div by zero", &[0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1]),
    ("a non-canonical load", &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x48, 0x8b, 0x00]),
    ("a jump to 0x80000000000000", &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0x80, 0, 0xff, 0xe0]),
    ("sixteen prefixes", &[0x66; 15]),
];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    for (name, bytes) in LIST {
        code.set(bytes);
        let word = |outcome: Result<(), pv::trap::Frame>, report: &Report, mode| match outcome {
            Ok(()) => report.saw(format_args!("{name}, {mode}"), "done"),
            Err(frame) => {
                let at = frame.rip.wrapping_sub(code.address());
                report.saw(format_args!("{name}, {mode}"), format_args!("{frame}, {}", At(at)));
            }
        };
        // A register that none of them may take for an address or a selector of anything.
        let registers = || General { rax: 0, ..General::default() };
        word(code.in_kernel(&mut registers()), report, "kernel");
        word(code.in_user(&mut registers()), report, "user");
    }
    Ok(())
}

/// Where the instruction pointer stands, from the first instruction.
struct At(u64);

impl core::fmt::Display for At {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            0 => f.write_str("at it"),
            past if past < 16 => write!(f, "at byte {past}"),
            _ => f.write_str("elsewhere"),
        }
    }
}
