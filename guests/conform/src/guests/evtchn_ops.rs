//! `event_channel_op`: what each command answers, rightly and wrongly asked.
//!
//! Promised by: public/event_channel.h.

use pv::abi::event_channel::evtchnop;
use pv::event::{self, SELF};
use pv::hypercall::{address, call, number};
use pv::{Answer, start};

use crate::bad::NO_DOMAIN;
use crate::report::{Report, Verdict};

/// A port that nobody opened, and two that are none.
const STRANGE: [u32; 5] = [0, 900, 4096, 131_072, !0];

fn number_of(port: Result<u32, Answer>) -> Answer {
    port.map_or_else(|refused| refused, |_| Answer::OK)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    opening(report)?;
    binding(report)?;
    using(report)?;
    raw(report)
}

fn opening(report: &Report) -> Verdict {
    let open = |dom, remote| number_of(event::alloc_unbound(dom, remote));
    let own = start::domid().unwrap_or(0);
    report.saw_all("alloc_unbound for self: self, own id, another, none", [
        open(SELF, SELF),
        open(SELF, own),
        open(SELF, 9),
        open(SELF, 0x7ff4),
    ]);
    report.saw_all("alloc_unbound by own id, for another, for none", [
        open(own, SELF),
        open(NO_DOMAIN, SELF),
        open(0x7ff4, SELF),
    ]);
    let far = event::alloc_unbound(SELF, SELF)?;
    let closed = event::alloc_unbound(SELF, NO_DOMAIN)?;
    let bind = |dom, port| number_of(event::bind_interdomain(dom, port));
    report.saw_all("bind_interdomain to strange ports", STRANGE.map(|port| bind(SELF, port)));
    report.saw_all("bind_interdomain: no domain, not for us, no id", [
        bind(NO_DOMAIN, far),
        bind(SELF, closed),
        bind(0x7ff4, far),
    ]);
    let near = event::bind_interdomain(SELF, far)?;
    report.saw("bound, the near end is pending", event::is_pending(near));
    report.saw("and the far end", event::is_pending(far));
    report.saw("bind_interdomain again", bind(SELF, far));
    report.saw("and to the near end", bind(SELF, near));
    for (name, port) in [("near", near), ("far", far), ("unbound", closed)] {
        let status = event::status(SELF, port)?;
        let is_own = status.u[0] == u32::from(own);
        let other = if status.u[1] == near || status.u[1] == far { "the other" } else { "none" };
        report.saw(format_args!("status of {name}"), format_args!(
            "{}, vcpu {}, ours {is_own}, port {other}", status.status, status.vcpu
        ));
    }
    event::take(far);
    report.saw("send on near", event::send(near));
    report.saw("rings far", event::is_pending(far));
    report.saw("close far", event::close(far));
    report.saw("near is then", event::status(SELF, near)?.status);
    report.saw("send on near, which is unbound", event::send(near));
    report.saw("close near", event::close(near));
    report.saw("close again", event::close(near));
    Ok(())
}

fn binding(report: &Report) -> Verdict {
    let virq = |virq, vcpu| number_of(event::bind_virq(virq, vcpu));
    report.saw("bind_virq timer", virq(0, 0));
    report.saw("bind_virq timer again", virq(0, 0));
    report.saw_all("bind_virq beyond the last", [23, 24, 25, 1000, !0].map(|which| virq(which, 0)));
    report.saw_all("bind_virq on strange vcpus", [2, 31, 32, 8192, !0].map(|vcpu| virq(1, vcpu)));
    report.saw_all("bind_virq on vcpu 1: each that is global", [2, 3, 4, 8, 9, 12].map(|which| virq(which, 1)));
    report.saw_all("bind_virq on vcpu 1: each that is not", [0, 1, 7, 13].map(|which| virq(which, 1)));
    let ipi = |vcpu| number_of(event::bind_ipi(vcpu));
    report.saw_all("bind_ipi on vcpus 0, 1, 2, 64, -1", [0, 1, 2, 64, !0].map(ipi));
    let pirq = |pirq: u32, flags: u32| event::op(evtchnop::BIND_PIRQ, &mut [pirq, flags, 0]);
    report.saw_all("bind_pirq beyond the last", [5000, 1 << 20, !0].map(|which| pirq(which, 0)));

    let ipi = event::bind_ipi(0)?;
    let timer = event::bind_virq(1, 0)?;
    let unbound = event::alloc_unbound(SELF, SELF)?;
    let global = event::bind_virq(3, 0)?;
    let move_to = |port: u32, vcpu: u32| event::op(evtchnop::BIND_VCPU, &mut [port, vcpu]);
    report.saw_all("bind_vcpu of ipi, virq, unbound, global virq to 1", [
        move_to(ipi, 1),
        move_to(timer, 1),
        move_to(unbound, 1),
        move_to(global, 1),
    ]);
    report.saw_all("bind_vcpu to strange vcpus", [2, 64, !0].map(|vcpu| move_to(unbound, vcpu)));
    report.saw_all("bind_vcpu of strange ports", STRANGE.map(|port| move_to(port, 0)));
    report.saw("unbound is on", event::status(SELF, unbound)?.vcpu);
    for (name, port) in [("ipi", ipi), ("virq", timer), ("global virq", global)] {
        let status = event::status(SELF, port)?;
        report.saw(format_args!("status of {name}"), format_args!(
            "{}, vcpu {}, {}", status.status, status.vcpu, status.u[0]
        ));
    }
    report.saw_all("send on ipi, virq, global virq", [event::send(ipi), event::send(timer), event::send(global)]);
    Ok(())
}

fn using(report: &Report) -> Verdict {
    report.saw_all("send to strange ports", STRANGE.map(event::send));
    report.saw_all("close of strange ports", STRANGE.map(event::close));
    report.saw_all("unmask of strange ports", STRANGE.map(event::unmask));
    let status = |dom, port| event::status(dom, port).map_or_else(|refused| refused, |status| Answer(status.status.into()));
    report.saw_all("status of strange ports", STRANGE.map(|port| status(SELF, port)));
    report.saw_all("status: no domain, no id", [status(NO_DOMAIN, 1), status(0x7ff4, 1)]);
    let reset = |dom: u16| event::op(evtchnop::RESET, &mut [dom]);
    report.saw_all("reset: no domain, no id", [reset(NO_DOMAIN), reset(0x7ff4)]);
    report.saw("reset of self", reset(SELF));
    report.saw("what was open is closed", event::status(SELF, 1)?.status);
    let first = event::alloc_unbound(SELF, SELF)?;
    report.saw("the next port is the first", first);
    Ok(())
}

/// Commands by number, and pointers.
fn raw(report: &Report) -> Verdict {
    let op = |command: u64, pointer: u64| call(number::EVENT_CHANNEL_OP, [command, pointer]);
    let mut bytes = [0_u64; 8];
    report.saw_all("no such command", [14, 15, 99, u64::MAX].map(|command| op(command, address(&mut bytes))));
    for command in 0..=10 {
        report.saw_pointers(format_args!("command {command}"), |pointer| op(command, pointer));
    }
    let init = |frame: u64, offset: u32, vcpu: u32| {
        let mut request = [frame as u32, (frame >> 32) as u32, offset, vcpu, 0, 0];
        event::op(evtchnop::INIT_CONTROL, &mut request)
    };
    report.saw_all("init_control: odd offset, no vcpu, no frame", [
        init(crate::bad::NO_FRAME, 4, 0),
        init(crate::bad::NO_FRAME, 0, 99),
        init(crate::bad::NO_FRAME, 0, 0),
    ]);
    report.saw("expand_array before init", event::op(evtchnop::EXPAND_ARRAY, &mut [crate::bad::NO_FRAME]));
    report.saw("set_priority before init", event::op(evtchnop::SET_PRIORITY, &mut [1_u32, 0]));
    // The old way to call, with the command in the structure.
    let compat = |command: u32, port: u32| {
        let mut request = [command, port, 0, 0, 0, 0, 0];
        call(number::EVENT_CHANNEL_OP_COMPAT, [address(&mut request)])
    };
    report.saw_all("the old call: send to 0, no command, later commands", [
        compat(4, 0),
        compat(99, 0),
        compat(10, 0x7ff0),
        compat(9, 0),
    ]);
    report.saw_pointers("the old call", |pointer| call(number::EVENT_CHANNEL_OP_COMPAT, [pointer]));
    Ok(())
}
