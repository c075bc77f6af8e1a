//! User mode, and instructions of the kernel that the hypervisor carries out: short pieces of code with odd registers.

use pv::code::Code;
use pv::memory::Page;
use pv::tables;
use pv::trap::General;
use pv::user::{self, Start};

use crate::dice::Dice;
use crate::scene::{ENTRY, PAGES, ROOTS, Scene};

/// What user mode does. It ends by a trap in any case: `syscall` stands behind each. Nothing here goes where the kernel's
/// own code might be: user mode has all of its memory.
const USERS: [&[u8]; 22] = [
    &[],
    // mov [rdi], rsi; mov rax, [rdi]; lock cmpxchg [rdi], rsi
    &[0x48, 0x89, 0x37],
    &[0x48, 0x8b, 0x07],
    &[0xf0, 0x48, 0x0f, 0xb1, 0x37],
    // int 0x80; int3; int 0x33; ud2; hlt; cli; a division by zero
    &[0xcd, 0x80],
    &[0xcc],
    &[0xcd, 0x33],
    &[0x0f, 0x0b],
    &[0xf4],
    &[0xfa],
    &[0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1],
    // pushf; or [rsp], 0x100; popf; nop
    &[0x9c, 0x48, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x90],
    // mov ss, eax; mov ds, eax; mov fs, eax; mov gs, eax
    &[0x8e, 0xd0],
    &[0x8e, 0xd8],
    &[0x8e, 0xe0],
    &[0x8e, 0xe8],
    // sysenter; fninit
    &[0x0f, 0x34],
    &[0xdb, 0xe3],
    // lar rbx, eax; mov rbx, cr0; rdmsr; cpuid by the prefix
    &[0x0f, 0x02, 0xd8],
    &[0x0f, 0x20, 0xc3],
    &[0x0f, 0x32],
    &[0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2],
];

/// What the kernel does, and needs the hypervisor for.
const KERNELS: [&[u8]; 20] = [
    // mov rbx, cr0, cr2, cr3, cr4; mov cr3, rbx; clts; wbinvd
    &[0x0f, 0x20, 0xc3],
    &[0x0f, 0x20, 0xd3],
    &[0x0f, 0x20, 0xdb],
    &[0x0f, 0x20, 0xe3],
    &[0x0f, 0x22, 0xdb],
    &[0x0f, 0x06],
    &[0x0f, 0x09],
    // rdmsr; wrmsr; in al, dx; out dx, al; outsb; insb
    &[0x0f, 0x32],
    &[0x0f, 0x30],
    &[0xec],
    &[0xee],
    &[0x6e],
    &[0x6c],
    // mov rbx, dr7; mov dr0, rsi; mov dr7, rax
    &[0x0f, 0x21, 0xfb],
    &[0x0f, 0x23, 0xc6],
    &[0x0f, 0x23, 0xf8],
    // xgetbv; invlpg [rsi]; cpuid by the prefix; fninit
    &[0x0f, 0x01, 0xd0],
    &[0x0f, 0x01, 0x3e],
    &[0x0f, 0x0b, b'x', b'e', b'n', 0x0f, 0xa2],
    &[0xdb, 0xe3],
];

/// Of the flat ones, of the guest's own tables, of none.
const SELECTORS: [u64; 10] = [0xe033, 0xe02b, 0xe023, 0, 3, 0x43, 0x4b, 7, 0xf, 0xfffb];

fn target(dice: &mut Dice, scene: &Scene) -> u64 {
    let page: Page = scene.page(dice.below(PAGES as u64));
    page.address() + (ENTRY + dice.below(8)) * 8
}

/// Goes to user mode, mostly with a frame that is in order, and comes back; 1 if that was by its own `syscall`.
pub fn in_user(dice: &mut Dice, scene: &Scene, code: &mut Code) -> u64 {
    // Whatever is a root will do; one that lacks the code makes a fault of it.
    let odd_root = scene.page(dice.below(PAGES as u64)).mfn();
    let own_root = scene.root(dice.below(ROOTS as u64)).mfn();
    let wants_odd_root = dice.once_in(6);
    code.set(dice.one_of(&USERS));
    let general = General {
        rax: dice.one_of(&SELECTORS),
        rdi: target(dice, scene),
        rsi: dice.below(1 << 20),
        rcx: dice.one_of(&MSRS),
        ..General::default()
    };
    let odd = odd_start(dice, code.user_start(general));
    // Everything is drawn by now. Without a root there is no user mode.
    let has_root = wants_odd_root && tables::set_user_root(odd_root).is_ok();
    if !has_root && !tables::set_user_root(own_root).is_ok() {
        return 0;
    }
    match odd {
        None => code.in_user(&mut general.clone()).is_ok().into(),
        Some(odd) => u64::from(user::enter(&odd).was_in_user_mode()),
    }
}

/// Now and then, a start with something odd about it.
fn odd_start(dice: &mut Dice, usual: Start) -> Option<Start> {
    if !dice.once_in(3) {
        return None;
    }
    let far = dice.one_of(&[0x7f00_0000_0000, 0x0123_0000_0000_0000, u64::MAX, 1 << 47]);
    let (cs, ss) = (dice.one_of(&SELECTORS) | 3, dice.one_of(&SELECTORS));
    Some(match dice.below(6) {
        0 => Start { rip: far, ..usual },
        1 => Start { rsp: far, ..usual },
        2 => Start { cs, ..usual },
        3 => Start { ss, ..usual },
        // VGCF_in_syscall: by SYSRET.
        4 => Start {
            context: 0x100,
            ..usual
        },
        _ => Start {
            rflags: dice.one_of(&[0, 2, 0x302, 0x3202, 0x4202, 0x2_0202, 0x4_0602]),
            ..usual
        },
    })
}

/// Registers that a PV kernel writes, and some that it must not.
const MSRS: [u64; 8] = [
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0080,
    0x10,
    0x1b,
    0x277,
    0x1d9,
];

/// Lets the hypervisor carry an instruction out; 1 if it did.
pub fn in_kernel(dice: &mut Dice, scene: &Scene, code: &mut Code) -> u64 {
    code.set(dice.one_of(&KERNELS));
    let base = dice.one_of(&[0, 0x7f00_0000_0000, 0x0123_0000_0000_0000]);
    let mut general = General {
        rax: dice.one_of(&[0, 0x1, 0xd_0001, base]),
        rdx: dice.one_of(&[0x80, 0x71, 0xcf8, base >> 32]),
        rcx: dice.one_of(&MSRS),
        rsi: target(dice, scene),
        rdi: target(dice, scene),
        rbx: scene.root(dice.below(ROOTS as u64)).mfn() << 12,
        ..General::default()
    };
    code.in_kernel(&mut general).is_ok().into()
}
