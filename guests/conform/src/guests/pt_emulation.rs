//! Stores to page tables that are mapped read-only: the hypervisor does them as if `mmu_update` had been called.
//!
//! Linux counts on it for its early page tables. A domU has to ask for it, Domain 0 has it. A store that makes a bad
//! entry must fault with the error code of the CPU's own fault, and change nothing. Promised by: public/xen.h
//! (`VMASST_TYPE_writable_pagetables`).

use pv::insn::{self, Width};
use pv::memory::{self, ORDINARY, Page, READ_ONLY, pte};
use pv::{Answer, tables, trap};

use crate::bad;
use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (data, other) = (Page::new(), Page::new());
    let table = Page::new();
    let (first, second) = (data.mfn() << 12 | ORDINARY, other.mfn() << 12 | ORDINARY);
    table.set_word(5, first);
    table.seal()?;
    tables::pin(1, table.mfn()).ok()?;
    let entry = table.address() + 5 * 8;
    // Without the bit that the hypervisor may set for its own ends.
    let plain = |entry: u64| entry & !pte::GLOBAL;
    let holds = |value: u64| plain(table.word(5)) == value;
    let show = |outcome: Result<(), trap::Frame>, report: &Report, name: &str| match outcome {
        Ok(()) => report.saw(name, "done"),
        Err(frame) => report.saw(name, format_args!("{frame}, at the entry {}", frame.cr2 & !7 == entry)),
    };

    show(trap::attempt(|| insn::poke(entry, second)), report, "before it is asked for");
    report.expect("asked for", tables::assist_stores(), Answer::OK);
    show(trap::attempt(|| insn::poke(entry, second)), report, "a store of eight bytes");
    report.check("it took", holds(second));
    show(trap::attempt(|| insn::poke(entry, 0)), report, "a store of nothing");
    show(trap::attempt(|| insn::poke(entry, first)), report, "and of something again");
    let exchanged = trap::attempt(|| insn::compare_exchange(entry, table.word(5), second));
    report.saw("cmpxchg that matches", exchanged.map(|old| plain(old) == first).unwrap_or(false));
    report.check("it took", holds(second));
    let exchanged = trap::attempt(|| insn::compare_exchange(entry, first, 0));
    report.saw("cmpxchg that does not", exchanged.map(|old| plain(old) == second).unwrap_or(false));
    report.check("it did nothing", holds(second));
    for (name, width) in [("one byte", Width::Byte), ("two bytes", Width::Word), ("four bytes", Width::Long)] {
        show(trap::attempt(|| insn::poke_part(entry, second, width)), report, name);
    }
    report.saw("and then", holds(second));
    show(trap::attempt(|| insn::poke(entry + 4, 0)), report, "eight bytes across two entries");
    show(trap::attempt(|| insn::poke(entry + 1, 0)), report, "eight bytes off by one");
    show(trap::attempt(|| _ = insn::exchange(entry, first)), report, "xchg");
    show(trap::attempt(|| insn::or(entry, 0x200)), report, "or");
    report.saw("flags now", format_args!("{:x}", plain(table.word(5)) & 0xfff));
    show(trap::attempt(|| insn::and(entry, !2)), report, "and");
    report.saw("flags now", format_args!("{:x}", plain(table.word(5)) & 0xfff));
    show(trap::attempt(|| insn::store_string(entry, second)), report, "stos");
    insn::poke(entry, first);

    let bad_entries = [
        ("no such frame", bad::NO_FRAME << 12 | ORDINARY),
        ("a page table, writable", table.mfn() << 12 | ORDINARY),
        ("bits beyond the machine", 1 << 51 | second),
    ];
    for (name, value) in bad_entries {
        show(trap::attempt(|| insn::poke(entry, value)), report, name);
        report.check("nothing changed", holds(first));
    }
    // Not an L1: no emulation.
    let l2 = Page::new();
    l2.seal()?;
    tables::pin(2, l2.mfn()).ok()?;
    let outcome = trap::attempt(|| insn::poke(l2.address(), 0));
    report.saw("a store to an L2", outcome.map_or_else(|frame| frame.error_code.unwrap_or(0), |()| 99));
    tables::unpin(table.mfn()).ok()?;
    let outcome = trap::attempt(|| insn::poke(entry, second));
    report.saw("a store to what was a table", outcome.map_or_else(|frame| frame.error_code.unwrap_or(0), |()| 99));
    memory::map(table.address(), table.mfn(), READ_ONLY).ok()?;
    Ok(())
}
