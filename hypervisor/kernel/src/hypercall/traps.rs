//! A PV guest's own CPU: trap table, stacks, segment bases, debug registers, and the way back (`iret`).

use super::{Answer, Call};
use crate::cpu::{self as this_cpu, work};
use crate::domain::context::{BREAKPOINTS, DR6_INITIAL, DR7_INITIAL, load_debug, sanitised, set_task_switched};
use crate::domain::{PvState, VcpuRef};
use crate::guest::GuestPtr;
use crate::pv::bounce::rflags;
use crate::pv::mode;
use crate::pv::policy::CR4_DE;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::x86::{IretContext, TrapInfo, segbase, vgcf};
use ferroxen_abi::xen::vm_assist as assist;
use ferroxen_machine::cpu::{self, GuestMsr};
use ferroxen_machine::{GuestFrame, segments};
use ferroxen_words::Vaddr;

/// `set_trap_table(traps)`: entries up to one with address 0; a null pointer clears the whole table.
///
/// `EPERM` for a selector in the hypervisor's part of the GDT that is not flat ring 3, as the table would
/// never work; `EFAULT` where the table cannot be read (entries before are in force, as on stock Xen).
pub fn set_trap_table(call: &mut Call<'_>) -> Answer {
    let table = GuestPtr::<TrapInfo>::new(call.args()[0]);
    if table.is_null() {
        call.caller.pv.lock().traps.fill(TrapInfo::default());
        return Ok(0);
    }
    // A table names each vector once at most; longer ones go on from where they were.
    for index in 0..256u64 {
        let entry = table.read_element(index)?;
        if entry.address == 0 {
            return Ok(0);
        }
        if !Vaddr::new(entry.address).is_canonical() {
            return Err(Errno::EINVAL);
        }
        call.caller.pv.lock().traps[usize::from(entry.vector)] = sanitised(entry);
    }
    let rest = table.element(256)?;
    call.again([rest.raw()])
}

/// `stack_switch(ss, sp)`: where the guest's kernel stack is on entries from user mode.
#[inline(always)]
pub fn stack_switch(call: &mut Call<'_>) -> Answer {
    let mut pv = call.caller.pv.lock();
    pv.kernel_ss = call.args()[0] | 3;
    pv.kernel_sp = call.args()[1];
    Ok(0)
}

/// `fpu_taskswitch(set)`: sets or clears CR0.TS.
pub fn fpu_taskswitch(call: &mut Call<'_>) -> Answer {
    let set = call.args()[0] != 0;
    call.caller.pv.lock().ts = set;
    set_task_switched(set);
    Ok(0)
}

/// `set_segment_base(which, base)`: `EINVAL` for a base that is not canonical or an unknown register.
pub fn set_segment_base(call: &mut Call<'_>) -> Answer {
    let [which, base, ..] = call.args();
    if which != segbase::GS_USER_SEL && !Vaddr::new(base).is_canonical() {
        return Err(Errno::EINVAL);
    }
    let msr = match which {
        segbase::FS => GuestMsr::FsBase,
        // The caller is in its kernel, so its user's base is the one that waits.
        segbase::GS_USER => GuestMsr::KernelGsBase,
        segbase::GS_KERNEL => GuestMsr::GsBase,
        segbase::GS_USER_SEL => {
            // A selector that does not load leaves a null one, as stock Xen does.
            let _ = segments::load_user_gs(base as u16);
            return Ok(0);
        }
        _ => return Err(Errno::EINVAL),
    };
    if cpu::write_msr(msr, base) {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// `set_debugreg(reg, value)`.
pub fn set_debugreg(call: &mut Call<'_>) -> Answer {
    set_debug_register(call.caller, call.args()[0], call.args()[1])?;
    load_debug(&call.caller.pv.lock());
    Ok(0)
}

/// Checks and records a debug register; `ENODEV` for one that there is not.
///
/// DR0-3 must not point into the hypervisor (`EPERM`); DR6 and DR7 take their fixed bits; DR7.GD is refused, and so are
/// breakpoints on ports while CR4.DE is clear (`EPERM`).
pub fn set_debug_register(vcpu: &VcpuRef, register: u64, value: u64) -> Result<(), Errno> {
    const DR7_CONTROL_MUST_BE_ZERO: u64 = 0xffff_ffff_0000_d800;
    const DR7_GD: u64 = 1 << 13;
    let mut pv = vcpu.pv.lock();
    match debug_index(&pv, register)? {
        index @ 0..=3 => {
            let is_ours =
                (ferroxen_abi::xen::HYPERVISOR_VIRT_START..ferroxen_abi::xen::HYPERVISOR_VIRT_END).contains(&value);
            if is_ours || !Vaddr::new(value).is_canonical() {
                return Err(Errno::EPERM);
            }
            pv.debug[index] = value;
        }
        6 => {
            if value >> 32 != 0 {
                return Err(Errno::EINVAL);
            }
            pv.debug[6] = (value & !0x1000) | DR6_INITIAL;
        }
        _ => {
            if value >> 32 != 0 {
                return Err(Errno::EINVAL);
            }
            let value = (value & !DR7_CONTROL_MUST_BE_ZERO) | DR7_INITIAL;
            let has_ports = value & BREAKPOINTS != 0 && (0..4).any(|slot| watches_port(value, slot));
            if value & DR7_GD != 0 || (has_ports && pv.cr4 & CR4_DE == 0) {
                return Err(Errno::EPERM);
            }
            pv.debug[7] = value;
        }
    }
    Ok(())
}

/// Where a debug register is kept. DR4 and DR5 stand for DR6 and DR7 while CR4.DE is clear.
fn debug_index(pv: &PvState, register: u64) -> Result<usize, Errno> {
    match register {
        0..=3 | 6 | 7 => Ok(register as usize),
        4 | 5 if pv.cr4 & CR4_DE == 0 => Ok(register as usize + 2),
        _ => Err(Errno::ENODEV),
    }
}

/// Whether a breakpoint of DR7 is of the kind that watches ports (which the processor has only with CR4.DE).
fn watches_port(control: u64, slot: usize) -> bool {
    control >> (16 + slot * 4) & 3 == 2
}

/// The breakpoints, as bits of DR6, that watch any of the ports.
pub fn port_breakpoints(debug: &[u64; 8], port: u16, ports: u64) -> u64 {
    let control = debug[7];
    if control & BREAKPOINTS == 0 {
        return 0;
    }
    let is_hit = |slot: usize| {
        let length = (control >> (18 + slot * 4) & 3) + 1;
        let first = debug[slot] & !(length - 1);
        let is_on = control >> (slot * 2) & 3 != 0;
        is_on && watches_port(control, slot) && u64::from(port) < first + length && first < u64::from(port) + ports
    };
    (0..4).filter(|slot| is_hit(*slot)).fold(0, |hit, slot| hit | 1 << slot)
}

/// `get_debugreg(reg)`: the value itself, or `ENODEV`.
pub fn get_debugreg(call: &mut Call<'_>) -> Answer {
    let pv = call.caller.pv.lock();
    Ok(pv.debug[debug_index(&pv, call.args()[0])?])
}

/// Assists that a PV guest may switch.
pub const KNOWN_ASSISTS: u64 = 1 << assist::FOUR_GB_SEGMENTS
    | 1 << assist::FOUR_GB_SEGMENTS_NOTIFY
    | 1 << assist::WRITABLE_PAGETABLES
    | 1 << assist::PAE_EXTENDED_CR3
    | 1 << assist::ARCHITECTURAL_IOPL
    | 1 << assist::RUNSTATE_UPDATE_FLAG
    | 1 << assist::M2P_STRICT;

/// `vm_assist(cmd, type)`.
///
/// The 4 GiB-segment assists mean nothing to 64-bit guests and are accepted, as stock Xen accepts them.
pub fn vm_assist(call: &mut Call<'_>) -> Answer {
    use core::sync::atomic::Ordering;
    let [command, kind, ..] = call.args();
    let bit = u32::try_from(kind)
        .ok()
        .and_then(|kind| 1u64.checked_shl(kind))
        .unwrap_or(0);
    if bit & KNOWN_ASSISTS == 0 {
        return Err(Errno::EINVAL);
    }
    let assists = &call.caller.domain().vm_assist;
    match command {
        assist::CMD_ENABLE => assists.fetch_or(bit, Ordering::Relaxed),
        assist::CMD_DISABLE => assists.fetch_and(!bit, Ordering::Relaxed),
        _ => return Err(Errno::ENOSYS),
    };
    Ok(0)
}

/// `iret`: returns as the frame on the guest kernel's stack says, to user mode or within the kernel.
///
/// Whatever the frame holds, the hardware keeps CPL 3 and interrupts on. A guest whose frame cannot be read,
/// or that has no user page tables to return to, is past saving.
pub fn iret(call: &mut Call<'_>) -> Answer {
    Ok(return_from(call.caller, call.frame))
}

/// As [`iret`]; answers what `rax` shall be.
#[inline(always)]
pub fn return_from(vcpu: &VcpuRef, frame: &mut GuestFrame) -> u64 {
    let Ok(wanted) = GuestPtr::<IretContext>::new(frame.rsp).read() else {
        return lost(vcpu, frame, "its iret frame cannot be read");
    };
    if wanted.cs & 3 == 3 && mode::enter_user(vcpu).is_err() {
        return lost(vcpu, frame, "it goes to user mode without user page tables");
    }
    if vcpu.domain().assists(assist::ARCHITECTURAL_IOPL) {
        vcpu.pv.lock().iopl = ((wanted.rflags & rflags::IOPL) >> 12) as u8;
    }
    frame.rip = wanted.rip;
    frame.cs = wanted.cs as u16 | 3;
    frame.rflags = (wanted.rflags & !(rflags::IOPL | rflags::VM)) | rflags::IF | rflags::FIXED;
    frame.rsp = wanted.rsp;
    frame.ss = wanted.ss as u16 | 3;
    if wanted.flags & vgcf::IN_SYSCALL == 0 {
        frame.r11 = wanted.r11;
        frame.rcx = wanted.rcx;
        frame.return_by_iret();
    }
    if let Some(info) = vcpu.info() {
        info.set_masked(wanted.rflags & rflags::IF == 0);
    }
    if vcpu.end_nmi() {
        this_cpu::request(work::NMI);
    }
    wanted.rax
}

#[cold]
#[inline(never)]
fn lost(vcpu: &VcpuRef, frame: &GuestFrame, why: &str) -> u64 {
    vcpu.domain().crash(format_args!("{vcpu}: {why}; rsp {:#x}", frame.rsp));
    frame.rax
}
