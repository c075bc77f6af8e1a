//! Machine code as bytes: any instruction, with any registers, in the kernel or in user mode.

use core::arch::asm;

use crate::memory::Page;
use crate::trap::{self, Cause, Frame, General};
use crate::user;

/// Some instructions, in a page of their own.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    page: Page,
    length: usize,
}

/// `ret`
const RETURN: [u8; 1] = [0xc3];
/// `syscall`
const LEAVE: [u8; 2] = [0x0f, 0x05];

impl Code {
    /// Makes room for instructions; [`Self::set`] puts them there.
    pub fn new() -> Self {
        Self {
            page: Page::new(),
            length: 0,
        }
    }

    /// Replaces the instructions. Branches are relative; they may fall off the end.
    pub fn set(&mut self, bytes: &[u8]) -> &mut Self {
        for (offset, byte) in bytes.iter().enumerate() {
            self.page.set_byte(offset, *byte);
        }
        self.length = bytes.len();
        self
    }

    /// Returns where the first instruction lies.
    pub fn address(&self) -> u64 {
        self.page.address()
    }

    fn end_with(&self, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            self.page.set_byte(self.length + offset, *byte);
        }
    }

    /// Runs them in the kernel, on its stack, with `registers`, which then hold what was left there.
    pub fn in_kernel(&self, registers: &mut General) -> Result<(), Frame> {
        self.end_with(&RETURN);
        trap::attempt(|| call(self.address(), registers))
    }

    /// Prepares to run them in user mode with `registers`: behind them comes `syscall`.
    pub fn user_start(&self, registers: General) -> user::Start {
        self.end_with(&LEAVE);
        user::Start::at_address(self.address(), registers)
    }

    /// Runs them in user mode with `registers`; `Err` when they do not get to their end.
    pub fn in_user(&self, registers: &mut General) -> Result<(), Frame> {
        let frame = user::enter(&self.user_start(*registers));
        let end = self.address() + (self.length + LEAVE.len()) as u64;
        if frame.cause == Cause::Syscall && frame.rip == end {
            *registers = frame.general;
            return Ok(());
        }
        Err(frame)
    }
}

impl Default for Code {
    fn default() -> Self {
        Self::new()
    }
}

fn call(code: u64, registers: &mut General) {
    // SAFETY: all registers are loaded from the structure and stored into it again (offsets: `General`); rbx and rbp
    // are kept on the stack meanwhile, and a trap abandons all of it. What the code does otherwise is what the
    // caller wrote it to do.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push rcx",
            "push rax",
            "mov r15, [rcx]",
            "mov r14, [rcx + 8]",
            "mov r13, [rcx + 16]",
            "mov r12, [rcx + 24]",
            "mov r10, [rcx + 32]",
            "mov r9, [rcx + 40]",
            "mov r8, [rcx + 48]",
            "mov rbp, [rcx + 56]",
            "mov rdi, [rcx + 64]",
            "mov rsi, [rcx + 72]",
            "mov rdx, [rcx + 80]",
            "mov rbx, [rcx + 88]",
            "mov rax, [rcx + 96]",
            "mov r11, [rcx + 120]",
            "mov rcx, [rcx + 112]",
            "call [rsp]",
            "cld",
            "mov [rsp], rcx",
            "mov rcx, [rsp + 8]",
            "mov [rcx], r15",
            "mov [rcx + 8], r14",
            "mov [rcx + 16], r13",
            "mov [rcx + 24], r12",
            "mov [rcx + 32], r10",
            "mov [rcx + 40], r9",
            "mov [rcx + 48], r8",
            "mov [rcx + 56], rbp",
            "mov [rcx + 64], rdi",
            "mov [rcx + 72], rsi",
            "mov [rcx + 80], rdx",
            "mov [rcx + 88], rbx",
            "mov [rcx + 96], rax",
            "mov [rcx + 120], r11",
            "pop rax",
            "mov [rcx + 112], rax",
            "pop rcx",
            "pop rbp",
            "pop rbx",
            inlateout("rcx") core::ptr::from_mut(registers) => _,
            inlateout("rax") code => _,
            lateout("rdx") _, lateout("rsi") _, lateout("rdi") _, lateout("r8") _, lateout("r9") _,
            lateout("r10") _, lateout("r11") _, lateout("r12") _, lateout("r13") _, lateout("r14") _,
            lateout("r15") _,
        );
    }
}
