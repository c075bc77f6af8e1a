//! Non-maskable interrupts: a vcpu sends itself one, and hears of it once, whatever it has masked.
//!
//! The handler is named in three ways, as kernels of different ages do: by `callback_op`, by `nmi_op`, by vector 2 of the
//! trap table. One that comes while the handler runs waits until that has returned; masked events hold back nothing; with
//! no handler it is lost, and nobody dies of it. Promised by: public/nmi.h, public/callback.h (`CALLBACKTYPE_nmi`),
//! public/vcpu.h (`VCPUOP_send_nmi`).

use core::sync::atomic::{AtomicU32, Ordering};

use pv::abi::vcpu::vcpuop;
use pv::abi::x86::callback;
use pv::hypercall::{address, call, number};
use pv::trap::{self, Cause, Frame, Next};
use pv::{Answer, event, vcpu};

use crate::bad;
use crate::report::{Report, Verdict};

static CAME: AtomicU32 = AtomicU32::new(0);
static DEPTH: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);
static AGAIN: AtomicU32 = AtomicU32::new(0);

fn send(to: u64) -> Answer {
    vcpu::bare_op(vcpuop::SEND_NMI, to)
}

/// Counts, and sends another one from inside as often as asked.
fn count(frame: &mut Frame) -> Next {
    if !matches!(frame.cause, Cause::Nmi | Cause::Vector(2)) {
        return Next::Pass;
    }
    CAME.fetch_add(1, Ordering::SeqCst);
    DEEPEST.fetch_max(1 + DEPTH.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
    if AGAIN.load(Ordering::SeqCst) > 0 {
        AGAIN.fetch_sub(1, Ordering::SeqCst);
        send(0);
    }
    DEPTH.fetch_sub(1, Ordering::SeqCst);
    Next::Resume
}

/// How many came of one that is sent, and how deep they were nested, when the handler sends `again` more.
fn came(again: u32) -> (Answer, u32, u32) {
    CAME.store(0, Ordering::SeqCst);
    DEEPEST.store(0, Ordering::SeqCst);
    AGAIN.store(again, Ordering::SeqCst);
    let answer = trap::hook(count, || {
        let answer = send(0);
        // What was held back comes at the next return from the hypervisor at the latest.
        call(number::XEN_VERSION, [0, 0]);
        answer
    });
    (answer, CAME.load(Ordering::SeqCst), DEEPEST.load(Ordering::SeqCst))
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let show = |report: &Report, name: &str, (answer, came, deepest): (Answer, u32, u32)| {
        report.saw(name, format_args!("{answer}, came {came}, nested {deepest}"));
    };
    show(report, "by callback_op", came(0));
    show(report, "sent again by the handler, thrice", came(3));
    event::set_upcall_mask(true);
    show(report, "events masked", came(0));
    event::set_upcall_mask(false);
    let unregister = call(number::CALLBACK_OP, [1, address(&mut [callback::NMI, 0])]);
    report.saw("unregistered", unregister);
    show(report, "without a handler", came(0));
    let nmi_op = |command: u64, argument: u64| call(number::NMI_OP, [command, argument]);
    let mut request = [trap::handler(0, Cause::Nmi), 0];
    let at = address(&mut request);
    report.saw_all("nmi_op: unregister, register, no such command", [nmi_op(1, 0), nmi_op(0, at), nmi_op(2, at)]);
    report.saw_pointers("nmi_op", |pointer| nmi_op(0, pointer));
    show(report, "by nmi_op", came(0));
    report.saw("unregistered", nmi_op(1, 0));
    report.saw("by vector 2 of the trap table", trap::set_table(&mut [trap::gate(0, 2), Default::default()]));
    show(report, "which is the handler", came(0));
    report.saw_all("to vcpus that are not up, not there", [send(1), send(9), send(bad::NO_FRAME)]);
    Ok(())
}
