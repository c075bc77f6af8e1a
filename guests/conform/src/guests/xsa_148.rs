//! XSA-148 (CVE-2015-7835): the large-page bit, slipped in by an update that changes only flags.
//!
//! An update that leaves the frame of an L2 entry alone takes a short way, which forgot to look at the bit that makes
//! the entry a 2 MiB page. With it set, the guest had a writable window of 512 frames onto memory that need not be its
//! own: a full escape. Each step is shown to work without the bit, so that the refusal is the bit's.

use pv::memory::{ORDINARY, Page, pte};
use pv::{Answer, tables};

use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (l1, l2) = (Page::new(), Page::new());
    for (level, page) in [(1, l1), (2, l2)] {
        page.seal()?;
        tables::pin(level, page.mfn()).ok()?;
    }
    let slot = l2.mfn() << 12;
    let entry = l1.mfn() << 12 | ORDINARY;
    report.expect("an entry", tables::set(slot, entry), Answer::OK);
    report.expect("the same with another flag", tables::set(slot, entry & !pte::DIRTY), Answer::OK);
    for (name, flags) in [
        ("and the large-page bit", pte::LARGE),
        ("and also global", pte::LARGE | pte::GLOBAL),
        ("and software's bits", pte::LARGE | 0xe00),
    ] {
        let answer = tables::set(slot, entry | flags);
        report.saw(name, answer);
        report.check("it is not a large page", l2.word(0) & pte::LARGE == 0);
    }
    report.saw("the other command", tables::set(slot | 2, entry | pte::LARGE));
    report.check("it is not a large page", l2.word(0) & pte::LARGE == 0);
    report.expect("the entry is still ours to change", tables::set(slot, 0), Answer::OK);
    Ok(())
}
