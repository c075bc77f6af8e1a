//! XSA-339 (CVE-2020-25596): flags that SYSENTER does not clear.
//!
//! SYSENTER leaves NT set in the flags, and the hypervisor's way out by IRET then faulted: a process could kill its
//! guest's kernel. Every way into the hypervisor from user mode is taken with NT, alignment check and direction set; each
//! must end as it does without them. Where the processor has no SYSENTER in 64-bit mode (AMD's), that one is #UD with and
//! without.

use pv::code::Code;
use pv::trap::{Cause, General};
use pv::user::{self, Start};

use crate::report::{Report, Verdict};

/// NT, AC, DF and the interrupt flag.
const HOSTILE: u64 = 1 << 14 | 1 << 18 | 1 << 10 | 0x202;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let ways: [(&str, &[u8]); 6] = [
        ("sysenter", &[0x0f, 0x34]),
        ("syscall", &[0x0f, 0x05]),
        ("int 0x80", &[0xcd, 0x80]),
        ("int3", &[0xcc]),
        ("ud2", &[0x0f, 0x0b]),
        ("a load from nowhere", &[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x7f]),
    ];
    let mut code = Code::new();
    for (name, bytes) in ways {
        code.set(bytes);
        let start = Start::at_address(code.address(), General::default());
        let plain = user::enter(&start);
        let hostile = user::enter(&Start { rflags: HOSTILE, ..start });
        report.saw(name, hostile);
        report.check("as without the flags", plain.cause == hostile.cause && plain.rip == hostile.rip);
        report.check("from user mode", hostile.was_in_user_mode());
    }
    code.set(&[0x0f, 0x05]);
    let frame = user::enter(&Start::at_address(code.address(), General::default()));
    report.check("user mode goes on", frame.cause == Cause::Syscall);
    Ok(())
}
