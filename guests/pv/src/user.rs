//! User mode: the same ring of the CPU, another root table, and a kernel that traps come back to.

use ferroxen_abi::x86::{IretContext, selector};

use crate::hypercall::{Answer, number};
use crate::tables;
use crate::trap::{Frame, General};
use crate::vcpu;

/// The flags of ordinary code: interrupts on.
pub const PLAIN_FLAGS: u64 = 0x202;

/// The registers with which user mode starts.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "registers")]
pub struct Start {
    pub rip: u64,
    pub general: General,
    /// `VGCF_*` of the iret hypercall's frame.
    pub context: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Start {
    /// Prepares to run `code`, which sees `argument`, on a stack of its own.
    pub fn at(code: extern "C" fn(u64) -> !, argument: u64) -> Self {
        Self::at_address(
            code as usize as u64,
            General {
                rdi: argument,
                ..General::default()
            },
        )
    }

    /// Prepares to run what lies at `rip`.
    pub fn at_address(rip: u64, general: General) -> Self {
        // As after a call: 8 below a multiple of 16.
        let stack = vcpu::user_stack(vcpu::current()) - 8;
        Self {
            rip,
            general,
            context: 0,
            cs: selector::FLAT_RING3_CS64.into(),
            rflags: PLAIN_FLAGS,
            rsp: stack,
            ss: selector::FLAT_RING3_DS.into(),
        }
    }
}

unsafe extern "C" {
    fn pv_enter_user(slot: *mut u64, context: *mut IretContext, general: *const General) -> u64;
}

/// Gives this vcpu a user mode in which everything is mapped that the kernel has mapped.
pub fn share_everything() -> Result<(), Answer> {
    let root = tables::copy_of_root();
    root.seal()?;
    tables::set_user_root(root.mfn()).ok().map(drop)
}

/// Goes to user mode, and returns with whatever brought the kernel back.
///
/// The vcpu needs a user root first ([`share_everything`]).
pub fn enter(start: &Start) -> Frame {
    enter_by(start, [number::IRET.into(), start.general.rdi, start.general.rsi])
}

/// Goes to user mode by a multicall, which has an `iret` in its `count` entries at `list`.
pub fn enter_by_multicall(start: &Start, list: u64, count: u64) -> Frame {
    enter_by(start, [number::MULTICALL.into(), list, count])
}

/// Makes a hypercall that goes to user mode: its number and its first two arguments.
fn enter_by(start: &Start, [number, first, second]: [u64; 3]) -> Frame {
    let mut context = IretContext {
        rax: start.general.rax,
        r11: start.general.r11,
        rcx: start.general.rcx,
        flags: start.context,
        rip: start.rip,
        cs: start.cs,
        rflags: start.rflags,
        rsp: start.rsp,
        ss: start.ss,
    };
    let general = General {
        rax: number,
        rdi: first,
        rsi: second,
        ..start.general
    };
    let recovery = vcpu::recovery();
    // SAFETY: the entry point notes the stack like `pv_attempt`, and comes back through `pv_recover` alone. What
    // user code does to our memory is what the guest wrote it to do.
    unsafe { pv_enter_user(recovery.stack.as_ptr(), &raw mut context, &general) };
    recovery.taken()
}

/// Runs `code` in user mode; see [`enter`].
pub fn run(code: extern "C" fn(u64) -> !, argument: u64) -> Frame {
    enter(&Start::at(code, argument))
}
