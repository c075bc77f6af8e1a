//! The floating-point unit: what one vcpu has in its registers, no other sees, and nobody loses any.
//!
//! Both vcpus are put on one CPU, fill the x87 and SSE registers with patterns of their own, and yield to each other;
//! each must find its own again. A vcpu that starts must find nothing of anybody's. Promised by: nothing less than
//! isolation. In the spirit of XSA-52, XSA-267 (lazy FPU) and XSA-172.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::hypercall::{call, number};
use pv::insn::{self, Fpu};
use pv::vcpu;

use crate::report::{Report, Verdict};

const ROUNDS: u64 = 200;

static SEEN: AtomicU64 = AtomicU64::new(0);
static FOREIGN: AtomicU64 = AtomicU64::new(0);
static CLEAN: AtomicU64 = AtomicU64::new(99);
static DONE: AtomicU64 = AtomicU64::new(0);

/// Keeps a pattern in the registers while the other vcpu does the same.
fn hold(pattern: u64) {
    for round in 0..ROUNDS {
        let mine = pattern.wrapping_add(round << 8);
        insn::load_fpu(&Fpu::patterned(mine));
        for _ in 0..4 {
            call(number::SCHED_OP, [0, 0]);
        }
        let same = insn::store_fpu().is_patterned(mine);
        SEEN.fetch_add(1, Ordering::SeqCst);
        FOREIGN.fetch_add(u64::from(!same), Ordering::SeqCst);
    }
}

fn other() {
    let fresh = insn::store_fpu();
    CLEAN.store(u64::from(fresh.is_initial()), Ordering::SeqCst);
    vcpu::share_cpu();
    hold(0x2222);
    DONE.store(1, Ordering::SeqCst);
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    report.check("vcpu 0 starts with nothing", insn::store_fpu().is_initial());
    insn::load_fpu(&Fpu::patterned(0x1111));
    report.expect("pinned", vcpu::share_cpu(), pv::Answer::OK);
    vcpu::start(other).ok()?;
    hold(0x1111);
    while DONE.load(Ordering::SeqCst) == 0 {
        call(number::SCHED_OP, [0, 0]);
    }
    report.check("vcpu 1 starts with nothing", CLEAN.load(Ordering::SeqCst) == 1);
    report.expect("looks", SEEN.load(Ordering::SeqCst), 2 * ROUNDS);
    report.expect("another's registers", FOREIGN.load(Ordering::SeqCst), 0);
    Ok(())
}
