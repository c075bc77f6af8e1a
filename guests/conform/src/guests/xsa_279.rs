//! XSA-279 (CVE-2018-19965): flushing an address that is none.
//!
//! INVLPG takes any address, INVPCID faults in ring 0 for one that is not canonical, and the hypervisor used the one for
//! the other. Each way of asking for a flush of one address gets such ones; a stale entry at a good address then goes by
//! the same calls, which shows that they do flush.

use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page};
use pv::tables::{self, ext};

use crate::report::{Report, Verdict};

const BAD: [u64; 5] = [1 << 47, 0x0123_4567_89ab_c000, 0xffff_7fff_ffff_f000, 1 << 63, u64::MAX];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let mut everybody = 3_u64;
    let everybody = address(&mut everybody);
    let flush = |command: u32, place: u64| tables::extended(command, place, if command == ext::INVLPG_MULTI { everybody } else { 0 });
    for (name, command) in [("local", ext::INVLPG_LOCAL), ("of some", ext::INVLPG_MULTI), ("of all", ext::INVLPG_ALL)] {
        report.saw_all(name, BAD.map(|place| flush(command, place)));
        let (window, first, second) = (Page::new(), Page::new(), Page::new());
        first.set_word(0, 1);
        second.set_word(0, 2);
        memory::map(window.address(), first.mfn(), ORDINARY).ok()?;
        report.check_quietly("the first is seen", window.word(0) == 1);
        // Without a flush of its own.
        call(number::UPDATE_VA_MAPPING, [window.address(), second.mfn() << 12 | ORDINARY, 0]).ok()?;
        flush(command, window.address()).ok()?;
        report.check("a good address is flushed", window.word(0) == 2);
    }
    for how in [2, 1 | 4, 2 | 4] {
        let place = |place: u64| call(number::UPDATE_VA_MAPPING, [place, 0, how]);
        report.saw_all(format_args!("by update_va_mapping, {how}"), BAD.map(place));
    }
    Ok(())
}
