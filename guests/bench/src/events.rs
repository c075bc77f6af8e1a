//! Events: a port of our own, a timer, and two vcpus that ring one another.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pv::abi::sched::schedop;
use pv::abi::xen::virq;
use pv::hypercall::{call, number};
use pv::{Answer, brief, event, time, vcpu};

use crate::row::{Row, rounds};

/// Nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

/// Lets the machine be idle for a while.
pub fn sleep(ns: u64) {
    let Ok(port) = event::bind_virq(virq::TIMER, 0) else {
        return;
    };
    event::set_mask(port, false);
    let due = time::now() + ns;
    while time::now() < due {
        call(number::SET_TIMER_OP, [due]);
        event::wait(port);
    }
    event::close(port);
}

/// A port that rings its own vcpu, and the timer.
pub fn to_self() -> Result<(), Answer> {
    let port = event::bind_ipi(0)?;
    event::set_mask(port, false);
    let mut row = Row::new("event to self, masked");
    event::set_upcall_mask(true);
    for _ in rounds() {
        let answer = row.time(|| event::send(port));
        row.check("sent", answer == Answer::OK && event::take(port));
        row.check("pending", event::pending_state(0).0 == 1);
        event::acknowledge(0);
    }
    row.report();
    event::set_upcall_mask(false);
    brief::with_events(|| {
        let mut row = Row::new("event to self, with upcall");
        for round in rounds() {
            let before = brief::upcalls(0);
            let answer = row.time(|| event::send(port));
            row.check("sent", answer == Answer::OK && event::take(port));
            row.check("one upcall", brief::upcalls(0) == before + 1 && round < 1000);
        }
        row.report();
    })?;
    event::close(port);
    timer()
}

/// A timer that is due at once, until its upcall has returned; sleeping if that has not come before.
fn timer() -> Result<(), Answer> {
    let port = event::bind_virq(virq::TIMER, 0)?;
    event::set_mask(port, false);
    vcpu::bare_op(pv::abi::vcpu::vcpuop::STOP_PERIODIC_TIMER, 0).ok()?;
    brief::with_events(|| {
        let mut row = Row::new("set_timer in the past, to upcall");
        for _ in rounds() {
            event::take(port);
            let before = brief::upcalls(0);
            let past = time::now() - 1;
            row.time(|| {
                call(number::SET_TIMER_OP, [past]);
                while brief::upcalls(0) == before {
                    call(number::SCHED_OP, [schedop::BLOCK]);
                }
            });
            row.check("the timer's", event::take(port));
        }
        row.report();
    })?;
    event::close(port);
    Ok(())
}

/// Rings vcpu 1; and vcpu 0.
static PING: AtomicU32 = AtomicU32::new(0);
static PONG: AtomicU32 = AtomicU32::new(0);
static OVER: AtomicBool = AtomicBool::new(false);

/// What vcpu 1 does: answers.
fn answer() {
    let done = brief::with_events(|| {
        loop {
            event::wait(PING.load(Ordering::SeqCst));
            if OVER.load(Ordering::SeqCst) {
                return;
            }
            event::send(PONG.load(Ordering::SeqCst));
        }
    });
    // Without handlers nobody answers, and the row never comes: that is seen.
    let _ = done;
}

/// Two vcpus on one CPU: each rings the other and sleeps.
pub fn ping() -> Result<(), Answer> {
    PING.store(event::bind_ipi(1)?, Ordering::SeqCst);
    PONG.store(event::bind_ipi(0)?, Ordering::SeqCst);
    let (ping, pong) = (PING.load(Ordering::SeqCst), PONG.load(Ordering::SeqCst));
    event::set_mask(ping, false);
    event::set_mask(pong, false);
    vcpu::start(answer).ok()?;
    brief::with_events(|| {
        let mut row = Row::new("ping between two vcpus and back");
        for _ in rounds() {
            let before = (brief::upcalls(0), brief::upcalls(1));
            row.time(|| {
                event::send(ping);
                event::wait(pong);
            });
            row.check(
                "both woke",
                brief::upcalls(0) > before.0 && brief::upcalls(1) > before.1,
            );
        }
        row.report();
        OVER.store(true, Ordering::SeqCst);
        event::send(ping);
        // It takes itself down, which shows when it is not up any more.
        while vcpu::bare_op(pv::abi::vcpu::vcpuop::IS_UP, 1).0 == 1 {
            call(number::SCHED_OP, [schedop::YIELD]);
        }
    })?;
    Ok(())
}
