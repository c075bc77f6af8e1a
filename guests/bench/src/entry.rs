//! Entry and return: hypercalls that do little, traps that come back at once.

use pv::abi::sched::schedop;
use pv::abi::x86::selector;
use pv::brief::{self, UserAct};
use pv::hypercall::{address, call, entry, multicall, number};
use pv::tables::{self, ext};
use pv::{Answer, event, user, vcpu};

use crate::row::{Row, SAMPLES, rounds};

/// Nothing is mapped there.
const UNMAPPED: u64 = 0x7f00_0000_0000;

/// `XENVER_version`
const VERSION: u64 = 0;

fn version() -> Answer {
    call(number::XEN_VERSION, [VERSION, 0])
}

/// Hypercalls.
pub fn hypercalls() -> Result<(), Answer> {
    event::set_upcall_mask(false);
    let known = version();
    let mut row = Row::new("null hypercall");
    for _ in rounds() {
        let answer = row.time(version);
        row.check("the version", answer == known && known.is_ok());
    }
    row.report();

    let mut row = Row::each("multicall of 32, each", 32);
    let mut calls = [entry(number::XEN_VERSION, [VERSION, 0]); 32];
    for _ in rounds() {
        calls.iter_mut().for_each(|call| call.result = 0);
        let answer = row.time(|| multicall(&mut calls));
        let all = calls.iter().all(|call| call.result == known.0 as u64);
        row.check("every version", answer.is_ok() && all);
    }
    row.report();

    let mut row = Row::new("iret");
    for _ in rounds() {
        event::set_upcall_mask(true);
        row.time(brief::iret_to_self);
        row.check("interrupts as the frame says", event::upcall_mask(0) == 0);
    }
    row.report();

    let mut row = Row::new("stack_switch");
    let stack = vcpu::entry_stack(0);
    for round in rounds() {
        let place = stack - 16 * (round as u64 % 2);
        let answer = row.time(|| vcpu::set_entry_stack(place));
        row.check("done", answer == Answer::OK);
    }
    vcpu::set_entry_stack(stack).ok()?;
    row.report();
    context_switch()
}

/// What Linux asks for when it goes from one process to another: both roots, and the stack.
fn context_switch() -> Result<(), Answer> {
    let (root, other, users) = (tables::root_mfn(), tables::copy_of_root(), tables::copy_of_root());
    for table in [other, users] {
        table.seal()?;
        tables::pin(4, table.mfn()).ok()?;
    }
    let mut row = Row::new("context-switch multicall");
    for round in rounds() {
        let (kernel, user) = match round % 2 {
            0 => (other.mfn(), users.mfn()),
            _ => (root, other.mfn()),
        };
        let op = |cmd, arg1| pv::abi::xen::MmuextOp {
            cmd,
            pad: 0,
            arg1,
            arg2: 0,
        };
        let mut roots = [op(ext::NEW_BASEPTR, kernel), op(ext::NEW_USER_BASEPTR, user)];
        let mut calls = [
            entry(number::MMUEXT_OP, [address(&mut roots), 2, 0, tables::SELF]),
            entry(
                number::STACK_SWITCH,
                [selector::FLAT_RING3_DS.into(), vcpu::entry_stack(0)],
            ),
        ];
        let answer = row.time(|| multicall(&mut calls));
        row.check("done", answer.is_ok() && calls.iter().all(|call| call.result == 0));
    }
    row.report();
    tables::set_root(root).ok()?;
    // That the roots were in use: nobody can make them ordinary pages before they are let go.
    tables::set_user_root(0).ok()?;
    for table in [other, users] {
        tables::unpin(table.mfn()).ok()?;
        table.unseal()?;
    }
    Ok(())
}

/// From user mode to its kernel and back, by `syscall` and by a page fault; and a fault of the kernel's own.
pub fn traps() -> Result<(), Answer> {
    user::share_everything()?;
    brief::with_traps(|| {
        let mut row = Row::new("page fault in the kernel");
        for _ in rounds() {
            row.time(|| brief::touch(UNMAPPED));
            row.check("cr2", event::faulting_address(0) == UNMAPPED);
        }
        row.report();
        in_user_mode("user syscall", UserAct::Syscall);
        in_user_mode("page fault in user mode", UserAct::Fault);
    })?;
    tables::set_user_root(0).ok().map(drop)
}

fn in_user_mode(name: &'static str, act: UserAct) {
    let mut row = Row::new(name);
    let mut samples = [0; SAMPLES + 4];
    let mut nothing = [0; 4];
    let ran = brief::sample_user(UserAct::Nothing, 0, &mut nothing)
        .and_then(|()| brief::sample_user(act, UNMAPPED + 8, &mut samples));
    row.check("user mode ran to its end", ran.is_ok());
    if act == UserAct::Fault {
        row.check("cr2", event::faulting_address(0) == UNMAPPED + 8);
    }
    for sample in samples {
        row.check("it took time", sample > nothing[3]);
        row.note(sample.saturating_sub(nothing[3]));
    }
    row.report();
}

/// A line on the console, which must then be seen there.
pub fn console() -> Result<(), Answer> {
    const WRITE: u64 = 0;
    let mut line = *b"[line] 0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQ.\n";
    let mut row = Row::new("console write, 64 B");
    for _ in rounds() {
        let answer = row.time(|| call(number::CONSOLE_IO, [WRITE, line.len() as u64, address(&mut line)]));
        row.check("written", answer.is_ok());
        call(number::SCHED_OP, [schedop::YIELD]).ok()?;
    }
    row.report();
    Ok(())
}
