//! `sched_op`: yielding, watchdogs, pinning, shutting others down.
//!
//! Promised by: public/sched.h.

use pv::abi::sched::{PinOverride, RemoteShutdown, Watchdog, schedop};
use pv::hypercall::{address, call, number};
use zerocopy::FromZeros;

use crate::bad::{self, NO_DOMAIN};
use crate::report::{Report, Verdict};

fn op<T>(command: u64, argument: &mut T) -> pv::Answer {
    call(number::SCHED_OP, [command, address(argument)])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    report.saw("yield", call(number::SCHED_OP, [schedop::YIELD, 0]));
    report.saw_all("no such command", [8, 99, u64::MAX].map(|command| call(number::SCHED_OP, [command, 0])));
    for command in [schedop::SHUTDOWN, schedop::SHUTDOWN_CODE] {
        // Not the last kind: it has room for the reason, and that would be that.
        let nowhere = bad::pointers().into_iter().take(5);
        report.saw_all(format_args!("command {command}, bad pointers"), nowhere.map(|pointer| {
            call(number::SCHED_OP, [command, pointer])
        }));
    }
    for command in [schedop::POLL, 4, 6] {
        report.saw_pointers(format_args!("command {command}"), |pointer| call(number::SCHED_OP, [command, pointer]));
    }
    let shutdown = |domain: u16| {
        let mut request = RemoteShutdown::new_zeroed();
        request.domain_id.0 = domain;
        op(schedop::REMOTE_SHUTDOWN, &mut request)
    };
    report.saw_all("remote_shutdown: no domain, no id, self", [
        shutdown(NO_DOMAIN),
        shutdown(0x7ff4),
        shutdown(0x7ff0),
    ]);
    let watchdog = |id: u32, timeout: u32| op(schedop::WATCHDOG, &mut Watchdog { id, timeout });
    report.saw_all("watchdogs that are not set: off, poked, no such", [watchdog(1, 0), watchdog(1, 5), watchdog(3, 5)]);
    report.saw_all("watchdogs set", [watchdog(0, 60), watchdog(0, 60)]);
    report.saw("a third", pv::Answer(watchdog(0, 60).0 as i32 as i64));
    report.saw_all("poked, off, off again", [watchdog(1, 60), watchdog(1, 0), watchdog(1, 0)]);
    report.saw_all("a huge timeout, then off", [watchdog(2, !0), watchdog(2, 0)]);
    let pin = |pcpu: i32| op(schedop::PIN_OVERRIDE, &mut PinOverride { pcpu });
    report.saw_all("pin_override to strange CPUs", [99, i32::MAX].map(pin));
    report.saw_all("undone before done, done, again, undone", [pin(-1), pin(0), pin(0), pin(-1)]);
    // The old call.
    let compat = |command: u64| call(number::SCHED_OP_COMPAT, [command, 0]);
    report.saw_all("the old call: yield, others", [compat(0), compat(3), compat(99)]);
    Ok(())
}
