//! The front door: a number in `rax`, arguments in `rdi, rsi, rdx, r10, r8, r9`, an answer in `rax`.
//!
//! Each call lives in its own file and has the same shape: copy the arguments once, check all, commit.
//! A refusal is an [`Errno`]; work that would take long returns [`Outcome::Again`], and the guest's own
//! instruction pointer is wound back so that it asks again with the arguments moved on.

pub mod callback;
pub mod console_io;
mod cpu_policy;
pub mod domctl;
pub mod event_channel;
pub mod grant_table;
mod mca;
pub mod memory_op;
pub mod mmu;
pub mod multicall;
pub mod physdev;
pub mod platform;
pub mod sched_op;
pub mod sysctl;
pub mod traps;
pub mod vcpu_op;
mod vcpu_state;
pub mod version;

use crate::domain::VcpuRef;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::hypercall as nr;
use ferroxen_machine::GuestFrame;

/// What a hypercall that was not refused comes to.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Finished; the guest sees this value.
    Done(u64),
    /// Not finished: the guest shall ask again, with these arguments (`rdi, rsi, rdx, r10, r8, r9`).
    Again([u64; 6]),
    /// The guest's registers were replaced as a whole; nothing is to be written to `rax`.
    Replaced,
}

/// The answer to a hypercall.
pub type Answer = Result<Outcome, Errno>;

/// One hypercall under way.
pub struct Call<'a> {
    /// Who asks.
    pub caller: &'a VcpuRef,
    /// The caller's registers (for the few calls that change them).
    pub frame: &'a mut GuestFrame,
    /// The arguments, wherever they came from (registers or a multicall entry).
    pub args: [u64; 6],
}

impl Call<'_> {
    /// "Ask again", with other arguments in front.
    ///
    /// Those behind stay as they are: registers that a call does not take are the guest's, and it may not expect
    /// them to change.
    pub fn again<const N: usize>(&self, first: [u64; N]) -> Answer {
        let mut args = self.args;
        for (argument, new) in args.iter_mut().zip(first) {
            *argument = new;
        }
        Ok(Outcome::Again(args))
    }
}

/// Runs hypercall `number`. A part that could do nothing yet for lack of time says `ERESTART`, which no guest sees.
#[inline]
pub fn dispatch(number: u32, call: &mut Call<'_>) -> Answer {
    match run(number, call) {
        Err(Errno::ERESTART) => Ok(Outcome::Again(call.args)),
        answer => answer,
    }
}

#[inline]
fn run(number: u32, call: &mut Call<'_>) -> Answer {
    match number {
        nr::SET_TRAP_TABLE => traps::set_trap_table(call),
        nr::MMU_UPDATE => mmu::mmu_update(call),
        nr::SET_GDT => mmu::set_gdt(call),
        nr::STACK_SWITCH => traps::stack_switch(call),
        nr::SET_CALLBACKS => callback::set_callbacks(call),
        nr::FPU_TASKSWITCH => traps::fpu_taskswitch(call),
        nr::PLATFORM_OP => platform::platform_op(call),
        nr::SET_DEBUGREG => traps::set_debugreg(call),
        nr::GET_DEBUGREG => traps::get_debugreg(call),
        nr::UPDATE_DESCRIPTOR => mmu::update_descriptor(call),
        nr::MEMORY_OP => memory_op::memory_op(call),
        nr::MULTICALL => multicall::multicall(call),
        nr::UPDATE_VA_MAPPING => mmu::update_va_mapping(call),
        nr::SET_TIMER_OP => sched_op::set_timer_op(call),
        nr::XEN_VERSION => version::xen_version(call),
        nr::CONSOLE_IO => console_io::console_io(call),
        nr::GRANT_TABLE_OP => grant_table::grant_table_op(call),
        nr::VM_ASSIST => traps::vm_assist(call),
        nr::UPDATE_VA_MAPPING_OTHERDOMAIN => mmu::update_va_mapping_otherdomain(call),
        nr::IRET => traps::iret(call),
        nr::VCPU_OP => vcpu_op::vcpu_op(call),
        nr::SET_SEGMENT_BASE => traps::set_segment_base(call),
        nr::MMUEXT_OP => mmu::mmuext_op(call),
        nr::NMI_OP => callback::nmi_op(call),
        nr::SCHED_OP => sched_op::sched_op(call),
        nr::SCHED_OP_COMPAT => sched_op::sched_op_compat(call),
        nr::CALLBACK_OP => callback::callback_op(call),
        nr::EVENT_CHANNEL_OP => event_channel::event_channel_op(call),
        nr::EVENT_CHANNEL_OP_COMPAT => event_channel::event_channel_op_compat(call),
        nr::PHYSDEV_OP => physdev::physdev_op(call),
        nr::PHYSDEV_OP_COMPAT => physdev::physdev_op_compat(call),
        nr::SYSCTL => sysctl::sysctl(call),
        nr::MCA => mca::mca(call),
        nr::DOMCTL => domctl::domctl(call),
        _ => Err(Errno::ENOSYS),
    }
}
