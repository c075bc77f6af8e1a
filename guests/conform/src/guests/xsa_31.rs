//! XSA-31 (CVE-2012-5515): the order of an extent.
//!
//! Shifting by an order that is larger than a word, or counting 2^order pages without asking whether there are so many,
//! hung the host. Every call that takes an order gets orders from 10 on, with a frame that is in order otherwise. None of
//! the guest's pages may go by it; what goes by order 0 shows that the frame was fine.

use pv::Answer;
use pv::abi::memory::{MemoryExchange, MemoryReservation};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use pv::memory::{self, Page};
use zerocopy::FromZeros;

use crate::host::{self, DECREASE, POPULATE};
use crate::report::{Report, Verdict};

const ORDERS: [u32; 9] = [19, 20, 31, 32, 51, 52, 63, 64, u32::MAX];

fn exchange(given: u64, order: u32) -> Answer {
    let mut request = MemoryExchange::new_zeroed();
    let side = |list: &mut [u64; 1]| {
        let mut side = MemoryReservation::new_zeroed();
        (side.extent_start, side.nr_extents, side.extent_order, side.domid.0) = (address(list), 1, order, SELF);
        side
    };
    (request.in_, request.out) = (side(&mut [given]), side(&mut [given]));
    call(number::MEMORY_OP, [11, address(&mut request)])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let page = Page::new();
    let mfn = page.mfn();
    memory::unmap(page.address()).ok()?;
    let before = host::free_pages()?;
    for (name, command) in [("increase", 0), ("decrease", DECREASE), ("populate", POPULATE)] {
        report.saw_all(name, ORDERS.map(|order| host::reservation(command, &mut [mfn & !0xff], order, 0)));
    }
    report.saw_all("exchange", ORDERS.map(|order| exchange(mfn, order)));
    report.check("nothing came or went", host::free_pages()? == before);
    report.expect("the frame of order 0", host::reservation(DECREASE, &mut [mfn], 0, 0).0, 1);
    report.check("went", host::free_pages()? == before + 1);
    Ok(())
}
