//! `physdev_op`: interrupts and PCI devices of Domain 0, rightly and wrongly asked for.
//!
//! Promised by: public/physdev.h.

use pv::abi::event_channel::evtchnop;
use pv::hypercall::{address, call, number};
use pv::{Answer, event, start};

use crate::bad;
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
    // Every number, the old ones and those behind the last too; a wrong I/O privilege and lines come below.
    for command in (0..=34).filter(|command| ![6, 7].contains(command)) {
        let answers = [!0, bad::UNMAPPED].map(|word| op(command, &mut [word; 16]));
        report.saw_all(format_args!("command {command}: ones, addresses"), answers);
    }
    let pci = |command: u64, words: [u32; 8]| op(command, &mut { words });
    report.saw_all("manage_pci: add, again, remove, remove one that is not there", [
        pci(15, [0xf800, 0, 0, 0, 0, 0, 0, 0]),
        pci(15, [0xf800, 0, 0, 0, 0, 0, 0, 0]),
        pci(16, [0xf800, 0, 0, 0, 0, 0, 0, 0]),
        pci(16, [0xf700, 0, 0, 0, 0, 0, 0, 0]),
    ]);
    report.saw_all("manage_pci_add_ext: a function, a virtual one of it, flags 2 and 2", [
        pci(20, [0xf800, 0, 0, 0, 0, 0, 0, 0]),
        pci(20, [0xf900, 1, 0xf800, 0, 0, 0, 0, 0]),
        pci(20, [0xf900, 2, 0, 0, 0, 0, 0, 0]),
        pci(20, [0xf900, 0x200, 0, 0, 0, 0, 0, 0]),
    ]);
    // Segment; bus and function; flags; the physical function; the node.
    report.saw_all("pci_device_add: of segment 0, of 5, unknown flags, a virtual function, of a node", [
        pci(25, [0xf800 << 16, 0, 0, 0, 0, 0, 0, 0]),
        pci(25, [0xf800 << 16 | 5, 0, 0, 0, 0, 0, 0, 0]),
        pci(25, [0xf800 << 16, 0x80, 0, 0, 0, 0, 0, 0]),
        pci(25, [0xf900 << 16, 2, 0xf800, 0, 0, 0, 0, 0]),
        pci(25, [0xfa00 << 16, 4, 0, 0, 0, 0, 0, 0]),
    ]);
    for (name, command) in [("pci_device_remove", 26), ("restore_msi_ext", 27), ("prepare_msix", 30), ("release_msix", 31)] {
        report.saw_all(format_args!("{name}: one without messages, one that is not there"), [
            pci(command, [0xf800 << 16, 0, 0, 0, 0, 0, 0, 0]),
            pci(command, [0xf700 << 16, 0, 0, 0, 0, 0, 0, 0]),
        ]);
    }
    // Address; segment; first and last bus; flags.
    report.saw_all("pci_mmcfg_reserved: none such, backwards, unknown flags", [
        pci(24, [0xb000_0000, 0, 0, 0, 0xff00_0000 >> 16, 0, 0, 0]),
        pci(24, [0xb000_0000, 0, 0, 0x0000_0005, 0, 0, 0, 0]),
        pci(24, [0xb000_0000, 0, 0, 0xff00, 0, 8, 0, 0]),
    ]);
    report.saw_all("dbgp_op: prepare, done, no command; another bus", [[1, 1], [2, 1], [3, 1], [1, 9]].map(|[command, bus]| {
        pci(29, [command, bus, 0, 0, 0, 0, 0, 0])
    }));
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
        map(bad::NO_DOMAIN, 1, 9, 9),
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
        unmap(bad::NO_DOMAIN, 9),
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
