//! XSA-8 (CVE-2012-0218) and XSA-44 (CVE-2013-1917): `syscall` and `sysenter` that nobody handles, from every kind of code.
//!
//! A program may enter by an instruction for which its kernel has named no handler, or from 32-bit code, which has handlers
//! of its own. What it gets instead is an exception, and its frame was built wrongly: with the flags, or at the place, of
//! another entry, so that the kernel died of a harmless program. Each instruction is executed in 64-bit and in 32-bit
//! user mode, with and without handlers; each time the kernel must find a frame of user mode, at the right instruction.
//! Promised by: public/callback.h (`CALLBACKTYPE_syscall`, `_syscall32`, `_sysenter`).

use pv::abi::x86::{callback, selector};
use pv::code::Code;
use pv::hypercall::{address, call, number};
use pv::trap::{self, Cause, General};
use pv::user::{self, Start};

use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    let kinds = [
        (callback::SYSCALL, Cause::Syscall),
        (callback::SYSCALL32, Cause::Syscall32),
        (callback::SYSENTER, Cause::Sysenter),
    ];
    for handled in [true, false] {
        for (kind, cause) in kinds {
            // The 64-bit one cannot be taken away: it is how this guest's user mode ends.
            if kind == callback::SYSCALL {
                continue;
            }
            let answer = if handled {
                trap::set_callback(kind, 0, trap::handler(0, cause))
            } else {
                call(number::CALLBACK_OP, [1, address(&mut [kind, 0])])
            };
            report.saw(format_args!("{cause}: {}", if handled { "registered" } else { "unregistered" }), answer);
        }
        for (name, bytes) in [("syscall", [0x0f, 0x05]), ("sysenter", [0x0f, 0x34]), ("int 0x80", [0xcd, 0x80])] {
            for (width, cs) in [("64-bit", selector::FLAT_RING3_CS64), ("32-bit", selector::FLAT_RING3_CS32)] {
                code.set(&bytes);
                let start = code.user_start(General::default());
                for (flags, rflags) in [("plain", 0x202), ("NT, AC and DF", 0x4_4602)] {
                    let frame = user::enter(&Start { cs: cs.into(), rflags, ..start });
                    let at = frame.rip.wrapping_sub(code.address());
                    report.saw(format_args!("{name}, {width}, {flags}, handled {handled}"), format_args!(
                        "{frame} at byte {at}, cs {:x}, flags {:x}", frame.cs & 0xffff, frame.rflags
                    ));
                    report.check_quietly("from user mode", frame.was_in_user_mode());
                }
            }
        }
    }
    code.set(&[0x90]);
    report.check("user mode goes on", code.in_user(&mut General::default()).is_ok());
    Ok(())
}
