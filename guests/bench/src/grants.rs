//! Grants: maps and copies, of our own offers to ourselves.

use pv::abi::grant_table::{Copy, CopyPtr, GrantStatus, MapGrantRef, UnmapGrantRef, gntcopy, gnttabop};
use pv::event::SELF;
use pv::grant::{self, Table, gntmap, gtf};
use pv::memory::Page;
use pv::{Answer, insn, start};
use zerocopy::FromZeros;

use crate::row::{Row, rounds};

/// How many in a batch.
const BATCH: usize = 64;
/// The first offer of ours; those before are reserved.
const FIRST: u32 = 8;

/// Maps and unmaps, one at a time and in batches; then copies.
pub fn all() -> Result<(), Answer> {
    let own = start::domid().ok_or(Answer(-1))?;
    let table = Table::setup()?;
    let pages = [(); BATCH].map(|()| Page::new());
    let windows = [(); BATCH].map(|()| Page::new());
    for (gref, page) in (FIRST..).zip(&pages) {
        page.set_word(0, u64::from(gref));
        table.offer(gref, own, page.mfn(), gtf::PERMIT_ACCESS);
    }
    maps(own, "grant map, one", "grant unmap, one", table, &windows[..1]);
    maps(own, "grant map, 64, each", "grant unmap, 64, each", table, &windows);
    copies(own, pages[0]);
    Ok(())
}

/// As many maps as there are windows, then as many unmaps.
fn maps(own: u16, mapping: &'static str, unmapping: &'static str, table: Table, windows: &[Page]) {
    let count = windows.len();
    let (mut map, mut unmap) = (Row::each(mapping, count as u64), Row::each(unmapping, count as u64));
    let used = |gref: u32| table.flags(gref) & (gtf::READING | gtf::WRITING) != 0;
    let grefs = || FIRST..FIRST + count as u32;
    for _ in rounds() {
        let mut maps = [MapGrantRef::new_zeroed(); BATCH];
        for ((request, gref), window) in maps.iter_mut().zip(grefs()).zip(windows) {
            request.dom.0 = own;
            request.gref = gref;
            request.host_addr = window.address();
            request.flags = gntmap::HOST_MAP;
        }
        let answer = map.time(|| grant::op(gnttabop::MAP_GRANT_REF, &mut maps[..count]));
        let okay = maps[..count].iter().all(|request| request.status == GrantStatus::OKAY);
        map.check("mapped", answer == Answer::OK && okay && grefs().all(used));
        let seen = grefs()
            .zip(windows)
            .all(|(gref, window)| window.word(0) == u64::from(gref));
        map.check("the offered pages", seen);
        let mut unmaps = [UnmapGrantRef::new_zeroed(); BATCH];
        for ((request, mapped), window) in unmaps.iter_mut().zip(&maps).zip(windows) {
            request.handle = mapped.handle;
            request.host_addr = window.address();
        }
        let answer = unmap.time(|| grant::op(gnttabop::UNMAP_GRANT_REF, &mut unmaps[..count]));
        let okay = unmaps[..count]
            .iter()
            .all(|request| request.status == GrantStatus::OKAY);
        unmap.check("unmapped", answer == Answer::OK && okay && !grefs().any(used));
        let gone = windows
            .iter()
            .all(|window| pv::trap::attempt(|| insn::peek(window.address())).is_err());
        unmap.check("gone", gone);
    }
    map.report();
    unmap.report();
}

/// Copies from an offer to a page of ours.
fn copies(own: u16, offered: Page) {
    let target = Page::new();
    for (name, length) in [("grant copy, 64 B", 64_u16), ("grant copy, 4 KiB", 4096)] {
        let mut row = Row::new(name);
        let last = usize::from(length) / 8 - 1;
        for round in rounds() {
            offered.set_word(last, round as u64 + 1);
            target.set_word(last, 0);
            let end = |u: u64, domid: u16| {
                let mut end = CopyPtr::new_zeroed();
                (end.u, end.domid.0) = (u, domid);
                end
            };
            let mut request = Copy::new_zeroed();
            request.source = end(FIRST.into(), own);
            request.dest = end(target.mfn(), SELF);
            request.len = length;
            request.flags = gntcopy::SOURCE_GREF;
            let answer = row.time(|| grant::op(gnttabop::COPY, core::slice::from_mut(&mut request)));
            let okay = answer == Answer::OK && request.status == GrantStatus::OKAY;
            row.check("copied", okay && target.word(last) == round as u64 + 1);
        }
        row.report();
    }
}
