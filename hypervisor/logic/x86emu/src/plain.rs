//! What most writes to page tables are: `mov [register + distance], register`, 64 bits wide.
//!
//! It is recognised here by itself, since a decoder that knows all instructions takes as long as all else that such a
//! write needs. Every other form is left to that decoder.

use super::Code;
use crate::registers::Registers;

/// A store of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PlainStore {
    /// Where to.
    pub at: u64,
    /// What.
    pub value: u64,
    /// Where the next instruction begins.
    pub next_ip: u64,
}

/// Recognises the instruction; `None` if it is another one, or lies at the end of a page.
#[inline]
pub(crate) fn decode(code: &Code, registers: &Registers) -> Option<PlainStore> {
    let [rex, opcode, modrm, near, d1, d2, d3, ..] = *code.bytes.get(..code.fetched)? else {
        return None;
    };
    if code.bits != 64 {
        return None;
    }
    // REX.W and no index register: r/m 4 would bring a byte more.
    if rex & 0b1111_1000 != 0x48 || opcode != 0x89 || modrm & 7 == 4 {
        return None;
    }
    let (distance, length) = match modrm >> 6 {
        // r/m 5 is relative to rip.
        0 if modrm & 7 != 5 => (0, 3),
        1 => (i64::from(near as i8), 4),
        2 => (i64::from(i32::from_le_bytes([near, d1, d2, d3])), 7),
        _ => return None,
    };
    let register = |low: u8, high: u8| registers.gpr[usize::from(low & 7 | (high & 1) << 3)];
    Some(PlainStore {
        at: register(modrm, rex).wrapping_add_signed(distance),
        value: register(modrm >> 3, rex >> 2),
        next_ip: registers.rip.wrapping_add(length),
    })
}
