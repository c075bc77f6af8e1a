//! One instruction of a PV guest, carried out on its behalf.
//!
//! A PV guest's kernel runs at CPL 3, so some of its instructions fault and are emulated:
//!
//! - [`privileged`] ones (`in`, `mov cr`, `rdmsr` ...) and the [`forced_cpuid`] prefix;
//! - a [`store`] to a page that it sees as writable and the processor does not: a page table, or PCI
//!   configuration space that we watch.
//!
//! This crate knows the instructions; what a control register or a port means is the kernel's affair,
//! behind the traits [`Vcpu`] and [`Door`]. Registers come in as a copy, and the caller takes them over
//! whatever the outcome: they change only as far as the instruction came (a repeated one may fault
//! half-way), and not at all on [`Outcome::NotOurs`].
//!
//! Always true:
//! 1. No more than 15 bytes of code are read, and none twice: the guest may change them meanwhile.
//! 2. Whatever is not known is [`Outcome::NotOurs`], which delivers the fault that brought us here.
//! 3. Nothing panics, whatever the bytes.
//!
//! Instructions are decoded by `iced-x86` without vector extensions; it builds its tables on the heap at
//! the first use, so call [`prepare`] at boot.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod plain;
pub mod privileged;
mod registers;
pub mod store;

pub use privileged::{Io, Vcpu, forced_cpuid, privileged};
pub use registers::{Registers, flag, gpr};
pub use store::{Door, Rejected, store};

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction, Register};

/// An exception to deliver to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    /// #PF at `address`, with the error code's bits.
    PageFault {
        /// What CR2 is to hold.
        address: u64,
        /// Present 1, write 2, user 4, fetch 16.
        code: u32,
    },
    /// Any other, with its error code if it has one.
    Vector(u8, Option<u32>),
}

impl Exception {
    /// #GP with error code 0.
    pub const GP: Exception = Exception::Vector(13, Some(0));
    /// #UD.
    pub const UD: Exception = Exception::Vector(6, None);
}

/// What became of the instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// Done. `single_step`: the guest traces, so #DB (DR6.BS) comes next.
    Done {
        /// TF was set.
        single_step: bool,
    },
    /// Partly done, or disturbed: go back to the guest, which executes it again.
    Again,
    /// The instruction faults.
    Exception(Exception),
    /// Nothing we emulate: deliver the original fault.
    NotOurs,
}

/// What fetching and addressing need.
pub trait Space {
    /// Copies code at `at`, with the guest's rights; the fault otherwise.
    fn fetch(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Exception>;
    /// Copies data, with the guest's rights.
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Exception>;
    /// Copies data to the guest, with its rights.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Exception>;
    /// The segment's base; `None` if it cannot be used (not flat, for 32-bit code).
    fn segment_base(&self, segment: Segment) -> Option<u64>;
    /// Whether code is 64-bit (CS.L); otherwise it is taken as 32-bit.
    fn is_64_bit(&self) -> bool;
}

/// A segment register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's names")]
pub enum Segment {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// Builds the decoder's tables; without it the first guest to fault pays for them.
pub fn prepare() {
    let mut instruction = Instruction::default();
    Decoder::new(64, &[0x90], DecoderOptions::NONE).decode_out(&mut instruction);
}

/// The longest instruction.
const LONGEST: usize = 15;
const PAGE: u64 = 4096;

/// The code at `rip`, as far as its page goes.
struct Code {
    bits: u32,
    at: u64,
    bytes: [u8; LONGEST],
    fetched: usize,
}

fn fetch(registers: &Registers, space: &mut impl Space) -> Result<Code, Outcome> {
    let (bits, base) = match space.is_64_bit() {
        true => (64, 0),
        false => (32, space.segment_base(Segment::Cs).ok_or(Outcome::NotOurs)?),
    };
    let at = base.wrapping_add(registers.rip);
    let mut bytes = [0; LONGEST];
    let fetched = (PAGE - at % PAGE).min(LONGEST as u64) as usize;
    let (first, _) = bytes.split_at_mut(fetched);
    space.fetch(at, first).map_err(Outcome::Exception)?;
    Ok(Code {
        bits,
        at,
        bytes,
        fetched,
    })
}

/// Decodes the instruction; the following page is touched only if it is needed.
fn decode(code: Code, registers: &Registers, space: &mut impl Space) -> Result<Instruction, Outcome> {
    let Code {
        bits,
        at,
        mut bytes,
        fetched,
    } = code;
    let (first, second) = bytes.split_at_mut(fetched);
    let mut instruction = decode_bytes(bits, first, registers.rip);
    if instruction == Err(DecoderError::NoMoreBytes) && fetched < LONGEST {
        space
            .fetch(at.wrapping_add(fetched as u64), second)
            .map_err(Outcome::Exception)?;
        instruction = decode_bytes(bits, &bytes, registers.rip);
    }
    instruction.map_err(|_| Outcome::NotOurs)
}

fn decode_bytes(bits: u32, bytes: &[u8], rip: u64) -> Result<Instruction, DecoderError> {
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Ok(instruction),
        error => Err(error),
    }
}

/// The address of memory operand `operand`; `None` if its segment cannot be used.
fn address(instruction: &Instruction, operand: u32, registers: &Registers, space: &impl Space) -> Option<u64> {
    let is_64_bit = space.is_64_bit();
    let linear = instruction.virtual_address(operand, 0, |register, _, _| {
        let segment = match register {
            Register::ES => Segment::Es,
            Register::CS => Segment::Cs,
            Register::SS => Segment::Ss,
            Register::DS => Segment::Ds,
            Register::FS => Segment::Fs,
            Register::GS => Segment::Gs,
            other => return registers.get(other),
        };
        // SDM 1 "Segmentation in 64-bit mode": four of them begin at 0.
        match segment {
            Segment::Fs | Segment::Gs => space.segment_base(segment),
            _ if is_64_bit => Some(0),
            _ => space.segment_base(segment),
        }
    })?;
    Some(if is_64_bit { linear } else { linear & 0xffff_ffff })
}

/// Moves past the instruction.
fn retire(registers: &mut Registers, instruction: &Instruction) -> Outcome {
    advance(registers, instruction.next_ip())
}

fn advance(registers: &mut Registers, next_ip: u64) -> Outcome {
    registers.rip = next_ip;
    registers.rflags &= !flag::RF;
    Outcome::Done {
        single_step: registers.rflags & flag::TF != 0,
    }
}

#[cfg(test)]
mod tests;
