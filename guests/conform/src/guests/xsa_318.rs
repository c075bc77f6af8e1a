//! XSA-318 (CVE-2020-11742): a copy of grants that is continued from the wrong place.
//!
//! A batch of copies that is interrupted is made again from where it stood. The count was one off, so that the guest was
//! told of success for copies that were not made, and could go on with what was in the page before. A batch long enough
//! to be interrupted copies a counter to places of their own; each must have arrived, and each must have said so.

use pv::abi::grant_table::{Copy, gntcopy, gnttabop};
use pv::event::SELF;
use pv::grant::{self, Table, gtf};
use pv::memory::Page;
use pv::{Answer, start};
use zerocopy::FromZeros;

use crate::report::{End, Report, Verdict};

const COUNT: usize = 1024;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    let source = Page::new();
    let targets = [Page::new(), Page::new(), Page::new(), Page::new()];
    table.offer(8, own, source.mfn(), gtf::PERMIT_ACCESS);
    (0..512).for_each(|word| source.set_word(word, 0x318_0000 + word as u64));
    // Each copies one word: word i of the source to word i of target i / 256, from the end back.
    let mut batch = [Copy::new_zeroed(); COUNT];
    for (index, copy) in batch.iter_mut().enumerate() {
        let word = index % 512;
        (copy.source.u, copy.source.domid.0, copy.source.offset) = (8, own, word as u16 * 8);
        (copy.dest.u, copy.dest.domid.0, copy.dest.offset) = (targets[index / 256].mfn(), SELF, word as u16 * 8);
        (copy.len, copy.flags, copy.status.0) = (8, gntcopy::SOURCE_GREF, 99);
    }
    batch[COUNT / 2].source.u = 77;
    report.expect("the batch", grant::op(gnttabop::COPY, &mut batch), Answer::OK);
    let said = batch.iter().filter(|copy| copy.status.0 == 0).count();
    report.expect("said to be done", said, COUNT - 1);
    report.expect("the bad one", batch[COUNT / 2].status.0, -1);
    let arrived = (0..COUNT).filter(|index| targets[index / 256].word(index % 512) == 0x318_0000 + (index % 512) as u64);
    report.expect("arrived", arrived.count(), COUNT - 1);
    report.expect("nobody uses the grant", table.flags(8), gtf::PERMIT_ACCESS);
    Ok(())
}
