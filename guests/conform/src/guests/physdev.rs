//! `physdev_op`: interrupts and PCI devices of Domain 0, rightly and wrongly asked for.
//!
//! Promised by: public/physdev.h.

use pv::abi::event_channel::evtchnop;
use pv::hypercall::{address, call, number};
use pv::{Answer, event, start};

use crate::report::{End, Report, Verdict};

fn op<T>(command: u64, argument: &mut T) -> Answer {
    call(number::PHYSDEV_OP, [command, address(argument)])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !start::is_dom0() {
        return Err(End::Skip("the machine's devices are Domain 0's"));
    }
    report.saw_all("no such command", [0, 1, 2, 3, 4, 14, 33, 99].map(|command| op(command, &mut [0_u64; 16])));
    for command in [5, 6, 7, 8, 10, 11, 12, 13, 15, 21, 22, 23, 24, 25, 28] {
        report.saw_pointers(format_args!("command {command}"), |pointer| call(number::PHYSDEV_OP, [command, pointer]));
    }
    let irqs: [u32; 6] = [0, 4, 9, 23, 5000, !0];
    let status = |irq: u32| {
        let mut request = [irq, 0];
        let answer = op(5, &mut request);
        if answer.is_ok() { Answer(request[1].into()) } else { answer }
    };
    report.saw_all("irq_status_query of 0, 4, 9, 23, 5000, -1", irqs.map(status));
    report.saw_all("eoi of them", irqs.map(|irq| op(12, &mut [irq])));
    report.saw_all("alloc_irq_vector of them, done", irqs.map(|irq| Answer(op(10, &mut [irq, 0]).0)));
    report.saw_all("setup_gsi of them", irqs.map(|gsi| op(21, &mut [gsi, 0])));
    // domid, type, index, pirq, bus, devfn, entry, base
    let map = |domid: u16, kind: u32, index: u32, pirq: u32| {
        let mut request = [u32::from(domid), kind, index, pirq, 0, 0, 0, 0, 0, 0];
        let answer = op(13, &mut request);
        if answer.is_ok() { Answer(request[3] as i32 as i64) } else { answer }
    };
    const SELF: u16 = 0x7ff0;
    report.saw_all("map_pirq of gsi 4, 9, 23 to its own number", [4, 9, 23].map(|gsi| map(SELF, 1, gsi, gsi)));
    report.saw_all("again, to another number", [map(SELF, 1, 9, 9), map(SELF, 1, 9, 10)]);
    report.saw_all("map_pirq: gsi 200, -1; no domain; no type; a number out of range", [
        map(SELF, 1, 200, 200),
        map(SELF, 1, !0, !0),
        map(crate::bad::NO_DOMAIN, 1, 9, 9),
        map(SELF, 99, 9, 9),
        map(SELF, 1, 10, 5000),
    ]);
    report.saw("map_pirq of an MSI of no device", map(SELF, 0, !0, !0));
    let bind = |pirq: u32, flags: u32| {
        let mut request = [pirq, flags, 0];
        let answer = event::op(evtchnop::BIND_PIRQ, &mut request);
        (answer, request[2])
    };
    let (answer, port) = bind(9, 1);
    report.saw("bind_pirq 9", answer);
    report.saw("again", bind(9, 1).0);
    report.saw_all("bind_pirq of one that is not mapped, of one out of range", [bind(200, 0).0, bind(5000, 0).0]);
    if answer.is_ok() {
        let status = event::status(SELF, port)?;
        report.saw("status", format_args!("{} {}", status.status, status.u[0]));
        report.saw_all("send to it, bind_vcpu 1", [event::send(port), event::op(evtchnop::BIND_VCPU, &mut [port, 1])]);
    }
    let unmap = |domid: u16, pirq: u32| op(14, &mut [u32::from(domid), pirq]);
    report.saw_all("unmap_pirq: bound, not mapped, out of range, no domain", [
        unmap(SELF, 9),
        unmap(SELF, 200),
        unmap(SELF, !0),
        unmap(crate::bad::NO_DOMAIN, 9),
    ]);
    event::close(port);
    report.saw_all("unmap_pirq after closing; again", [unmap(SELF, 9), unmap(SELF, 9)]);
    let apic = |command: u64, base: u64, register: u32| {
        let mut request = [base as u32, (base >> 32) as u32, register, 0];
        op(command, &mut request)
    };
    report.saw_all("apic_read: id, version, an entry; no controller", [
        apic(8, 0xfec0_0000, 0),
        apic(8, 0xfec0_0000, 1),
        apic(8, 0xfec0_0000, 0x10),
        apic(8, 0xdead_0000, 0),
    ]);
    report.saw("get_free_pirq", op(23, &mut [1_u32, 0]).is_ok());
    Ok(())
}
