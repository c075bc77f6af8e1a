//! Delivery of events: who is told, when, and what waits.
//!
//! A port rung while masked stays pending and tells nobody until `unmask`; one that is pending already tells
//! nobody again; upcalls wait while `evtchn_upcall_mask` is set, and come with the next return to the guest.
//! Closing a pending port forgets it, so that its next owner hears no ghost. Promised by: public/xen.h
//! (`vcpu_info`, `shared_info`), public/event_channel.h.

use pv::abi::sched::{Poll, schedop};
use pv::event::{self, SELF};
use pv::hypercall::{address, call, number};
use pv::{insn, start, time, trap};

use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let port = event::bind_ipi(0)?;
    let upcalls = || event::upcalls(0);
    let state = || {
        let (pending, selector) = event::pending_state(0);
        u64::from(pending) << 8 | selector
    };

    // Upcalls off: everything shows in the page alone.
    event::set_upcall_mask(true);
    event::send(port).ok()?;
    report.saw("masked port rung", format_args!("{} {:x}", event::is_pending(port), state()));
    event::unmask(port).ok()?;
    report.saw("unmasked", format_args!("{} {:x}", event::is_pending(port), state()));
    event::acknowledge(0);
    event::send(port).ok()?;
    report.saw("pending port rung again", format_args!("{:x}", state()));
    event::take(port);
    event::send(port).ok()?;
    report.saw("taken and rung", format_args!("{:x}", state()));
    report.expect("upcalls while they are masked", upcalls(), 0);

    // Upcalls on.
    event::enable();
    report.expect("upcalls let in", upcalls(), 1);
    event::take(port);
    event::send(port).ok()?;
    report.expect("an upcall at once", upcalls(), 2);
    event::send(port).ok()?;
    report.expect("none for a pending port", upcalls(), 2);
    event::unmask(port).ok()?;
    report.expect("unmasking a pending port that was not masked", upcalls(), 2);
    event::set_mask(port, true);
    event::unmask(port).ok()?;
    report.expect("unmasking a pending port", upcalls(), 3);
    report.saw("the upcall mask inside a handler was restored", event::upcall_mask(0));

    // The mask as flags: popf changes nothing of it, and the frame of a trap shows it as IF.
    let trapped = |masked| {
        event::set_upcall_mask(masked);
        trap::attempt(|| insn::poke(crate::bad::UNMAPPED, 0)).err()
    };
    for masked in [false, true] {
        if let Some(frame) = trapped(masked) {
            report.saw(format_args!("a trap with mask {masked}"), format_args!(
                "IF {}, saved mask {}", frame.rflags >> 9 & 1, frame.saved_mask()
            ));
        }
    }
    event::set_upcall_mask(true);

    ghosts(report)?;
    poll(report)
}

fn ghosts(report: &mut Report) -> Verdict {
    let port = event::bind_ipi(0)?;
    event::send(port).ok()?;
    event::close(port).ok()?;
    report.check("a closed port is not pending", !event::is_pending(port));
    report.saw("and masked", event::is_masked(port));
    let next = event::alloc_unbound(SELF, SELF)?;
    report.check("its number is given out again", next == port);
    report.check("to somebody who hears no ghost", !event::is_pending(next));
    // A guest may set the bit itself before it binds.
    event::shared().atomic(2048).fetch_or(1 << next, core::sync::atomic::Ordering::SeqCst);
    let near = event::bind_interdomain(SELF, next)?;
    report.saw("pending before it was bound", event::is_pending(next));
    event::close(near).ok()?;
    event::close(next).ok()?;
    // A domU's console and store have the first two, and ring as they like.
    let theirs = if start::is_dom0() { 0 } else { 0b110 };
    report.saw("bits of ports that are not open", (event::shared().word(256) & !theirs) >> 1);
    Ok(())
}

fn poll(report: &mut Report) -> Verdict {
    let port = event::bind_ipi(0)?;
    let other = event::bind_ipi(0)?;
    let mut ports = [port, other];
    let poll = |ports: &mut [u32], timeout: u64| {
        let mut request = Poll { ports: address(ports), nr_ports: ports.len() as u32, pad: 0, timeout };
        call(number::SCHED_OP, [schedop::POLL, address(&mut request)])
    };
    event::send(other).ok()?;
    report.saw("poll when one is pending", poll(&mut ports, 0));
    event::take(other);
    let wait = |ports: &mut [u32]| {
        let until = time::now() + 2_000_000;
        (poll(ports, until), time::now() >= until)
    };
    let outcome = wait(&mut ports);
    report.saw("poll with a timeout", outcome.0);
    // Who polls several ports is woken by any, such as a domU's store's.
    report.check("it waited as long", outcome.1 || (0..4).any(|_| wait(&mut ports).1));
    report.saw("poll with a timeout in the past", poll(&mut ports, 1));
    report.saw("poll of none, with a timeout", poll(&mut [], time::now() + 1_000_000));
    report.saw("poll of port 4096", poll(&mut [4096], 0));
    report.saw("poll of a closed port, with a timeout", poll(&mut [900], time::now() + 1_000_000));
    let mut many = Poll { ports: address(&mut ports), nr_ports: 129, pad: 0, timeout: 1 };
    report.saw("poll of 129", call(number::SCHED_OP, [schedop::POLL, address(&mut many)]));
    let mut lost = Poll { ports: crate::bad::UNMAPPED, nr_ports: 1, pad: 0, timeout: 1 };
    report.saw("poll of ports nowhere", call(number::SCHED_OP, [schedop::POLL, address(&mut lost)]));
    event::set_upcall_mask(false);
    event::set_mask(other, false);
    event::send(other).ok()?;
    event::set_upcall_mask(false);
    report.saw("poll of none, with upcalls on, two pending", poll(&mut ports, 0));
    Ok(())
}
