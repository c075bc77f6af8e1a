//! A guest kernel that does one thing, which its command line names:
//!
//! - `idle`: blocks for ever, as an idle system does.
//! - `spin`: spins for ever with events masked. Nothing can reach it; only its host can end it. A host that
//!   needs the guest's consent to destroy it, or that lets it starve Domain 0, fails here.
//! - `storm seed=N`: calls every hypercall number with random arguments until it dies of it. Its own death
//!   is fine. Anything else that suffers is a fault of the host. With `gentle` it leaves out the calls that
//!   end or jump away by design, and so lives longer.
//!
//! It needs nothing from its host but pages and the `syscall` instruction, so the same file runs on Debian's
//! Xen and on Ferroxen.
//!
//! UNSAFETY: this is a kernel; it is entered with a raw pointer, and hypercalls are an instruction.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

global_asm!(
    ".section .text.entry, \"ax\"",
    ".globl micro_entry",
    "micro_entry:",
    "    cld",
    "    lea rsp, [rip + micro_stack_top]",
    "    mov rdi, rsi",
    "    call {main}",
    "1:  jmp 1b",
    ".section .bss",
    ".balign 16",
    "    .skip 16384",
    "micro_stack_top:",
    main = sym main,
);

// What the domain builder wants to know (public/elfnote.h): name "Xen", a value, or a string.
global_asm!(
    ".macro xen_note type, value:vararg",
    "    .balign 4",
    "    .long 4, 9f - 8f, \\type",
    "    .asciz \"Xen\"",
    "8:  \\value",
    "9:  .balign 4",
    ".endm",
    ".section .note.Xen, \"a\", @note",
    "xen_note 6, .asciz \"micro\"",
    "xen_note 5, .asciz \"xen-3.0\"",
    "xen_note 8, .asciz \"generic\"",
    "xen_note 3, .quad 0",
    "xen_note 4, .quad 0",
    "xen_note 1, .quad micro_entry",
    "xen_note 9, .asciz \"yes\"",
);

/// Where `start_info` keeps its strings (public/xen.h).
const COMMAND_LINE: usize = 128;
const COMMAND_LINE_LENGTH: usize = 1024;

const SCHED_OP: u64 = 29;
const SCHEDOP_BLOCK: u64 = 1;
/// Past the last number that upstream uses.
const HYPERCALLS: u64 = 64;
/// set_callbacks and stack_switch lead astray, iret jumps, sched_op may shut down, multicall may do all that.
const NOT_GENTLE: [u64; 5] = [3, 4, 13, 23, 29];

extern "C" fn main(start_info: *const u8) -> ! {
    // SAFETY: the host passes its start_info page, which holds the command line at this place for as long as
    // we run, and nobody writes to it.
    let line = unsafe { core::slice::from_raw_parts(start_info.add(COMMAND_LINE), COMMAND_LINE_LENGTH) };
    let mut words = line
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .split(|byte| *byte == b' ');
    let has = |wanted: &[u8]| words.clone().any(|word| word == wanted);
    if has(b"storm") {
        let gentle = has(b"gentle");
        let seed = words.find_map(|word| word.strip_prefix(b"seed=")).map_or(1, number);
        storm(Dice(seed | 1), gentle);
    }
    if has(b"spin") {
        loop {
            core::hint::spin_loop();
        }
    }
    loop {
        hypercall(SCHED_OP, [SCHEDOP_BLOCK, 0, 0, 0, 0]);
    }
}

fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |sum: u64, digit| {
        sum.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')))
    })
}

fn storm(mut dice: Dice, gentle: bool) -> ! {
    // What the calls may read as their structures: random, and now and then filled anew.
    let mut page = [0_u64; 512];
    loop {
        for word in &mut page {
            *word = dice.argument(0);
        }
        for _ in 0..256 {
            let number = dice.below(HYPERCALLS);
            if gentle && NOT_GENTLE.contains(&number) {
                continue;
            }
            let near = page.as_ptr() as u64;
            let arguments = [0; 5].map(|_: u64| dice.argument(near));
            hypercall(number, arguments);
        }
    }
}

/// Xorshift: the same seed makes the same storm.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number of the kinds that hypercalls take: small, self, a pointer near `near`, an edge, anything.
    fn argument(&mut self, near: u64) -> u64 {
        const SELF: u64 = 0x7ff0;
        const EDGES: [u64; 6] = [0, u64::MAX, 1 << 47, 0xffff_8000_0000_0000, 0xffff_ffff, 1 << 63];
        match self.below(8) {
            0..=2 => self.below(40),
            3 => SELF,
            4 | 5 => near.wrapping_add(self.below(64) * 8),
            6 => EDGES.get(self.below(6) as usize).copied().unwrap_or(0),
            _ => self.next(),
        }
    }
}

fn hypercall(number: u64, arguments: [u64; 5]) -> u64 {
    let [first, second, third, fourth, fifth] = arguments;
    let result;
    // SAFETY: the instruction enters the host, which may write to our memory what the arguments ask for. With
    // random ones that may be anything, our own code included: this kernel has nothing to lose.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            inlateout("rdi") first => _,
            inlateout("rsi") second => _,
            inlateout("rdx") third => _,
            inlateout("r10") fourth => _,
            inlateout("r8") fifth => _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
