//! `mmuext_op`: pins, roots, flushes, and the rest, with good and bad arguments.
//!
//! Promised by: public/xen.h (`MMUEXT_*`).

use pv::abi::xen::MmuextOp;
use pv::hypercall::{address, call, number};
use pv::memory::{self, Page};
use pv::tables::{self, SELF, ext};
use pv::{Answer, insn, start};

use crate::bad;
use crate::report::{Report, Verdict};

fn ask(cmd: u32, arg1: u64, arg2: u64) -> Answer {
    tables::extended(cmd, arg1, arg2)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    pins(report)?;
    roots(report)?;
    flushes(report);
    pages(report)?;
    batches(report);
    Ok(())
}

fn pins(report: &mut Report) -> Verdict {
    let page = Page::new();
    let mfn = page.mfn();
    report.saw_all("pin what is mapped writable, as L1 to L4", [1, 2, 3, 4].map(|level| tables::pin(level, mfn)));
    report.saw("unpin what is not pinned", tables::unpin(mfn));
    page.seal()?;
    report.saw("pin as L1", tables::pin(1, mfn));
    report.saw_all("pin again, as L1 to L4", [1, 2, 3, 4].map(|level| tables::pin(level, mfn)));
    report.saw("map it writable", memory::map(page.address(), mfn, memory::ORDINARY));
    report.saw_all("unpin, again", [tables::unpin(mfn), tables::unpin(mfn)]);
    report.saw("map it writable then", memory::map(page.address(), mfn, memory::ORDINARY));
    page.seal()?;
    for level in [2, 3, 4] {
        report.saw_all(format_args!("empty as L{level}, unpin"), [tables::pin(level, mfn), tables::unpin(mfn)]);
    }
    let strangers = [bad::NO_FRAME, start::info().shared_info >> 12, u64::MAX, 1 << 40];
    for level in [1, 4] {
        report.saw_all(format_args!("pin strangers as L{level}"), strangers.map(|mfn| tables::pin(level, mfn)));
    }
    report.saw_all("unpin strangers", strangers.map(tables::unpin));
    report.saw("unpin the root that is in use, and pin it", tables::unpin(tables::root_mfn()));
    report.saw("again", tables::pin(4, tables::root_mfn()));
    let root = tables::root_mfn();
    report.saw_all("pin the root as L1 to L3", [1, 2, 3].map(|level| tables::pin(level, root)));
    page.unseal()?;
    Ok(())
}

fn roots(report: &mut Report) -> Verdict {
    let page = Page::new();
    report.saw_all("a root that is writable, no table, not there, 0", [
        tables::set_root(page.mfn()),
        tables::set_root(bad::NO_FRAME),
        tables::set_root(0),
    ]);
    let other = tables::copy_of_root();
    report.saw("a copy, writable", tables::set_root(other.mfn()));
    other.seal()?;
    report.saw("sealed", tables::set_root(other.mfn()));
    report.saw("the same again", tables::set_root(other.mfn()));
    report.saw("pin it while it is in use", tables::pin(4, other.mfn()));
    report.saw("and back", tables::set_root(tables::root_mfn()));
    report.saw_all("user root: the copy, none, not there, writable", [
        tables::set_user_root(other.mfn()),
        tables::set_user_root(0),
        tables::set_user_root(bad::NO_FRAME),
        tables::set_user_root(page.mfn()),
    ]);
    report.saw("unpin the copy", tables::unpin(other.mfn()));
    other.unseal()?;
    Ok(())
}

fn flushes(report: &mut Report) {
    let page = Page::new();
    report.saw_all("flush local, all", [ask(ext::TLB_FLUSH_LOCAL, 0, 0), ask(ext::TLB_FLUSH_ALL, 0, 0)]);
    for (name, cmd) in [("local", ext::INVLPG_LOCAL), ("all", ext::INVLPG_ALL)] {
        report.saw_all(format_args!("invlpg {name}: a page, nothing, the hypervisor's, not canonical"), [
            ask(cmd, page.address(), 0),
            ask(cmd, bad::UNMAPPED, 0),
            ask(cmd, bad::HYPERVISORS, 0),
            ask(cmd, bad::NON_CANONICAL, 0),
        ]);
    }
    let mask = Page::new();
    let good = mask.address();
    mask.set_word(0, 1);
    report.saw_all("of vcpu 0: flush, invlpg", [
        ask(ext::TLB_FLUSH_MULTI, 0, good),
        ask(ext::INVLPG_MULTI, page.address(), good),
    ]);
    mask.set_word(0, !0);
    report.saw_all("of more than there are", [
        ask(ext::TLB_FLUSH_MULTI, 0, good),
        ask(ext::INVLPG_MULTI, page.address(), good),
    ]);
    report.saw_pointers("flush of vcpus", |pointer| ask(ext::TLB_FLUSH_MULTI, 0, pointer));
    report.saw_pointers("invlpg of vcpus", |pointer| ask(ext::INVLPG_MULTI, page.address(), pointer));
    report.saw_all("caches: own, everybody's", [ask(ext::FLUSH_CACHE, 0, 0), ask(ext::FLUSH_CACHE_GLOBAL, 0, 0)]);
}

fn pages(report: &mut Report) -> Verdict {
    let (from, to) = (Page::new(), Page::new());
    from.fill(0x1234);
    to.fill(7);
    let read_only = Page::new();
    read_only.seal()?;
    tables::pin(1, read_only.mfn()).ok()?;
    report.saw("clear", ask(ext::CLEAR_PAGE, to.mfn(), 0));
    report.expect("it is clear", to.word(0) | to.word(511), 0);
    report.saw("copy", ask(ext::COPY_PAGE, to.mfn(), from.mfn()));
    report.expect("it is copied", to.word(511), 0x1234);
    report.saw_all("clear a table, nothing, the shared page", [
        ask(ext::CLEAR_PAGE, read_only.mfn(), 0),
        ask(ext::CLEAR_PAGE, bad::NO_FRAME, 0),
        ask(ext::CLEAR_PAGE, start::info().shared_info >> 12, 0),
    ]);
    report.saw_all("copy to a table, to nothing, from nothing, from a table", [
        ask(ext::COPY_PAGE, read_only.mfn(), from.mfn()),
        ask(ext::COPY_PAGE, bad::NO_FRAME, from.mfn()),
        ask(ext::COPY_PAGE, to.mfn(), bad::NO_FRAME),
        ask(ext::COPY_PAGE, to.mfn(), read_only.mfn()),
    ]);
    report.saw_all("superpages", [ask(ext::MARK_SUPER, 0, 0), ask(ext::UNMARK_SUPER, 0, 0)]);
    report.saw_all("LDT: none, odd, too long, the hypervisor's, not canonical", [
        ask(ext::SET_LDT, 0, 0),
        ask(ext::SET_LDT, from.address() + 8, 1),
        ask(ext::SET_LDT, from.address(), 8193),
        ask(ext::SET_LDT, bad::HYPERVISORS, 1),
        ask(ext::SET_LDT, bad::NON_CANONICAL, 1),
    ]);
    report.saw_all("LDT: nowhere, of 8192, gone", [
        ask(ext::SET_LDT, bad::UNMAPPED & !0xfff, 1),
        ask(ext::SET_LDT, from.address(), 8192),
        ask(ext::SET_LDT, 0, 0),
    ]);
    insn::peek(from.address());
    Ok(())
}

fn batches(report: &mut Report) {
    let raw = |list: u64, count: u64, done: u64, dom: u64| call(number::MMUEXT_OP, [list, count, done, dom]);
    let flush = MmuextOp { cmd: ext::TLB_FLUSH_LOCAL, pad: 0, arg1: 0, arg2: 0 };
    let mut batch = [flush; 8];
    batch[5].cmd = 99;
    let mut done = 99_u32;
    report.saw("the sixth of eight is bad", raw(address(&mut batch), 8, address(&mut done), SELF));
    report.saw("done", done);
    let commands = [14, 21, 22, 99, 0x7fff_ffff, !0];
    report.saw_all("no such command", commands.map(|cmd| ask(cmd, 0, 0)));
    report.saw_pointers("one", |pointer| raw(pointer, 1, 0, SELF));
    report.saw_pointers("where to say how many", |pointer| raw(address(&mut batch), 1, pointer, SELF));
    report.saw_all("none; none at bad pointers", [raw(0, 0, 0, SELF), raw(bad::UNMAPPED, 0, 0, SELF)]);
    report.saw("the flag of a continued call", raw(address(&mut batch), 1 << 31, 0, SELF));
    let own = u64::from(start::domid().unwrap_or(0));
    for (name, dom) in [("no domain", u64::from(bad::NO_DOMAIN)), ("no id", 0x7ff4), ("the machine", 0x7ff1), ("own id", own)] {
        report.saw_all(format_args!("flush for {name}, pin for it"), [
            raw(address(&mut [flush]), 1, 0, dom),
            raw(address(&mut [MmuextOp { cmd: ext::PIN_L4_TABLE, pad: 0, arg1: bad::NO_FRAME, arg2: 0 }]), 1, 0, dom),
        ]);
    }
}
