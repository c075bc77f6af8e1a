//! `mmu_update` and `update_va_mapping`: how an entry of a page table is changed, and what is refused.
//!
//! Promised by: public/xen.h (`mmu_update`: a machine address whose low two bits are the command, a count, where
//! to put how many were done, whose frames and whose tables; `UVMF_*`).

use pv::abi::xen::MmuUpdate;
use pv::hypercall::{address, call, number};
use pv::memory::{self, Page, pte};
use pv::tables::{self, SELF, Slot};
use pv::{Answer, insn, start};

use crate::bad;
use crate::report::{End, Report, Verdict};

/// Calls with everything in the caller's hand.
fn update(batch: &mut [MmuUpdate], foreign: u64) -> (Answer, u32) {
    let mut done = 99_u32;
    let (list, count) = (address(batch), batch.len() as u64);
    (call(number::MMU_UPDATE, [list, count, address(&mut done), foreign]), done)
}

fn one(ptr: u64, val: u64) -> Answer {
    update(&mut [MmuUpdate { ptr, val }], SELF).0
}

/// The bits beside the frame, without the one that the hypervisor may set for its own ends.
fn flags(slot: Slot) -> u64 {
    slot.get() & !pte::FRAME & !pte::GLOBAL
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let page = Page::new();
    let slot = Slot::of(page.address(), 1).ok_or(End::Fail("no table"))?;
    let good = page.mfn() << 12 | memory::ORDINARY;

    report.expect("an entry as it is", one(slot.maddr(), good), Answer::OK);
    report.expect("not present", one(slot.maddr(), 0), Answer::OK);
    report.expect("not present, with other bits", one(slot.maddr(), 0xdead_0000), Answer::OK);
    report.saw("which are kept", format_args!("{:x}", slot.get()));
    report.expect("present", one(slot.maddr(), good), Answer::OK);
    report.saw("flags as written", format_args!("{:x}", good & 0xfff));
    report.saw("flags as read", format_args!("{:x}", flags(slot)));
    report.saw("user pages are global", slot.get() & pte::GLOBAL != 0);
    page.set_word(0, 0x5eed);

    let outcome = |(answer, done): (Answer, u32)| (answer, Answer(done.into()));
    let (answer, done) = outcome(update(
        &mut [
            MmuUpdate { ptr: slot.maddr(), val: good },
            MmuUpdate { ptr: slot.maddr() | 3, val: good },
            MmuUpdate { ptr: slot.maddr() | 2, val: good },
            MmuUpdate { ptr: bad::NO_FRAME << 12, val: good },
            MmuUpdate { ptr: slot.maddr(), val: 0 },
        ],
        SELF,
    ));
    report.saw_all("the fourth of five is bad: answer, done", [answer, done]);
    report.saw("the fifth was not done", slot.get() & 1 == 1);

    entries(report, slot, good);
    owners(report, slot, good);
    m2p(report, page);
    batches(report, slot, good);
    by_address(report, page)
}

/// Whose frame, which bits.
fn entries(report: &mut Report, slot: Slot, good: u64) {
    let refused = [
        ("no such frame", bad::NO_FRAME << 12 | memory::ORDINARY),
        ("bits beyond the machine", 1 << 51 | good),
        ("a bit between 52 and 62", 1 << 52 | good),
        ("all of them", 0x7ff << 52 | good),
        ("write-through", good | pte::WRITE_THROUGH),
        ("uncached", good | pte::CACHE_DISABLE),
        ("PAT", good | pte::LARGE),
        ("PAT, uncached, write-through", good | pte::LARGE | pte::CACHE_DISABLE | pte::WRITE_THROUGH),
        ("global", good | pte::GLOBAL),
        ("all that software may use", good | 0xe00),
        ("no execute", good | pte::NO_EXECUTE),
        ("the kernel's", good & !pte::USER),
        ("a page table, writable", tables::root_mfn() << 12 | memory::ORDINARY),
        ("a page table, read-only", tables::root_mfn() << 12 | memory::READ_ONLY),
    ];
    for (name, entry) in refused {
        let answer = one(slot.maddr(), entry);
        report.saw(name, format_args!("{answer}, reads {:x}", flags(slot)));
        one(slot.maddr(), good);
    }
    report.saw_all("to an odd place in the table", [4, 1, 7].map(|offset| one((slot.maddr() + offset) & !3 | 4, good)));
    report.saw("to a frame that is no table", one(Page::new().mfn() << 12, good));
    report.saw("to a frame that is not there", one(bad::NO_FRAME << 12, good));
    report.saw("to the hypervisor's frame", one(start::info().shared_info, good));
    one(slot.maddr(), good);
}

/// Whose tables, and for whom the frames are.
fn owners(report: &mut Report, slot: Slot, good: u64) {
    let mut batch = [MmuUpdate { ptr: slot.maddr(), val: good }];
    let owners: [(&str, u64); 9] = [
        ("frames of no domain", bad::NO_DOMAIN.into()),
        ("frames of no id", 0x7ff4),
        ("frames of the machine", 0x7ff1),
        ("frames of the hypervisor", 0x7ff2),
        ("tables of no domain", (u64::from(bad::NO_DOMAIN) + 1) << 16 | SELF),
        ("tables of no id", 0x7ff5 << 16 | SELF),
        ("tables of self", (SELF + 1) << 16 | SELF),
        ("high bits", 1 << 32 | SELF),
        ("own id", start::domid().unwrap_or(0).into()),
    ];
    for (name, foreign) in owners {
        let (answer, done) = update(&mut batch, foreign);
        report.saw(name, format_args!("{answer} {done}"));
    }
    // A frame that is ours, named as somebody else's.
    batch[0].val = tables::root_mfn() << 12 | memory::READ_ONLY;
    report.saw("our own frame as the machine's", update(&mut batch, 0x7ff1).0);
    report.saw("our own frame as the hypervisor's", update(&mut batch, 0x7ff2).0);
    batch[0].ptr |= 3;
    report.saw("untranslated", update(&mut batch, SELF).0);
    one(slot.maddr(), good);
}

fn m2p(report: &mut Report, page: Page) {
    let pfn = page.address() >> 12;
    let set = |ptr: u64, val: u64| one(ptr | 1, val);
    report.saw("m2p of our frame", set(page.mfn() << 12, 0x1234));
    report.saw("the table says", memory::m2p(page.mfn()) == Some(0x1234));
    report.saw("and back", set(page.mfn() << 12, pfn));
    report.saw("m2p of no frame", set(bad::NO_FRAME << 12, pfn));
    report.saw("m2p of the shared page", set(start::info().shared_info, pfn));
    report.saw("m2p with an offset", set(page.mfn() << 12 | 8, pfn));
}

fn batches(report: &mut Report, slot: Slot, good: u64) {
    let raw = |list: u64, count: u64, done: u64| call(number::MMU_UPDATE, [list, count, done, SELF]);
    let mut batch = [MmuUpdate { ptr: slot.maddr(), val: good }; 64];
    let (answer, done) = update(&mut batch, SELF);
    report.saw("64 at once", format_args!("{answer} {done}"));
    report.saw_all("none; none at bad pointers", [raw(0, 0, 0), raw(bad::UNMAPPED, 0, 0), raw(bad::LAST, 0, 0)]);
    report.saw_pointers("one", |pointer| raw(pointer, 1, 0));
    report.saw_pointers("where to say how many", |pointer| raw(address(&mut batch), 1, pointer));
    report.saw("the last count without a flag", raw(bad::UNMAPPED, 0x7fff_ffff, 0));
    report.saw("the flag of a continued call, and nothing to do", raw(address(&mut batch), 1 << 31, 0));
    report.saw("all bits", raw(bad::UNMAPPED, 0xffff_ffff, 0));
    let edge = Page::at(bad::straddling(16));
    edge.set_word(510, slot.maddr());
    edge.set_word(511, good);
    let mut done = 99_u32;
    report.saw("the second of two unmapped", raw(bad::straddling(16), 2, address(&mut done)));
    report.saw("done", done);
}

fn by_address(report: &mut Report, page: Page) -> Verdict {
    let good = page.mfn() << 12 | memory::ORDINARY;
    let set = |at: u64, entry: u64, flags: u64| call(number::UPDATE_VA_MAPPING, [at, entry, flags]);
    report.saw_all("update_va_mapping nowhere, the hypervisor's, not canonical", [
        set(bad::UNMAPPED, good, 0),
        set(bad::HYPERVISORS, good, 0),
        set(bad::HYPERVISORS_TOO, good, 0),
        set(bad::NON_CANONICAL, good, 0),
        set(u64::MAX, good, 0),
    ]);
    report.saw_all("flush none, all, this page, a strange kind", [0, 1, 2, 3].map(|flags| set(page.address(), good, flags)));
    report.saw_all("everywhere", [4 | 1, 4 | 2].map(|flags| set(page.address(), good, flags)));
    let mut cpus = [3_u64];
    let mask = address(&mut cpus);
    report.saw_all("on some vcpus", [mask | 1, mask | 2].map(|flags| set(page.address(), good, flags)));
    report.saw_all("vcpus at bad pointers", bad::pointers().map(|pointer| set(page.address(), good, pointer & !7 | 1)));
    report.saw_all("bad entries", [
        set(page.address(), bad::NO_FRAME << 12 | memory::ORDINARY, 2),
        set(page.address(), tables::root_mfn() << 12 | memory::ORDINARY, 2),
        set(page.address(), 1 << 52 | good, 2),
    ]);
    report.saw("not on a page's edge", set(page.address() + 8, good, 2));
    let other = |dom: u64| call(number::UPDATE_VA_MAPPING_OTHERDOMAIN, [page.address(), good, 0, dom]);
    report.saw_all("for another: none, no id, self, the machine", [
        other(bad::NO_DOMAIN.into()),
        other(0x7ff4),
        other(SELF),
        other(0x7ff1),
    ]);
    set(page.address(), good, 2);
    insn::poke(page.address(), 1);
    Ok(())
}
