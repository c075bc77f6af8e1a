//! XSA-193 (CVE-2016-9385): a segment base that no address can be.
//!
//! The hypervisor writes the bases of FS and GS for the guest, and WRMSR faults in ring 0 for one that is not canonical.
//! Each base is set to such addresses by hypercall, by an emulated WRMSR, and by the context of a vcpu that is to start.
//! Then the vcpu sleeps and wakes, so that all of its bases are loaded again, and user mode runs.

use pv::abi::vcpu::vcpuop;
use pv::code::Code;
use pv::hypercall::{call, number};
use pv::trap::General;
use pv::{event, time, user, vcpu};

use crate::report::{Ended, Report, Verdict};

const BAD: [u64; 4] = [1 << 47, 0x0123_4567_89ab_cdef, 0xffff_7fff_ffff_ffff, 1 << 63];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    for which in 0..3 {
        report.saw_all(format_args!("base {which}"), BAD.map(|base| call(number::SET_SEGMENT_BASE, [which, base])));
    }
    let mut code = Code::new();
    code.set(&[0x0f, 0x30]);
    for msr in [0xc000_0100_u64, 0xc000_0101, 0xc000_0102] {
        let ended = BAD.map(|base| {
            let (rax, rdx) = (base & 0xffff_ffff, base >> 32);
            Ended(code.in_kernel(&mut General { rcx: msr, rax, rdx, ..General::default() }))
        });
        report.saw_all(format_args!("MSR {msr:x}"), ended);
    }
    for base in BAD {
        let mut contexts = [(); 3].map(|()| vcpu::context());
        contexts[0].fs_base = base;
        contexts[1].gs_base_kernel = base;
        contexts[2].gs_base_user = base;
        let answers = contexts.map(|mut context| vcpu::op(vcpuop::INITIALISE, 1, &mut context));
        report.saw_all("a vcpu with it in FS, the kernel's GS, user mode's GS", answers);
    }
    let port = event::bind_virq(0, 0)?;
    event::set_mask(port, false);
    call(number::SET_TIMER_OP, [time::now() + 1_000_000]).ok()?;
    event::wait(port);
    code.set(&[0x90]);
    report.check("user mode runs", code.in_user(&mut General::default()).is_ok());
    Ok(())
}
