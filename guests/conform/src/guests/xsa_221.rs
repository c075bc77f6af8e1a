//! XSA-221 (CVE-2017-10917): polling for ports that are not there.
//!
//! `SCHEDOP_poll` looked at the ports it was given without asking whether their part of the table exists, and read
//! through a null pointer. Lists of ports at every edge are polled for, with one that is open among them and pending, so
//! that the call does get to look at the list.

use pv::abi::sched::{Poll, schedop};
use pv::event::{self, SELF};
use pv::hypercall::{address, call, number};
use pv::{Answer, time};

use crate::report::{Report, Verdict};

fn poll(ports: &mut [u32], wait_ns: u64) -> Answer {
    let mut request = Poll { ports: address(ports), nr_ports: ports.len() as u32, pad: 0, timeout: time::now() + wait_ns };
    call(number::SCHED_OP, [schedop::POLL, address(&mut request)])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let port = event::alloc_unbound(SELF, SELF)?;
    let near = event::bind_interdomain(SELF, port)?;
    event::set_upcall_mask(true);
    event::send(near);
    report.check("one port is pending", event::is_pending(port));
    for far in [0, 2000, 4094, 4095, 4096, 8191, 8192, 131_071, 131_072, i32::MAX.cast_unsigned(), u32::MAX] {
        report.saw_all(format_args!("port {far} before it, behind it"), [
            poll(&mut [far, port], 100_000),
            poll(&mut [port, far], 100_000),
        ]);
    }
    report.expect("the pending one alone", poll(&mut [port], 1_000_000_000_000), Answer::OK);
    report.saw_all("127, 128, 129 ports", [
        poll(&mut [port; 127], 100_000),
        poll(&mut [port; 128], 100_000),
        poll(&mut [port; 129], 100_000),
    ]);
    Ok(())
}
