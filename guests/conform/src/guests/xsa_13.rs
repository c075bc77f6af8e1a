//! XSA-13 (CVE-2012-3495), XSA-16 (CVE-2012-3498) and XSA-21 (CVE-2012-4536): interrupt numbers nobody has checked.
//!
//! `get_free_pirq`, `map_pirq` and their kind index arrays by numbers that the guest gives; each of the three advisories
//! found one that was used before, or without, a look at its range. Every call that takes such a number gets the whole
//! row of bad ones. A line that is in order is mapped and given back before and after, by the same calls.

use pv::Answer;
use pv::abi::physdev::{GetFreePirq, MapPirq, UnmapPirq, map_pirq_type, physdevop};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use zerocopy::FromZeros;

use crate::report::{Report, Verdict};

const BAD: [i32; 10] = [24, 47, 255, 256, 1024, 4096, 65536, i32::MAX, i32::MIN, -2];

fn op<T>(command: u64, request: &mut T) -> Answer {
    call(number::PHYSDEV_OP, [command, address(request)])
}

fn map(kind: i32, index: i32, pirq: i32) -> Answer {
    let mut request = MapPirq::new_zeroed();
    (request.domid.0, request.kind, request.index, request.pirq) = (SELF, kind, index, pirq);
    op(physdevop::MAP_PIRQ, &mut request)
}

fn unmap(pirq: i32) -> Answer {
    let mut request = UnmapPirq::new_zeroed();
    (request.domid.0, request.pirq) = (SELF, pirq);
    op(physdevop::UNMAP_PIRQ, &mut request)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    for (round, line) in [("before", 10), ("after", 7)] {
        report.expect(format_args!("{round}: a line mapped"), map(map_pirq_type::GSI, line, line), Answer::OK);
        report.expect(format_args!("{round}: given back"), unmap(line), Answer::OK);
        if round == "after" {
            break;
        }
        report.saw_all("lines that are none", BAD.map(|index| map(map_pirq_type::GSI, index, -1)));
        report.saw_all("as numbers that are none", BAD.map(|pirq| map(map_pirq_type::GSI, 11, pirq)));
        report.saw_all("messages of no device", BAD.map(|index| map(map_pirq_type::MSI, index, -1)));
        report.saw_all("types", [2, 5, 99, i32::MAX, i32::MIN].map(|kind| map(kind, 11, -1)));
        report.saw_all("unmap", BAD.map(unmap));
        report.saw_all("eoi", BAD.map(|irq| op(physdevop::EOI, &mut [irq])));
        report.saw_all("irq_status_query", BAD.map(|irq| op(physdevop::IRQ_STATUS_QUERY, &mut [irq, 0]).ok().map_or(-1, |_| 0)));
        let free = |kind: i32| op(physdevop::GET_FREE_PIRQ, &mut GetFreePirq { kind, pirq: 0 });
        report.saw_all("get_free_pirq of types", [0, 1, 2, 3, 4, 5, 99, -1].map(free));
    }
    Ok(())
}
