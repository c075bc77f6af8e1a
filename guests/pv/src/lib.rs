//! What a tiny PV kernel stands on.
//!
//! A guest of ours is a kernel of some hundred lines that proves one behaviour of the hypervisor under it, or
//! measures one, or attacks one. This crate is what all of them would otherwise write again: the entry point
//! and its ELF notes ([`main!`]), hypercalls ([`hypercall`]), traps that can be survived ([`trap`]), user mode
//! ([`user`]), page tables ([`memory`], [`tables`]), a second vcpu ([`vcpu`]), event channels ([`event`]),
//! grants ([`grant`]), a clock ([`time`]), xenstore ([`store`]), a console ([`console`]), the instructions
//! that Rust has no words for ([`insn`], [`code`]), and the shortest handlers for those that measure ([`brief`]). It
//! needs nothing but the public guest ABI, so what is built on it runs on any Xen.
//!
//! **The address space** is the one the domain builder made: virtual address 0 is page 0 of the domain, the
//! image lies at 1 MiB. Pages to play with come from a pool inside the image, so they are always mapped.
//!
//! **What "safe" means here.** A kernel that sends wild pointers to its host on purpose cannot promise Rust
//! that its memory stays as it was. So a function of this crate is `unsafe` when it can break the crate itself
//! unawares; one whose effect is what its arguments say (a hypercall, a store through a mapping) is not. Shared
//! memory is only ever reached by volatile or atomic accesses.
//!
//! UNSAFETY: this is a kernel. It is entered with a raw pointer, its hypercalls are instructions, its traps
//! arrive on a bare stack, and it shares memory with its host.
#![no_std]
#![expect(clippy::result_large_err, reason = "there is no heap to put a frame on")]

pub mod brief;
pub mod code;
pub mod console;
pub mod event;
pub mod grant;
pub mod hypercall;
pub mod insn;
pub mod memory;
pub mod power;
pub mod start;
pub mod store;
pub mod tables;
pub mod time;
pub mod trap;
pub mod user;
pub mod vcpu;

pub use ferroxen_abi as abi;
pub use hypercall::Answer;

/// Makes a kernel out of a function: the entry point, and the notes that tell the domain builder of it.
///
/// The function runs on vcpu 0 with traps, events and the console ready. When it returns, the guest switches
/// itself off.
#[macro_export]
macro_rules! main {
    ($main:path) => {
        extern "C" fn start(start_info: usize) -> ! {
            $crate::start::begin(start_info, $main)
        }

        ::core::arch::global_asm!(
            ".section .text.entry, \"ax\"",
            ".globl pv_entry",
            "pv_entry:",
            "    cld",
            "    lea rsp, [rip + {stacks} + {top}]",
            "    mov rdi, rsi",
            "    call {start}",
            "    ud2",
            // What the builder wants to know (public/elfnote.h): name "Xen", then a string or a number.
            ".macro xen_note type, value:vararg",
            "    .balign 4",
            "    .long 4, 9f - 8f, \\type",
            "    .asciz \"Xen\"",
            "8:  \\value",
            "9:  .balign 4",
            ".endm",
            ".section .note.Xen, \"a\", @note",
            "xen_note 6, .asciz \"tiny\"",
            "xen_note 5, .asciz \"xen-3.0\"",
            "xen_note 8, .asciz \"generic\"",
            "xen_note 3, .quad 0",
            "xen_note 4, .quad 0",
            "xen_note 1, .quad pv_entry",
            "xen_note 9, .asciz \"yes\"",
            "xen_note 10, .asciz \"!writable_page_tables|pae_pgdir_above_4gb\"",
            // Bit 11: it may be Domain 0.
            "xen_note 17, .long 0x800",
            ".text",
            start = sym start,
            stacks = sym $crate::vcpu::STACKS,
            top = const $crate::vcpu::STACK_SIZE,
        );
    };
}
