//! XSA-334 (CVE-2020-25598): a lock that an error path kept.
//!
//! `acquire_resource` that failed did not give back the lock it held, and the next call that wanted it waited for ever.
//! It is made to fail in every way, many times; the calls that share its locks must then still come back: grant table
//! setup, memory, and `acquire_resource` itself.

use pv::Answer;
use pv::abi::memory::{AcquireResource, ResourceType};
use pv::event::SELF;
use pv::grant::Table;
use pv::hypercall::{address, call, number};
use pv::memory::{self, Page};
use zerocopy::FromZeros;

use crate::bad;
use crate::host::{self, DECREASE, POPULATE};
use crate::report::{Report, Verdict};

fn acquire(domid: u16, kind: u16, id: u32, count: u32, frame: u64, list: u64) -> Answer {
    let mut request = AcquireResource::new_zeroed();
    (request.domid.0, request.type_, request.id) = (domid, ResourceType(kind), id);
    (request.nr_frames, request.frame, request.frame_list) = (count, frame, list);
    call(number::MEMORY_OP, [28, address(&mut request)])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let mut list = [0_u64; 64];
    let good = address(&mut list);
    for round in ["first", "again"] {
        report.saw_all(format_args!("{round}: of ourselves: devices, grants, traces, none"), [0, 1, 2, 9].map(|kind| acquire(SELF, kind, 0, 1, 0, good)));
        report.saw_all("of no domain, of no id", [acquire(bad::NO_DOMAIN, 1, 0, 1, 0, good), acquire(0x7ff4, 1, 0, 1, 0, good)]);
        report.saw_all("how many", [0, 33, 65536, u32::MAX].map(|count| acquire(SELF, 1, 0, count, 0, good)));
        report.saw_all("from where", [64, 1 << 31, 1 << 32, u64::MAX].map(|frame| acquire(SELF, 1, 0, 1, frame, good)));
        report.saw_all("which table", [1, 2, u32::MAX].map(|id| acquire(SELF, 1, id, 1, 0, good)));
        report.saw_pointers("list", |list| acquire(SELF, 1, 0, 1, 0, list));
    }
    report.check("a grant table can be had", Table::setup().is_ok());
    let page = Page::new();
    memory::unmap(page.address()).ok()?;
    report.expect("memory goes", host::reservation(DECREASE, &mut [page.mfn()], 0, 0).0, 1);
    report.expect("and comes", host::reservation(POPULATE, &mut [page.address() >> 12], 0, 0).0, 1);
    Ok(())
}
