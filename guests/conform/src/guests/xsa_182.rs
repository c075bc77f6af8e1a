//! XSA-182 (CVE-2016-6258): a read-only window onto a root table made writable by an update of flags alone.
//!
//! A root may hold itself, read-only (where linear tables exist at all). The short way for updates that change only
//! flags let the writable bit through, and the guest could then write its own root: a full escape. Whoever has no
//! linear tables refuses the first step, which closes the rest.

use pv::memory::{ORDINARY, READ_ONLY, pte};
use pv::{insn, tables, trap};

use crate::report::{Report, Verdict};

/// Which entry of the root is the window.
const SLOT: u64 = 300;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let root = tables::root_mfn();
    let place = (root << 12) + SLOT * 8;
    let made = tables::set(place, root << 12 | READ_ONLY).is_ok();
    report.saw("the root holds itself, read-only", made);
    for (name, flags) in [
        ("writable", ORDINARY),
        ("writable, not accessed", ORDINARY & !pte::ACCESSED),
        ("writable, uncached", ORDINARY | pte::CACHE_DISABLE),
    ] {
        for command in [0, 2] {
            let answer = tables::set(place | command, root << 12 | flags);
            report.check(format_args!("{name}, by command {command}: refused"), !answer.is_ok());
            report.check("it is not writable", tables::root().word(SLOT as usize) & 3 != 3);
        }
    }
    // The root as it would appear through itself.
    let linear = 0xffff << 48 | SLOT << 39 | SLOT << 30 | SLOT << 21 | SLOT << 12;
    let before = tables::root().word(0);
    let written = trap::attempt(|| insn::poke(linear, 0));
    report.check("a store through it faults", written.is_err());
    report.check("the root is what it was", tables::root().word(0) == before);
    tables::set(place, 0).ok()?;
    Ok(())
}
