//! XSA-230 (CVE-2017-12855): an offer that says "unused" too soon.
//!
//! The flags by which the owner learns that its page is being read or written were cleared when one of several maps went,
//! so that the owner took the page back, and gave it to somebody else, under a map that still stood. One grant is mapped
//! read-only and writable, and the maps go in each order: "writing" may go with the last writable one, "reading" with the
//! last of all.

use pv::grant::{self, Table, gntmap, gtf};
use pv::memory::Page;
use pv::start;

use crate::report::{End, Report, Verdict};

const RW: u32 = gntmap::HOST_MAP;
const RO: u32 = gntmap::HOST_MAP | gntmap::READONLY;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    let data = Page::new();
    let windows = [Page::new(), Page::new(), Page::new()];
    for (name, kinds) in [
        ("writable, read-only, read-only", [RW, RO, RO]),
        ("read-only, writable, read-only", [RO, RW, RO]),
        ("read-only, read-only, writable", [RO, RO, RW]),
        ("writable, writable, read-only", [RW, RW, RO]),
    ] {
        table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
        let mut handles = [0; 3];
        for ((handle, window), kind) in handles.iter_mut().zip(windows).zip(kinds) {
            *handle = grant::map(own, 8, window.address(), kind).map_err(|_| End::Fail("a map was refused"))?;
        }
        let mut left = kinds.map(Some);
        for index in 0..3 {
            grant::unmap(handles[index], windows[index].address());
            left[index] = None;
            let reading = left.iter().flatten().next().is_some();
            let writing = left.iter().flatten().any(|kind| *kind == RW);
            let flags = table.flags(8);
            report.check_quietly("reading, to the last", (flags & gtf::READING != 0) == reading);
            report.check_quietly("writing, to the last that may", (flags & gtf::WRITING != 0) == writing);
        }
        report.expect(name, table.flags(8), gtf::PERMIT_ACCESS);
    }
    Ok(())
}
