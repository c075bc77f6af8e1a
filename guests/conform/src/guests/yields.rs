//! `SCHEDOP_yield`: who gives the CPU away is not the next to have it.
//!
//! Spinlocks and busy waits of PV kernels count on it: a vcpu that yields lets the other one run that wants the same CPU,
//! whatever shares both have used. Both vcpus are put on one CPU. One only yields and counts its turns; the other yields
//! as well, and looks after each yield whether the first had a turn meanwhile. Then the second computes between its
//! yields, so that its share is the larger one by far, and looks again. Promised by: public/sched.h (`SCHEDOP_yield`).

use core::sync::atomic::{AtomicU64, Ordering};

use pv::abi::sched::schedop;
use pv::hypercall::{call, number};
use pv::{time, vcpu};

use crate::report::{Report, Verdict};

const ROUNDS: u64 = 200;
/// A tick or an event now and then comes in between.
const NEARLY_ALL: u64 = ROUNDS * 9 / 10;
const US: u64 = 1000;

/// How often vcpu 1 had the CPU; 0 until it is on the same.
static TURNS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);

fn let_others() {
    call(number::SCHED_OP, [schedop::YIELD, 0]);
}

fn take_turns() {
    vcpu::share_cpu();
    while STOP.load(Ordering::SeqCst) == 0 {
        TURNS.fetch_add(1, Ordering::SeqCst);
        let_others();
    }
    STOP.store(2, Ordering::SeqCst);
}

/// Yields, after `busy_ns` of work, and counts after how many yields the other had a turn.
fn answered(busy_ns: u64) -> u64 {
    let mut answered = 0;
    for _ in 0..ROUNDS {
        let until = time::now() + busy_ns;
        while busy_ns > 0 && time::now() < until {}
        let before = TURNS.load(Ordering::SeqCst);
        let_others();
        answered += u64::from(TURNS.load(Ordering::SeqCst) != before);
    }
    answered
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    report.expect("on one CPU", vcpu::share_cpu(), pv::Answer::OK);
    vcpu::start(take_turns).ok()?;
    while TURNS.load(Ordering::SeqCst) < 4 {
        let_others();
    }
    for (name, busy_ns) in [("two that only yield", 0), ("after 20 us of work", 20 * US), ("after 2 ms of work", 2000 * US)] {
        let answered = answered(busy_ns);
        if answered < NEARLY_ALL {
            pv::println!("  ({answered} of {ROUNDS} yields)");
        }
        report.check(format_args!("{name}: the other has its turn at nearly every yield"), answered >= NEARLY_ALL);
    }
    STOP.store(1, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) != 2 {
        let_others();
    }
    Ok(())
}
