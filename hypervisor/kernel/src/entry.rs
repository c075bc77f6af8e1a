//! Where a CPU arrives from a guest, and what it does before it goes back.
//!
//! One life of an entry: the machine has put the guest's registers into a frame; one of the functions here
//! handles what happened; [`before_return`] does what is owed (timers, scheduling, an upcall); the machine
//! restores the frame. Interrupts are off all the way.

use crate::cpu::{self, work};
use crate::domain::VcpuRef;
use crate::hypercall::{self, Call, Outcome};
use crate::pv::{bounce, mm, trap};
use ferroxen_machine::frame::ReturnFault;
use ferroxen_machine::{Entry, GuestFrame};

/// A guest executed SYSCALL or SYSENTER.
///
/// From the guest's kernel SYSCALL is a hypercall; from its user mode it is a system call for its kernel.
pub fn syscall(frame: &mut GuestFrame) {
    let entered = cpu::local().current.borrow();
    let Some(vcpu) = entered.as_ref() else {
        unreachable!("a guest entered, but none runs here")
    };
    if frame.entry() == Entry::Syscall64 && vcpu.pv.lock().in_kernel {
        hypercall(vcpu, frame);
    } else {
        trap::system_call(vcpu, frame);
    }
    drop(entered);
    before_return(frame);
}

#[inline]
fn hypercall(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    let number = frame.rax as u32;
    let args = [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9];
    let answer = hypercall::dispatch(
        number,
        &mut Call {
            caller: vcpu,
            frame,
            args,
        },
    );
    match answer {
        Ok(Outcome::Done(value)) => frame.rax = value,
        Ok(Outcome::Again([rdi, rsi, rdx, r10, r8, r9])) => {
            // The guest asks again: back to its SYSCALL instruction, two bytes long.
            (frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9) = (rdi, rsi, rdx, r10, r8, r9);
            frame.rip = frame.rip.wrapping_sub(2);
            frame.rax = u64::from(number);
            frame.return_fully();
        }
        Ok(Outcome::Replaced) => {}
        Err(refused) => frame.rax = refused.to_return() as u64,
    }
}

/// A guest caused an exception, or executed `int N`.
pub fn trap(frame: &mut GuestFrame) {
    let entered = cpu::local().current.borrow();
    let Some(vcpu) = entered.as_ref() else {
        unreachable!("a guest trapped, but none runs here")
    };
    trap::handle(vcpu, frame);
    drop(entered);
    before_return(frame);
}

/// An external interrupt arrived while a guest ran.
pub fn interrupt(frame: &mut GuestFrame) {
    if let Entry::Interrupt(vector) = frame.entry() {
        crate::irq::handle(vector);
    }
    before_return(frame);
}

/// An external interrupt arrived while this CPU was idle.
pub fn idle_interrupt(vector: u8) {
    crate::irq::handle(vector);
}

/// The way back to the guest failed: its selectors or its stack are no good.
pub fn return_failed(frame: &mut GuestFrame, fault: ReturnFault) {
    let entered = cpu::local().current.borrow();
    let Some(vcpu) = entered.as_ref() else {
        unreachable!("a return failed, but no guest runs here")
    };
    trap::return_failed(vcpu, frame, fault);
    drop(entered);
    before_return(frame);
}

/// The hypervisor itself looked at a byte of the LDT that is not mapped: on the way back to a guest, or while it loaded
/// the guest's selectors. No lock is held there. `false`: the guest has nothing there.
pub fn ldt_fault(offset: usize) -> bool {
    cpu::current().is_some_and(|vcpu| mm::map_ldt_page(&vcpu, offset))
}

/// Does what is owed before the guest goes on.
#[inline]
pub fn before_return(frame: &mut GuestFrame) {
    let local = cpu::local();
    loop {
        if local.work.get() != 0 {
            do_work(local.work.replace(0), frame);
            continue;
        }
        if !local.info.get().is_some_and(|info| info.wants_upcall()) {
            return;
        }
        let entered = local.current.borrow();
        let Some(vcpu) = entered.as_ref() else { return };
        let mut pv = vcpu.pv.lock();
        let to = pv.event;
        if to.address == 0 {
            // It has not told us where its events go.
            return;
        }
        let made = bounce::bounce(
            vcpu,
            &mut pv,
            frame,
            crate::domain::vcpu::Callback {
                masks_events: true,
                ..to
            },
            bounce::Extra::None,
        );
        drop(pv);
        match made {
            Ok(()) => return,
            Err(bad) => vcpu
                .domain()
                .crash(format_args!("{vcpu}: no event upcall possible: {bad:?}")),
        }
    }
}

#[cold]
fn do_work(owed: u32, frame: &mut GuestFrame) {
    if owed & work::EVENTS != 0 {
        crate::hypercall::event_channel::deliver_global_virqs();
    }
    if owed & work::TIMERS != 0 {
        crate::time::run_timers();
    }
    if owed & (work::RESCHEDULE | work::STOP_CURRENT) != 0 {
        crate::sched::schedule(frame);
    }
    if owed & work::RELOAD_ROOT != 0
        && let Some(vcpu) = cpu::current()
    {
        crate::domain::context::reload_root(&vcpu);
    }
    if owed & work::NMI != 0
        && let Some(vcpu) = cpu::current()
        && vcpu.take_nmi()
    {
        trap::deliver_nmi(&vcpu, frame);
    }
}
