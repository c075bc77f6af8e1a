//! Page tables: changing entries in each way there is, making tables of pages, and changing roots.

use pv::abi::xen::MmuUpdate;
use pv::hypercall::{call, number};
use pv::memory::{self, ORDINARY, Page};
use pv::tables::{self, Slot};
use pv::{Answer, insn, start};

use crate::row::{Row, rounds};

/// Entries of a table.
const ENTRIES: usize = 512;
/// `UVMF_INVLPG`, on this CPU.
const FLUSH_PAGE: u64 = memory::FLUSH_PAGE;

/// A frame of ours that nothing is made of: the builder maps the first ones only, and there are plenty behind.
fn spare(index: usize) -> u64 {
    memory::p2m(start::info().nr_pages - 1 - index as u64)
}

/// The entry with which `frame` is mapped.
fn mapping(frame: u64) -> u64 {
    frame << 12 | ORDINARY
}

/// Whether two entries name the same frame. The other bits may be what the hypervisor makes of them.
fn same_frame(one: u64, other: u64) -> bool {
    (one ^ other) & memory::pte::FRAME == 0
}

/// Changes of entries that are in use.
pub fn updates() -> Result<(), Answer> {
    let window = Page::new();
    let slot = Slot::of(window.address(), 1).ok_or(Answer(-1))?;
    let frames = [mapping(window.mfn()), mapping(spare(0))];
    let is = |entry: u64| same_frame(slot.get(), entry);

    for (name, flush) in [("update_va_mapping", 0), ("update_va_mapping, invlpg", FLUSH_PAGE)] {
        let mut row = Row::new(name);
        for round in rounds() {
            let entry = frames[(round + 1) % 2];
            let answer = row.time(|| call(number::UPDATE_VA_MAPPING, [window.address(), entry, flush]));
            row.check("mapped", answer == Answer::OK && is(entry));
        }
        row.report();
    }
    let mut row = Row::new("emulated page-table write");
    let place = slot.table.address() + slot.index as u64 * 8;
    for round in rounds() {
        let entry = frames[(round + 1) % 2];
        row.time(|| insn::poke(place, entry));
        row.check("mapped", is(entry));
    }
    row.report();
    memory::set_entry(window.address(), frames[0]).ok()?;
    batches()
}

/// `mmu_update` of one entry, of 16 and of 256: each to another frame than it had.
fn batches() -> Result<(), Answer> {
    let table = Page::new();
    for index in 0..ENTRIES {
        table.set_word(index, mapping(spare(index)));
    }
    table.seal()?;
    tables::pin(1, table.mfn()).ok()?;
    for (name, size) in [
        ("mmu_update of 1", 1),
        ("mmu_update of 16", 16),
        ("mmu_update of 256", 256),
    ] {
        let mut row = Row::new(name);
        let mut batch = [MmuUpdate { ptr: 0, val: 0 }; 256];
        for round in rounds() {
            let frame = |index: usize| mapping(spare(ENTRIES * (1 + round % 2) + index));
            for (index, update) in batch[..size].iter_mut().enumerate() {
                *update = MmuUpdate {
                    ptr: (table.mfn() << 12) + index as u64 * 8,
                    val: frame(index),
                };
            }
            let answer = row.time(|| tables::update(&mut batch[..size]));
            let all = (0..size).all(|index| same_frame(table.word(index), frame(index)));
            row.check("all changed", answer == Answer::OK && all);
        }
        row.report();
    }
    tables::unpin(table.mfn()).ok()?;
    table.unseal()
}

/// Making tables of pages, and changing the root.
pub fn pins() -> Result<(), Answer> {
    let [l1, l2, l3] = [(); 3].map(|()| Page::new());
    for index in 0..ENTRIES {
        l1.set_word(index, mapping(spare(index)));
    }
    l1.seal()?;
    pair("pin a full L1", "unpin it", 1, l1);

    let l4 = tables::copy_of_root();
    // Where the guest has nothing of its own: the first slot that is free.
    let free = (1..256).find(|slot| l4.word(*slot) == 0).ok_or(Answer(-1))?;
    l2.set_word(0, mapping(l1.mfn()));
    l3.set_word(0, mapping(l2.mfn()));
    l4.set_word(free, mapping(l3.mfn()));
    for table in [l2, l3, l4] {
        table.seal()?;
    }
    pair("pin an L4 tree of 512 pages", "unpin the tree", 4, l4);

    tables::pin(4, l4.mfn()).ok()?;
    let roots = [l4.mfn(), tables::root_mfn()];
    let mut row = Row::new("new_baseptr");
    // What only one of the roots maps tells which is loaded.
    let probe = (free as u64) << 39;
    for round in rounds() {
        let answer = row.time(|| tables::set_root(roots[round % 2]));
        let is_mapped = pv::trap::attempt(|| insn::peek(probe)).is_ok();
        row.check("loaded", answer == Answer::OK && is_mapped == (round % 2 == 0));
    }
    row.report();
    tables::set_root(roots[1]).ok()?;
    tables::unpin(l4.mfn()).ok().map(drop)
}

/// Pins and unpins in turn.
fn pair(pinning: &'static str, unpinning: &'static str, level: u32, table: Page) {
    let (mut pins, mut unpins) = (Row::new(pinning), Row::new(unpinning));
    for _ in rounds() {
        let answer = pins.time(|| tables::pin(level, table.mfn()));
        pins.check("pinned", answer == Answer::OK);
        pins.check(
            "and so not writable",
            !memory::set_entry(table.address(), mapping(table.mfn())).is_ok(),
        );
        let answer = unpins.time(|| tables::unpin(table.mfn()));
        unpins.check("unpinned", answer == Answer::OK);
        unpins.check("and so writable", table.unseal().is_ok() && table.seal().is_ok());
    }
    pins.report();
    unpins.report();
}
