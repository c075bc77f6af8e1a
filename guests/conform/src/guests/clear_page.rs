//! Pages that are cleared before anybody mapped them: `MMUEXT_CLEAR_PAGE` leaves zeroes, whatever was done to the page.
//!
//! A hypervisor scrubs what it gives out, so it may be tempted to clear nothing where nobody can have written. But who has
//! not mapped a page can write to it all the same: by a copy, by a grant copy, and as a table. Each is done here to a page
//! that came just now; then it is cleared, and only then mapped and read.
//!
//! Promised by: public/xen.h (`MMUEXT_CLEAR_PAGE`).

use pv::abi::grant_table::{Copy, CopyPtr, gnttabop};
use pv::event::SELF;
use pv::memory::{self, Page};
use pv::tables::{self, ext};
use pv::{Answer, grant};
use zerocopy::FromZeros;

use crate::host;
use crate::report::{Report, Verdict};

/// A page of ours whose frame has never been mapped.
struct Fresh {
    page: Page,
    mfn: u64,
}

impl Fresh {
    fn new() -> Result<Fresh, Answer> {
        let page = Page::new();
        let old = page.mfn();
        memory::unmap(page.address()).ok()?;
        exchange(host::DECREASE, old)?;
        let pfn = page.address() >> 12;
        let mfn = exchange(host::POPULATE, pfn)?;
        memory::set_p2m(pfn, mfn);
        Ok(Fresh { page, mfn })
    }

    /// Clears it, maps it, and reads a few words.
    fn cleared(&self) -> Result<[u64; 3], Answer> {
        tables::extended(ext::CLEAR_PAGE, self.mfn, 0).ok()?;
        memory::map(self.page.address(), self.mfn, memory::ORDINARY).ok()?;
        Ok([0, 7, 511].map(|index| self.page.word(index)))
    }
}

/// One frame less, or one more; gives the frame.
fn exchange(command: u64, number_of: u64) -> Result<u64, Answer> {
    let mut extents = [number_of];
    match host::reservation(command, &mut extents, 0, 0) {
        Answer(1) => Ok(extents[0]),
        other => Err(other),
    }
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let source = Page::new();
    source.fill(0x5a5a);
    let untouched = Fresh::new()?;
    report.saw_all("nothing was done to it", untouched.cleared()?);
    untouched.page.fill(1);
    memory::unmap(untouched.page.address()).ok()?;
    report.saw_all("mapped, written, and no longer mapped", untouched.cleared()?);

    let copied = Fresh::new()?;
    tables::extended(ext::COPY_PAGE, copied.mfn, source.mfn()).ok()?;
    report.saw_all("a page was copied to it", copied.cleared()?);

    let granted = Fresh::new()?;
    let mut request = Copy::new_zeroed();
    request.source = CopyPtr::new_zeroed();
    (request.source.u, request.source.domid.0) = (source.mfn(), SELF);
    (request.dest.u, request.dest.domid.0) = (granted.mfn, SELF);
    request.len = 4096;
    grant::op(gnttabop::COPY, core::slice::from_mut(&mut request)).ok()?;
    report.saw("a grant copy to it", request.status.0);
    report.saw_all("and it was cleared", granted.cleared()?);

    let table = Fresh::new()?;
    tables::pin(1, table.mfn).ok()?;
    tables::set(table.mfn << 12 | 56, source.mfn() << 12 | 0x61).ok()?;
    report.saw("cleared while it is a table", tables::extended(ext::CLEAR_PAGE, table.mfn, 0));
    tables::unpin(table.mfn).ok()?;
    report.saw_all("it was a table", table.cleared()?);

    let given_back = Fresh::new()?;
    exchange(host::DECREASE, given_back.mfn)?;
    report.saw("cleared when it is no longer ours", tables::extended(ext::CLEAR_PAGE, given_back.mfn, 0));
    Ok(())
}
