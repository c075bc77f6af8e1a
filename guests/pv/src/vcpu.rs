//! The two vcpus that a guest may use, and `VCPUOP_*`.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, Ordering};

use ferroxen_abi::sched::{PinOverride, schedop};
use ferroxen_abi::vcpu::vcpuop;
use ferroxen_abi::x86::{VcpuGuestContext, selector, vgcf};
use zerocopy::FromZeros;

use crate::hypercall::{self, Answer, address, number};
use crate::insn;
use crate::start;
use crate::tables;
use crate::trap::{self, Cause, Recovery};

/// How many vcpus a guest may use.
pub const COUNT: usize = 2;
/// Bytes of a vcpu's stacks: the upper half for its kernel, the next quarter for entries from user mode, the lowest
/// for user mode itself.
pub const STACK_SIZE: usize = 64 << 10;

/// The stacks of all vcpus.
#[repr(C, align(65536))]
pub struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; COUNT]>);

// SAFETY: nobody makes a reference into it; each vcpu's stack pointer stays in its own part.
unsafe impl Sync for Stacks {}

/// The stacks; vcpu 0's kernel stack begins at `STACKS + STACK_SIZE`.
pub static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; COUNT]));

static RECOVERIES: [Recovery; COUNT] = [const { Recovery::new() }; COUNT];

/// Returns the vcpu that runs this, judged by its stack.
pub fn current() -> usize {
    let base = STACKS.0.get().addr();
    (insn::stack_pointer().wrapping_sub(base) / STACK_SIZE).min(COUNT - 1)
}

pub(crate) fn recovery() -> &'static Recovery {
    recovery_of(current())
}

pub(crate) fn recovery_of(vcpu: usize) -> &'static Recovery {
    &RECOVERIES[vcpu]
}

/// Returns the stack pointer with which `vcpu` enters its kernel from user mode.
pub fn entry_stack(vcpu: usize) -> u64 {
    (STACKS.0.get().addr() + vcpu * STACK_SIZE + STACK_SIZE / 2) as u64
}

/// Returns the top of `vcpu`'s stack for user mode.
pub(crate) fn user_stack(vcpu: usize) -> u64 {
    (STACKS.0.get().addr() + vcpu * STACK_SIZE + STACK_SIZE / 4) as u64
}

/// Sets where entries from user mode push (`stack_switch`).
pub fn set_entry_stack(stack: u64) -> Answer {
    hypercall::call(number::STACK_SWITCH, [selector::FLAT_RING3_DS.into(), stack])
}

/// Asks `VCPUOP_*` with a structure.
pub fn op<T>(command: u64, vcpu: u64, argument: &mut T) -> Answer {
    hypercall::call(number::VCPU_OP, [command, vcpu, address(argument)])
}

/// Asks `VCPUOP_*` without one.
pub fn bare_op(command: u64, vcpu: u64) -> Answer {
    hypercall::call(number::VCPU_OP, [command, vcpu, 0])
}

/// Keeps the calling vcpu to the first CPU, which it shares with the other if that does the same.
///
/// Only Domain 0 may ask for it. A domU that wants it has been put there by whoever made it.
pub fn share_cpu() -> Answer {
    if !start::is_dom0() {
        return Answer::OK;
    }
    hypercall::call(
        number::SCHED_OP,
        [schedop::PIN_OVERRIDE, address(&mut PinOverride { pcpu: 0 })],
    )
}

/// What vcpu 1 does, as a pointer to `fn()`.
static WORK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Returns a context in which vcpu 1 runs [`start`]'s work on the kernel's tables.
pub fn context() -> VcpuGuestContext {
    let mut context = VcpuGuestContext::new_zeroed();
    context.flags = vgcf::IN_KERNEL;
    let registers = &mut context.user_regs;
    registers.rip = begin as extern "C" fn() -> ! as usize as u64;
    registers.cs = selector::FLAT_RING3_CS64;
    registers.ss = selector::FLAT_RING3_DS;
    registers.rflags = 0x202;
    // As after a call: 8 below a multiple of 16.
    registers.rsp = (STACKS.0.get().addr() + 2 * STACK_SIZE - 8) as u64;
    context.kernel_ss = selector::FLAT_RING3_DS.into();
    context.kernel_sp = entry_stack(1);
    context.ctrlreg[3] = tables::root_mfn() << 12;
    context.event_callback_eip = trap::handler(1, Cause::Event);
    context.failsafe_callback_eip = trap::handler(1, Cause::Failsafe);
    context.syscall_callback_eip = trap::handler(1, Cause::Syscall);
    context
}

/// Sets what vcpu 1 does once it is up, for who initialises it by hand.
pub fn set_work(work: fn()) {
    WORK.store(work as *mut (), Ordering::SeqCst);
}

/// Starts vcpu 1 with `work`; when that returns, the vcpu takes itself down.
pub fn start(work: fn()) -> Answer {
    set_work(work);
    let answer = op(vcpuop::INITIALISE, 1, &mut context());
    if !answer.is_ok() {
        return answer;
    }
    bare_op(vcpuop::UP, 1)
}

/// Vcpu 1's first step.
extern "C" fn begin() -> ! {
    trap::install(1);
    let work = WORK.load(Ordering::SeqCst);
    // SAFETY: `start` stored a `fn()` before the vcpu came up; a guest that starts it by hand says so there.
    let work = (!work.is_null()).then(|| unsafe { core::mem::transmute::<*mut (), fn()>(work) });
    if let Some(work) = work {
        work();
    }
    loop {
        bare_op(vcpuop::DOWN, 1);
    }
}
