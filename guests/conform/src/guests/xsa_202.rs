//! XSA-202 (CVE-2016-10024): a guest that masks the machine's interrupts.
//!
//! Where the hypervisor carries out an instruction for a guest, or returns to it by SYSRET, flags of the guest's choice
//! come back into the processor; with the interrupt flag clear among them, the guest had a CPU to itself for good. So
//! every way back is taken with flags that lack it, and each time user mode and the kernel must find it set, and a timer
//! must still get through while the guest spins.

use pv::code::Code;
use pv::hypercall::{call, number};
use pv::trap::{self, Frame, General, Next};
use pv::user::{self, Start};
use pv::{event, time};

use crate::report::{Report, Verdict};

const IF: u64 = 1 << 9;

/// Comes back with the interrupt flag cleared in the frame.
fn without_interrupts(frame: &mut Frame) -> Next {
    frame.rflags &= !IF;
    frame.rip += 2;
    Next::Resume
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let port = event::bind_virq(0, 0)?;
    let mut code = Code::new();
    // pushf; pop rbx; syscall
    code.set(&[0x9c, 0x5b, 0x0f, 0x05]);
    for context in [0, pv::abi::x86::vgcf::IN_SYSCALL] {
        let start = Start { rflags: 2, context, ..Start::at_address(code.address(), General::default()) };
        let frame = user::enter(&start);
        report.expect(format_args!("in user mode, by a return with flags {context:x}"), frame.general.rbx & IF, IF);
    }
    // ud2; pushf; pop rbx
    code.set(&[0x0f, 0x0b, 0x9c, 0x5b]);
    let mut registers = General::default();
    let resumed = trap::hook(without_interrupts, || code.in_kernel(&mut registers).is_ok());
    report.check("the kernel resumes with them off", resumed);
    report.expect("in the kernel, after its handler", registers.rbx & IF, IF);
    // push 2; popf; mov rdx, cr0 (emulated); pushf; pop rbx
    code.set(&[0x6a, 0x02, 0x9d, 0x0f, 0x20, 0xc2, 0x9c, 0x5b]);
    let mut registers = General::default();
    report.check("an emulated instruction", code.in_kernel(&mut registers).is_ok());
    report.expect("in the kernel, after it", registers.rbx & IF, IF);
    event::set_upcall_mask(true);
    event::take(port);
    call(number::SET_TIMER_OP, [time::now() + 2_000_000]).ok()?;
    let patience = time::now() + 5_000_000_000;
    while !event::is_pending(port) && time::now() < patience {
        core::hint::spin_loop();
    }
    report.check("a timer gets through to a guest that spins", event::is_pending(port));
    Ok(())
}
