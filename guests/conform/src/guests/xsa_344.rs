//! XSA-344 (CVE-2020-25601) and XSA-343 (CVE-2020-25599): resetting event channels in use.
//!
//! A reset closes up to thousands of ports in one go: it must be interruptible, and it must not trip over another vcpu
//! that opens, rings and closes ports meanwhile. Vcpu 1 does just that for as long as vcpu 0 resets. Afterwards the
//! books must be straight: all ports closed, all of them to be had again.

use core::sync::atomic::{AtomicU32, Ordering};

use pv::abi::event_channel::evtchnop;
use pv::event::{self, SELF};
use pv::hypercall::{call, number};
use pv::{Answer, vcpu};

use crate::report::{Report, Verdict};

static STOP: AtomicU32 = AtomicU32::new(0);
static TURNS: AtomicU32 = AtomicU32::new(0);

/// Opens, connects, rings, closes, whatever the other does to it meanwhile.
fn disturb() {
    while STOP.load(Ordering::SeqCst) == 0 {
        if let Ok(far) = event::alloc_unbound(SELF, SELF) {
            if let Ok(near) = event::bind_interdomain(SELF, far) {
                event::send(near);
                event::close(near);
            }
            event::close(far);
        }
        if let Ok(ipi) = event::bind_ipi(1) {
            event::send(ipi);
            event::close(ipi);
        }
        TURNS.fetch_add(1, Ordering::SeqCst);
    }
    STOP.store(2, Ordering::SeqCst);
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    const ROUNDS: u32 = 8;
    vcpu::start(disturb).ok()?;
    let mut resets = 0;
    for _ in 0..ROUNDS {
        let before = TURNS.load(Ordering::SeqCst);
        for _ in 0..2000 {
            if event::alloc_unbound(SELF, SELF).is_err() {
                break;
            }
        }
        resets += u32::from(event::op(evtchnop::RESET, &mut [SELF]).is_ok());
        while TURNS.load(Ordering::SeqCst) == before {
            call(number::SCHED_OP, [0, 0]);
        }
    }
    STOP.store(1, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) != 2 {
        call(number::SCHED_OP, [0, 0]);
    }
    // Nothing is said meanwhile: a domU's console would open a port.
    let last = event::op(evtchnop::RESET, &mut [SELF]);
    let mut count = 0;
    while event::alloc_unbound(SELF, SELF).is_ok() {
        count += 1;
    }
    event::close(1).ok()?;
    // Xen gives up now and then where the other is in its way.
    report.check("most resets come to their end", resets > ROUNDS / 2);
    report.expect("the last one", last, Answer::OK);
    report.expect("ports to be had afterwards", count, 4095);
    Ok(())
}
