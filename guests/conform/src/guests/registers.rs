//! Registers: a hypercall changes rax, rcx, r11 and the registers of its own arguments; the rest are the caller's.
//!
//! A call that takes long comes back to the guest half done, with its arguments moved on, and is made again. That
//! must not show in registers that the call does not take: compilers keep their own values there. Promised by:
//! public/arch-x86/xen-x86_64.h ("Hypercall interface").

use pv::abi::memory::MemoryReservation;
use pv::abi::xen::{MmuUpdate, MmuextOp};
use pv::event::SELF;
use pv::hypercall::{Observed, address, entry, number, observe};
use pv::memory::{self, Page};
use pv::tables::{self, Slot, ext};
use pv::start;
use zerocopy::FromZeros;

use crate::report::{End, Report, Verdict};

/// Long enough to be interrupted, where each part takes a while.
const MANY: usize = 2048;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let mut words = [0_u64; 16];
    let place = address(&mut words);
    judge(report, "xen_version", 2, observe(number::XEN_VERSION, [0, 0]));
    judge(report, "a number without a call", 0, observe(63, []));
    judge(report, "event_channel_op", 2, observe(number::EVENT_CHANNEL_OP, [4, place]));
    judge(report, "sched_op: yield", 2, observe(number::SCHED_OP, [0, 0]));
    judge(report, "set_timer_op", 1, observe(number::SET_TIMER_OP, [0]));

    let slot = Slot::of(Page::new().address(), 1).ok_or(End::Fail("no table"))?;
    let mut updates = [MmuUpdate { ptr: slot.maddr(), val: slot.get() }; MANY];
    let list = address(&mut updates);
    judge(report, "mmu_update, many", 4, observe(number::MMU_UPDATE, [list, MANY as u64, 0, tables::SELF]));
    let table = Page::new();
    table.seal()?;
    let mut pins = [MmuextOp { cmd: ext::PIN_L1_TABLE, pad: 0, arg1: table.mfn(), arg2: 0 }; 256];
    pins.iter_mut().skip(1).step_by(2).for_each(|op| op.cmd = ext::UNPIN_TABLE);
    let list = address(&mut pins);
    judge(report, "mmuext_op, many", 4, observe(number::MMUEXT_OP, [list, 256, 0, tables::SELF]));

    let first = start::info().nr_pages - MANY as u64;
    let mut frames = [0_u64; MANY];
    frames.iter_mut().zip(first..).for_each(|(slot, pfn)| *slot = memory::p2m(pfn));
    let mut request = MemoryReservation::new_zeroed();
    (request.extent_start, request.nr_extents, request.domid.0) = (address(&mut frames), MANY as u64, SELF);
    let place = address(&mut request);
    judge(report, "memory_op: decrease, many", 2, observe(number::MEMORY_OP, [1, place]));
    frames.iter_mut().zip(first..).for_each(|(slot, pfn)| *slot = pfn);
    judge(report, "memory_op: populate, many", 2, observe(number::MEMORY_OP, [6, place]));

    let mut calls = [entry(number::MEMORY_OP, [1, place]); 2];
    calls[1].args[0] = 6;
    let list = address(&mut calls);
    judge(report, "the same in a multicall", 2, observe(number::MULTICALL, [list, 2]));
    Ok(())
}

/// Prints the result, and which registers behind the arguments changed.
fn judge(report: &mut Report, name: &str, arguments: usize, seen: Observed) {
    report.saw(name, seen.answer);
    report.check("no other register changed", seen.kept_others(arguments));
}
