//! Instructions that the processor keeps for CPL 0, emulated for a guest whose kernel runs at CPL 3.
//!
//! What a guest's user code may do is little: ports that its kernel's I/O privilege or bitmap opens, and
//! what faults at CPL 3 only because we arranged it (CPUID, RDTSC). All else needs the guest's kernel mode.

use super::{Exception, Outcome, Space, address, decode, fetch, retire};
use crate::registers::{Registers, control, debug, flag, gpr, mask};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// How wide an access to a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "plain")]
pub enum Io {
    Byte = 1,
    Word = 2,
    Long = 4,
}

/// A virtual CPU as its own instructions see it. A refusal is the exception that the instruction raises.
pub trait Vcpu: Space {
    /// The guest runs its kernel.
    fn is_kernel(&self) -> bool;
    /// The current mode may use `cli` and `sti` (I/O privilege level).
    fn has_io_privilege(&self) -> bool;
    /// The current mode may use that port, by I/O privilege level or bitmap.
    fn may_use_port(&self, port: u16, width: Io) -> bool;
    /// `in`; what nobody owns reads as ones.
    fn port_read(&mut self, port: u16, width: Io) -> u32;
    /// `out`; what nobody owns is dropped.
    fn port_write(&mut self, port: u16, width: Io, value: u32);
    /// `mov` from CR0, CR2, CR3, CR4.
    fn read_cr(&mut self, number: u8) -> Result<u64, Exception>;
    /// `mov` to CR0, CR2, CR3, CR4; also `clts`.
    fn write_cr(&mut self, number: u8, value: u64) -> Result<(), Exception>;
    /// `mov` from DR0 to DR7.
    fn read_dr(&mut self, number: u8) -> Result<u64, Exception>;
    /// `mov` to DR0 to DR7.
    fn write_dr(&mut self, number: u8, value: u64) -> Result<(), Exception>;
    /// `rdmsr`.
    fn read_msr(&mut self, number: u32) -> Result<u64, Exception>;
    /// `wrmsr`.
    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Exception>;
    /// `cpuid`; `forced` when it came behind the prefix.
    fn cpuid(&mut self, leaf: u32, subleaf: u32, forced: bool) -> Result<[u32; 4], Exception>;
    /// `rdtsc`, `rdtscp`: the counter that the guest sees.
    fn read_tsc(&mut self) -> Result<u64, Exception>;
    /// The register that `rdtscp` gives in rcx.
    fn tsc_aux(&mut self) -> u32;
    /// `xsetbv`.
    fn write_xcr(&mut self, number: u32, value: u64) -> Result<(), Exception>;
    /// `wbinvd`, `wbnoinvd`.
    fn flush_cache(&mut self);
}

/// `ud2a; .ascii "xen"` in front of `cpuid` asks the hypervisor rather than the processor.
const FORCED_PREFIX: [u8; 5] = [0x0f, 0x0b, b'x', b'e', b'n'];
const CPUID: [u8; 2] = [0x0f, 0xa2];
/// Elements that one go of a repeated port instruction moves; then the guest's interrupts get their turn.
const ELEMENTS_PER_GO: usize = 256;

/// Handles #UD: the forced emulation prefix with `cpuid`, which user code may use as well.
pub fn forced_cpuid(registers: &mut Registers, vcpu: &mut impl Vcpu) -> Outcome {
    let base = match vcpu.is_64_bit() {
        true => 0,
        false => vcpu.segment_base(super::Segment::Cs).unwrap_or(0),
    };
    let mut bytes = [0; 7];
    // Byte counts of their own: an ud2 may be the last instruction of a page.
    let (prefix, rest) = bytes.split_at_mut(FORCED_PREFIX.len());
    let at = base.wrapping_add(registers.rip);
    if vcpu.fetch(at, prefix).is_err() || *prefix != FORCED_PREFIX {
        return Outcome::NotOurs;
    }
    if let Err(fault) = vcpu.fetch(at.wrapping_add(FORCED_PREFIX.len() as u64), rest) {
        return Outcome::Exception(fault);
    }
    if *rest != CPUID {
        return Outcome::NotOurs;
    }
    match cpuid(registers, vcpu, true) {
        Ok(()) => {
            registers.rip = registers.rip.wrapping_add(bytes.len() as u64);
            if !vcpu.is_64_bit() {
                registers.rip &= mask(4);
            }
            registers.rflags &= !flag::RF;
            Outcome::Done {
                single_step: registers.rflags & flag::TF != 0,
            }
        }
        Err(exception) => Outcome::Exception(exception),
    }
}

/// Handles #GP with error code 0 (and #UD, #NM where the caller likes): a privileged instruction.
pub fn privileged(registers: &mut Registers, vcpu: &mut impl Vcpu) -> Outcome {
    let instruction = match fetch(registers, vcpu).and_then(|code| decode(code, registers, vcpu)) {
        Ok(instruction) => instruction,
        Err(outcome) => return outcome,
    };
    // LOCK makes every one of these #UD, so it cannot have brought us here by #GP.
    if instruction.has_lock_prefix() {
        return Outcome::NotOurs;
    }
    let done = match instruction.mnemonic() {
        Mnemonic::In => port_in(&instruction, registers, vcpu),
        Mnemonic::Out => port_out(&instruction, registers, vcpu),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => return port_string(&instruction, registers, vcpu, true),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            return port_string(&instruction, registers, vcpu, false);
        }
        Mnemonic::Cpuid => cpuid(registers, vcpu, false).map_err(Outcome::Exception),
        Mnemonic::Rdtsc => rdtsc(registers, vcpu).map_err(Outcome::Exception),
        Mnemonic::Rdtscp => rdtscp(registers, vcpu).map_err(Outcome::Exception),
        // Events are masked in shared memory; these two have always been without effect.
        Mnemonic::Cli | Mnemonic::Sti => match vcpu.has_io_privilege() {
            true => Ok(()),
            false => Err(Outcome::NotOurs),
        },
        _ if vcpu.is_kernel() => kernel_only(&instruction, registers, vcpu),
        _ => Err(Outcome::NotOurs),
    };
    match done {
        Ok(()) => retire(registers, &instruction),
        Err(outcome) => outcome,
    }
}

fn kernel_only(instruction: &Instruction, registers: &mut Registers, vcpu: &mut impl Vcpu) -> Result<(), Outcome> {
    let index = registers.gpr[gpr::RCX] as u32;
    let done = match instruction.mnemonic() {
        Mnemonic::Clts => vcpu.read_cr(0).and_then(|cr0| vcpu.write_cr(0, cr0 & !TASK_SWITCHED)),
        Mnemonic::Mov => return mov_special(instruction, registers, vcpu),
        Mnemonic::Rdmsr => vcpu.read_msr(index).map(|value| registers.set_edx_eax(value)),
        Mnemonic::Wrmsr => vcpu.write_msr(index, registers.edx_eax()),
        Mnemonic::Xsetbv => vcpu.write_xcr(index, registers.edx_eax()),
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => {
            vcpu.flush_cache();
            Ok(())
        }
        _ => return Err(Outcome::NotOurs),
    };
    done.map_err(Outcome::Exception)
}

const TASK_SWITCHED: u64 = 1 << 3;

fn mov_special(instruction: &Instruction, registers: &mut Registers, vcpu: &mut impl Vcpu) -> Result<(), Outcome> {
    let (to, from) = (instruction.op0_register(), instruction.op1_register());
    if let Some(value) = match (control(from), debug(from)) {
        (Some(number), _) => Some(vcpu.read_cr(checked_cr(number)?)),
        (_, Some(number)) => Some(vcpu.read_dr(number)),
        _ => None,
    } {
        return registers
            .set(to, value.map_err(Outcome::Exception)?)
            .ok_or(Outcome::NotOurs);
    }
    let value = registers.get(from).ok_or(Outcome::NotOurs)?;
    let done = match (control(to), debug(to)) {
        (Some(number), _) => vcpu.write_cr(checked_cr(number)?, value),
        (_, Some(number)) => vcpu.write_dr(number, value),
        _ => return Err(Outcome::NotOurs),
    };
    done.map_err(Outcome::Exception)
}

fn checked_cr(number: u8) -> Result<u8, Outcome> {
    if matches!(number, 0 | 2 | 3 | 4) {
        Ok(number)
    } else {
        Err(Outcome::NotOurs)
    }
}

fn cpuid(registers: &mut Registers, vcpu: &mut impl Vcpu, forced: bool) -> Result<(), Exception> {
    let (leaf, subleaf) = (registers.gpr[gpr::RAX] as u32, registers.gpr[gpr::RCX] as u32);
    let [a, b, c, d] = vcpu.cpuid(leaf, subleaf, forced)?.map(u64::from);
    (registers.gpr[gpr::RAX], registers.gpr[gpr::RBX]) = (a, b);
    (registers.gpr[gpr::RCX], registers.gpr[gpr::RDX]) = (c, d);
    Ok(())
}

fn rdtsc(registers: &mut Registers, vcpu: &mut impl Vcpu) -> Result<(), Exception> {
    let tsc = vcpu.read_tsc()?;
    registers.set_edx_eax(tsc);
    Ok(())
}

fn rdtscp(registers: &mut Registers, vcpu: &mut impl Vcpu) -> Result<(), Exception> {
    rdtsc(registers, vcpu)?;
    registers.gpr[gpr::RCX] = u64::from(vcpu.tsc_aux());
    Ok(())
}

fn width_of(register: Register) -> Option<Io> {
    match register {
        Register::AL => Some(Io::Byte),
        Register::AX => Some(Io::Word),
        Register::EAX => Some(Io::Long),
        _ => None,
    }
}

/// The port that operand names, and whether it may be used.
fn port_of(
    instruction: &Instruction,
    operand: u32,
    width: Io,
    registers: &Registers,
    vcpu: &impl Vcpu,
) -> Result<u16, Outcome> {
    let port = match instruction.op_kind(operand) {
        OpKind::Immediate8 => u16::from(instruction.immediate8()),
        OpKind::Register => registers.gpr[gpr::RDX] as u16,
        _ => return Err(Outcome::NotOurs),
    };
    if vcpu.may_use_port(port, width) {
        Ok(port)
    } else {
        Err(Outcome::NotOurs)
    }
}

fn port_in(instruction: &Instruction, registers: &mut Registers, vcpu: &mut impl Vcpu) -> Result<(), Outcome> {
    let width = width_of(instruction.op0_register()).ok_or(Outcome::NotOurs)?;
    let port = port_of(instruction, 1, width, registers, vcpu)?;
    let value = vcpu.port_read(port, width);
    registers.put(gpr::RAX, width as usize, u64::from(value));
    Ok(())
}

fn port_out(instruction: &Instruction, registers: &mut Registers, vcpu: &mut impl Vcpu) -> Result<(), Outcome> {
    let width = width_of(instruction.op1_register()).ok_or(Outcome::NotOurs)?;
    let port = port_of(instruction, 0, width, registers, vcpu)?;
    let value = registers.gpr[gpr::RAX] & mask(width as usize);
    vcpu.port_write(port, width, value as u32);
    Ok(())
}

/// `ins` and `outs`, with and without a repeat prefix; `inward`: from the port to memory.
fn port_string(instruction: &Instruction, registers: &mut Registers, vcpu: &mut impl Vcpu, inward: bool) -> Outcome {
    let width = match instruction.code() {
        Code::Insb_m8_DX | Code::Outsb_DX_m8 => Io::Byte,
        Code::Insw_m16_DX | Code::Outsw_DX_m16 => Io::Word,
        Code::Insd_m32_DX | Code::Outsd_DX_m32 => Io::Long,
        _ => return Outcome::NotOurs,
    };
    let (memory, index) = if inward { (0, gpr::RDI) } else { (1, gpr::RSI) };
    let port = registers.gpr[gpr::RDX] as u16;
    if !vcpu.may_use_port(port, width) {
        return Outcome::NotOurs;
    }
    let Some(string) = StringOp::new(instruction, memory) else {
        return Outcome::NotOurs;
    };
    for _ in 0..ELEMENTS_PER_GO {
        if string.is_over(registers) {
            return retire(registers, instruction);
        }
        let Some(at) = address(instruction, memory, registers, vcpu) else {
            return Outcome::NotOurs;
        };
        let mut bytes = [0; 4];
        let Some(bytes) = bytes.get_mut(..width as usize) else {
            return Outcome::NotOurs;
        };
        if inward {
            // Devices notice reads, so look first whether there is any memory for the value.
            let room = vcpu.read(at, bytes).map_err(as_a_write);
            let value = room.map(|()| vcpu.port_read(port, width));
            if let Err(fault) = value.and_then(|value| vcpu.write(at, &value.to_le_bytes()[..width as usize])) {
                return Outcome::Exception(fault);
            }
        } else {
            if let Err(fault) = vcpu.read(at, bytes) {
                return Outcome::Exception(fault);
            }
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            vcpu.port_write(port, width, value);
        }
        string.advance(registers, index, width as usize);
        if !string.repeats {
            return retire(registers, instruction);
        }
    }
    Outcome::Again
}

/// The fault of a read that stands for a write.
fn as_a_write(fault: Exception) -> Exception {
    const WRITE: u32 = 1 << 1;
    match fault {
        Exception::PageFault { address, code } => Exception::PageFault {
            address,
            code: code | WRITE,
        },
        other => other,
    }
}

/// The counting of string instructions, in the address size that they use.
pub(crate) struct StringOp {
    pub(crate) repeats: bool,
    address_bytes: usize,
}

impl StringOp {
    pub(crate) fn new(instruction: &Instruction, memory: u32) -> Option<StringOp> {
        let address_bytes = match instruction.op_kind(memory) {
            OpKind::MemoryESRDI | OpKind::MemorySegRSI => 8,
            OpKind::MemoryESEDI | OpKind::MemorySegESI => 4,
            // 16-bit addresses: nothing we serve uses them.
            _ => return None,
        };
        Some(StringOp {
            repeats: instruction.has_rep_prefix() || instruction.has_repne_prefix(),
            address_bytes,
        })
    }

    pub(crate) fn is_over(&self, registers: &Registers) -> bool {
        self.repeats && registers.gpr[gpr::RCX] & mask(self.address_bytes) == 0
    }

    /// Moves the index register by one element, and the count if there is one.
    pub(crate) fn advance(&self, registers: &mut Registers, index: usize, bytes: usize) {
        self.step(registers, index, bytes);
        if self.repeats {
            let left = registers.gpr[gpr::RCX].wrapping_sub(1);
            registers.put(gpr::RCX, self.address_bytes, left);
        }
    }

    pub(crate) fn step(&self, registers: &mut Registers, index: usize, bytes: usize) {
        let step = if registers.rflags & flag::DF != 0 {
            (bytes as u64).wrapping_neg()
        } else {
            bytes as u64
        };
        let moved = registers.gpr[index].wrapping_add(step);
        registers.put(index, self.address_bytes, moved);
    }
}
