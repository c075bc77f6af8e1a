//! XSA-240 (CVE-2017-15595): a tower of tables of one level, each in the next.
//!
//! Where a table may hold another of its own level, a guest can build a chain of them; taking the last reference away
//! then recursed once per link, until the hypervisor's stack was full. A chain of a hundred is built as far as it goes,
//! and taken down from its top. Every page must be free again afterwards, and the host alive. Whoever has no linear
//! tables refuses the first link.

use pv::memory::{Page, READ_ONLY};
use pv::{Answer, tables};

use crate::report::{Report, Verdict};

const LENGTH: usize = 100;
/// The first slot of the root that the builder leaves empty.
const SLOT: usize = 300;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let chain = [(); LENGTH].map(|()| Page::new());
    let mut links = 0;
    let mut last = None;
    for page in chain {
        let below = last.map_or(0, |below: Page| below.mfn() << 12 | READ_ONLY);
        page.set_word(SLOT, below);
        page.seal()?;
        if !tables::pin(4, page.mfn()).is_ok() {
            break;
        }
        // Only what is above it holds it now.
        if let Some(below) = last {
            tables::unpin(below.mfn()).ok()?;
        }
        links += 1;
        last = Some(page);
    }
    report.saw("links", links);
    report.check("not all of them", links < LENGTH);
    if let Some(top) = last {
        report.expect("the top taken away", tables::unpin(top.mfn()), Answer::OK);
    }
    let free = chain.iter().filter(|page| page.unseal().is_ok()).count();
    report.expect("pages that are free again", free, LENGTH);
    Ok(())
}
