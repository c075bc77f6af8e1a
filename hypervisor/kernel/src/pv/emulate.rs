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
            after(vcpu, frame, single_step, cpu.met);
        }
    }
    true
}

/// A traced instruction ends in #DB, and so does one that met breakpoints.
pub fn after(vcpu: &VcpuRef, frame: &mut GuestFrame, single_step: bool, met: u64) {
    const DR6_BS: u64 = 1 << 14;
    let why = met | if single_step { DR6_BS } else { 0 };
    if why != 0 {
        vcpu.pv.lock().debug[6] |= why;
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
    /// Breakpoints on ports that the instruction met, as DR6 tells them.
    met: u64,
}

impl<'v> Cpu<'v> {
    /// The view of the running vcpu, whose code selector is `cs`.
    pub fn new(vcpu: &'v VcpuRef, cs: u16) -> Self {
        let is_kernel = vcpu.is_in_kernel();
        Cpu {
            vcpu,
            cs,
            is_64_bit: segments::is_64_bit_code(cs),
            is_kernel,
            met: 0,
        }
    }

    fn note_port(&mut self, port: u16, width: Io) {
        self.met |= traps::port_breakpoints(&self.vcpu.pv.lock().debug, port, width as u64);
    }

    fn fault(&self, at: u64, copied: usize, code: u32) -> Exception {
        let address = at.wrapping_add(copied as u64);
        if !Vaddr::new(address).is_canonical() {
            return Exception::GP;
        }
        let user = if self.is_kernel { 0 } else { trap::fault::USER };
        let address = at.wrapping_add(copied as u64);
        if !Vaddr::new(address).is_canonical() {
            return Exception::GP;
        }
        Exception::PageFault {
            address,
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
        self.note_port(port, width);
        crate::irq::ports::read(self.vcpu.domain(), port, width_of(width))
    }

    fn port_write(&mut self, port: u16, width: Io, value: u32) {
        self.note_port(port, width);
        crate::irq::ports::write(self.vcpu.domain(), port, width_of(width), value);
    }

    fn read_cr(&mut self, number: u8) -> Result<u64, Exception> {
        let pv = self.vcpu.pv.lock();
        Ok(match number {
            0 => visible_cr0(&pv),
            2 => self.vcpu.info().map_or(0, |info| info.cr2()),
            3 => pv.kernel_root.map_or(0, |root| root.mfn().maddr().raw()),
            4 => pv.cr4,
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
            4 => {
                let cr4 = policy::fit_cr4(self.vcpu.domain(), value);
                self.vcpu.pv.lock().cr4 = cr4;
                policy::load_cr4(cr4);
            }
            _ => return Err(Exception::UD),
        }
        Ok(())
    }

    fn read_dr(&mut self, number: u8) -> Result<u64, Exception> {
        let pv = self.vcpu.pv.lock();
        Ok(pv.debug[debug_register(number, pv.cr4)?])
    }

    fn write_dr(&mut self, number: u8, value: u64) -> Result<(), Exception> {
        let register = debug_register(number, self.vcpu.pv.lock().cr4)?;
        traps::set_debug_register(self.vcpu, register as u64, value).map_err(|_| Exception::GP)?;
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
        // It faults because the guest's kernel has kept the counter to itself (CR4.TSD).
        if self.is_kernel {
            Ok(cpu::tsc())
        } else {
            Err(Exception::GP)
        }
    }

    fn tsc_aux(&mut self) -> u32 {
        self.vcpu.pv.lock().tsc_aux
    }

    fn write_xcr(&mut self, number: u32, value: u64) -> Result<(), Exception> {
        if self.vcpu.pv.lock().cr4 & policy::CR4_OSXSAVE == 0 {
            return Err(Exception::UD);
        }
        policy::write_xcr(self.vcpu, number, value).ok_or(Exception::GP)
    }

    fn flush_cache(&mut self) {
        // Only who has devices can have a use for it.
        if self.vcpu.domain().is_privileged {
            paging::wbinvd();
        }
    }
}

/// DR4 and DR5 stand for DR6 and DR7, unless the guest has debugging extensions switched on.
fn debug_register(number: u8, cr4: u64) -> Result<usize, Exception> {
    match number {
        4 | 5 if cr4 & policy::CR4_DE != 0 => Err(Exception::UD),
        4 => Ok(6),
        5 => Ok(7),
        _ => Ok(usize::from(number & 7)),
    }
}

fn width_of(width: Io) -> Width {
    match width {
        Io::Byte => Width::Byte,
        Io::Word => Width::Word,
        Io::Long => Width::Dword,
    }
}
