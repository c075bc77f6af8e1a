//! XSA-227 (CVE-2017-12137): a grant mapped through a page-table entry at an odd address.
//!
//! The address of the entry was not checked for alignment, so that the write went across two entries, and made both of
//! them something nobody had looked at: a full escape. The entries around the target must be untouched, and the same map
//! at the proper address works.

use pv::grant::{self, Table, gntmap, gtf};
use pv::memory::{self, Page};
use pv::start;
use pv::tables::Slot;

use crate::report::{End, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    let (data, window, after) = (Page::new(), Page::new(), Page::new());
    table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
    memory::unmap(window.address()).ok()?;
    let slot = Slot::of(window.address(), 1).ok_or(End::Fail("no table"))?;
    let next = Slot::of(after.address(), 1).ok_or(End::Fail("no table"))?;
    let flags = gntmap::HOST_MAP | gntmap::CONTAINS_PTE;
    let before = next.get();
    for offset in 1..8 {
        let outcome = grant::map(own, 8, slot.maddr() + offset, flags);
        report.check(format_args!("{offset} off: refused"), outcome.is_err());
        report.check("the entry and the next are as they were", slot.get() == 0 && next.get() == before);
    }
    report.expect("nobody uses the grant", table.flags(8), gtf::PERMIT_ACCESS);
    data.set_word(0, 0x227);
    match grant::map(own, 8, slot.maddr(), flags) {
        Ok(handle) => {
            report.expect("at its place: mapped", window.word(0), 0x227);
            report.expect("unmapped", grant::unmap(handle, slot.maddr()).0, 0);
        }
        Err(status) => report.expect("at its place", status.0, 0),
    }
    Ok(())
}
