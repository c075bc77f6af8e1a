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
pub mod event_fifo;
pub mod grant_table;
mod hypfs;
mod mca;
pub mod memory_op;
pub mod mmu;
pub mod multicall;
pub mod physdev;
pub mod platform;
mod pm;
pub mod sched_op;
pub mod shadow_op;
pub mod sysctl;
pub mod traps;
pub mod vcpu_op;
mod vcpu_state;
pub mod version;

use crate::domain::VcpuRef;
use crate::trace;
use counts::Counts;
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
    /// The caller's registers, the arguments among them; those of a multicall's entry while that is carried out.
    pub frame: &'a mut GuestFrame,
}

impl Call<'_> {
    /// The arguments.
    #[inline(always)]
    pub fn args(&self) -> [u64; 6] {
        args(self.frame)
    }

    /// Replaces the arguments, those in front at least.
    #[inline(always)]
    pub fn set_args<const N: usize>(&mut self, first: [u64; N]) {
        set_args(self.frame, first);
    }

    /// The same call, for a function that is not inlined: whoever answers the usual case keeps its own in registers.
    #[inline(always)]
    pub fn apart(&mut self) -> Call<'_> {
        Call {
            caller: self.caller,
            frame: self.frame,
        }
    }

    /// "Ask again", with other arguments in front.
    #[inline(always)]
    pub fn again<const N: usize>(&mut self, first: [u64; N]) -> Answer {
        again(self.frame, first)
    }
}

#[inline(always)]
fn args(frame: &GuestFrame) -> [u64; 6] {
    [frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9]
}

/// Those behind stay as they are: registers that a call does not take are the guest's, and it may not expect them to
/// change.
#[inline(always)]
fn set_args<const N: usize>(frame: &mut GuestFrame, first: [u64; N]) {
    let registers = [
        &mut frame.rdi,
        &mut frame.rsi,
        &mut frame.rdx,
        &mut frame.r10,
        &mut frame.r8,
        &mut frame.r9,
    ];
    registers.into_iter().zip(first).for_each(|(old, new)| *old = new);
}

#[cold]
#[inline(never)]
fn again<const N: usize>(frame: &mut GuestFrame, first: [u64; N]) -> Answer {
    set_args(frame, first);
    Err(Errno::ERESTART)
}

/// Runs hypercall `number`, and counts it; `ENOSYS` if there is none.
#[inline(always)]
pub fn dispatch(by: Switchboard, number: u32, caller: &VcpuRef, frame: &mut GuestFrame) -> Answer {
    let Some(handler) = by.handlers.get(number as usize) else {
        return Err(Errno::ENOSYS);
    };
    by.counts.note(number);
    handler(caller, frame)
}

/// Where a CPU's hypercalls go. While there is a trace they go through it, by other functions: no branch looks for it.
#[derive(Clone, Copy)]
pub struct Switchboard {
    handlers: &'static [Handler; 64],
    counts: &'static Counts,
}

impl Switchboard {
    /// This CPU's.
    pub fn of_this_cpu(is_traced: bool) -> Self {
        Switchboard {
            handlers: &HANDLERS[usize::from(is_traced)],
            counts: Counts::of_this_cpu(),
        }
    }

    /// Counts an `iret`, which has a door of its own.
    #[inline(always)]
    pub fn note_iret(self) {
        self.counts.note(nr::IRET);
    }
}

/// A hypercall's entry in the table; what it calls is inlined there.
type Handler = fn(&VcpuRef, &mut GuestFrame) -> Answer;

fn no_such_call(_: &VcpuRef, _: &mut GuestFrame) -> Answer {
    Err(Errno::ENOSYS)
}

/// Every hypercall there is; the second handler traces it before.
const CALLS: [(u32, [Handler; 2]); 35] = {
    macro_rules! calls {
        ($($number:ident => $call:path,)*) => {
            [$((nr::$number, [
                |caller, frame| $call(&mut Call { caller, frame }),
                |caller, frame| traced(nr::$number, caller, frame),
            ]),)*]
        };
    }
    calls! {
        SET_TRAP_TABLE => traps::set_trap_table,
        MMU_UPDATE => mmu::mmu_update,
        SET_GDT => mmu::set_gdt,
        STACK_SWITCH => traps::stack_switch,
        SET_CALLBACKS => callback::set_callbacks,
        FPU_TASKSWITCH => traps::fpu_taskswitch,
        PLATFORM_OP => platform::platform_op,
        SET_DEBUGREG => traps::set_debugreg,
        GET_DEBUGREG => traps::get_debugreg,
        UPDATE_DESCRIPTOR => mmu::update_descriptor,
        MEMORY_OP => memory_op::memory_op,
        MULTICALL => multicall::multicall,
        UPDATE_VA_MAPPING => mmu::update_va_mapping,
        SET_TIMER_OP => sched_op::set_timer_op,
        XEN_VERSION => version::xen_version,
        CONSOLE_IO => console_io::console_io,
        GRANT_TABLE_OP => grant_table::grant_table_op,
        VM_ASSIST => traps::vm_assist,
        UPDATE_VA_MAPPING_OTHERDOMAIN => mmu::update_va_mapping_otherdomain,
        IRET => traps::iret,
        VCPU_OP => vcpu_op::vcpu_op,
        SET_SEGMENT_BASE => traps::set_segment_base,
        MMUEXT_OP => mmu::mmuext_op,
        NMI_OP => callback::nmi_op,
        SCHED_OP => sched_op::sched_op,
        SCHED_OP_COMPAT => sched_op::sched_op_compat,
        CALLBACK_OP => callback::callback_op,
        EVENT_CHANNEL_OP => event_channel::event_channel_op,
        EVENT_CHANNEL_OP_COMPAT => event_channel::event_channel_op_compat,
        PHYSDEV_OP => physdev::physdev_op,
        PHYSDEV_OP_COMPAT => physdev::physdev_op_compat,
        SYSCTL => sysctl::sysctl,
        MCA => mca::mca,
        DOMCTL => domctl::domctl,
        HYPFS_OP => hypfs::hypfs_op,
    }
};

/// How many numbers have a call behind them.
pub const NUMBER_OF_CALLS: usize = CALLS.len();

/// What is called for a number, and while there is a trace.
static HANDLERS: [[Handler; 64]; 2] = {
    let mut tables = [[no_such_call as Handler; 64]; 2];
    let mut index = 0;
    while index < CALLS.len() {
        let (number, [plain, traced]) = CALLS[index];
        tables[0][number as usize] = plain;
        tables[1][number as usize] = traced;
        index += 1;
    }
    tables
};

fn traced(number: u32, caller: &VcpuRef, frame: &mut GuestFrame) -> Answer {
    trace::hypercall(number, frame);
    HANDLERS[0][number as usize](caller, frame)
}
