//! XSA-234 (CVE-2017-14319): a grant's map taken away at another place.
//!
//! An unmap names the entry it is about, and that was not compared well enough with what had been mapped: an entry with
//! the same frame but other rights was taken for it, and the grant's counts and the page's went apart. The entry of a
//! read-only and of a writable map is replaced by ones that look alike, and other entries are named. What is refused must
//! change nothing; the right unmap is tried last.

use pv::grant::{self, Table, gntmap, gtf};
use pv::memory::{self, ORDINARY, Page, READ_ONLY};
use pv::tables::Slot;
use pv::{insn, start, trap};

use crate::report::{End, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    let (data, window, other) = (Page::new(), Page::new(), Page::new());
    for (name, flags, alike) in [
        ("writable", gntmap::HOST_MAP, READ_ONLY),
        ("read-only", gntmap::HOST_MAP | gntmap::READONLY, ORDINARY),
    ] {
        table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
        memory::unmap(window.address()).ok()?;
        let handle = grant::map(own, 8, window.address(), flags).map_err(|_| End::Fail("a map was refused"))?;
        let used = table.flags(8);
        memory::map(other.address(), data.mfn(), alike).ok()?;
        report.saw(format_args!("{name}: at an entry with other rights"), grant::unmap(handle, other.address()).0);
        report.expect("the offer is in use", table.flags(8), used);
        let by_entry = Slot::of(window.address(), 1).ok_or(End::Fail("no table"))?;
        report.saw("by the entry's own address", grant::unmap(handle, by_entry.maddr()).0);
        report.expect("the offer is in use", table.flags(8), used);
        report.check("the map stands", trap::attempt(|| insn::peek(window.address())).is_ok());
        report.expect("at its place", grant::unmap(handle, window.address()).0, 0);
        report.expect("the offer is not in use", table.flags(8), gtf::PERMIT_ACCESS);
        report.check("the other entry stands", trap::attempt(|| insn::peek(other.address())).is_ok());
        memory::map(other.address(), other.mfn(), ORDINARY).ok()?;
    }
    data.seal()?;
    report.expect("the page can be a table", pv::tables::pin(1, data.mfn()), pv::Answer::OK);
    Ok(())
}
