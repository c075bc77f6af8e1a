//! Where a CPU arrives from a guest, and what it does before it goes back.
//!
//! One life of an entry: the machine has put the guest's registers into a frame; one of the functions here
//! handles what happened; [`before_return`] does what is owed (timers, scheduling, an upcall); the machine
//! restores the frame. Interrupts are off all the way.

use crate::cpu::{self, CpuLocal, work};
use crate::domain::{Callback, InfoArea, VcpuRef};
use crate::hypercall;
use crate::pv::{bounce, mm, trap};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::hypercall as nr;
use ferroxen_machine::current::Look;
use ferroxen_machine::frame::ReturnFault;
use ferroxen_machine::{Entry, GuestFrame};
use ferroxen_words::Vaddr;

/// A guest executed SYSCALL in 64-bit code.
///
/// From the guest's kernel that is a hypercall; from its user mode it is a system call for its kernel. Each has a way of
/// its own, and the most frequent hypercall too, so that none saves more registers than it needs.
#[inline(always)]
pub fn syscall64(frame: &mut GuestFrame) {
    let local = cpu::local();
    let vcpu = entered(local);
    if !vcpu.is_in_kernel() {
        system_call(frame, local, vcpu)
    } else if frame.rax as u32 == nr::IRET && !local.is_traced.get() {
        iret(frame, local, vcpu)
    } else {
        hypercall(frame, local, vcpu)
    }
}

/// The vcpu whose guest this CPU comes from.
#[inline(always)]
fn entered(local: &CpuLocal) -> Look<'_, VcpuRef> {
    match local.current.get() {
        Some(vcpu) => vcpu,
        None => nobody_runs(),
    }
}

#[inline(never)]
fn system_call(frame: &mut GuestFrame, local: &CpuLocal, vcpu: Look<'_, VcpuRef>) {
    trap::system_call64(&vcpu, frame);
    drop(vcpu);
    before_return(local, frame);
}

#[inline(never)]
fn iret(frame: &mut GuestFrame, local: &CpuLocal, vcpu: Look<'_, VcpuRef>) {
    local.hypercalls.get().note_iret();
    frame.rax = hypercall::traps::return_from(&vcpu, frame);
    drop(vcpu);
    before_return(local, frame);
}

#[inline(never)]
fn hypercall(frame: &mut GuestFrame, local: &CpuLocal, vcpu: Look<'_, VcpuRef>) {
    let number = frame.rax as u32;
    match hypercall::dispatch(local.hypercalls.get(), number, &vcpu, frame) {
        Ok(value) => frame.rax = value,
        Err(why) => refused(frame, why),
    }
    drop(vcpu);
    before_return(local, frame);
}

/// A guest executed SYSCALL in 32-bit code, or SYSENTER.
pub fn other_syscall(frame: &mut GuestFrame) {
    let local = cpu::local();
    let vcpu = entered(local);
    trap::other_system_call(&vcpu, frame);
    drop(vcpu);
    before_return(local, frame);
}

#[cold]
#[inline(never)]
fn nobody_runs() -> ! {
    unreachable!("a guest entered, but none runs here")
}

#[inline(never)]
fn refused(frame: &mut GuestFrame, why: Errno) {
    match why {
        Errno::ERESTART => ask_again(frame),
        why => frame.rax = why.to_return() as u64,
    }
}

/// Sends the guest back to its SYSCALL instruction, two bytes long, with the number in `rax` as before.
#[cold]
#[inline(never)]
fn ask_again(frame: &mut GuestFrame) {
    frame.rip = frame.rip.wrapping_sub(2);
    frame.return_fully();
}

/// A guest caused an exception, or executed `int N`.
#[inline(always)]
pub fn trap(frame: &mut GuestFrame) {
    let local = cpu::local();
    let vcpu = entered(local);
    trap::handle(&vcpu, frame);
    drop(vcpu);
    before_return(local, frame);
}

/// An external interrupt arrived while a guest ran.
pub fn interrupt(frame: &mut GuestFrame) {
    if let Entry::Interrupt(vector) = frame.entry() {
        crate::irq::handle(vector);
    }
    before_return(cpu::local(), frame);
}

/// An external interrupt arrived while this CPU was idle.
pub fn idle_interrupt(vector: u8) {
    crate::irq::handle(vector);
}

/// The way back to the guest failed: its selectors or its stack are no good.
pub fn return_failed(frame: &mut GuestFrame, fault: ReturnFault) {
    let local = cpu::local();
    let vcpu = entered(local);
    trap::return_failed(&vcpu, frame, fault);
    drop(vcpu);
    before_return(local, frame);
}

/// The hypervisor itself looked at a byte of the LDT that is not mapped: on the way back to a guest, or while it loaded
/// the guest's selectors. No lock is held there. `false`: the guest has nothing there.
pub fn ldt_fault(offset: usize) -> bool {
    cpu::current().is_some_and(|vcpu| mm::map_ldt_page(&vcpu, offset))
}

/// The hypervisor itself faulted at a guest's address, in code that may. Locks up to [`crate::lock::Rank::Mirrors`] may
/// be held there. `true`: the domain is logged, and its mirrors have what it takes now.
pub fn guest_fault(at: Vaddr, code: u32) -> bool {
    let Some(vcpu) = cpu::local().current.get() else {
        return false;
    };
    vcpu.domain().is_logged() && matches!(mm::resolve(&vcpu, at, code), mm::Resolved::Retry)
}

/// Looks for what is owed before the guest goes on: seldom anything.
#[inline(always)]
pub fn before_return(local: &CpuLocal, frame: &mut GuestFrame) {
    let wants_upcall = || local.info.get().is_some_and(InfoArea::wants_upcall);
    if local.work.get() != 0 || wants_upcall() {
        work_and_upcall(local, frame);
    }
}

#[inline(never)]
fn work_and_upcall(local: &CpuLocal, frame: &mut GuestFrame) {
    loop {
        if local.work.get() != 0 {
            do_work(local.work.replace(0), frame);
            continue;
        }
        if !local.info.get().is_some_and(InfoArea::wants_upcall) {
            return;
        }
        let Some(vcpu) = local.current.get() else { return };
        let pv = vcpu.pv.lock();
        let to = pv.event;
        if to.address == 0 {
            // It has not told us where its events go.
            return;
        }
        let to = Callback {
            masks_events: true,
            ..to
        };
        let made = bounce::enter(&vcpu, &pv, frame, to, bounce::Extra::None);
        drop(pv);
        if made.is_ok() {
            return;
        }
        trap::or_crash(&vcpu, made);
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
