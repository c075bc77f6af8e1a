//! Traps, and how to survive them.
//!
//! The hypervisor enters a PV kernel by pushing a frame on its stack and jumping to the handler that the kernel
//! named: one for each of the 256 vectors (`set_trap_table`), one for events, for `syscall` from user mode, for
//! a return that went wrong (failsafe), and so on (`callback_op`). All of them are stubs here that end in one
//! function, which
//!
//! 1. notes an event and resumes;
//! 2. or asks the hook, if a guest has set one ([`hook`]);
//! 3. or abandons what was under way and reports the frame to whoever called [`attempt`] or [`crate::user::run`];
//! 4. or, if nobody expected a trap, prints it and ends the guest.
//!
//! The frame (arch-x86/xen-x86_64.h, "TRAP" and Linux's `xen-asm.S`): rcx, r11, the error code if the exception
//! has one, then what the CPU would push. It ends on a multiple of 16, which is how one with an error code is
//! told from one without.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use ferroxen_abi::x86::{CallbackRegister, IretContext, TrapInfo, callback, selector};

use crate::hypercall::{self, Answer, address, number};
use crate::vcpu;
use crate::{event, power, println};

/// Why the kernel was entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// An exception, or an `int` instruction.
    Vector(u8),
    /// The event callback.
    Event,
    /// The failsafe callback: a return to user mode found bad segments.
    Failsafe,
    /// `syscall` from 64-bit user mode.
    Syscall,
    /// `sysenter` from user mode.
    Sysenter,
    /// The NMI callback.
    Nmi,
    /// `syscall` from 32-bit user mode.
    Syscall32,
}

/// The entries that are no vectors and the numbers of their callbacks, in the order of their stubs.
pub const CALLBACKS: [(Cause, u16); 6] = [
    (Cause::Event, callback::EVENT),
    (Cause::Failsafe, callback::FAILSAFE),
    (Cause::Syscall, callback::SYSCALL),
    (Cause::Sysenter, callback::SYSENTER),
    (Cause::Nmi, callback::NMI),
    (Cause::Syscall32, callback::SYSCALL32),
];

impl Cause {
    fn of_stub(index: usize) -> Self {
        match u8::try_from(index) {
            Ok(vector) => Self::Vector(vector),
            Err(_) => CALLBACKS.get(index - 256).map_or(Self::Nmi, |(cause, _)| *cause),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 20] = [
            "#DE",
            "#DB",
            "NMI",
            "#BP",
            "#OF",
            "#BR",
            "#UD",
            "#NM",
            "#DF",
            "vector 9",
            "#TS",
            "#NP",
            "#SS",
            "#GP",
            "#PF",
            "vector 15",
            "#MF",
            "#AC",
            "#MC",
            "#XM",
        ];
        match self {
            Self::Vector(vector) => match NAMES.get(usize::from(*vector)) {
                Some(name) => f.write_str(name),
                None => write!(f, "vector {vector:#x}"),
            },
            Self::Event => f.write_str("event"),
            Self::Failsafe => f.write_str("failsafe"),
            Self::Syscall => f.write_str("syscall"),
            Self::Sysenter => f.write_str("sysenter"),
            Self::Nmi => f.write_str("nmi callback"),
            Self::Syscall32 => f.write_str("syscall32"),
        }
    }
}

/// What was pushed, and the other registers as they were.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "registers")]
pub struct Frame {
    pub cause: Cause,
    pub error_code: Option<u64>,
    /// The faulting address, as `vcpu_info` says; meant for page faults.
    pub cr2: u64,
    /// ds, es, fs and gs, if they came with the frame.
    pub segments: [u64; 4],
    pub rip: u64,
    /// The selector; bits 32 and up hold the event mask as it was.
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub general: General,
}

/// The general registers except rsp.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[expect(missing_docs, reason = "registers")]
pub struct General {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rax: u64,
    /// Which stub pushed this; not a register.
    #[doc(hidden)]
    pub tag: u64,
    pub rcx: u64,
    pub r11: u64,
}

impl Frame {
    /// Tells whether user mode was interrupted. Kernel code shows a selector with privilege 0.
    pub fn was_in_user_mode(&self) -> bool {
        self.cs & 3 == 3
    }

    /// Returns the event mask that was in force, from the upper half of the code selector's slot.
    pub fn saved_mask(&self) -> u64 {
        self.cs >> 32 & 0xff
    }
}

impl fmt::Display for Frame {
    /// The cause and the error code: what is the same in every run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        self.error_code.map_or(Ok(()), |code| write!(f, "({code:x})"))
    }
}

/// What to do after a hook has seen a trap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Go on with the frame as the hook left it.
    Resume,
    /// Treat the trap as if there were no hook.
    Pass,
}

/// What a hook is: it may change the frame.
pub type Hook = fn(&mut Frame) -> Next;

/// The hook, as a pointer; null without one.
static HOOK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Lets `hook` see every trap (but not plain events) until `act` has ended.
pub fn hook<T>(hook: Hook, act: impl FnOnce() -> T) -> T {
    let before = HOOK.swap(hook as *mut (), Ordering::SeqCst);
    let result = act();
    HOOK.store(before, Ordering::SeqCst);
    result
}

fn current_hook() -> Option<Hook> {
    let pointer = HOOK.load(Ordering::SeqCst);
    // SAFETY: only `hook` stores here: null, or a pointer that was made of a `Hook`.
    (!pointer.is_null()).then(|| unsafe { core::mem::transmute::<*mut (), Hook>(pointer) })
}

/// Where a vcpu goes back to when a trap ends what it was doing, and the trap itself.
pub(crate) struct Recovery {
    /// The stack pointer inside `pv_attempt`; 0 when nobody expects a trap.
    pub(crate) stack: AtomicU64,
    frame: UnsafeCell<MaybeUninit<Frame>>,
}

// SAFETY: each vcpu has its own, and touches no other's.
unsafe impl Sync for Recovery {}

impl Recovery {
    pub(crate) const fn new() -> Self {
        Self {
            stack: AtomicU64::new(0),
            frame: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// Takes the frame that ended an attempt.
    pub(crate) fn taken(&self) -> Frame {
        // SAFETY: asked only after `pv_attempt` said that it was recovered from, before which `enter` has
        // written the frame; the vcpu is ours, so nobody writes it meanwhile.
        unsafe { (*self.frame.get()).assume_init() }
    }
}

/// Does `act`; a trap on the way ends it, and is returned instead.
///
/// What `act` had on its stack is abandoned without being dropped.
pub fn attempt<T, F: FnOnce() -> T>(act: F) -> Result<T, Frame> {
    struct Work<T, F> {
        act: Option<F>,
        result: Option<T>,
    }
    extern "C" fn perform<T, F: FnOnce() -> T>(work: *mut u8) {
        // SAFETY: `pv_attempt` passes on the pointer to our caller's `work`, which nobody else uses meanwhile.
        let work = unsafe { &mut *work.cast::<Work<T, F>>() };
        work.result = work.act.take().map(|act| act());
    }
    let mut work = Work {
        act: Some(act),
        result: None,
    };
    let recovery = vcpu::recovery();
    let pointer = core::ptr::from_mut(&mut work).cast();
    // SAFETY: `perform` gets the type of work it was made for, which outlives the call. If a trap cuts it
    // short, its frames are left without running destructors, which is allowed to any code.
    let trapped = unsafe { pv_attempt(recovery.stack.as_ptr(), perform::<T, F>, pointer) };
    match work.result {
        Some(result) if trapped == 0 => Ok(result),
        _ => Err(recovery.taken()),
    }
}

unsafe extern "C" {
    /// Notes where to come back to in `slot`, calls `act(work)` and returns 0; returns 1 after a trap.
    fn pv_attempt(slot: *mut u64, act: extern "C" fn(*mut u8), work: *mut u8) -> u64;
    /// Goes on in the `pv_attempt` (or the entry to user mode) that noted `stack`.
    fn pv_recover(stack: u64) -> !;
    static pv_stubs_0: u8;
    static pv_stubs_1: u8;
}

global_asm!(
    ".text",
    // The stubs: one every 16 bytes. `push` by its opcode, since here it would take the name for an address.
    ".macro pv_stubs vcpu",
    "    .balign 16",
    "    .globl pv_stubs_\\vcpu",
    "pv_stubs_\\vcpu:",
    "    .set pv_stub, 0",
    "    .rept {stubs}",
    "        .balign 16",
    "        .byte 0x68",
    "        .long pv_stub + (\\vcpu << 16)",
    "        jmp pv_trap",
    "        .set pv_stub, pv_stub + 1",
    "    .endr",
    ".endm",
    "pv_stubs 0",
    "pv_stubs 1",
    "pv_trap:",
    "    push rax",
    "    push rbx",
    "    push rdx",
    "    push rsi",
    "    push rdi",
    "    push rbp",
    "    push r8",
    "    push r9",
    "    push r10",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    mov rdi, rsp",
    "    mov rbp, rsp",
    "    and rsp, -16",
    "    cld",
    "    call {enter}",
    // It returns what the iret hypercall wants to find on the stack; that has rax, rcx and r11.
    "    mov rsp, rbp",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rbp",
    "    pop rdi",
    "    pop rsi",
    "    pop rdx",
    "    pop rbx",
    "    mov rsp, rax",
    "    mov eax, {iret}",
    "    syscall",
    "    ud2",
    ".globl pv_attempt",
    "pv_attempt:",
    "    push rbp",
    "    push rbx",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    push qword ptr [rdi]",
    "    push rdi",
    "    mov [rdi], rsp",
    "    mov rdi, rdx",
    "    sub rsp, 8",
    "    call rsi",
    "    add rsp, 8",
    "    xor eax, eax",
    "1:  pop rdi",
    "    pop qword ptr [rdi]",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    ".globl pv_recover",
    "pv_recover:",
    "    mov rsp, rdi",
    "    mov eax, 1",
    "    jmp 1b",
    // Like pv_attempt, but goes to user mode: slot, the iret hypercall's frame, all other registers. The
    // hypercall that does it is in rax.
    ".globl pv_enter_user",
    "pv_enter_user:",
    "    push rbp",
    "    push rbx",
    "    push r12",
    "    push r13",
    "    push r14",
    "    push r15",
    "    push qword ptr [rdi]",
    "    push rdi",
    "    mov [rdi], rsp",
    "    mov rsp, rdx",
    "    mov rcx, rsi",
    "    pop r15",
    "    pop r14",
    "    pop r13",
    "    pop r12",
    "    pop r10",
    "    pop r9",
    "    pop r8",
    "    pop rbp",
    "    pop rdi",
    "    pop rsi",
    "    pop rdx",
    "    pop rbx",
    "    pop rax",
    "    mov rsp, rcx",
    "    syscall",
    "    ud2",
    stubs = const 256 + CALLBACKS.len(),
    iret = const number::IRET,
    enter = sym enter,
);

/// Where every stub ends. Returns what the iret hypercall shall return to, if anything.
extern "C" fn enter(saved: *mut General) -> *mut IretContext {
    // SAFETY: the stub passes the stack pointer, above which lie the registers it pushed and then the frame
    // that the hypervisor pushed; nobody else uses them.
    let mut frame = unsafe { Frame::read(saved) };
    let vcpu = (frame.general.tag >> 16) as usize;
    if frame.cause == Cause::Event {
        event::upcall(vcpu);
    } else if current_hook().map_or(Next::Pass, |hook| hook(&mut frame)) == Next::Pass {
        let recovery = vcpu::recovery_of(vcpu);
        let stack = recovery.stack.load(Ordering::SeqCst);
        if stack == 0 {
            println!("unexpected {frame} on vcpu {vcpu}: {frame:x?}");
            power::off(power::CRASH);
        }
        // SAFETY: this vcpu's own, and it is here, not reading it.
        unsafe { (*recovery.frame.get()).write(frame) };
        // SAFETY: the stack pointer was noted by a `pv_attempt` or an entry to user mode that has not returned:
        // when it does, it puts back what was there before.
        unsafe { pv_recover(stack) };
    }
    // SAFETY: as above; the frame goes back to where it came from.
    unsafe { frame.write(saved) }
}

impl Frame {
    /// Returns where `rip` lies above the registers, in words, and whether an error code lies below it.
    fn layout(saved: *const General, cause: Cause) -> (usize, bool) {
        // SAFETY: an address is computed, nothing is read.
        let pushed = unsafe { &raw const (*saved).rcx }.addr();
        match cause {
            Cause::Failsafe => (4, false),
            Cause::Vector(_) if pushed.is_multiple_of(16) => (1, true),
            _ => (0, false),
        }
    }

    /// # Safety
    /// `saved` points to the registers that a stub pushed, followed by the hypervisor's frame.
    unsafe fn read(saved: *const General) -> Self {
        // SAFETY: the caller's promise.
        let general = unsafe { *saved };
        let cause = Cause::of_stub((general.tag & 0xffff) as usize);
        let (skip, has_code) = Self::layout(saved, cause);
        // SAFETY: still within what the caller promised: the words up to ss.
        let word = |index: usize| unsafe { *saved.add(1).cast::<u64>().add(index) };
        Self {
            cause,
            error_code: has_code.then(|| word(0)),
            cr2: event::faulting_address((general.tag >> 16) as usize),
            segments: if skip == 4 { [0, 1, 2, 3].map(word) } else { [0; 4] },
            rip: word(skip),
            cs: word(skip + 1),
            rflags: word(skip + 2),
            rsp: word(skip + 3),
            ss: word(skip + 4),
            general,
        }
    }

    /// Writes the frame back, and below its `rip` what the iret hypercall expects there.
    ///
    /// # Safety
    /// As for [`Frame::read`], with the same pointer.
    unsafe fn write(&self, saved: *mut General) -> *mut IretContext {
        let (skip, _) = Self::layout(saved, self.cause);
        // SAFETY: the nine words end at ss, so they start at most four words below the end of the registers:
        // those are rax, tag, rcx and r11, of which `self` has a copy.
        unsafe {
            saved.write(self.general);
            let context = saved.add(1).cast::<u64>().add(skip).sub(4).cast::<IretContext>();
            context.write(IretContext {
                rax: self.general.rax,
                r11: self.general.r11,
                rcx: self.general.rcx,
                flags: 0,
                rip: self.rip,
                cs: self.cs & 0xffff,
                rflags: self.rflags,
                rsp: self.rsp,
                ss: self.ss,
            });
            context
        }
    }
}

/// Returns the address of a stub of `vcpu`.
fn stub(vcpu: usize, index: usize) -> u64 {
    let base = if vcpu == 0 {
        &raw const pv_stubs_0
    } else {
        &raw const pv_stubs_1
    };
    (base.addr() + index * 16) as u64
}

/// Returns the address of the handler for `cause` on `vcpu`, as callbacks and contexts want it.
pub fn handler(vcpu: usize, cause: Cause) -> u64 {
    let index = match cause {
        Cause::Vector(vector) => usize::from(vector),
        other => {
            256 + CALLBACKS
                .iter()
                .position(|(callback, _)| *callback == other)
                .unwrap_or(0)
        }
    };
    stub(vcpu, index)
}

/// Returns the usual entry of a trap table: user mode may use `int3`, `into` and `int 0x80`.
pub fn gate(vcpu: usize, vector: u8) -> TrapInfo {
    let flags = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
    TrapInfo {
        vector,
        flags,
        cs: selector::FLAT_RING3_CS64,
        pad: 0,
        address: handler(vcpu, Cause::Vector(vector)),
    }
}

/// Installs `table`, which an entry with address 0 must end.
pub fn set_table(table: &mut [TrapInfo]) -> Answer {
    hypercall::call(number::SET_TRAP_TABLE, [address(table)])
}

/// Installs one callback.
pub fn set_callback(kind: u16, flags: u16, handler: u64) -> Answer {
    let mut request = CallbackRegister {
        kind,
        flags,
        pad: 0,
        address: handler,
    };
    hypercall::call(number::CALLBACK_OP, [callback::OP_REGISTER, address(&mut request)])
}

/// Installs all handlers of `vcpu`, which calls this itself.
pub(crate) fn install(vcpu: usize) {
    let mut table = [TrapInfo::default(); 257];
    for vector in 0..=255 {
        table[usize::from(vector)] = gate(vcpu, vector);
    }
    set_table(&mut table);
    for (cause, kind) in CALLBACKS {
        // Not every CPU has every way in (sysenter, 32-bit syscall): such a refusal leaves nothing to handle.
        set_callback(kind, 0, handler(vcpu, cause));
    }
}
