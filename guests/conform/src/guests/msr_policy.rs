//! Model-specific registers: which a PV kernel may read, which it may write, and what it finds.
//!
//! Whatever is not expressly let through must fault, on reading and on writing, in user mode always. Promised by:
//! the policy of upstream's xen/arch/x86/msr.c and pv/emul-priv-op.c as far as Linux relies on it. In the spirit of
//! XSA-108 and XSA-333.

use pv::code::Code;
use pv::trap::General;
use pv::user;

use crate::report::{Report, Verdict};

/// Name, number, and whether its value is the same in every run.
const LIST: &[(&str, u64, bool)] = &[
    ("time-stamp counter", 0x10, false),
    ("platform id", 0x17, true),
    ("APIC base", 0x1b, true),
    ("feature control", 0x3a, true),
    ("spec ctrl", 0x48, true),
    ("pred cmd", 0x49, true),
    ("microcode", 0x8b, true),
    ("SMM monitor", 0x9b, true),
    ("performance counter", 0xc1, true),
    ("platform info", 0xce, true),
    ("MTRR capabilities", 0xfe, true),
    ("arch capabilities", 0x10a, true),
    ("flush cmd", 0x10b, true),
    ("sysenter cs", 0x174, true),
    ("sysenter esp", 0x175, true),
    ("sysenter eip", 0x176, true),
    ("machine check capabilities", 0x179, true),
    ("machine check status", 0x17a, true),
    ("performance event", 0x186, true),
    ("performance status", 0x198, true),
    ("misc enable", 0x1a0, true),
    ("debug control", 0x1d9, true),
    ("MTRR 0", 0x200, true),
    ("PAT", 0x277, true),
    ("MTRR default", 0x2ff, true),
    ("machine check bank 0", 0x401, true),
    ("VMX basic", 0x480, true),
    ("deadline", 0x6e0, true),
    ("x2APIC id", 0x802, true),
    ("XSS", 0xda0, true),
    ("hypervisor's page", 0x4000_0000, true),
    ("EFER", 0xc000_0080, true),
    ("STAR", 0xc000_0081, true),
    ("LSTAR", 0xc000_0082, true),
    ("FMASK", 0xc000_0084, true),
    ("FS base", 0xc000_0100, true),
    ("TSC aux", 0xc000_0103, true),
    ("SYSCFG", 0xc001_0010, true),
    ("HWCR", 0xc001_0015, true),
    ("TOP_MEM", 0xc001_001a, true),
    ("VM_CR", 0xc001_0114, true),
    ("VM_HSAVE", 0xc001_0117, true),
    ("patch level", 0xc001_0020, true),
    ("DE_CFG", 0xc001_1029, true),
    ("no such", 0xdead_beef, true),
    ("the last", 0xffff_ffff, true),
];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let (mut read, mut write) = (Code::new(), Code::new());
    read.set(&[0x0f, 0x32]);
    write.set(&[0x0f, 0x30]);
    let mut in_user = 0;
    for (name, number, is_stable) in LIST {
        let mut registers = General { rcx: *number, ..General::default() };
        let outcome = read.in_kernel(&mut registers);
        let value = registers.rdx << 32 | registers.rax;
        match outcome {
            Ok(()) if *is_stable => report.saw(format_args!("read {name}"), format_args!("{value:x}")),
            Ok(()) => report.saw(format_args!("read {name}"), "done"),
            Err(frame) => report.saw(format_args!("read {name}"), frame),
        }
        let readable = outcome.is_ok();
        // The same value back, then 0, then all ones.
        let put = |value: u64| {
            let mut registers = General { rcx: *number, rax: value & 0xffff_ffff, rdx: value >> 32, ..General::default() };
            if write.in_kernel(&mut registers).is_ok() { "done" } else { "#GP" }
        };
        let same = if readable && *is_stable { put(value) } else { "-" };
        report.saw_all(format_args!("write {name}: the same, 0, all ones"), [same, put(0), put(u64::MAX)]);
        let user = read.in_user(&mut registers).is_ok() || write.in_user(&mut registers).is_ok();
        in_user += u64::from(user);
    }
    report.expect("of all these, user mode may", in_user, 0);
    Ok(())
}
