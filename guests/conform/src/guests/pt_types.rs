//! What a frame is at any time: a page table, or writable, never both; and every way to make it both.
//!
//! This is what keeps PV guests honest. A guest may name its own frames in its own tables; if it could also write
//! to a table behind the hypervisor's back, it could name anybody's. Promised by: public/xen.h ("mmu_update"),
//! and the comment on page types at the top of upstream's xen/arch/x86/mm.c. In the spirit of XSA-148, XSA-182.

use pv::abi::xen::MmuUpdate;
use pv::memory::{self, Page, READ_ONLY, ORDINARY, pte};
use pv::tables::{self, Slot};
use pv::{Answer, insn, start, trap};

use crate::bad;
use crate::report::{End, Report, Verdict};

/// Makes a pinned table of level 1 that is mapped read-only, with `entry` in slot 0.
fn l1(entry: u64) -> Result<Page, End> {
    let page = Page::new();
    page.set_word(0, entry);
    page.seal()?;
    tables::pin(1, page.mfn()).ok()?;
    Ok(page)
}

fn at(table: Page, index: u64) -> u64 {
    (table.mfn() << 12) + index * 8
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    writable_tables(report)?;
    levels(report)?;
    hypervisors(report)?;
    recursion(report)?;
    large_pages(report)
}

fn writable_tables(report: &mut Report) -> Verdict {
    let data = Page::new();
    let table = l1(data.mfn() << 12 | ORDINARY)?;
    let view = Page::new();
    let refused = [
        ("a writable mapping of a table", memory::map(view.address(), table.mfn(), ORDINARY)),
        ("through mmu_update", tables::set(Slot::of(view.address(), 1).map_or(0, Slot::maddr), table.mfn() << 12 | ORDINARY)),
        ("a table that maps itself writable", tables::set(at(table, 1), table.mfn() << 12 | ORDINARY)),
    ];
    for (name, answer) in refused {
        report.check(name, !answer.is_ok());
        report.saw("refused as", answer);
    }
    report.expect("read-only is fine", memory::map(view.address(), table.mfn(), READ_ONLY), Answer::OK);
    report.saw("a store to it", trap::attempt(|| insn::poke(view.address() + 4088, 0)).map_or_else(|_| "traps", |()| "is done for us"));
    report.expect("a table that maps itself read-only", tables::set(at(table, 1), table.mfn() << 12 | READ_ONLY), Answer::OK);
    report.expect("unpinned", tables::unpin(table.mfn()), Answer::OK);
    report.expect("then writable", memory::map(view.address(), table.mfn(), ORDINARY), Answer::OK);
    let again = tables::pin(1, table.mfn());
    report.check("and then no table", !again.is_ok());
    report.saw("refused as", again);
    memory::map(view.address(), view.mfn(), ORDINARY).ok()?;
    // Data that the table mapped writable cannot be a table while it does.
    let other = Page::new();
    other.seal()?;
    let keeper = l1(other.mfn() << 12 | ORDINARY)?;
    report.saw("mapped writable by a pinned table that nobody uses, as a table", tables::pin(1, other.mfn()));
    tables::set(at(keeper, 0), 0).ok()?;
    report.saw("no longer", tables::pin(1, other.mfn()));
    Ok(())
}

fn levels(report: &mut Report) -> Verdict {
    let leaf = l1(0)?;
    let l2 = Page::new();
    l2.set_word(0, leaf.mfn() << 12 | ORDINARY);
    l2.seal()?;
    report.saw("an L2 that maps an L1", tables::pin(2, l2.mfn()));
    report.saw("the L1 unpinned", tables::unpin(leaf.mfn()));
    let view = Page::new();
    report.check("it is still a table", !memory::map(view.address(), leaf.mfn(), ORDINARY).is_ok());
    let wrong = [
        ("an L2 entry that names an L2", tables::set(at(l2, 1), l2.mfn() << 12 | ORDINARY)),
        ("that names the root", tables::set(at(l2, 1), tables::root_mfn() << 12 | ORDINARY)),
        ("that names a writable page", tables::set(at(l2, 1), view.mfn() << 12 | ORDINARY)),
        ("that names nothing there is", tables::set(at(l2, 1), bad::NO_FRAME << 12 | ORDINARY)),
        ("that names the shared page", tables::set(at(l2, 1), start::info().shared_info | ORDINARY)),
    ];
    for (name, answer) in wrong {
        report.saw(name, answer);
    }
    let l3 = Page::new();
    l3.set_word(0, l2.mfn() << 12 | ORDINARY);
    l3.set_word(1, leaf.mfn() << 12 | ORDINARY);
    l3.seal()?;
    report.saw("an L3 with an L2 and an L1 in it", tables::pin(3, l3.mfn()));
    l3.unseal()?;
    l3.set_word(1, 0);
    l3.seal()?;
    report.saw("with the L2 alone", tables::pin(3, l3.mfn()));
    report.saw("the L2 unpinned", tables::unpin(l2.mfn()));
    report.saw("and pinned as an L1", tables::pin(1, l2.mfn()));
    report.saw("the L3's entry taken out", tables::set(at(l3, 0), 0));
    report.saw("the L2 as an L1 then", tables::pin(1, l2.mfn()));
    report.saw("a data page again", tables::unpin(l3.mfn()));
    l3.unseal()?;
    leaf.unseal()?;
    report.saw("the leaf is free too", memory::map(view.address(), leaf.mfn(), ORDINARY));
    Ok(())
}

fn hypervisors(report: &mut Report) -> Verdict {
    let root = tables::root_mfn() << 12;
    let empty = Page::new();
    empty.seal()?;
    tables::pin(3, empty.mfn()).ok()?;
    let entry = empty.mfn() << 12 | ORDINARY;
    report.saw_all("slots 255 to 257, 271, 272 of the root", [255, 256, 257, 271, 272].map(|slot| tables::set(root + slot * 8, entry)));
    report.saw_all("cleared", [255, 256, 257, 271, 272].map(|slot| tables::set(root + slot * 8, 0)));
    let copy = tables::copy_of_root();
    copy.set_word(256, entry);
    copy.seal()?;
    let answer = tables::pin(4, copy.mfn());
    report.saw("a root that says something of its own in slot 256", answer);
    report.saw("what became of it", copy.word(256) == entry);
    report.check("the hypervisor's table is what it was", memory::m2p(empty.mfn()) == Some(empty.address() >> 12));
    tables::unpin(copy.mfn());
    // The hypervisor's own page tables, through the guest's view of its root.
    let hypervisors = tables::root().word(256);
    report.saw("the root shows the hypervisor's entry", hypervisors & pte::PRESENT);
    report.saw("mapping what it names", memory::set_entry(Page::new().address(), hypervisors & pte::FRAME | READ_ONLY).is_ok());
    Ok(())
}

fn recursion(report: &mut Report) -> Verdict {
    let root = tables::root_mfn();
    let slot = |index: u64| (root << 12) + index * 8;
    report.saw("the root in itself, writable", tables::set(slot(300), root << 12 | ORDINARY));
    report.saw("the root in itself, read-only", tables::set(slot(300), root << 12 | READ_ONLY));
    let linear = 300_u64 << 39 | 0xffff << 48;
    let itself = linear | 300 << 30 | 300 << 21 | 300 << 12;
    report.saw("read through it", trap::attempt(|| insn::peek(itself + 300 * 8) == tables::root().word(300)).unwrap_or(false));
    let written = trap::attempt(|| insn::poke(itself + 301 * 8, 0));
    report.saw("written through it", written.map_or_else(|_| "traps", |()| "is done for us"));
    let other = tables::copy_of_root();
    other.set_word(300, root << 12 | READ_ONLY);
    other.seal()?;
    report.saw("the root in another root", tables::pin(4, other.mfn()));
    report.saw("and the other in the root", tables::set(slot(301), other.mfn() << 12 | READ_ONLY));
    report.saw_all("undone", [tables::set(slot(301), 0), tables::set(slot(300), 0)]);
    report.saw_all("and unpinned", [tables::unpin(other.mfn()), other.unseal().err().unwrap_or(Answer::OK)]);
    Ok(())
}

fn large_pages(report: &mut Report) -> Verdict {
    let l2 = Page::new();
    l2.seal()?;
    tables::pin(2, l2.mfn()).ok()?;
    let frame = l2.mfn() & !511;
    report.saw("a 2 MiB page, read-only", tables::set(at(l2, 0), frame << 12 | READ_ONLY | pte::LARGE));
    report.saw("a 2 MiB page, writable", tables::set(at(l2, 0), frame << 12 | ORDINARY | pte::LARGE));
    report.saw("in a batch", tables::update(&mut [MmuUpdate { ptr: at(l2, 0), val: ORDINARY | pte::LARGE }]));
    let l3 = Page::new();
    l3.seal()?;
    tables::pin(3, l3.mfn()).ok()?;
    report.saw("a 1 GiB page", tables::set(at(l3, 0), READ_ONLY | pte::LARGE));
    let l4 = tables::copy_of_root();
    l4.set_word(300, l3.mfn() << 12 | ORDINARY | pte::LARGE);
    l4.seal()?;
    report.saw("a root entry with that bit", tables::pin(4, l4.mfn()));
    Ok(())
}
