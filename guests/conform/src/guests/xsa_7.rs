//! XSA-7 (CVE-2012-0217): `sysret` to an address that is not canonical.
//!
//! On Intel's processors SYSRET to such an address faults in ring 0, with the guest's stack pointer already loaded: the
//! hypervisor's fault handler then ran on a stack of the guest's choice. A guest gets there in two ways, and both are
//! tried: by the `iret` hypercall with the flag that asks for SYSRET, and by a `syscall` that is the very last
//! instruction of the lower half of the address space. Either must end in a fault of the guest's own. That SYSRET is
//! really asked for is shown by a return that does lose rcx and r11, as only SYSRET does.

use pv::abi::x86::vgcf;
use pv::code::Code;
use pv::memory::{ORDINARY, Page};
use pv::trap::General;
use pv::user::{self, Start};
use pv::{Answer, tables};

use crate::bad;
use crate::report::{Report, Verdict};

/// The last two bytes below where addresses stop being canonical.
const EDGE: u64 = (1 << 47) - 2;

/// Puts a `syscall` at [`EDGE`].
fn place_syscall() -> Result<(), Answer> {
    let code = Page::new();
    code.set_byte(4094, 0x0f);
    code.set_byte(4095, 0x05);
    let mut below = code;
    for _ in 0..3 {
        let table = Page::new();
        table.set_word(511, below.mfn() << 12 | ORDINARY);
        table.seal()?;
        below = table;
    }
    let slot = (tables::root_mfn() << 12) + 255 * 8;
    tables::set(slot, below.mfn() << 12 | ORDINARY).ok().map(drop)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    place_syscall()?;
    user::share_everything()?;
    let mut code = Code::new();
    // mov rbx, rcx; syscall
    code.set(&[0x48, 0x89, 0xcb, 0x0f, 0x05]);
    let registers = General { rcx: 0x1234, ..General::default() };
    let at = Start::at_address(code.address(), registers);
    let full = user::enter(&at);
    report.expect("a full return keeps rcx", full.general.rbx, 0x1234);
    let fast = Start { context: vgcf::IN_SYSCALL, ..at };
    let frame = user::enter(&fast);
    report.check("the fast one has its own idea of it", frame.general.rbx == code.address());
    for (name, rip) in [
        ("the first that is not canonical", 1 << 47),
        ("one in the middle", bad::NON_CANONICAL),
        ("the last", 0xffff_7fff_ffff_ffff),
    ] {
        let frame = user::enter(&Start { rip, ..fast });
        report.saw(name, frame);
        report.check("it is user mode's own fault", frame.was_in_user_mode());
        report.check("at that address", frame.rip == rip);
    }
    let frame = user::enter(&Start { rip: EDGE, ..at });
    report.saw("the last instruction of the lower half", frame);
    report.check("which would go on beyond it", frame.rip == EDGE + 2);
    let frame = user::enter(&Start { rip: frame.rip, ..fast });
    report.saw("gone on", frame);
    report.check("it is user mode's own fault", frame.was_in_user_mode());
    let frame = user::enter(&fast);
    report.check("and all is well", frame.general.rbx == code.address());
    Ok(())
}
