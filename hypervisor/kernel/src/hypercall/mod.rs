//! The front door: a number in `rax`, arguments in `rdi, rsi, rdx, r10, r8, r9`, an answer in `rax`.
//!
//! Each call lives in its own file and has the same shape: copy the arguments once, check all, commit.
//! The answer is a number, or a refusal ([`Errno`]); work that would take long says `ERESTART`, which no guest
//! sees: its own instruction pointer is wound back so that it asks again, with the arguments moved on.

pub mod callback;
pub mod console_io;
pub mod counts;
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

/// The answer to a hypercall: what the guest finds in `rax`, or why not. [`Errno::ERESTART`] is no refusal: the
/// work is not finished, and the guest is to ask again with [`Call::args`] as they stand now.
pub type Answer = Result<u64, Errno>;

/// One hypercall under way.
pub struct Call<'a> {
    /// Who asks.
    pub caller: &'a VcpuRef,
    /// The caller's registers (for the few calls that change them).
    pub frame: &'a mut GuestFrame,
    /// Where the arguments are.
    pub from: Arguments,
}

/// Where the arguments of a hypercall are.
pub enum Arguments {
    /// In `rdi, rsi, rdx, r10, r8, r9`.
    Registers,
    /// In our copy of a multicall's entry.
    Entry([u64; 6]),
}

impl Call<'_> {
    /// The arguments.
    #[inline(always)]
    pub fn args(&self) -> [u64; 6] {
        let frame = &*self.frame;
        match &self.from {
            Arguments::Registers => [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9],
            Arguments::Entry(args) => *args,
        }
    }

    /// "Ask again", with other arguments in front.
    ///
    /// Those behind stay as they are: registers that a call does not take are the guest's, and it may not expect
    /// them to change.
    pub fn again<const N: usize>(&mut self, first: [u64; N]) -> Answer {
        let frame = &mut *self.frame;
        let registers = [
            &mut frame.rdi,
            &mut frame.rsi,
            &mut frame.rdx,
            &mut frame.r10,
            &mut frame.r8,
            &mut frame.r9,
        ];
        match &mut self.from {
            Arguments::Registers => registers.into_iter().zip(first).for_each(|(old, new)| *old = new),
            Arguments::Entry(args) => args.iter_mut().zip(first).for_each(|(old, new)| *old = new),
        }
        Err(Errno::ERESTART)
    }
}

/// Runs hypercall `number`; `ENOSYS` if there is none.
#[inline(always)]
pub fn dispatch(number: u32, call: &mut Call<'_>) -> Answer {
    match HANDLERS.get(number as usize) {
        Some(handler) => handler(call),
        None => Err(Errno::ENOSYS),
    }
}

type Handler = fn(&mut Call<'_>) -> Answer;

fn no_such_call(_: &mut Call<'_>) -> Answer {
    Err(Errno::ENOSYS)
}

/// Every hypercall there is.
const CALLS: [(u32, Handler); 34] = [
    (nr::SET_TRAP_TABLE, traps::set_trap_table),
    (nr::MMU_UPDATE, mmu::mmu_update),
    (nr::SET_GDT, mmu::set_gdt),
    (nr::STACK_SWITCH, traps::stack_switch),
    (nr::SET_CALLBACKS, callback::set_callbacks),
    (nr::FPU_TASKSWITCH, traps::fpu_taskswitch),
    (nr::PLATFORM_OP, platform::platform_op),
    (nr::SET_DEBUGREG, traps::set_debugreg),
    (nr::GET_DEBUGREG, traps::get_debugreg),
    (nr::UPDATE_DESCRIPTOR, mmu::update_descriptor),
    (nr::MEMORY_OP, memory_op::memory_op),
    (nr::MULTICALL, multicall::multicall),
    (nr::UPDATE_VA_MAPPING, mmu::update_va_mapping),
    (nr::SET_TIMER_OP, sched_op::set_timer_op),
    (nr::XEN_VERSION, version::xen_version),
    (nr::CONSOLE_IO, console_io::console_io),
    (nr::GRANT_TABLE_OP, grant_table::grant_table_op),
    (nr::VM_ASSIST, traps::vm_assist),
    (nr::UPDATE_VA_MAPPING_OTHERDOMAIN, mmu::update_va_mapping_otherdomain),
    (nr::IRET, traps::iret),
    (nr::VCPU_OP, vcpu_op::vcpu_op),
    (nr::SET_SEGMENT_BASE, traps::set_segment_base),
    (nr::MMUEXT_OP, mmu::mmuext_op),
    (nr::NMI_OP, callback::nmi_op),
    (nr::SCHED_OP, sched_op::sched_op),
    (nr::SCHED_OP_COMPAT, sched_op::sched_op_compat),
    (nr::CALLBACK_OP, callback::callback_op),
    (nr::EVENT_CHANNEL_OP, event_channel::event_channel_op),
    (nr::EVENT_CHANNEL_OP_COMPAT, event_channel::event_channel_op_compat),
    (nr::PHYSDEV_OP, physdev::physdev_op),
    (nr::PHYSDEV_OP_COMPAT, physdev::physdev_op_compat),
    (nr::SYSCTL, sysctl::sysctl),
    (nr::MCA, mca::mca),
    (nr::DOMCTL, domctl::domctl),
];

/// How many numbers have a call behind them.
pub const NUMBER_OF_CALLS: usize = CALLS.len();

static HANDLERS: [Handler; 64] = {
    let mut table = [no_such_call as Handler; 64];
    let mut index = 0;
    while index < CALLS.len() {
        table[CALLS[index].0 as usize] = CALLS[index].1;
        index += 1;
    }
    table
};
