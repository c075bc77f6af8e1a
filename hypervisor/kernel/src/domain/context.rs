//! Registers: taken from a context, given back as one, and exchanged when a CPU changes its vcpu.

use super::vcpu::Callback;
use super::{PvState, VcpuRef};
use crate::pv::bounce::rflags;
use crate::pv::{levelling, mm, policy};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::x86::{CpuUserRegs, TrapInfo, VcpuGuestContext, vgcf};
use ferroxen_machine::cpu::{self, GuestMsr};
use ferroxen_machine::debugregs::{self, DebugRegisters};
use ferroxen_machine::fpu::{self, FpuState};
use ferroxen_machine::memory::Page;
use ferroxen_machine::{GuestFrame, paging, segments};
use ferroxen_words::{Mfn, Vaddr};

/// Takes the running vcpu's registers out of the CPU.
pub fn save(vcpu: &VcpuRef, frame: &GuestFrame) {
    let mut pv = vcpu.pv.lock();
    pv.frame = *frame;
    pv.selectors = segments::selectors();
    pv.fs_base = cpu::read_msr(GuestMsr::FsBase);
    let (active, waiting) = (cpu::read_msr(GuestMsr::GsBase), cpu::read_msr(GuestMsr::KernelGsBase));
    (pv.gs_base_kernel, pv.gs_base_user) = if vcpu.is_in_kernel() {
        (active, waiting)
    } else {
        (waiting, active)
    };
    if pv.debug[7] & BREAKPOINTS != 0 {
        pv.debug[6] |= debugregs::take_status();
    }
    pv.fpu.save();
}

/// Puts the registers of the vcpu that now is this CPU's into it. Its CPU's TLB has nothing of anybody else's afterwards.
pub fn load(vcpu: &VcpuRef, frame: &mut GuestFrame) {
    let pv = vcpu.pv.lock();
    frame.replace(&pv.frame);
    vcpu.domain().dirty_cpus.insert(cpu::cpu_id());
    let root = if vcpu.is_in_kernel() {
        &pv.kernel_loads
    } else {
        &pv.user_loads
    };
    match root {
        Some(root) => paging::activate(root),
        None => paging::activate_own(),
    }
    load_gdt(&pv);
    segments::load_ldt(pv.ldt_entries);
    let saved = pv.selectors;
    drop(pv);
    // Without the lock: a selector of the LDT faults its page in.
    let selectors_held = segments::load_selectors(saved);
    let pv = vcpu.pv.lock();
    let (active, waiting) = if vcpu.is_in_kernel() {
        (pv.gs_base_kernel, pv.gs_base_user)
    } else {
        (pv.gs_base_user, pv.gs_base_kernel)
    };
    // Bases are checked to be canonical when they are set.
    let _ = cpu::write_msr(GuestMsr::FsBase, pv.fs_base);
    let _ = cpu::write_msr(GuestMsr::GsBase, active);
    let _ = cpu::write_msr(GuestMsr::KernelGsBase, waiting);
    load_debug(&pv);
    // A state that does not load (only its owner can have made it so) becomes that of a reset.
    let _ = pv.fpu.restore();
    let _ = fpu::set_xcr0(pv.xcr0);
    policy::load_cr4(pv.cr4);
    levelling::load(vcpu.domain(), pv.cr4 & policy::CR4_OSXSAVE != 0);
    cpu::set_tsc_aux(pv.tsc_aux);
    set_task_switched(pv.ts);
    drop(pv);
    if !selectors_held {
        crate::pv::trap::bad_selectors(vcpu, frame, saved);
    }
}

/// Puts the debug registers in force that a vcpu asked for, or none.
pub fn load_debug(pv: &PvState) {
    if pv.debug[7] & BREAKPOINTS != 0 {
        let [d0, d1, d2, d3, ..] = pv.debug;
        debugregs::load(&DebugRegisters {
            address: [d0, d1, d2, d3],
            status: pv.debug[6],
            control: pv.debug[7],
        });
    } else {
        debugregs::disable();
    }
}

/// DR7's enable bits.
pub const BREAKPOINTS: u64 = 0xff;

/// Sets or clears CR0.TS of this CPU.
pub fn set_task_switched(set: bool) {
    if set {
        fpu::set_task_switched()
    } else {
        fpu::clear_task_switched()
    }
}

/// Puts the vcpu's GDT frames into this CPU's window.
pub fn load_gdt(pv: &PvState) {
    let frames = pv.gdt_frames();
    let Some(first) = frames.first().and_then(|&mfn| Page::new(mfn)) else {
        return segments::load_gdt_frames(&[]);
    };
    let mut pages = [first; segments::GUEST_GDT_PAGES];
    for (slot, page) in pages.iter_mut().zip(frames.iter().map_while(|&mfn| Page::new(mfn))) {
        *slot = page;
    }
    segments::load_gdt_frames(&pages[..frames.len()]);
}

/// Loads the running vcpu's page tables anew.
pub fn reload_root(vcpu: &VcpuRef) {
    let pv = vcpu.pv.lock();
    if let Some(root) = if vcpu.is_in_kernel() {
        &pv.kernel_loads
    } else {
        &pv.user_loads
    } {
        paging::activate(root);
    }
}

/// Gives a vcpu that does not run a whole new context (`setvcpucontext`, `VCPUOP_initialise`).
///
/// The page tables are the first thing taken and the only one that can be refused after a check: everything
/// else is masked into a form that cannot hurt. On refusal the vcpu keeps no page table.
pub fn set(vcpu: &VcpuRef, context: &VcpuGuestContext) -> Result<(), Errno> {
    check(context)?;
    mm::set_initial_roots(
        vcpu,
        context.ctrlreg[3],
        context.ctrlreg[1],
        context.flags & vgcf::IN_KERNEL != 0,
    )?;
    let gdt_frames = (context.gdt_ents as usize).div_ceil(512);
    let mut gdt = [Mfn::INVALID; 14];
    for (slot, &frame) in gdt
        .iter_mut()
        .zip(context.gdt_frames.get(..gdt_frames).ok_or(Errno::EINVAL)?)
    {
        *slot = Mfn::new(frame);
    }
    mm::set_gdt_frames(vcpu, &gdt, context.gdt_ents as u32)?;

    let mut pv = vcpu.pv.lock();
    let user = &context.user_regs;
    pv.frame = frame_of(user);
    pv.selectors = segments::Selectors {
        ds: user.ds,
        es: user.es,
        fs: user.fs,
        gs: user.gs,
    };
    vcpu.set_in_kernel(context.flags & vgcf::IN_KERNEL != 0);
    for (entry, given) in pv.traps.iter_mut().zip(context.trap_ctxt.iter()) {
        *entry = sanitised(*given);
    }
    let flags = context.flags;
    pv.event = Callback {
        cs: 0,
        address: context.event_callback_eip,
        masks_events: true,
    };
    pv.failsafe = Callback {
        cs: 0,
        address: context.failsafe_callback_eip,
        masks_events: flags & vgcf::FAILSAFE_DISABLES_EVENTS != 0,
    };
    pv.syscall = Callback {
        cs: 0,
        address: context.syscall_callback_eip,
        masks_events: flags & vgcf::SYSCALL_DISABLES_EVENTS != 0,
    };
    pv.kernel_sp = context.kernel_sp;
    pv.kernel_ss = context.kernel_ss;
    pv.ts = context.ctrlreg[0] & CR0_TS != 0;
    pv.cr4 = policy::fit_cr4(vcpu.domain(), context.ctrlreg[4]);
    pv.ldt_base = if context.ldt_ents == 0 { 0 } else { context.ldt_base };
    pv.ldt_entries = context.ldt_ents as u32;
    pv.fs_base = context.fs_base;
    pv.gs_base_kernel = context.gs_base_kernel;
    pv.gs_base_user = context.gs_base_user;
    pv.iopl = ((user.rflags & rflags::IOPL) >> 12) as u8;
    pv.debug = [0, 0, 0, 0, 0, 0, DR6_INITIAL, DR7_INITIAL];
    if flags & vgcf::I387_VALID != 0 {
        if let Some(legacy) = pv.fpu.bytes_mut().get_mut(..512) {
            legacy.copy_from_slice(&context.fpu_ctxt);
        }
    } else {
        pv.fpu = FpuState::new();
    }
    pv.xcr0 = policy::XCR0_INITIAL;
    pv.tsc_aux = 0;
    drop(pv);
    for (index, &value) in context.debugreg.iter().enumerate().filter(|(_, value)| **value != 0) {
        // A value that no debug register may have is dropped, as the guest could not have set it.
        let _ = crate::hypercall::traps::set_debug_register(vcpu, index as u64, value);
    }
    vcpu.domain().vm_assist.fetch_or(
        context.vm_assist & crate::hypercall::traps::KNOWN_ASSISTS,
        core::sync::atomic::Ordering::Relaxed,
    );
    vcpu.set_initialised(true);
    Ok(())
}

/// Takes the context of a vcpu that does not run away: it is as `max_vcpus` made it. `ERESTART`: ask again.
pub fn reset(vcpu: &VcpuRef) -> Result<(), Errno> {
    vcpu.set_online(false);
    vcpu.set_initialised(false);
    if !mm::release_roots(vcpu) {
        return Err(Errno::ERESTART);
    }
    crate::sched::unblock(vcpu);
    vcpu.clear_nmi();
    vcpu.reset_info(vcpu.domain());
    Ok(())
}

/// CR0.TS
pub const CR0_TS: u64 = 1 << 3;
/// Value of DR6 after reset.
pub const DR6_INITIAL: u64 = 0xffff_0ff0;
/// Value of DR7 after reset.
pub const DR7_INITIAL: u64 = 0x400;

fn check(context: &VcpuGuestContext) -> Result<(), Errno> {
    let canonical = |address: u64| Vaddr::new(address).is_canonical();
    let addresses = [
        context.event_callback_eip,
        context.failsafe_callback_eip,
        context.syscall_callback_eip,
        context.fs_base,
        context.gs_base_kernel,
        context.gs_base_user,
        context.kernel_sp,
        context.user_regs.rip,
        context.ldt_base,
    ];
    let sizes_fit = context.gdt_ents <= ferroxen_abi::x86::FIRST_RESERVED_GDT_ENTRY as u64 && context.ldt_ents <= 8192;
    let ldt = Vaddr::new(context.ldt_base);
    let ldt_fits = context.ldt_ents == 0 || ldt.offset() == 0 && mm::is_guest_address(ldt);
    if addresses.into_iter().all(canonical) && sizes_fit && ldt_fits {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// A trap-table entry in the form in which we use it: never the hypervisor's code, always at CPL 3.
pub fn sanitised(entry: TrapInfo) -> TrapInfo {
    TrapInfo {
        cs: entry.cs | 3,
        pad: 0,
        ..entry
    }
}

fn frame_of(user: &CpuUserRegs) -> GuestFrame {
    GuestFrame {
        r15: user.r15,
        r14: user.r14,
        r13: user.r13,
        r12: user.r12,
        rbp: user.rbp,
        rbx: user.rbx,
        r11: user.r11,
        r10: user.r10,
        r9: user.r9,
        r8: user.r8,
        rax: user.rax,
        rcx: user.rcx,
        rdx: user.rdx,
        rsi: user.rsi,
        rdi: user.rdi,
        rip: user.rip,
        cs: user.cs | 3,
        rflags: (user.rflags & !(rflags::IOPL | rflags::VM | rflags::NT)) | rflags::IF | rflags::FIXED,
        rsp: user.rsp,
        ss: user.ss | 3,
        ..GuestFrame::default()
    }
}

/// Gives out the whole context of a vcpu that does not run (`getvcpucontext`).
pub fn get(vcpu: &VcpuRef, context: &mut VcpuGuestContext) {
    let pv = vcpu.pv.lock();
    if let Some(legacy) = pv.fpu.bytes().get(..512) {
        context.fpu_ctxt.copy_from_slice(legacy);
    }
    context.flags = vgcf::I387_VALID
        | if vcpu.is_in_kernel() { vgcf::IN_KERNEL } else { 0 }
        | if pv.failsafe.masks_events {
            vgcf::FAILSAFE_DISABLES_EVENTS
        } else {
            0
        }
        | if pv.syscall.masks_events {
            vgcf::SYSCALL_DISABLES_EVENTS
        } else {
            0
        }
        | if vcpu.is_online() { vgcf::ONLINE } else { 0 };
    let frame = &pv.frame;
    let masked = vcpu.info().is_some_and(|info| info.is_masked());
    context.user_regs = CpuUserRegs {
        r15: frame.r15,
        r14: frame.r14,
        r13: frame.r13,
        r12: frame.r12,
        rbp: frame.rbp,
        rbx: frame.rbx,
        r11: frame.r11,
        r10: frame.r10,
        r9: frame.r9,
        r8: frame.r8,
        rax: frame.rax,
        rcx: frame.rcx,
        rdx: frame.rdx,
        rsi: frame.rsi,
        rdi: frame.rdi,
        rip: frame.rip,
        cs: frame.cs,
        saved_upcall_mask: u8::from(masked),
        rflags: (frame.rflags & !(rflags::IOPL | rflags::IF))
            | u64::from(pv.iopl) << 12
            | if masked { 0 } else { rflags::IF },
        rsp: frame.rsp,
        ss: frame.ss,
        ds: pv.selectors.ds,
        es: pv.selectors.es,
        fs: pv.selectors.fs,
        gs: pv.selectors.gs,
        ..CpuUserRegs::default()
    };
    context.trap_ctxt = *pv.traps;
    context.ldt_base = pv.ldt_base;
    context.ldt_ents = u64::from(pv.ldt_entries);
    context.gdt_frames = [0; 16];
    for (slot, frame) in context.gdt_frames.iter_mut().zip(pv.gdt_frames()) {
        *slot = frame.raw();
    }
    context.gdt_ents = u64::from(pv.gdt_entries);
    context.kernel_ss = pv.kernel_ss;
    context.kernel_sp = pv.kernel_sp;
    context.ctrlreg = [0; 8];
    context.ctrlreg[0] = crate::pv::emulate::visible_cr0(&pv);
    context.ctrlreg[4] = pv.cr4;
    context.ctrlreg[3] = pv.kernel_root.as_ref().map_or(0, |root| root.mfn().maddr().raw());
    context.ctrlreg[1] = pv.user_root.as_ref().map_or(0, |root| root.mfn().maddr().raw());
    context.debugreg = pv.debug;
    context.event_callback_eip = pv.event.address;
    context.failsafe_callback_eip = pv.failsafe.address;
    context.syscall_callback_eip = pv.syscall.address;
    context.vm_assist = vcpu.domain().vm_assist.load(core::sync::atomic::Ordering::Relaxed);
    context.fs_base = pv.fs_base;
    context.gs_base_kernel = pv.gs_base_kernel;
    context.gs_base_user = pv.gs_base_user;
}
