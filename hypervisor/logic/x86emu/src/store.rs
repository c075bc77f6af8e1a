//! Instructions that write memory, emulated because the page is not what the guest thinks.
//!
//! A guest may write to its page tables as if they were memory (`VMASST` writable page tables, and what
//! every kernel does now and then). The processor refuses, since tables are mapped read-only; the
//! instruction is then done here, and its effect goes through a [`Door`] that validates every entry.

use super::plain::{self, PlainStore};
use super::privileged::StringOp;
use super::{Exception, Outcome, PAGE, Space, address, advance, decode, fetch, retire};
use crate::registers::{ARITHMETIC, Registers, add, flag, gpr, mask, result_flags, subtract};
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind};

/// The page's guardian. Accesses are of 1, 2, 4 or 8 bytes, aligned, and within the faulting page.
pub trait Door: Space {
    /// What is there now.
    fn load(&mut self, at: u64, bytes: usize) -> Result<u64, Rejected>;
    /// Writes.
    fn store(&mut self, at: u64, bytes: usize, value: u64) -> Result<(), Rejected>;
    /// Writes `new` if `old` is there, in one step; else tells what is there.
    fn compare_exchange(&mut self, at: u64, bytes: usize, old: u64, new: u64) -> Result<Result<(), u64>, Rejected>;
}

/// Why a [`Door`] does not let an access pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejected {
    /// Deliver the original fault.
    NotOurs,
    /// Things have changed: let the guest try again.
    Again,
    /// Deliver this instead.
    Exception(Exception),
}

impl From<Rejected> for Outcome {
    fn from(rejected: Rejected) -> Outcome {
        match rejected {
            Rejected::NotOurs => Outcome::NotOurs,
            Rejected::Again => Outcome::Again,
            Rejected::Exception(exception) => Outcome::Exception(exception),
        }
    }
}

/// Attempts at an exchange before the guest gets its turn again.
const ATTEMPTS: usize = 8;

/// Does the instruction at `rip`, which faulted writing to `fault_at`.
pub fn store(registers: &mut Registers, door: &mut impl Door, fault_at: u64) -> Outcome {
    let code = match fetch(registers, door) {
        Ok(code) => code,
        Err(outcome) => return outcome,
    };
    if let Some(PlainStore { at, value, next_ip }) = plain::decode(&code, registers) {
        if !at.is_multiple_of(8) || at / PAGE != fault_at / PAGE {
            return Outcome::NotOurs;
        }
        return match door.store(at, 8, value) {
            Ok(()) => advance(registers, next_ip),
            Err(rejected) => rejected.into(),
        };
    }
    let instruction = match decode(code, registers, door) {
        Ok(instruction) => instruction,
        Err(outcome) => return outcome,
    };
    let bytes = match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => 1,
        MemorySize::UInt16 | MemorySize::Int16 => 2,
        MemorySize::UInt32 | MemorySize::Int32 => 4,
        MemorySize::UInt64 | MemorySize::Int64 => 8,
        _ => return Outcome::NotOurs,
    };
    let mut access = Access {
        instruction: &instruction,
        door,
        fault_at,
        bytes,
    };
    if instruction.op0_kind() == OpKind::Memory {
        match access.single(registers) {
            Ok(()) => retire(registers, &instruction),
            Err(outcome) => outcome,
        }
    } else {
        access.string(registers).unwrap_or_else(|outcome| outcome)
    }
}

struct Access<'a, D> {
    instruction: &'a Instruction,
    door: &'a mut D,
    fault_at: u64,
    bytes: usize,
}

/// New value, if any, and flags, if they change.
struct Change {
    new: u64,
    flags: Option<(u64, u64)>,
}

impl<D: Door> Access<'_, D> {
    fn single(&mut self, registers: &mut Registers) -> Result<(), Outcome> {
        let at = self.target(0, registers)?;
        let bytes = self.bytes;
        match self.instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti => {
                let value = self.source(registers)?;
                Ok(self.door.store(at, bytes, value)?)
            }
            Mnemonic::Xchg => {
                let value = self.source(registers)?;
                let old = self.modify(at, registers, |_, _| Change {
                    new: value,
                    flags: None,
                })?;
                self.set_source(registers, old)
            }
            Mnemonic::Xadd => {
                let value = self.source(registers)?;
                let old = self.modify(at, registers, |old, _| {
                    let (new, flags) = add(old, value, false, bytes);
                    Change {
                        new,
                        flags: Some((ARITHMETIC, flags)),
                    }
                })?;
                self.set_source(registers, old)
            }
            Mnemonic::Cmpxchg => self.compare_exchange(at, registers),
            Mnemonic::Cmpxchg8b => self.compare_exchange_8_bytes(at, registers),
            Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => self.bit(registers),
            _ => self.arithmetic(at, registers),
        }
    }

    fn arithmetic(&mut self, at: u64, registers: &mut Registers) -> Result<(), Outcome> {
        let bytes = self.bytes;
        let mnemonic = self.instruction.mnemonic();
        let operand = match mnemonic {
            Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Not | Mnemonic::Neg => 0,
            Mnemonic::Add
            | Mnemonic::Adc
            | Mnemonic::Sub
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Or
            | Mnemonic::Xor => self.source(registers)?,
            _ => return Err(Outcome::NotOurs),
        };
        let logic = |new: u64| (new, result_flags(new, bytes), ARITHMETIC);
        let all = |(new, flags)| (new, flags, ARITHMETIC);
        let all_but_carry = |(new, flags)| (new, flags, ARITHMETIC & !flag::CF);
        self.modify(at, registers, |old, carry| {
            let (new, flags, which) = match mnemonic {
                Mnemonic::And => logic(old & operand),
                Mnemonic::Or => logic(old | operand),
                Mnemonic::Xor => logic(old ^ operand),
                Mnemonic::Add => all(add(old, operand, false, bytes)),
                Mnemonic::Adc => all(add(old, operand, carry, bytes)),
                Mnemonic::Sub => all(subtract(old, operand, false, bytes)),
                Mnemonic::Sbb => all(subtract(old, operand, carry, bytes)),
                Mnemonic::Neg => all(subtract(0, old, false, bytes)),
                Mnemonic::Inc => all_but_carry(add(old, 1, false, bytes)),
                Mnemonic::Dec => all_but_carry(subtract(old, 1, false, bytes)),
                _ => (!old, 0, 0),
            };
            Change {
                new,
                flags: Some((which, flags)),
            }
        })?;
        Ok(())
    }

    fn compare_exchange(&mut self, at: u64, registers: &mut Registers) -> Result<(), Outcome> {
        let bytes = self.bytes;
        let expected = registers.gpr[gpr::RAX] & mask(bytes);
        let new = self.source(registers)?;
        let seen = self.exchange_if(at, expected, new)?;
        let (_, flags) = subtract(expected, seen, false, bytes);
        registers.set_flags(ARITHMETIC, flags);
        if seen != expected {
            registers.put(gpr::RAX, bytes, seen);
        }
        Ok(())
    }

    fn compare_exchange_8_bytes(&mut self, at: u64, registers: &mut Registers) -> Result<(), Outcome> {
        let expected = registers.edx_eax();
        let new = registers.gpr[gpr::RCX] << 32 | registers.gpr[gpr::RBX] & mask(4);
        let seen = self.exchange_if(at, expected, new)?;
        registers.set_flags(flag::ZF, if seen == expected { flag::ZF } else { 0 });
        if seen != expected {
            registers.set_edx_eax(seen);
        }
        Ok(())
    }

    /// What was there; it has been replaced if it was `expected`.
    fn exchange_if(&mut self, at: u64, expected: u64, new: u64) -> Result<u64, Outcome> {
        match self.door.compare_exchange(at, self.bytes, expected, new)? {
            Ok(()) => Ok(expected),
            Err(seen) if seen & mask(self.bytes) == expected => Err(Outcome::Again),
            Err(seen) => Ok(seen & mask(self.bytes)),
        }
    }

    /// A bit number in a register reaches beyond the operand, in both directions.
    fn bit(&mut self, registers: &mut Registers) -> Result<(), Outcome> {
        let bytes = self.bytes;
        let bits = bytes as u64 * 8;
        let number = self.source(registers)?;
        let base = address(self.instruction, 0, registers, self.door).ok_or(Outcome::NotOurs)?;
        let distance = match self.instruction.op1_kind() {
            OpKind::Register => {
                let unused = 64 - bits as u32;
                let signed = (number << unused) as i64 >> unused;
                (signed >> bits.ilog2()).wrapping_mul(bytes as i64)
            }
            _ => 0,
        };
        let at = self.checked(base.wrapping_add_signed(distance))?;
        let bit = 1u64 << (number % bits);
        let mnemonic = self.instruction.mnemonic();
        self.modify(at, registers, |old, _| {
            let new = match mnemonic {
                Mnemonic::Bts => old | bit,
                Mnemonic::Btr => old & !bit,
                _ => old ^ bit,
            };
            Change {
                new,
                flags: Some((flag::CF, if old & bit != 0 { flag::CF } else { 0 })),
            }
        })?;
        Ok(())
    }

    /// Replaces what is there by what `change(old, carry)` makes of it, and gives what was there.
    fn modify(
        &mut self,
        at: u64,
        registers: &mut Registers,
        change: impl Fn(u64, bool) -> Change,
    ) -> Result<u64, Outcome> {
        let carry = registers.rflags & flag::CF != 0;
        let mut old = self.door.load(at, self.bytes)? & mask(self.bytes);
        for _ in 0..ATTEMPTS {
            let Change { new, flags } = change(old, carry);
            match self
                .door
                .compare_exchange(at, self.bytes, old, new & mask(self.bytes))?
            {
                Ok(()) => {
                    if let Some((which, value)) = flags {
                        registers.set_flags(which, value);
                    }
                    return Ok(old);
                }
                Err(seen) => old = seen & mask(self.bytes),
            }
        }
        Err(Outcome::Again)
    }

    /// `stos` and `movs`, element by element until the page ends.
    fn string(&mut self, registers: &mut Registers) -> Result<Outcome, Outcome> {
        let copies = match self.instruction.mnemonic() {
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => false,
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => true,
            _ => return Err(Outcome::NotOurs),
        };
        let string = StringOp::new(self.instruction, 0).ok_or(Outcome::NotOurs)?;
        let bytes = self.bytes;
        for element in 0..PAGE as usize / bytes {
            if string.is_over(registers) {
                return Ok(retire(registers, self.instruction));
            }
            let at = match self.target(0, registers) {
                Ok(at) => at,
                // The next page is another matter: its own fault will tell.
                Err(_) if element > 0 => return Ok(Outcome::Again),
                Err(outcome) => return Err(outcome),
            };
            let value = if copies {
                let from = address(self.instruction, 1, registers, self.door).ok_or(Outcome::NotOurs)?;
                let mut word = [0; 8];
                let Some(part) = word.get_mut(..bytes) else {
                    return Err(Outcome::NotOurs);
                };
                self.door.read(from, part).map_err(Outcome::Exception)?;
                u64::from_le_bytes(word)
            } else {
                registers.gpr[gpr::RAX] & mask(bytes)
            };
            match self.door.store(at, bytes, value) {
                Ok(()) => {}
                // What has been done stays done; the rest faults anew.
                Err(Rejected::NotOurs) if element > 0 => return Ok(Outcome::Again),
                Err(rejected) => return Err(rejected.into()),
            }
            if copies {
                string.step(registers, gpr::RSI, bytes);
            }
            string.advance(registers, gpr::RDI, bytes);
            if !string.repeats {
                return Ok(retire(registers, self.instruction));
            }
        }
        Ok(Outcome::Again)
    }

    fn target(&self, operand: u32, registers: &Registers) -> Result<u64, Outcome> {
        let at = address(self.instruction, operand, registers, self.door).ok_or(Outcome::NotOurs)?;
        // A bit string's operand may begin elsewhere; its own target is checked when it is known.
        match self.instruction.mnemonic() {
            Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => Ok(at),
            _ => self.checked(at),
        }
    }

    /// Aligned, and in the page that faulted.
    fn checked(&self, at: u64) -> Result<u64, Outcome> {
        let fits = at.is_multiple_of(self.bytes as u64) && at / PAGE == self.fault_at / PAGE;
        if fits { Ok(at) } else { Err(Outcome::NotOurs) }
    }

    /// The operand that is not memory.
    fn source(&self, registers: &Registers) -> Result<u64, Outcome> {
        let value = match self.instruction.op1_kind() {
            OpKind::Register => registers.get(self.instruction.op1_register()),
            _ => self.instruction.try_immediate(1).ok(),
        };
        value.map(|value| value & mask(self.bytes)).ok_or(Outcome::NotOurs)
    }

    fn set_source(&self, registers: &mut Registers, value: u64) -> Result<(), Outcome> {
        registers
            .set(self.instruction.op1_register(), value)
            .ok_or(Outcome::NotOurs)
    }
}
