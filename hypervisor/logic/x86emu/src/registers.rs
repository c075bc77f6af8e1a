//! General registers, by number and width, and the arithmetic flags.

use iced_x86::Register;

/// What an instruction sees and changes: all general registers, by the processor's numbering.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gpr: [u64; 16],
    /// Address of the instruction; moves on when it is done.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

/// Numbers of the registers that instructions name implicitly.
pub mod gpr {
    #![allow(missing_docs, reason = "the manual's names")]
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Bits of the flags register.
pub mod flag {
    #![allow(missing_docs, reason = "the manual's names")]
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const RF: u64 = 1 << 16;
}

/// The lowest `bytes` bytes.
pub(crate) const fn mask(bytes: usize) -> u64 {
    if bytes >= 8 { !0 } else { (1 << (bytes * 8)) - 1 }
}

impl Registers {
    /// A register of any width; `None` if it is no general one.
    pub(crate) fn get(&self, register: Register) -> Option<u64> {
        if let Some(high) = high_byte(register) {
            return Some(self.gpr[high] >> 8 & 0xff);
        }
        let (number, bytes) = general(register)?;
        Some(*self.gpr.get(number)? & mask(bytes))
    }

    /// Writes a register of any width as the processor does: 32 bits clear the upper half.
    pub(crate) fn set(&mut self, register: Register, value: u64) -> Option<()> {
        if let Some(high) = high_byte(register) {
            self.gpr[high] = self.gpr[high] & !0xff00 | (value & 0xff) << 8;
            return Some(());
        }
        let (number, bytes) = general(register)?;
        self.put(number, bytes, value);
        Some(())
    }

    /// Writes the lowest `bytes` bytes of the register of that number.
    pub(crate) fn put(&mut self, number: usize, bytes: usize, value: u64) {
        let Some(target) = self.gpr.get_mut(number) else { return };
        *target = match bytes {
            4 => value & mask(4),
            bytes => *target & !mask(bytes) | value & mask(bytes),
        };
    }

    /// rdx:rax, 32 bits of each.
    pub(crate) fn edx_eax(&self) -> u64 {
        self.gpr[gpr::RDX] << 32 | self.gpr[gpr::RAX] & mask(4)
    }

    /// Sets rdx and rax to the halves of `value`.
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.gpr[gpr::RAX] = value & mask(4);
        self.gpr[gpr::RDX] = value >> 32;
    }

    pub(crate) fn set_flags(&mut self, which: u64, value: u64) {
        self.rflags = self.rflags & !which | value & which;
    }
}

fn high_byte(register: Register) -> Option<usize> {
    match register {
        Register::AH => Some(0),
        Register::CH => Some(1),
        Register::DH => Some(2),
        Register::BH => Some(3),
        _ => None,
    }
}

/// Number and width in bytes of a general register, but for the high bytes.
///
/// The decoder's registers stand in rows; its own look-ups would bring in all it knows of instructions.
fn general(register: Register) -> Option<(usize, usize)> {
    let index = |first: Register| {
        (register as usize)
            .checked_sub(first as usize)
            .filter(|&index| index < 16)
    };
    if let Some(low) = index(Register::AL).filter(|&index| index < 4) {
        return Some((low, 1));
    }
    // Behind the high bytes, the row of low ones goes on with SPL.
    let late = index(Register::SPL)
        .filter(|&index| index < 12)
        .map(|index| (index + 4, 1));
    late.or_else(|| index(Register::AX).map(|index| (index, 2)))
        .or_else(|| index(Register::EAX).map(|index| (index, 4)))
        .or_else(|| index(Register::RAX).map(|index| (index, 8)))
}

/// The number of a control register.
pub(crate) fn control(register: Register) -> Option<u8> {
    let index = (register as usize).checked_sub(Register::CR0 as usize)?;
    (index < 16).then_some(index as u8)
}

/// The number of a debug register.
pub(crate) fn debug(register: Register) -> Option<u8> {
    let index = (register as usize).checked_sub(Register::DR0 as usize)?;
    (index < 8).then_some(index as u8)
}

/// The flags that arithmetic sets.
pub(crate) const ARITHMETIC: u64 = flag::CF | flag::PF | flag::AF | flag::ZF | flag::SF | flag::OF;

/// PF, ZF and SF of a result.
pub(crate) fn result_flags(result: u64, bytes: usize) -> u64 {
    let result = result & mask(bytes);
    let mut flags = 0;
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= flag::PF;
    }
    if result == 0 {
        flags |= flag::ZF;
    }
    if result >> (bytes * 8 - 1) & 1 != 0 {
        flags |= flag::SF;
    }
    flags
}

/// Sum and all arithmetic flags of `left + right + carry`.
pub(crate) fn add(left: u64, right: u64, carry: bool, bytes: usize) -> (u64, u64) {
    let (left, right) = (left & mask(bytes), right & mask(bytes));
    let wide = u128::from(left) + u128::from(right) + u128::from(carry);
    let sum = wide as u64 & mask(bytes);
    let mut flags = result_flags(sum, bytes);
    if wide >> (bytes * 8) != 0 {
        flags |= flag::CF;
    }
    let top = bytes * 8 - 1;
    if ((left ^ sum) & (right ^ sum)) >> top & 1 != 0 {
        flags |= flag::OF;
    }
    flags |= (left ^ right ^ sum) & flag::AF;
    (sum, flags)
}

/// Difference and all arithmetic flags of `left - right - borrow`.
pub(crate) fn subtract(left: u64, right: u64, borrow: bool, bytes: usize) -> (u64, u64) {
    let (left, right) = (left & mask(bytes), right & mask(bytes));
    let difference = left.wrapping_sub(right).wrapping_sub(u64::from(borrow)) & mask(bytes);
    let mut flags = result_flags(difference, bytes);
    if u128::from(left) < u128::from(right) + u128::from(borrow) {
        flags |= flag::CF;
    }
    let top = bytes * 8 - 1;
    if ((left ^ right) & (left ^ difference)) >> top & 1 != 0 {
        flags |= flag::OF;
    }
    flags |= (left ^ right ^ difference) & flag::AF;
    (difference, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_general_register_is_found() {
        let registers = Registers {
            gpr: core::array::from_fn(|index| 0x0807_0605_0403_0200 | index as u64),
            ..Registers::default()
        };
        for (register, number, bytes) in [
            (Register::AL, 0, 1),
            (Register::BL, 3, 1),
            (Register::SPL, 4, 1),
            (Register::DIL, 7, 1),
            (Register::R8L, 8, 1),
            (Register::R15L, 15, 1),
            (Register::SP, 4, 2),
            (Register::R15W, 15, 2),
            (Register::EAX, 0, 4),
            (Register::R15D, 15, 4),
            (Register::RSP, 4, 8),
            (Register::R15, 15, 8),
        ] {
            assert_eq!(general(register), Some((number, bytes)), "{register:?}");
        }
        assert_eq!(
            (registers.get(Register::BH), registers.get(Register::CX)),
            (Some(2), Some(0x0201))
        );
        for other in [
            Register::None,
            Register::AH,
            Register::EIP,
            Register::RIP,
            Register::XMM0,
            Register::DS,
            Register::CR0,
        ] {
            assert_eq!(general(other), None, "{other:?}");
        }
        assert_eq!(
            (control(Register::CR0), control(Register::CR8), control(Register::DR0)),
            (Some(0), Some(8), None)
        );
        assert_eq!(
            (debug(Register::DR7), debug(Register::CR15), debug(Register::RAX)),
            (Some(7), None, None)
        );
    }
}
