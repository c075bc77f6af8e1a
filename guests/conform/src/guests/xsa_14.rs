//! XSA-14 (CVE-2012-3496) and XSA-231 (CVE-2017-14316): the flags of a request for memory.
//!
//! Populate-on-demand is nothing that a PV guest's memory can have, and asking for it ran into an assertion; a NUMA node
//! that does not exist was used as an index. Each flag is tried on a page that has just been given back, so that a plain
//! request must then succeed. No request may bring a frame twice, and the count of pages must be right.

use pv::memory::{self, Page};

use crate::host::{self, DECREASE, POPULATE};
use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let page = Page::new();
    let pfn = page.address() >> 12;
    memory::unmap(page.address()).ok()?;
    report.expect("given back", host::reservation(DECREASE, &mut [page.mfn()], 0, 0).0, 1);
    let flags = [
        ("on demand", 1 << 16),
        ("node 1", 2 << 8),
        ("node 63", 64 << 8),
        ("node 254", 255 << 8),
        ("node 254 and no other", 255 << 8 | 1 << 17),
        ("a virtual node", 1 << 18 | 1 << 8),
        ("a virtual node that is none", 1 << 18 | 200 << 8),
        ("all bits", u32::MAX),
        ("within 1 address bit", 1),
        ("within 12", 12),
        ("within 16", 16),
        ("within 255", 255),
    ];
    for (name, flags) in flags {
        let before = host::free_pages()?;
        let mut list = [pfn];
        let answer = host::reservation(POPULATE, &mut list, 0, flags);
        report.saw(name, answer);
        let got = u64::from(answer.0 == 1);
        report.check_quietly("what it says is what it did", before - host::free_pages()? == got);
        if got == 1 {
            report.check_quietly("it is the page's", memory::m2p(list[0]) == Some(pfn));
            report.check_quietly("and goes again", host::reservation(DECREASE, &mut list, 0, 0).0 == 1);
        }
    }
    report.expect("plainly", host::reservation(POPULATE, &mut [pfn], 0, 0).0, 1);
    Ok(())
}
