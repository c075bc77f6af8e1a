//! XSA-20 (CVE-2012-4535): a deadline so far off that it has passed.
//!
//! A single-shot timer at the end of time overflowed where deadlines are turned into what the hardware counts, fired at
//! once, was set again, and fired again: the CPU never came back. Every kind of timer is set to deadlines at the edges of
//! what fits, while a vcpu waits for it; afterwards an ordinary timer must fire, and not early.

use pv::abi::vcpu::{SetPeriodicTimer, SetSingleshotTimer, vcpuop};
use pv::hypercall::{call, number};
use pv::{event, time, vcpu};

use crate::report::{Report, Verdict};

const EDGES: [u64; 9] = [
    i64::MAX as u64,
    i64::MAX as u64 - 1,
    1 << 62,
    1 << 63,
    u64::MAX,
    u64::MAX - 1,
    u64::MAX / 1000,
    (i64::MAX as u64) / 1000 * 1000,
    1 << 55,
];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let port = event::bind_virq(0, 0)?;
    event::set_mask(port, false);
    event::set_upcall_mask(true);
    vcpu::bare_op(vcpuop::STOP_PERIODIC_TIMER, 0);
    let single = |timeout_abs_ns: u64, flags: u32| {
        let mut request = SetSingleshotTimer { timeout_abs_ns, flags, pad: 0 };
        vcpu::op(vcpuop::SET_SINGLESHOT_TIMER, 0, &mut request)
    };
    report.saw_all("single-shot", EDGES.map(|edge| single(edge, 0)));
    report.saw_all("single-shot, if in the future", EDGES.map(|edge| single(edge, 1)));
    let periodic = |period_ns: u64| vcpu::op(vcpuop::SET_PERIODIC_TIMER, 0, &mut SetPeriodicTimer { period_ns });
    report.saw_all("periodic", EDGES.map(periodic));
    vcpu::bare_op(vcpuop::STOP_PERIODIC_TIMER, 0);
    for edge in EDGES {
        call(number::SET_TIMER_OP, [edge]).ok()?;
        // Each is looked at by the hypervisor before the next is set.
        call(number::SCHED_OP, [0, 0]);
    }
    event::take(port);
    let due = time::now() + 3_000_000;
    report.expect("one in 3 ms", call(number::SET_TIMER_OP, [due]).0, 0);
    event::wait(port);
    report.check("not early", time::now() >= due);
    Ok(())
}
