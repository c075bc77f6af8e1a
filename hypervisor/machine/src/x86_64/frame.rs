//! Where a guest's registers stand while the hypervisor works, and the way in and out.
//!
//! Every entry from a guest pushes a whole [`GuestFrame`] at the same place, the top of the CPU's stack,
//! and every return restores it. To run another vcpu, the kernel rewrites the frame in place.
//!
//! SYSCALL changes no stack, so each CPU has a stub of its own that knows where its stack is. The exceptions
//! that can come between that instruction and the next (NMI, machine check, debug) have their own stacks.

use super::layout::{STUB_BYTES, STUBS};
use super::percpu::{self, FRAME_OFFSET};
use super::{gdt, idt, paging, segments, traps};
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use ferroxen_words::CpuId;

/// A guest's registers, as `struct cpu_user_regs` begins.
///
/// On the way out the hardware's rules are enforced whatever stands here: `cs` and `ss` get privilege level
/// 3, interrupts are on, I/O privilege is none. So no value in a frame can hurt the hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "registers by their own names")]
pub struct GuestFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    /// What the exception said about itself; 0 if it says nothing.
    pub error_code: u32,
    /// Number of the trap or interrupt, and above it the kind of entry: see [`GuestFrame::entry`].
    pub vector: u32,
    pub rip: u64,
    pub cs: u16,
    pub _cs_pad: [u16; 3],
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u16,
    pub _ss_pad: [u16; 3],
}

const _: () = assert!(size_of::<GuestFrame>() == 168);

/// How the hypervisor was entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An exception, or `int N` through a gate that guests may use: the vector.
    Trap(u8),
    /// An interrupt from a device or another CPU: the vector.
    Interrupt(u8),
    /// SYSCALL in 64-bit code. `rcx` holds `rip` and `r11` the flags; the way back is SYSRET.
    Syscall64,
    /// SYSCALL in 32-bit code.
    Syscall32,
    /// SYSENTER, which saves neither `rip` nor `rsp`: both are 0 in the frame, and `cs` is a null selector.
    Sysenter,
}

/// Bits of [`GuestFrame::vector`] that tell the kind of entry, and so of the way back.
pub mod entry_kind {
    /// An external interrupt.
    pub const INTERRUPT: u32 = 1 << 8;
    /// SYSCALL from 64-bit code; while set, the return is by SYSRET, which loses `rcx` and `r11`.
    pub const SYSCALL64: u32 = 1 << 9;
    /// SYSCALL from 32-bit code.
    pub const SYSCALL32: u32 = 1 << 10;
    /// SYSENTER.
    pub const SYSENTER: u32 = 1 << 11;
    /// The registers that functions preserve (`rbx`, `rbp`, `r12` to `r15`) are in the CPU as they are in the frame: the
    /// way back need not load them.
    pub const KEPT: u32 = 1 << 12;

    /// The kinds.
    pub(super) const ALL: u32 = INTERRUPT | SYSCALL64 | SYSCALL32 | SYSENTER;
}

impl GuestFrame {
    /// How this entry came about.
    #[inline]
    pub fn entry(&self) -> Entry {
        let number = self.vector as u8;
        match self.vector & entry_kind::ALL {
            entry_kind::INTERRUPT => Entry::Interrupt(number),
            entry_kind::SYSCALL64 => Entry::Syscall64,
            entry_kind::SYSCALL32 => Entry::Syscall32,
            entry_kind::SYSENTER => Entry::Sysenter,
            _ => Entry::Trap(number),
        }
    }

    /// Makes the return restore everything, `rcx`, `r11`, `cs` and `ss` included (by IRET).
    ///
    /// Whoever changes other registers of a SYSCALL's frame than its arguments and `rax` calls this.
    #[inline]
    pub fn return_fully(&mut self) {
        self.vector &= !(entry_kind::SYSCALL64 | entry_kind::KEPT);
    }

    /// Makes the return restore what functions do not preserve, `rcx`, `r11`, `cs` and `ss` included (by IRET).
    #[inline]
    pub fn return_by_iret(&mut self) {
        self.vector &= !entry_kind::SYSCALL64;
    }

    /// Makes the return lose `rcx` and `r11`, and go to flat 64-bit code whatever `cs` and `ss` are (by SYSRET).
    #[inline]
    pub fn return_by_sysret(&mut self) {
        self.vector = self.vector & entry_kind::KEPT | entry_kind::SYSCALL64;
    }

    /// Tells that nothing in the frame of an exception has changed yet.
    #[inline]
    pub fn is_unchanged(&mut self) {
        self.vector |= entry_kind::KEPT;
    }

    /// Puts another vcpu's registers in place of those that came in. The return restores them all.
    #[inline]
    pub fn replace(&mut self, other: &GuestFrame) {
        *self = *other;
        self.vector &= !entry_kind::KEPT;
    }
}

/// Why a return to the guest failed: what IRET raised. The frame is as it was before the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReturnFault {
    /// The exception: #GP, #NP, #SS, or #PF where a descriptor should be.
    pub vector: u8,
    /// Its error code.
    pub error_code: u32,
}

/// What the kernel gives us to call; the image joins the names to its functions.
pub(super) mod kernel_symbols {
    use super::{GuestFrame, ReturnFault};
    use crate::x86_64::handoff::Handoff;
    use ferroxen_words::{CpuId, Vaddr};

    unsafe extern "Rust" {
        #[link_name = "ferroxen_start"]
        pub safe fn start(handoff: Handoff) -> !;
        #[link_name = "ferroxen_secondary"]
        pub safe fn secondary(cpu: CpuId) -> !;
        #[link_name = "ferroxen_idle_interrupt"]
        pub safe fn idle_interrupt(vector: u8);
        #[link_name = "ferroxen_ldt_fault"]
        pub safe fn ldt_fault(offset: usize) -> bool;
        #[link_name = "ferroxen_guest_fault"]
        pub safe fn guest_fault(at: Vaddr, code: u32) -> bool;
        #[link_name = "ferroxen_return_failed"]
        pub safe fn return_failed(frame: &mut GuestFrame, fault: ReturnFault);
    }
    unsafe extern "C" {
        #[link_name = "ferroxen_syscall64"]
        pub safe fn syscall64(frame: &mut GuestFrame);
        #[link_name = "ferroxen_other_syscall"]
        pub safe fn other_syscall(frame: &mut GuestFrame);
        #[link_name = "ferroxen_trap"]
        pub safe fn trap(frame: &mut GuestFrame);
        #[link_name = "ferroxen_interrupt"]
        pub safe fn interrupt(frame: &mut GuestFrame);
    }
}

/// RFLAGS that a guest may run with: no I/O privilege, no nested task, no virtual-8086 mode.
const FLAGS_ALLOWED: u32 = 0x003d_0fd7;
/// Interrupts are on in every guest; bit 1 is always set.
const FLAGS_FORCED: u32 = 0x202;
/// What SYSCALL clears: VM, RF, NT, IOPL, DF, IF, TF, AC.
const SYSCALL_CLEARS: u64 = 0x0007_7700;

global_asm!(
    ".pushsection .text.entry, \"ax\"",
    // One stub for each vector: an error code if the CPU gave none, and the vector.
    ".balign 16",
    ".global ferroxen_vector_stubs",
    "ferroxen_vector_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign {stride}",
    ".if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30",
    ".else",
    "push 0",
    ".endif",
    ".if vector < 0x20 || vector == 0x80",
    ".byte 0xc7, 0x44, 0x24, 0x04", // mov dword ptr [rsp + 4], ...
    ".long vector",
    ".else",
    ".byte 0xc7, 0x44, 0x24, 0x04",
    ".long vector + {interrupt_kind} + {kept}",
    ".endif",
    ".if vector == 1 || vector == 2 || vector == 8 || vector == 18",
    "jmp entry_own_stack",
    ".elseif vector < 0x20 || vector == 0x80",
    "jmp entry_trap",
    ".else",
    "jmp entry_interrupt",
    ".endif",
    ".set vector, vector + 1",
    ".endr",
    "",
    ".macro push_registers",
    "push rdi", "push rsi", "push rdx", "push rcx", "push rax",
    "push r8", "push r9", "push r10", "push r11",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    ".endm",
    "",
    "",
    ".balign 16",
    "entry_trap:",
    "push_registers",
    "cld",
    "mov rdi, rsp",
    "test byte ptr [rsp + {cs}], 3",
    "jz entry_from_hypervisor",
    "mov qword ptr [rsp + {time}], 0",
    "sub rsp, 8",
    "call {trap}",
    "jmp exit_kept",
    "",
    ".balign 16",
    "entry_interrupt:",
    "push_registers",
    "cld",
    "mov rdi, rsp",
    "test byte ptr [rsp + {cs}], 3",
    "jz entry_from_hypervisor",
    "mov qword ptr [rsp + {time}], 0",
    "sub rsp, 8",
    "call {interrupt}",
    "jmp exit_kept",
    "",
    // SYSENTER: the stack pointer stands at the end of the frame; neither rip nor rsp is known.
    ".balign 16",
    ".global ferroxen_sysenter",
    "ferroxen_sysenter:",
    "push {ss64}",
    "push 0",
    "pushfq",
    "or dword ptr [rsp], 0x200",
    "push 3",
    "push 0",
    "push 0",
    "mov dword ptr [rsp + 4], {sysenter_kind}",
    "jmp entry_other_syscall",
    "",
    // From a CPU's stub: the stack pointer stands at the frame's rsp, which is stored already.
    ".balign 16",
    ".global ferroxen_entry32",
    "ferroxen_entry32:",
    "mov qword ptr [rsp + 8], {ss32}",
    "push r11",
    "push {cs32}",
    "push rcx",
    "push 0",
    "mov dword ptr [rsp + 4], {syscall32_kind}",
    "entry_other_syscall:",
    "push_registers",
    "mov rdi, rsp",
    "mov qword ptr [rsp + {time}], 0",
    "sub rsp, 8",
    "call {other_syscall}",
    "jmp ferroxen_exit_call",
    "",
    ".balign 16",
    ".global ferroxen_entry64",
    "ferroxen_entry64:",
    "mov qword ptr [rsp + 8], {ss64}",
    "push r11",
    "push {cs64}",
    "push rcx",
    "push 0",
    "mov dword ptr [rsp + 4], {syscall64_kind} + {kept}",
    "push_registers",
    "mov rdi, rsp",
    "mov qword ptr [rsp + {time}], 0",
    "sub rsp, 8",
    "call {syscall64}",
    "",
    // The way out, below 8 bytes that keep the stack aligned: by SYSRET, if the address is canonical; else by IRET. What
    // functions preserve is not loaded where the guest's is in the CPU still.
    "exit_kept:",
    "cmp dword ptr [rsp + 8 + {vector}], {syscall64_kind} + {kept}",
    "jne 3f",
    "mov rcx, [rsp + 8 + {rip}]",
    "mov r11, rcx",
    "sar r11, 47",
    "inc r11d",
    "cmp r11d, 1",
    "ja 3f",
    "mov rdi, [rsp + 8 + {rdi}]",
    "mov rsi, [rsp + 8 + {rsi}]",
    "mov rdx, [rsp + 8 + {rdx}]",
    "mov r10, [rsp + 8 + {r10}]",
    "mov r8, [rsp + 8 + {r8}]",
    "mov r9, [rsp + 8 + {r9}]",
    "mov rax, [rsp + 8 + {rax}]",
    "mov r11d, [rsp + 8 + {rflags}]",
    "and r11d, {flags_allowed}",
    "or r11d, {flags_forced}",
    "mov rsp, [rsp + 8 + {rsp}]",
    "sysretq",
    "3: cmp dword ptr [rsp + 8 + {vector}], {kept}",
    "jne ferroxen_exit_call",
    "add rsp, 8 + {r11}",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rax",
    "pop rcx", "pop rdx", "pop rsi", "pop rdi",
    "2: or byte ptr [rsp + 16], 3",
    "and dword ptr [rsp + 24], {flags_allowed}",
    "or dword ptr [rsp + 24], {flags_forced}",
    "or byte ptr [rsp + 40], 3",
    "add rsp, 8",
    ".global ferroxen_iret",
    "ferroxen_iret:",
    "iretq",
    "",
    // The same, and all registers are loaded. Here IRET does what SYSRET would have done.
    ".global ferroxen_exit_call",
    "ferroxen_exit_call:",
    "add rsp, 8",
    ".global ferroxen_exit",
    "ferroxen_exit:",
    "test dword ptr [rsp + {vector}], {syscall64_kind}",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rax",
    "pop rcx", "pop rdx", "pop rsi", "pop rdi",
    "jz 2b",
    "mov rcx, [rsp + 8]",
    "mov r11d, [rsp + 24]",
    "and r11d, {flags_allowed}",
    "or r11d, {flags_forced}",
    "mov word ptr [rsp + 16], {cs64}",
    "mov word ptr [rsp + 40], {ss64}",
    "jmp 2b",
    "",
    // From our own code, on whatever stack it has.
    ".balign 16",
    "entry_from_hypervisor:",
    "mov rbp, [rsp + {rbp}]",
    "mov rbx, rsp",
    "and rsp, -16",
    "call {host}",
    "mov rsp, rbx",
    "restore_and_return:",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rax",
    "pop rcx", "pop rdx", "pop rsi", "pop rdi",
    "add rsp, 8",
    "iretq",
    "",
    // Exceptions with stacks of their own. The handler answers where a guest's frame now stands on the main
    // stack, if the kernel is to see it; else we go back to whatever was interrupted.
    ".balign 16",
    "entry_own_stack:",
    "push_registers",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp",
    "and rsp, -16",
    "call {own_stack}",
    "mov rsp, rbx",
    "test rax, rax",
    "jz restore_and_return",
    "mov rsp, rax",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "sub rsp, 8",
    "call {trap}",
    "jmp ferroxen_exit_call",
    ".popsection",
    stride = const idt::STUB_STRIDE,
    interrupt_kind = const entry_kind::INTERRUPT,
    syscall64_kind = const entry_kind::SYSCALL64,
    syscall32_kind = const entry_kind::SYSCALL32,
    sysenter_kind = const entry_kind::SYSENTER,
    cs64 = const segments::FLAT_RING3_CS64,
    ss64 = const segments::FLAT_RING3_SS64,
    cs32 = const segments::FLAT_RING3_CS32,
    ss32 = const segments::FLAT_RING3_SS32,
    cs = const offset_of!(GuestFrame, cs),
    vector = const offset_of!(GuestFrame, vector),
    kept = const entry_kind::KEPT,
    rip = const offset_of!(GuestFrame, rip),
    rflags = const offset_of!(GuestFrame, rflags),
    rsp = const offset_of!(GuestFrame, rsp),
    rax = const offset_of!(GuestFrame, rax),
    rdi = const offset_of!(GuestFrame, rdi),
    rsi = const offset_of!(GuestFrame, rsi),
    rdx = const offset_of!(GuestFrame, rdx),
    r8 = const offset_of!(GuestFrame, r8),
    r9 = const offset_of!(GuestFrame, r9),
    r10 = const offset_of!(GuestFrame, r10),
    r11 = const offset_of!(GuestFrame, r11),
    rbp = const offset_of!(GuestFrame, rbp),
    time = const size_of::<GuestFrame>() + offset_of!(percpu::CpuInfo, entered_at),
    flags_allowed = const FLAGS_ALLOWED,
    flags_forced = const FLAGS_FORCED,
    trap = sym kernel_symbols::trap,
    syscall64 = sym kernel_symbols::syscall64,
    other_syscall = sym kernel_symbols::other_syscall,
    interrupt = sym traps::interrupt_from_guest,
    host = sym traps::from_hypervisor,
    own_stack = sym traps::on_own_stack,
);

unsafe extern "C" {
    static ferroxen_iret: u8;
    static ferroxen_sysenter: u8;
    static ferroxen_entry32: u8;
    static ferroxen_entry64: u8;
}

/// Address of the instruction that returns to guests.
pub(super) fn iret_address() -> u64 {
    core::ptr::addr_of!(ferroxen_iret) as u64
}

/// Where a guest's frame stands on this CPU.
#[inline]
pub(super) fn place() -> *mut GuestFrame {
    (percpu::block() + FRAME_OFFSET) as *mut GuestFrame
}

/// Leaves the hypervisor for a guest with these registers; the first way in after boot.
///
/// Nothing on the stack survives. (Below an entry from a guest, rewrite the frame and return instead.)
pub fn enter(frame: GuestFrame) -> ! {
    // SAFETY: the frame's place is above every main stack and holds no live frame, since whoever calls this
    // never comes back to one. The exit path enforces the rules of [`GuestFrame`].
    unsafe {
        place().write(frame);
        asm!("mov rsp, {}", "jmp ferroxen_exit", in(reg) place(), options(noreturn))
    }
}

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;

/// Opens this CPU's doors for system calls.
///
/// # Safety
/// Called once on each CPU, with its number and its mapped block, after its GDT and the IDT are loaded.
pub(super) unsafe fn init_this(cpu: usize, block: u64) {
    let stub = STUBS + cpu as u64 * STUB_BYTES;
    let frame_rsp = block + FRAME_OFFSET + offset_of!(GuestFrame, rsp) as u64;
    let writable = paging::map_stub(cpu);
    for (at, target) in [
        (0, core::ptr::addr_of!(ferroxen_entry64)),
        (STUB_BYTES / 2, core::ptr::addr_of!(ferroxen_entry32)),
    ] {
        let code = stub_code(stub + at, frame_rsp, target as u64);
        // SAFETY: half of this CPU's own stub, in memory that `map_stub` took for stubs.
        unsafe {
            writable
                .add(at as usize)
                .copy_from_nonoverlapping(code.as_ptr(), code.len())
        };
    }
    let star = u64::from(gdt::SYSRET_BASE) << 48 | u64::from(gdt::CODE) << 32;
    let doors = [
        (STAR, star),
        (LSTAR, stub),
        (CSTAR, stub + STUB_BYTES / 2),
        (SFMASK, SYSCALL_CLEARS),
        (SYSENTER_CS, gdt::CODE.into()),
        (SYSENTER_ESP, block + percpu::INFO_OFFSET),
        (SYSENTER_EIP, core::ptr::addr_of!(ferroxen_sysenter) as u64),
    ];
    for (msr, value) in doors {
        // SAFETY: each leads to the code that was written for it. (No SYSENTER: nothing to write.)
        let written = unsafe { super::cpu::try_write_msr(msr, value) };
        assert!(
            written || msr <= SYSENTER_EIP,
            "{} refuses system calls",
            CpuId(cpu as u32)
        );
    }
}

/// Machine code of a stub at `at`: store rsp in the frame, point rsp there, go on.
fn stub_code(at: u64, frame_rsp: u64, target: u64) -> [u8; 19] {
    let distance = |to: u64, next: u64| (to.wrapping_sub(at + next) as i64 as i32).to_le_bytes();
    let mut code = [0; 19];
    code[0..3].copy_from_slice(&[0x48, 0x89, 0x25]); // mov [rip + d], rsp
    code[3..7].copy_from_slice(&distance(frame_rsp, 7));
    code[7..10].copy_from_slice(&[0x48, 0x8d, 0x25]); // lea rsp, [rip + d]
    code[10..14].copy_from_slice(&distance(frame_rsp, 14));
    code[14] = 0xe9; // jmp
    code[15..19].copy_from_slice(&distance(target, 19));
    code
}
