//! XSA-265 (CVE-2018-12893): the debug exception that stops the host.
//!
//! A watchpoint on the memory from which SS is loaded is delivered one instruction later; if that is one that enters the
//! hypervisor, the debug exception arises in the hypervisor. A check there, meant to keep that from looping, could be
//! satisfied by a guest, with a status register it had left dirty, and then crashed the host. The sequence: leave every
//! sticky bit set in DR6, watch a word, load SS from it, and enter the hypervisor by `int3`, `int 0x80`, `syscall` and a
//! fault. The host must live, and the guest get its own trap. The watchpoint is shown to fire by itself first. (QEMU
//! delivers it with the load of SS, not after the next instruction; on a processor it is the full sequence.)

use pv::code::Code;
use pv::hypercall::{call, number};
use pv::memory::Page;
use pv::trap::{Cause, General};
use pv::user;

use crate::report::{Report, Verdict};

/// Every bit of DR6 that stays until it is cleared: B0 to B3, BD, BS, BT.
const STICKY: u64 = 0xffff_efff;
/// Watch four bytes for any access in DR0.
const WATCH: u64 = 0xf_0001;

fn set(register: u64, value: u64) -> pv::Answer {
    call(number::SET_DEBUGREG, [register, value])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let word = Page::new();
    word.set_word(0, 0xe02b);
    report.expect("every sticky bit set", set(6, STICKY), pv::Answer::OK);
    report.expect("the word watched", set(0, word.address()), pv::Answer::OK);
    report.expect("switched on", set(7, WATCH), pv::Answer::OK);
    let registers = || General { rdi: word.address(), rax: 17, ..General::default() };
    let mut code = Code::new();
    // mov rax, [rdi]; nop
    code.set(&[0x48, 0x8b, 0x07, 0x90]);
    let fired = code.in_kernel(&mut registers()).is_err_and(|frame| frame.cause == Cause::Vector(1));
    report.check("the watchpoint fires", fired);
    // mov ss, [rdi], then:
    let tails: [(&str, &[u8]); 5] = [
        ("int3", &[0x8e, 0x17, 0xcc]),
        ("int 0x80", &[0x8e, 0x17, 0xcd, 0x80]),
        ("a hypercall", &[0x8e, 0x17, 0x31, 0xff, 0x0f, 0x05]),
        ("ud2", &[0x8e, 0x17, 0x0f, 0x0b]),
        ("an emulated instruction", &[0x8e, 0x17, 0x0f, 0x20, 0xc3]),
    ];
    for (name, bytes) in tails {
        code.set(bytes);
        for mode in ["kernel", "user"] {
            set(6, STICKY).ok()?;
            let outcome = if mode == "kernel" {
                code.in_kernel(&mut registers())
            } else {
                code.in_user(&mut registers())
            };
            let trapped = outcome.is_err_and(|frame| frame.was_in_user_mode() == (mode == "user"));
            report.check(format_args!("mov ss; {name} in {mode}: a trap of its own"), trapped);
        }
    }
    set(7, 0).ok()?;
    report.expect("the host answers", call(number::XEN_VERSION, [0, 0]), pv::Answer(4 << 16 | 17));
    Ok(())
}
