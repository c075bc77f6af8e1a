//! XSA-286 (CVE-2020-27674): a table that was replaced, and is still written to.
//!
//! Processors keep what they read of the upper tables. An update of an entry of level 2, 3 or 4 obliges the guest to
//! flush before it uses the new path; but the hypervisor, which finds an L1 entry by the guest's tables, must not go by
//! the old one meanwhile, or it changes an entry of a table that has been taken apart. Both vcpus warm up a path of three
//! levels; then each upper entry is turned to another table, and an entry is changed by its address at once, on either
//! vcpu. It must be the new path's. After a flush by the guest both vcpus must see it.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::Answer;
use pv::hypercall::{call, number};
use pv::memory::{ORDINARY, Page, pte};
use pv::tables::{self, ext};
use pv::{insn, vcpu};

use crate::report::{Report, Verdict};

/// Slot 300 of the root, and the first below it.
const PLACE: u64 = 0xffff << 48 | 300 << 39;
/// What vcpu 1 is to do: an odd number for changing the entry to [`ENTRY`], an even one for looking.
static TURN: AtomicU64 = AtomicU64::new(0);
static ENTRY: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);

fn second() {
    let mut turn = 0;
    while turn != u64::MAX {
        insn::peek(PLACE);
        let next = TURN.load(Ordering::SeqCst);
        if next == turn || next == u64::MAX {
            turn = next;
            continue;
        }
        turn = next;
        if turn % 2 == 1 {
            change();
        }
        SEEN.store(insn::peek(PLACE), Ordering::SeqCst);
        DONE.store(turn, Ordering::SeqCst);
    }
}

/// Changes the entry that maps [`PLACE`], without a flush.
fn change() {
    call(number::UPDATE_VA_MAPPING, [PLACE, ENTRY.load(Ordering::SeqCst), 0]);
}

fn let_second(odd: bool) {
    let turn = (TURN.load(Ordering::SeqCst) / 2 + 1) * 2 + u64::from(odd);
    TURN.store(turn, Ordering::SeqCst);
    while DONE.load(Ordering::SeqCst) != turn {
        core::hint::spin_loop();
    }
}

/// A path of three tables, L1 first, down to a page that holds `mark`.
fn path(mark: u64) -> Result<[Page; 3], Answer> {
    let data = Page::new();
    data.set_word(0, mark);
    let mut below = data;
    let mut made = [data; 3];
    for table in &mut made {
        *table = Page::new();
        table.set_word(0, below.mfn() << 12 | ORDINARY);
        table.seal()?;
        below = *table;
    }
    Ok(made)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (one, two) = (path(1)?, path(2)?);
    let third = Page::new();
    third.set_word(0, 3);
    let root = (tables::root_mfn() << 12) + 300 * 8;
    tables::pin(3, two[2].mfn()).ok()?;
    tables::set(root, one[2].mfn() << 12 | ORDINARY).ok()?;
    vcpu::start(second).ok()?;
    let names = |page: Page, mfn: u64| page.word(0) & pte::FRAME == mfn << 12;
    for (name, slot, table) in [("4", root, 2), ("3", one[2].mfn() << 12, 1), ("2", one[1].mfn() << 12, 0)] {
        let (mut wrong_table, mut stale) = (0, 0);
        for round in 0..60 {
            let (old, new) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
            let (before, wanted) = (old[0].word(0) & pte::FRAME, third.mfn() << 12 | ORDINARY);
            let restored = new[0].word(0);
            insn::peek(PLACE);
            let_second(false);
            ENTRY.store(wanted, Ordering::SeqCst);
            tables::set(slot, new[table].mfn() << 12 | ORDINARY).ok()?;
            if round % 4 < 2 {
                change();
            } else {
                let_second(true);
            }
            wrong_table += u32::from(!names(new[0], third.mfn()) || old[0].word(0) & pte::FRAME != before);
            tables::extended(ext::TLB_FLUSH_ALL, 0, 0).ok()?;
            let_second(false);
            stale += u32::from(insn::peek(PLACE) != 3) + u32::from(SEEN.load(Ordering::SeqCst) != 3);
            tables::set(new[0].mfn() << 12, restored).ok()?;
            tables::extended(ext::TLB_FLUSH_ALL, 0, 0).ok()?;
        }
        report.expect(format_args!("level {name}: changed in the table that was gone"), wrong_table, 0);
        report.expect("seen by it after a flush", stale, 0);
    }
    TURN.store(u64::MAX, Ordering::SeqCst);
    Ok(())
}
