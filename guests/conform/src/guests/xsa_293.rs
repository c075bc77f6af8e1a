//! XSA-293 (CVE-2019-17347): segment bases that another vcpu left behind.
//!
//! A kernel that may write FS and GS bases by instruction could leave bases that the hypervisor did not know of, and the
//! next vcpu on that CPU got them. PV guests must not get those instructions (CR4.FSGSBASE), and each vcpu must find its
//! own bases after any switch, in the kernel and in user mode. Both vcpus run on one CPU, each with bases of its own, and
//! yield to each other; each looks that its bases lead to its own pages. What was set by hypercall and what was set by an
//! emulated WRMSR must both last.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::abi::sched::schedop;
use pv::code::Code;
use pv::hypercall::{call, number};
use pv::memory::Page;
use pv::trap::General;
use pv::vcpu;

use crate::report::{Ended, Report, Verdict};

const ROUNDS: u64 = 100;
const FS: u64 = 0;
const GS_KERNEL: u64 = 2;
const MSR_FS: u64 = 0xc000_0100;

static FOREIGN: AtomicU64 = AtomicU64::new(0);
static LOOKS: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// Sets bases that lead to `mine`, lets the other run, and looks where they lead.
fn hold(mine: u64) {
    vcpu::share_cpu();
    let (fs, gs) = (Page::new(), Page::new());
    fs.set_word(0, mine);
    gs.set_word(0, mine + 1);
    let (mut read, mut write) = (Code::new(), Code::new());
    // mov rbx, fs:[0]; mov rdx, gs:[0]
    read.set(&[0x64, 0x48, 0x8b, 0x1c, 0x25, 0, 0, 0, 0, 0x65, 0x48, 0x8b, 0x14, 0x25, 0, 0, 0, 0]);
    // wrmsr
    write.set(&[0x0f, 0x30]);
    for round in 0..ROUNDS {
        if round % 2 == 0 {
            call(number::SET_SEGMENT_BASE, [FS, fs.address()]);
        } else {
            let mut base = General { rcx: MSR_FS, rax: fs.address(), ..General::default() };
            FOREIGN.fetch_add(write.in_kernel(&mut base).is_err().into(), Ordering::SeqCst);
        }
        call(number::SET_SEGMENT_BASE, [GS_KERNEL, gs.address()]);
        call(number::SCHED_OP, [schedop::YIELD, 0]);
        let mut seen = General::default();
        let is_ours = read.in_kernel(&mut seen).is_ok() && (seen.rbx, seen.rdx) == (mine, mine + 1);
        FOREIGN.fetch_add((!is_ours).into(), Ordering::SeqCst);
        LOOKS.fetch_add(1, Ordering::SeqCst);
    }
    call(number::SET_SEGMENT_BASE, [FS, 0]);
    call(number::SET_SEGMENT_BASE, [GS_KERNEL, 0]);
    DONE.fetch_add(1, Ordering::SeqCst);
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let mut code = Code::new();
    // wrfsbase rax; mov rbx, cr4
    code.set(&[0xf3, 0x48, 0x0f, 0xae, 0xd0]);
    report.saw("wrfsbase", Ended(code.in_kernel(&mut General::default())));
    let mut registers = General::default();
    code.set(&[0x0f, 0x20, 0xe3]);
    report.saw("mov rbx, cr4", Ended(code.in_kernel(&mut registers)));
    report.expect("it allows them", registers.rbx >> 16 & 1, 0);
    vcpu::start(|| hold(0x2000)).ok()?;
    hold(0x1000);
    while DONE.load(Ordering::SeqCst) < 2 {
        call(number::SCHED_OP, [schedop::YIELD, 0]);
    }
    report.expect("looks", LOOKS.load(Ordering::SeqCst), 2 * ROUNDS);
    report.expect("another's bases", FOREIGN.load(Ordering::SeqCst), 0);
    Ok(())
}
