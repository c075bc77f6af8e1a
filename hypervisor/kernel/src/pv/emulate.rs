//! Instructions that a PV guest's kernel executes as if it had the CPU to itself, and we carry out.
//!
//! `logic/x86emu` knows the instructions; here stands what a control register, a port or an MSR means.

use super::trap::{self, Exception as Fault, vector};
use super::{mm, policy};
use crate::domain::{PvState, VcpuRef};
use crate::hypercall::traps;
use ferroxen_machine::port::Width;
use ferroxen_machine::{GuestFrame, cpu, guest, paging, segments};
use ferroxen_words::{Mfn, Vaddr};
use ferroxen_x86emu::{self as x86emu, Exception, Io, Outcome, Registers, Segment, Space};

/// Handles #UD from the forced-emulation prefix; `false`: it was something else.
pub fn forced_cpuid(vcpu: &VcpuRef, frame: &mut GuestFrame) -> bool {
    emulate(vcpu, frame, x86emu::forced_cpuid)
}

/// Handles #GP from a privileged instruction; `false`: it was something else.
pub fn privileged(vcpu: &VcpuRef, frame: &mut GuestFrame) -> bool {
    emulate(vcpu, frame, x86emu::privileged)
}

fn emulate<'v>(
    vcpu: &'v VcpuRef,
    frame: &mut GuestFrame,
    one: impl FnOnce(&mut Registers, &mut Cpu<'v>) -> Outcome,
) -> bool {
    let mut registers = registers_of(frame);
    let mut cpu = Cpu::new(vcpu, frame.cs);
    let outcome = one(&mut registers, &mut cpu);
    match outcome {
        Outcome::NotOurs => return false,
        Outcome::Exception(exception) => {
            // A repeated string instruction may have done part of its work.
            put_registers(frame, &registers);
            trap::inject(vcpu, frame, fault_of(exception));
            return true;
        }
        Outcome::Again => put_registers(frame, &registers),
        Outcome::Done { single_step } => {
            put_registers(frame, &registers);
            after(vcpu, frame, single_step);
        }
        Outcome::Halt { single_step } => {
            put_registers(frame, &registers);
            after(vcpu, frame, single_step);
            if let Some(info) = vcpu.info() {
                info.set_masked(false);
                crate::sched::block(vcpu, || info.is_pending());
            }
        }
    }
    true
}

/// A traced instruction ends in #DB.
pub fn after(vcpu: &VcpuRef, frame: &mut GuestFrame, single_step: bool) {
    const DR6_BS: u64 = 1 << 14;
    if single_step {
        vcpu.pv.lock().debug[6] |= DR6_BS;
        trap::inject(vcpu, frame, Fault::plain(vector::DB));
    }
}

/// The trap module's exception for the emulator's.
pub fn fault_of(exception: Exception) -> Fault {
    match exception {
        Exception::PageFault { address, code } => Fault::page_fault(code, Vaddr::new(address)),
        Exception::Vector(vector, error_code) => Fault {
            vector,
            error_code,
            cr2: None,
        },
    }
}

/// The general registers as the emulator has them.
pub fn registers_of(frame: &GuestFrame) -> Registers {
    Registers {
        gpr: [
            frame.rax, frame.rcx, frame.rdx, frame.rbx, frame.rsp, frame.rbp, frame.rsi, frame.rdi, frame.r8, frame.r9,
            frame.r10, frame.r11, frame.r12, frame.r13, frame.r14, frame.r15,
        ],
        rip: frame.rip,
        rflags: frame.rflags,
    }
}

/// Takes the emulator's registers over.
pub fn put_registers(frame: &mut GuestFrame, registers: &Registers) {
    [
        frame.rax, frame.rcx, frame.rdx, frame.rbx, frame.rsp, frame.rbp, frame.rsi, frame.rdi, frame.r8, frame.r9,
        frame.r10, frame.r11, frame.r12, frame.r13, frame.r14, frame.r15,
    ] = registers.gpr;
    frame.rip = registers.rip;
    frame.rflags = registers.rflags;
}

/// The running vcpu, as an instruction of its own sees it.
pub struct Cpu<'v> {
    vcpu: &'v VcpuRef,
    cs: u16,
    is_64_bit: bool,
    is_kernel: bool,
}

impl<'v> Cpu<'v> {
    /// The view of the running vcpu, whose code selector is `cs`.
    pub fn new(vcpu: &'v VcpuRef, cs: u16) -> Self {
        let is_kernel = vcpu.pv.lock().in_kernel;
        Cpu {
            vcpu,
            cs,
            is_64_bit: segments::is_64_bit_code(cs),
            is_kernel,
        }
    }

    fn fault(&self, at: u64, copied: usize, code: u32) -> Exception {
        let user = if self.is_kernel { 0 } else { trap::fault::USER };
        Exception::PageFault {
            address: at.wrapping_add(copied as u64),
            code: code | user,
        }
    }
}

impl Space for Cpu<'_> {
    fn fetch(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        guest::copy_from_guest(Vaddr::new(at), bytes).map_err(|fault| self.fault(at, fault.copied, trap::fault::FETCH))
    }

    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        guest::copy_from_guest(Vaddr::new(at), bytes).map_err(|fault| self.fault(at, fault.copied, 0))
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Exception> {
        guest::copy_to_guest(Vaddr::new(at), bytes).map_err(|fault| self.fault(at, fault.copied, trap::fault::WRITE))
    }

    fn segment_base(&self, segment: Segment) -> Option<u64> {
        match segment {
            Segment::Fs => Some(cpu::read_msr(cpu::GuestMsr::FsBase)),
            Segment::Gs => Some(cpu::read_msr(cpu::GuestMsr::GsBase)),
            // Flat segments begin at 0; others are not for us to emulate.
            Segment::Cs => (self.is_64_bit || self.cs == segments::FLAT_RING3_CS32).then_some(0),
            Segment::Ss | Segment::Ds | Segment::Es => Some(0),
        }
    }

    fn is_64_bit(&self) -> bool {
        self.is_64_bit
    }
}

/// CR0 as every PV guest sees it: PE, MP, ET, NE, WP, AM, PG.
const CR0_FIXED: u64 = 0x8005_0033;
/// CR4 bits that a guest may change: TSD, DE, FSGSBASE, OSXSAVE.
const CR4_GUEST: u64 = 1 << 2 | 1 << 3 | 1 << 16 | policy::CR4_OSXSAVE;
/// CR4 bits that it finds set: PAE, OSFXSR, OSXMMEXCPT.
const CR4_FIXED: u64 = 1 << 5 | 1 << 9 | 1 << 10;

/// CR0 as this vcpu sees it.
pub fn visible_cr0(pv: &PvState) -> u64 {
    CR0_FIXED | if pv.ts { crate::domain::context::CR0_TS } else { 0 }
}

impl x86emu::Vcpu for Cpu<'_> {
    fn is_kernel(&self) -> bool {
        self.is_kernel
    }

    fn has_io_privilege(&self) -> bool {
        use ferroxen_abi::xen::vm_assist::ARCHITECTURAL_IOPL;
        let needed = match (self.is_kernel, self.vcpu.domain().assists(ARCHITECTURAL_IOPL)) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 3,
        };
        self.vcpu.pv.lock().iopl >= needed
    }

    fn may_use_port(&self, port: u16, width: Io) -> bool {
        if self.has_io_privilege() {
            return true;
        }
        let (bitmap, ports) = self.vcpu.pv.lock().io_bitmap;
        let first = u32::from(port);
        let last = first + width as u32 - 1;
        if last >= ports {
            return false;
        }
        (first..=last).all(|port| {
            let at = bitmap.wrapping_add(u64::from(port / 8));
            guest::read::<u8>(Vaddr::new(at)).is_ok_and(|byte| byte >> (port % 8) & 1 == 0)
        })
    }

    fn port_read(&mut self, port: u16, width: Io) -> u32 {
        crate::irq::ports::read(self.vcpu.domain(), port, width_of(width))
    }

    fn port_write(&mut self, port: u16, width: Io, value: u32) {
        crate::irq::ports::write(self.vcpu.domain(), port, width_of(width), value);
    }

    fn read_cr(&mut self, number: u8) -> Result<u64, Exception> {
        let pv = self.vcpu.pv.lock();
        Ok(match number {
            0 => visible_cr0(&pv),
            2 => self.vcpu.info().map_or(0, |info| info.cr2()),
            3 => pv.kernel_root.map_or(0, |root| root.mfn().maddr().raw()),
            4 => CR4_FIXED | pv.cr4 & CR4_GUEST,
            _ => return Err(Exception::UD),
        })
    }

    fn write_cr(&mut self, number: u8, value: u64) -> Result<(), Exception> {
        use crate::domain::context::{CR0_TS, set_task_switched};
        match number {
            0 => {
                if (value ^ CR0_FIXED) & !CR0_TS != 0 {
                    crate::guest!(Debug, "{}: CR0 {value:#x} refused: only TS may change", self.vcpu);
                    return Err(Exception::GP);
                }
                let ts = value & CR0_TS != 0;
                self.vcpu.pv.lock().ts = ts;
                set_task_switched(ts);
            }
            2 => {
                if let Some(info) = self.vcpu.info() {
                    info.set_cr2(value);
                }
            }
            3 => {
                let root = Mfn::new(value >> 12 & 0xff_ffff_ffff);
                mm::new_root(self.vcpu, root).map_err(|_| Exception::GP)?;
            }
            4 => self.vcpu.pv.lock().cr4 = value & CR4_GUEST,
            _ => return Err(Exception::UD),
        }
        Ok(())
    }

    fn read_dr(&mut self, number: u8) -> Result<u64, Exception> {
        let index = match number {
            0..=3 => usize::from(number),
            4 | 6 => 6,
            _ => 7,
        };
        Ok(self.vcpu.pv.lock().debug[index])
    }

    fn write_dr(&mut self, number: u8, value: u64) -> Result<(), Exception> {
        traps::set_debug_register(self.vcpu, number.into(), value).map_err(|_| Exception::GP)?;
        crate::domain::context::load_debug(&self.vcpu.pv.lock());
        Ok(())
    }

    fn read_msr(&mut self, number: u32) -> Result<u64, Exception> {
        policy::read_msr(self.vcpu, number).ok_or(Exception::GP)
    }

    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Exception> {
        policy::write_msr(self.vcpu, number, value).ok_or(Exception::GP)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32, forced: bool) -> Result<[u32; 4], Exception> {
        Ok(policy::cpuid(self.vcpu, leaf, subleaf, forced))
    }

    fn read_tsc(&mut self) -> Result<u64, Exception> {
        Ok(cpu::tsc())
    }

    fn tsc_aux(&mut self) -> u32 {
        0
    }

    fn read_pmc(&mut self, _: u32) -> Result<u64, Exception> {
        Err(Exception::GP)
    }

    fn write_xcr(&mut self, number: u32, value: u64) -> Result<(), Exception> {
        // All states that we save are switched on for good; a guest that asks for fewer has them nevertheless.
        let known = cpu::features().xcr0;
        if number != 0 || value & 1 == 0 || value & !known != 0 {
            Err(Exception::GP)
        } else {
            Ok(())
        }
    }

    fn invalidate_page(&mut self, at: u64) -> Result<(), Exception> {
        paging::invlpg(Vaddr::new(at));
        Ok(())
    }

    fn flush_cache(&mut self) {
        // Only who has devices can have a use for it.
        if self.vcpu.domain().is_privileged {
            paging::wbinvd();
        }
    }
}

fn width_of(width: Io) -> Width {
    match width {
        Io::Byte => Width::Byte,
        Io::Word => Width::Word,
        Io::Long => Width::Dword,
    }
}
