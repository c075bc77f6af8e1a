//! `multicall`: many calls for the price of one entry, each with its own result.
//!
//! Inside, a call must do what it does outside; what must not be in one (another multicall, `iret`) must be
//! refused or do nothing, not confuse the hypervisor's idea of where the guest goes on. Promised by:
//! public/xen.h (`multicall_entry`).

use pv::abi::xen::MulticallEntry;
use pv::hypercall::{address, call, entry, multicall, number};
use pv::memory::Page;
use pv::{Answer, event, memory};

use pv::abi::memory::MemoryReservation;
use pv::abi::sched::{Poll, schedop};
use pv::tables::{self, ext};
use pv::time;
use zerocopy::FromZeros;

use crate::bad;
use crate::report::{Report, Verdict};

const VERSION: (u32, [u64; 2]) = (number::XEN_VERSION, [0, 0]);

fn results(calls: &[MulticallEntry]) -> impl Iterator<Item = Answer> {
    calls.iter().map(|call| Answer(call.result as i64))
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let version = || entry(VERSION.0, VERSION.1);
    let mut calls = [version(), entry(63, [0]), version(), entry(!0, [0])];
    report.saw("versions and strangers", multicall(&mut calls));
    report.saw_all("results", results(&calls));
    let mut wide = [version(), version()];
    wide[0].op |= 1 << 32;
    wide[1].op = u64::MAX;
    report.saw("numbers of more than 32 bits", multicall(&mut wide));
    report.saw_all("results", results(&wide));

    let mut inner = [version()];
    let place = address(&mut inner);
    let mut calls = [version(), entry(number::MULTICALL, [place, 1]), entry(number::IRET, [0]), version()];
    report.saw("a multicall and an iret inside", multicall(&mut calls[..2]));
    report.saw_all("results", results(&calls[..2]));
    report.saw("what was inside it", Answer(inner[0].result as i64));

    let port = event::bind_ipi(0)?;
    let mut send = port;
    let page = Page::new();
    let mut calls = [
        entry(number::EVENT_CHANNEL_OP, [4, address(&mut send)]),
        entry(number::UPDATE_VA_MAPPING, [page.address(), 0, memory::FLUSH_PAGE]),
        entry(number::SCHED_OP, [0, 0]),
        entry(number::UPDATE_VA_MAPPING, [page.address(), page.mfn() << 12 | memory::ORDINARY, memory::FLUSH_PAGE]),
    ];
    report.saw("events, mappings, a yield", multicall(&mut calls));
    report.saw_all("results", results(&calls));
    report.check("the event came", event::is_pending(port));
    page.set_word(0, 1);

    unfitting(report)?;
    report.saw("none", call(number::MULTICALL, [0, 0]));
    report.saw_all("none, bad pointers", bad::pointers().map(|pointer| call(number::MULTICALL, [pointer, 0])));
    report.saw_pointers("one", |pointer| call(number::MULTICALL, [pointer, 1]));
    // Into the unmapped page after the first: that one must have been made.
    let edge = Page::at(bad::straddling(64));
    let mut at_edge = version();
    at_edge.result = 99;
    for (index, word) in [at_edge.op, 99].into_iter().chain(at_edge.args).enumerate() {
        edge.set_word(504 + index, word);
    }
    report.saw("the second of two unmapped", call(number::MULTICALL, [bad::straddling(64), 2]));
    report.saw("the first of them", Answer(edge.word(505) as i64));
    report.saw("a negative count", call(number::MULTICALL, [bad::UNMAPPED, u64::from(u32::MAX)]));
    let mut one = [version()];
    one[0].result = 99;
    report.saw("a count above 32 bits", call(number::MULTICALL, [address(&mut one), 1 << 32 | 1]));
    report.saw("made", Answer(one[0].result as i64));
    Ok(())
}

/// What gives up the CPU, goes on elsewhere, or takes long: each must have been done when the one behind it is.
fn unfitting(report: &mut Report) -> Verdict {
    // A table of tables that takes a while, as Linux pins it at every fork.
    let (l2, data) = (Page::new(), Page::new());
    for index in 0..200 {
        let leaf = Page::new();
        leaf.fill(data.mfn() << 12 | memory::ORDINARY);
        leaf.seal()?;
        l2.set_word(index, leaf.mfn() << 12 | memory::ORDINARY);
    }
    l2.seal()?;
    let pin = |cmd: u32| pv::abi::xen::MmuextOp { cmd, pad: 0, arg1: l2.mfn(), arg2: 0 };
    let (mut pins, mut unpins) = ([pin(ext::PIN_L2_TABLE)], [pin(ext::UNPIN_TABLE)]);
    let spare = Page::new();
    let mut frames = [spare.mfn()];
    memory::unmap(spare.address()).ok()?;
    let mut decrease = MemoryReservation::new_zeroed();
    (decrease.extent_start, decrease.nr_extents, decrease.domid.0) = (address(&mut frames), 1, event::SELF);
    let port = event::bind_virq(0, 0)?;
    event::set_mask(port, false);
    event::set_upcall_mask(true);
    let mut ports = [port];
    let mut poll = Poll { ports: address(&mut ports), nr_ports: 1, pad: 0, timeout: 0 };
    let mut inner = [entry(VERSION.0, VERSION.1), entry(number::SCHED_OP, [schedop::YIELD])];
    let nested = address(&mut inner);
    let mut calls = [
        entry(number::MMUEXT_OP, [address(&mut pins), 1, 0, tables::SELF]),
        entry(number::MMUEXT_OP, [address(&mut unpins), 1, 0, tables::SELF]),
        entry(number::MEMORY_OP, [1, address(&mut decrease)]),
        entry(number::MULTICALL, [nested, 2]),
        entry(number::SET_TIMER_OP, [time::now() + 1_000_000]),
        entry(number::SCHED_OP, [schedop::POLL, address(&mut poll)]),
        entry(number::SCHED_OP, [schedop::YIELD]),
        entry(number::STACK_SWITCH, [0xe02b, pv::vcpu::entry_stack(0)]),
        entry(number::VM_ASSIST, [0, 4]),
        entry(VERSION.0, VERSION.1),
    ];
    report.saw("long ones, one that sleeps, a multicall", multicall(&mut calls));
    report.saw_all("results", results(&calls));
    report.check("the sleeper was woken", event::is_pending(port));
    report.check("the tables are free", l2.unseal().is_ok());
    call(number::VM_ASSIST, [1, 4]);
    Ok(())
}
