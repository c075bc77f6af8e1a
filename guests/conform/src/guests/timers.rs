//! Timers: single-shot through `set_timer_op` and `vcpu_op`, and the periodic one; in the past, far in the
//! future, stopped.
//!
//! Promised by: public/xen.h (`set_timer_op`), public/vcpu.h.

use pv::abi::vcpu::{SetPeriodicTimer, SetSingleshotTimer, vcpuop};
use pv::hypercall::{call, number};
use pv::{event, time, vcpu};

use crate::report::{Report, Verdict};

const MS: u64 = 1_000_000;

fn wait_until(when: u64) {
    while time::now() < when {
        call(number::SCHED_OP, [0, 0]);
    }
}

/// Sets a timer and stops it again before it is due, which on a busy host may take several tries; returns when it
/// would have been due.
fn stopped_in_time(port: u32, set: &dyn Fn(u64), stop: &dyn Fn()) -> u64 {
    loop {
        let due = time::now() + 5 * MS;
        set(due);
        stop();
        if time::now() < due {
            return due;
        }
        event::take(port);
    }
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let port = event::bind_virq(0, 0)?;
    let set = |when: u64| call(number::SET_TIMER_OP, [when]);
    event::set_mask(port, false);
    event::set_upcall_mask(true);
    let stop = vcpu::bare_op(vcpuop::STOP_PERIODIC_TIMER, 0);
    report.saw("stop_periodic_timer", stop);
    event::take(port);

    report.saw("set_timer in the past", set(time::now() - 1));
    call(number::SCHED_OP, [0, 0]);
    wait_until(time::now() + MS);
    report.check("it fires", event::take(port));
    report.saw("set_timer at 1", set(1));
    wait_until(time::now() + MS);
    report.check("it fires", event::take(port));
    let due = time::now() + 5 * MS;
    report.saw("set_timer in 5 ms", set(due));
    event::wait(port);
    report.check("not early", time::now() >= due);
    event::set_upcall_mask(true);
    let due = stopped_in_time(port, &|due| _ = set(due), &|| _ = set(0));
    wait_until(due + 2 * MS);
    report.check("a stopped one does not fire", !event::take(port));
    report.saw_all("set_timer centuries ahead, at the last, negative", [set(1 << 62), set(i64::MAX as u64), set(1 << 63)]);
    set(0);
    event::take(port);

    let shot = |of: u64, timeout_abs_ns: u64, flags: u32| {
        let mut request = SetSingleshotTimer { timeout_abs_ns, flags, pad: 0 };
        vcpu::op(vcpuop::SET_SINGLESHOT_TIMER, of, &mut request)
    };
    report.saw("singleshot in the past", shot(0, 1, 0));
    wait_until(time::now() + MS);
    report.check("it fires", event::take(port));
    report.saw("singleshot in the past, if in the future", shot(0, 1, 1));
    wait_until(time::now() + MS);
    report.saw("it fires", event::take(port));
    report.saw("singleshot in the future, if in the future", shot(0, time::now() + 2 * MS, 1));
    event::wait(port);
    event::set_upcall_mask(true);
    let stop = || _ = vcpu::bare_op(vcpuop::STOP_SINGLESHOT_TIMER, 0);
    let due = stopped_in_time(port, &|due| _ = shot(0, due, 0), &stop);
    wait_until(due + 2 * MS);
    report.check("a stopped singleshot does not fire", !event::take(port));
    report.saw_all("singleshot of others", [shot(1, 1, 0), shot(2, 1, 0), vcpu::bare_op(9, 1), vcpu::bare_op(9, 9)]);
    report.saw("singleshot with strange flags", shot(0, u64::MAX >> 1, !0));
    vcpu::bare_op(vcpuop::STOP_SINGLESHOT_TIMER, 0);
    event::take(port);

    let periodic = |of: u64, period_ns: u64| {
        vcpu::op(vcpuop::SET_PERIODIC_TIMER, of, &mut SetPeriodicTimer { period_ns })
    };
    report.saw_all("periodic of 0, 1 ns, 999999 ns, a century, negative", [
        periodic(0, 0),
        periodic(0, 1),
        periodic(0, MS - 1),
        periodic(0, 1 << 62),
        periodic(0, u64::MAX),
    ]);
    report.saw("periodic of vcpu 9", periodic(9, 10 * MS));
    // Before it is set: the host may take the CPU away at any instruction.
    let began = time::now();
    report.saw("periodic, 2 ms", periodic(0, 2 * MS));
    // Awake: Xen's periodic timer fires when the vcpu is scheduled, and does not wake one that sleeps.
    for _ in 0..4 {
        while !event::take(port) {
            call(number::SCHED_OP, [0, 0]);
        }
    }
    let took = time::now() - began;
    report.check("four periods take at least three", took >= 6 * MS);
    report.saw("stop", vcpu::bare_op(vcpuop::STOP_PERIODIC_TIMER, 0));
    event::take(port);
    wait_until(time::now() + 5 * MS);
    report.check("stopped", !event::take(port));
    Ok(())
}
