//! XSA-458 (CVE-2024-31143) and XSA-237 (CVE-2017-15590): messages of devices that are not there.
//!
//! To map a block of messages locked twice and unlocked twice in one error path, and messages of devices that the caller
//! has no business with were set up half-way. Blocks of every size are asked for, of devices that do not exist and of one
//! that does but has no such feature, many times; a line must be mapped afterwards, which takes the same locks, and no
//! number may be lost on the way.

use pv::Answer;
use pv::abi::physdev::{MapPirq, UnmapPirq, map_pirq_type, physdevop};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use zerocopy::FromZeros;

use crate::bad;
use crate::report::{Report, Verdict};

fn map(domid: u16, kind: i32, devfn: i32, count: i32) -> Answer {
    let mut request = MapPirq::new_zeroed();
    (request.domid.0, request.kind, request.index, request.pirq) = (domid, kind, -1, -1);
    (request.devfn, request.entry_nr) = (devfn, count);
    call(number::PHYSDEV_OP, [physdevop::MAP_PIRQ, address(&mut request)])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    for (name, devfn) in [("the host bridge", 0), ("no device", 0x1f << 3), ("no device number", 1 << 20)] {
        let blocks = [0, 1, 2, 3, 8, 32, 33, 1024, i32::MAX, -1];
        report.saw_all(format_args!("blocks of {name}"), blocks.map(|count| map(SELF, map_pirq_type::MULTI_MSI, devfn, count)));
        report.saw_all("one message", [map_pirq_type::MSI, map_pirq_type::MSI_SEG].map(|kind| map(SELF, kind, devfn, 0)));
    }
    report.saw("for another domain", map(bad::NO_DOMAIN, map_pirq_type::MULTI_MSI, 0, 2));
    let mut refused = 0;
    for _ in 0..500 {
        refused += u32::from(!map(SELF, map_pirq_type::MULTI_MSI, 0x1f << 3, 4).is_ok());
    }
    report.expect("again and again: refused", refused, 500);
    let mut line = MapPirq::new_zeroed();
    (line.domid.0, line.kind, line.index, line.pirq) = (SELF, map_pirq_type::GSI, 10, -1);
    report.expect("a line", call(number::PHYSDEV_OP, [physdevop::MAP_PIRQ, address(&mut line)]), Answer::OK);
    let mut unmap = UnmapPirq::new_zeroed();
    (unmap.domid.0, unmap.pirq) = (SELF, line.pirq);
    report.expect("given back", call(number::PHYSDEV_OP, [physdevop::UNMAP_PIRQ, address(&mut unmap)]), Answer::OK);
    Ok(())
}
