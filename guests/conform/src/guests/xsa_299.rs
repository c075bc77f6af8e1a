//! XSA-299 (CVE-2019-18421): validation that stops half-way, and what it forgets.
//!
//! A table with a bad entry far in is promoted, fails, is repaired, promoted and demoted, at every level, with the bad
//! entry at different places. References taken on the way must all be given back: the hypervisor lost count of them for
//! tables left half done, and a frame could become writable while it was a table. In the end every page must be free to
//! be written, and be a table again.

use pv::memory::{ORDINARY, Page};
use pv::{Answer, tables};

use crate::bad::NO_FRAME;
use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let pages = [(); 4].map(|()| Page::new());
    let [data, rest @ ..] = pages;
    let (mut failed, mut repaired) = (0, 0);
    let mut rounds = 0;
    for level in 1..=3_u32 {
        let table = rest[level as usize - 1];
        let below = if level == 1 { data } else { rest[level as usize - 2] };
        for place in [0, 1, 255, 510, 511] {
            rounds += 1;
            table.fill(0);
            // Many references to one page below, and one bad entry among them.
            (0..512).filter(|index| index % 7 == 0).for_each(|index| table.set_word(index, below.mfn() << 12 | ORDINARY));
            table.set_word(place, NO_FRAME << 12 | ORDINARY);
            table.seal()?;
            for _ in 0..3 {
                failed += u32::from(!tables::pin(level, table.mfn()).is_ok());
            }
            table.unseal()?;
            table.set_word(place, 0);
            table.seal()?;
            let good = tables::pin(level, table.mfn()).is_ok() && tables::unpin(table.mfn()).is_ok();
            repaired += u32::from(good);
            table.unseal()?;
        }
        // What is below the next level must be a table, thus sealed.
        table.fill(0);
        table.seal()?;
    }
    report.expect("promotions refused", failed, 3 * rounds);
    report.expect("repaired and promoted", repaired, rounds);
    let free = pages.iter().filter(|page| page.unseal().is_ok()).count();
    report.expect("pages that can be written at the end", free, pages.len());
    pages.iter().for_each(|page| page.fill(0));
    for page in pages {
        page.seal()?;
        report.expect("and be a table", tables::pin(1, page.mfn()), Answer::OK);
    }
    Ok(())
}
