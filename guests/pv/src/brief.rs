//! The shortest handlers that there can be: where a guest measures, the instructions shall be the hypervisor's.
//!
//! [`crate::trap`] reads every frame and may do anything with it; these only go on. Each frame is turned in place into
//! the one that the `iret` hypercall wants: rax, r11, rcx and its flags, below rip.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use ferroxen_abi::x86::{TrapInfo, selector};
use ferroxen_abi::xen::vcpu_info;

use crate::event;
use crate::hypercall::{Answer, number};
use crate::trap::{self, Cause};
use crate::vcpu;

/// Upcalls that [`with_events`] saw.
static UPCALLS: [AtomicU64; vcpu::COUNT] = [const { AtomicU64::new(0) }; vcpu::COUNT];

unsafe extern "C" {
    static pv_brief_event_0: u8;
    static pv_brief_event_1: u8;
    static pv_brief_syscall: u8;
    static pv_brief_fault: u8;
    static pv_brief_users: u8;
}

global_asm!(
    ".text",
    // Forgets what is pending, counts, and goes on. rcx and r11 are in the frame, so they are free.
    ".macro pv_brief_event vcpu",
    ".globl pv_brief_event_\\vcpu",
    "pv_brief_event_\\vcpu:",
    "    mov rcx, [rip + {shared}]",
    "    mov byte ptr [rcx + {info} * \\vcpu + {pending}], 0",
    "    mov qword ptr [rcx + {info} * \\vcpu + {selector}], 0",
    "    inc qword ptr [rip + {upcalls} + 8 * \\vcpu]",
    "    jmp pv_brief_syscall",
    ".endm",
    "pv_brief_event 0",
    "pv_brief_event 1",
    // rcx, r11, rip and so on: two words more, of which r11's place becomes the flags.
    ".globl pv_brief_syscall",
    "pv_brief_syscall:",
    "    sub rsp, 16",
    "    mov rcx, [rsp + 24]",
    "    mov [rsp], rax",
    "    mov [rsp + 8], rcx",
    "    mov qword ptr [rsp + 24], 0",
    "    mov eax, {iret}",
    "    syscall",
    // rcx, r11, the error code, rip and so on: one word more. Goes on behind an instruction of three bytes.
    ".globl pv_brief_fault",
    "pv_brief_fault:",
    "    sub rsp, 8",
    "    mov rcx, [rsp + 8]",
    "    mov r11, [rsp + 16]",
    "    mov [rsp], rax",
    "    mov [rsp + 8], r11",
    "    mov [rsp + 16], rcx",
    "    mov qword ptr [rsp + 24], 0",
    "    add qword ptr [rsp + 32], 3",
    "    mov eax, {iret}",
    "    syscall",
    // What user mode times: rdi points to `Samples`.
    ".macro pv_brief_user operation:vararg",
    "    mov rsi, [rdi + 8]",
    "    mov r9, [rdi + 16]",
    "    mov r10, [rdi]",
    "2:  rdtsc",
    "    mov r8d, eax",
    "    \\operation",
    "    rdtsc",
    "    sub eax, r8d",
    "    mov [r10], rax",
    "    add r10, 8",
    "    dec rsi",
    "    jnz 2b",
    "    ud2",
    ".endm",
    ".globl pv_brief_users",
    "    .balign 64",
    "pv_brief_users:",
    "    pv_brief_user",
    "    .balign 64",
    "    pv_brief_user syscall",
    "    .balign 64",
    "    pv_brief_user mov rax, [r9]",
    shared = sym event::SHARED,
    upcalls = sym UPCALLS,
    info = const vcpu_info::SIZE,
    pending = const vcpu_info::UPCALL_PENDING,
    selector = const vcpu_info::PENDING_SEL,
    iret = const number::IRET,
);

/// Answers upcalls of the current vcpu with no more than it takes until `act` has ended.
pub fn with_events<T>(act: impl FnOnce() -> T) -> Result<T, Answer> {
    let vcpu = vcpu::current();
    let handler = match vcpu {
        0 => &raw const pv_brief_event_0,
        _ => &raw const pv_brief_event_1,
    };
    let kind = ferroxen_abi::x86::callback::EVENT;
    trap::set_callback(kind, 0, handler.addr() as u64).ok()?;
    let result = act();
    trap::set_callback(kind, 0, trap::handler(vcpu, Cause::Event)).ok()?;
    Ok(result)
}

/// Returns the number of upcalls of `vcpu` that [`with_events`] answered.
pub fn upcalls(vcpu: usize) -> u64 {
    UPCALLS[vcpu].load(Ordering::SeqCst)
}

/// Answers page faults by going on behind the instruction, which must be one of three bytes, and `syscall` from user
/// mode by returning, until `act` has ended. For vcpu 0.
pub fn with_traps<T>(act: impl FnOnce() -> T) -> Result<T, Answer> {
    const PAGE_FAULT: u8 = 14;
    let kind = ferroxen_abi::x86::callback::SYSCALL;
    let brief = TrapInfo {
        address: (&raw const pv_brief_fault).addr() as u64,
        ..trap::gate(0, PAGE_FAULT)
    };
    let end = TrapInfo::default();
    trap::set_table(&mut [brief, end]).ok()?;
    trap::set_callback(kind, 0, (&raw const pv_brief_syscall).addr() as u64).ok()?;
    let result = act();
    trap::set_callback(kind, 0, trap::handler(0, Cause::Syscall)).ok()?;
    trap::set_table(&mut [trap::gate(0, PAGE_FAULT), end]).ok()?;
    Ok(result)
}

/// Reads from `address` with an instruction of three bytes, for [`with_traps`].
#[inline(always)]
pub fn touch(address: u64) {
    // SAFETY: one load; when it faults, rax is left as it was.
    unsafe { asm!("mov rax, [rdi]", in("rdi") address, out("rax") _, options(nostack, preserves_flags)) };
}

/// The `iret` hypercall, back to where it was asked from.
#[inline(always)]
pub fn iret_to_self() {
    // SAFETY: the frame names the next instruction, this stack and these selectors; the words are taken off the stack
    // by its own rsp.
    unsafe {
        asm!(
            "mov rcx, rsp",
            "lea r11, [rip + 2f]",
            "push {data}",
            "push rcx",
            "push 0x202",
            "push {code}",
            "push r11",
            "push 0",
            "push rcx",
            "push r11",
            "push rax",
            "mov eax, {iret}",
            "syscall",
            "2:",
            data = const selector::FLAT_RING3_DS,
            code = const selector::FLAT_RING3_CS64 & !3,
            iret = const number::IRET,
            out("rax") _, out("rcx") _, out("r11") _,
        );
    }
}

/// What user mode measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserAct {
    /// Nothing: what measuring costs.
    Nothing,
    /// `syscall`, and back.
    Syscall,
    /// A read from an address where nothing is mapped, and back.
    Fault,
}

/// For `pv_brief_users`.
#[repr(C)]
struct Samples {
    into: *mut u64,
    count: u64,
    unmapped: u64,
}

/// Times `act` in user mode, inside [`with_traps`]: each sample is what the counter went on.
///
/// `Err` when user mode ended otherwise than by its last instruction, `ud2`.
pub fn sample_user(act: UserAct, unmapped: u64, samples: &mut [u64]) -> Result<(), trap::Frame> {
    const INVALID_OPCODE: u8 = 6;
    const APART: u64 = 64;
    let mut what = Samples {
        into: samples.as_mut_ptr(),
        count: samples.len() as u64,
        unmapped,
    };
    let code = (&raw const pv_brief_users).addr() as u64 + APART * act as u64;
    let general = trap::General {
        rdi: crate::hypercall::address(&mut what),
        ..trap::General::default()
    };
    let frame = crate::user::enter(&crate::user::Start::at_address(code, general));
    match frame.cause {
        Cause::Vector(INVALID_OPCODE) => Ok(()),
        _ => Err(frame),
    }
}
