//! XSA-159 (CVE-2015-8339 and 8340): `memory_exchange` that fails half-way.
//!
//! The frames given are taken away from the guest before the new ones are there. When there were none to be had, the
//! error path gave locks back twice and lost frames. So 256 frames are offered for as many below an address at which
//! there are none free, and for one piece that is larger than any; each must be refused, and every one of the frames must
//! still be the guest's, with its contents and its number.

use pv::Answer;
use pv::abi::memory::{MemoryExchange, MemoryReservation};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page};
use zerocopy::FromZeros;

use crate::host;
use crate::report::{Report, Verdict};

const COUNT: usize = 256;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let pages = [(); COUNT].map(|()| Page::new());
    let mut given = pages.map(Page::mfn);
    for (index, page) in pages.iter().enumerate() {
        page.set_word(0, 0x159_0000 + index as u64);
        memory::unmap(page.address()).ok()?;
    }
    let before = host::free_pages()?;
    let exchange = |given: &mut [u64], taken: &mut [u64], order: u32, flags: u32| {
        let mut request = MemoryExchange::new_zeroed();
        let side = |list: &mut [u64], order: u32, flags: u32| {
            let mut side = MemoryReservation::new_zeroed();
            (side.extent_start, side.nr_extents) = (address(list), list.len() as u64);
            (side.extent_order, side.mem_flags, side.domid.0) = (order, flags, SELF);
            side
        };
        (request.in_, request.out) = (side(given, 0, 0), side(taken, order, flags));
        (call(number::MEMORY_OP, [11, address(&mut request)]), request.nr_exchanged)
    };
    let mut numbers = pages.map(|page| page.address() >> 12);
    for (name, flags) in [("within 13 bits", 13), ("within 1 bit", 1), ("on node 99", 100 << 8 | 1 << 17)] {
        let (answer, done) = exchange(&mut given, &mut numbers, 0, flags);
        report.saw(name, format_args!("{answer}, {done} done"));
        report.check("what failed was not done", answer.is_ok() == (done == COUNT as u64));
    }
    let (answer, done) = exchange(&mut given, &mut [pages[0].address() >> 12], 8, 13);
    report.saw("for one piece within 13 bits", format_args!("{answer}, {done} done"));
    given[COUNT - 1] = given[0];
    let (answer, done) = exchange(&mut given, &mut numbers, 0, 0);
    report.saw("one of them twice", format_args!("{answer}, {done} done"));
    report.check("as many are free as before", host::free_pages()? == before);
    let kept = pages.iter().enumerate().filter(|(index, page)| {
        let now = page.mfn();
        memory::map(page.address(), now, ORDINARY).is_ok() && page.word(0) == 0x159_0000 + *index as u64
    });
    report.saw("still there, with what is in them", kept.count());
    let other = Page::new();
    memory::unmap(other.address()).ok()?;
    let (answer, _) = exchange(&mut [other.mfn()], &mut [other.address() >> 12], 0, 0);
    report.expect("an honest exchange", answer, Answer::OK);
    Ok(())
}
