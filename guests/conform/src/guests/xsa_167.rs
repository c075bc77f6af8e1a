//! XSA-167 (CVE-2016-1570): superpages whose frames nobody looked at.
//!
//! With superpages for PV guests switched on, the marking of one and the mapping of one took a guest's frame number
//! without a check of its range and alignment. Switched off, as they are, all of it must be refused: the two operations,
//! and an L2 entry with the large-page bit by each way of making one. The same entry without the bit is taken.

use pv::memory::{ORDINARY, Page, pte};
use pv::tables::{self, ext};
use pv::{Answer, insn, trap};

use crate::bad;
use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (l1, l2, late) = (Page::new(), Page::new(), Page::new());
    l1.seal()?;
    l2.seal()?;
    tables::pin(2, l2.mfn()).ok()?;
    for mfn in [0, 512, l1.mfn(), l1.mfn() & !511, bad::NO_FRAME] {
        let answers = [ext::MARK_SUPER, ext::UNMARK_SUPER].map(|command| tables::extended(command, mfn, 0));
        report.check("marking is refused", answers.iter().all(|answer| !answer.is_ok()));
        report.check_quietly("for the same reason", answers[0] == answers[1]);
    }
    report.saw("by", tables::extended(ext::MARK_SUPER, l1.mfn() & !511, 0));
    for (name, mfn) in [("frame 0", 0), ("an own table", l1.mfn()), ("what it lies in", l1.mfn() & !511), ("none", bad::NO_FRAME)] {
        let entry = mfn << 12 | ORDINARY | pte::LARGE;
        report.saw(format_args!("a large page of {name}"), tables::set(l2.mfn() << 12, entry));
        report.check_quietly("a store of it faults", trap::attempt(|| insn::poke(l2.address(), entry)).is_err());
        report.check("it is not there", l2.word(0) == 0);
    }
    late.set_word(0, l1.mfn() << 12 | ORDINARY | pte::LARGE);
    late.seal()?;
    report.saw("a table that has one", tables::pin(2, late.mfn()));
    report.expect("an entry without the bit", tables::set(l2.mfn() << 12, l1.mfn() << 12 | ORDINARY), Answer::OK);
    Ok(())
}
