//! XSA-402 (CVE-2022-26363 and 26364) and XSA-154 (CVE-2016-2270): one page, cached in two ways.
//!
//! A page that the guest has written past the caches may look different to the processor's walk of tables than to the
//! check before; and a page of a device that is cached can bring the host down. Ordinary memory is mapped with every kind
//! of caching at once, written through one, read through the others, and becomes a table right after: what was checked
//! must be what is used.

use pv::memory::{self, ORDINARY, Page, pte};
use pv::{Answer, tables};

use crate::report::{End, Report, Verdict};

/// The bit of an L1 entry that selects the upper half of the page-attribute table.
const PAT: u64 = 1 << 7;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let kinds = [
        ("write back", 0),
        ("write through", pte::WRITE_THROUGH),
        ("uncached minus", pte::CACHE_DISABLE),
        ("uncached", pte::CACHE_DISABLE | pte::WRITE_THROUGH),
        ("the fifth", PAT),
        ("the sixth", PAT | pte::WRITE_THROUGH),
        ("the seventh", PAT | pte::CACHE_DISABLE),
        ("the eighth", PAT | pte::CACHE_DISABLE | pte::WRITE_THROUGH),
    ];
    let (data, page) = (Page::new(), Page::new());
    // A domU without devices gets no other kind than the first.
    let windows = kinds.map(|(name, kind)| {
        let window = Page::new();
        let answer = memory::map(window.address(), page.mfn(), ORDINARY | kind);
        report.saw(name, answer);
        answer.is_ok().then_some(window)
    });
    let windows = || windows.iter().flatten();
    for index in 0..8 {
        let writer = windows().cycle().nth(index).ok_or(End::Fail("no window"))?;
        writer.set_word(index, data.mfn() << 12 | ORDINARY);
        let seen = windows().all(|other| other.word(index) == writer.word(index));
        report.check_quietly("all see it", seen);
    }
    // A good entry gives way to a bad one at the last moment, past the caches.
    let uncached = windows().nth(3).or(windows().next()).ok_or(End::Fail("no window"))?;
    uncached.set_word(9, data.mfn() << 12 | ORDINARY);
    uncached.set_word(9, page.mfn() << 12 | ORDINARY);
    windows().try_for_each(|window| memory::unmap(window.address()).ok().map(drop))?;
    page.seal()?;
    let answer = tables::pin(1, page.mfn());
    report.saw("a table that maps itself writable", answer);
    report.check("is refused", !answer.is_ok());
    page.unseal()?;
    page.set_word(9, 0);
    page.seal()?;
    report.expect("without that entry", tables::pin(1, page.mfn()), Answer::OK);
    report.check("its entries name the page they did", (0..8).all(|index| page.word(index) & pte::FRAME == data.mfn() << 12));
    Ok(())
}
