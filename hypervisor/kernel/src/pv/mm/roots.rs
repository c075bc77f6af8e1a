//! What a vcpu itself holds: its root tables, its GDT, and its word where the LDT lies.

use super::mirror::{Mode, install};
use super::{NotYet, Tables, ldt, table_errno};
use crate::domain::{Domain, PvState, VcpuRef};
use alloc::sync::Arc;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::x86::FIRST_RESERVED_GDT_ENTRY;
use ferroxen_frames::Kind;
use ferroxen_machine::paging::{self, RootTable};
use ferroxen_machine::segments;
use ferroxen_machine::smp;
use ferroxen_words::{Mfn, Vaddr};

/// Most descriptors in an LDT.
const LDT_ENTRIES: u32 = 8192;

/// Takes a pair of references to a root for a vcpu. `None`: ask again.
#[inline(always)]
fn take_root(tables: &mut Tables<'_>, mfn: Mfn) -> Result<Option<RootTable>, Errno> {
    match tables.space().take_table(mfn.raw(), Kind::L4) {
        Ok(()) => {}
        Err(stop) => return tables.note_stop(stop).map_or(Ok(None), |why| Err(table_errno(why))),
    }
    match RootTable::check(mfn) {
        Some(root) => Ok(Some(root)),
        // Every checked root has our slots.
        None => panic!("root {mfn} lost the hypervisor's slots"),
    }
}

#[inline(always)]
fn drop_root(tables: &mut Tables<'_>, root: Option<RootTable>) {
    if let Some(root) = root {
        let dropped = tables.space().drop_table(root.mfn().raw());
        tables.note(dropped);
    }
}

/// Takes a root away from a vcpu that does not run.
fn take_from(vcpu: &VcpuRef, pv: &mut PvState, mode: Mode) -> Option<RootTable> {
    let root = match mode {
        Mode::Kernel => pv.kernel_root,
        Mode::User => pv.user_root,
    };
    install(vcpu, pv, mode, None, false);
    root
}

/// The running vcpu's kernel gets another root (`MMUEXT_NEW_BASEPTR`, `mov cr3`). `ERESTART`: ask again.
pub fn new_root(vcpu: &VcpuRef, mfn: Mfn) -> Result<(), Errno> {
    let mut tables = Tables::lock(vcpu.domain()).map_err(|NotYet| Errno::ERESTART)?;
    switch_root(&mut tables, vcpu, mfn)
}

/// As [`new_root`], with the tables locked already.
#[inline(always)]
pub fn switch_root(tables: &mut Tables<'_>, vcpu: &VcpuRef, mfn: Mfn) -> Result<(), Errno> {
    let mut pv = vcpu.pv.lock();
    if let Some(root) = &pv.kernel_root
        && root.mfn() == mfn
    {
        if let (true, Some(loaded)) = (vcpu.is_in_kernel(), &pv.kernel_loads) {
            paging::activate(loaded);
        }
        return Ok(());
    }
    drop(pv);
    let Some(root) = take_root(tables, mfn)? else {
        return Err(Errno::ERESTART);
    };
    pv = vcpu.pv.lock();
    let old = pv.kernel_root;
    install(vcpu, &mut pv, Mode::Kernel, Some(root), vcpu.is_in_kernel());
    drop(pv);
    ldt::drop_pages(vcpu.domain(), &mut tables.state, Some(vcpu.id));
    drop_root(tables, old);
    Ok(())
}

/// The running vcpu's user mode gets another root; frame 0: none (`MMUEXT_NEW_USER_BASEPTR`).
#[inline(always)]
pub fn new_user_root(tables: &mut Tables<'_>, vcpu: &VcpuRef, mfn: Mfn) -> Result<(), Errno> {
    let same = match &vcpu.pv.lock().user_root {
        Some(root) => root.mfn() == mfn,
        None => mfn.raw() == 0,
    };
    if same {
        return Ok(());
    }
    let mut root = None;
    if mfn.raw() != 0 {
        root = take_root(tables, mfn)?;
        if root.is_none() {
            return Err(Errno::ERESTART);
        }
    }
    let mut pv = vcpu.pv.lock();
    let old = pv.user_root;
    install(vcpu, &mut pv, Mode::User, root, false);
    drop(pv);
    drop_root(tables, old);
    Ok(())
}

/// Gives a vcpu that does not run its first roots. Both are machine addresses, of which bits 0 to 11 do not count; `cr1`,
/// the user's, may be 0 for none. On refusal the vcpu keeps no root. `ERESTART`: ask again.
pub fn set_initial_roots(vcpu: &VcpuRef, cr3: u64, cr1: u64, in_kernel: bool) -> Result<(), Errno> {
    let kernel = Mfn::new(cr3 >> 12);
    let user = Some(Mfn::new(cr1 >> 12)).filter(|mfn| mfn.raw() != 0);
    if !in_kernel && user.is_none() {
        return Err(Errno::EINVAL);
    }
    let at_boot = crate::cpu::current().is_none();
    let mut tables = loop {
        match Tables::lock(vcpu.domain()) {
            Ok(tables) => break tables,
            Err(NotYet) if at_boot => {}
            Err(NotYet) => return Err(Errno::ERESTART),
        }
    };
    let take = |tables: &mut Tables<'_>, mfn| loop {
        match take_root(tables, mfn) {
            Ok(Some(root)) => return Ok(root),
            Ok(None) if at_boot => {}
            Ok(None) => return Err(Errno::ERESTART),
            Err(why) => return Err(why),
        }
    };
    let old = {
        let mut pv = vcpu.pv.lock();
        [Mode::Kernel, Mode::User].map(|mode| take_from(vcpu, &mut pv, mode))
    };
    for root in old {
        drop_root(&mut tables, root);
        if tables.owes() {
            // One at a time: the second root goes with the next attempt, which needs it in its place.
            tables.settle().map_err(|NotYet| Errno::ERESTART)?;
        }
    }
    let kernel_root = take(&mut tables, kernel)?;
    let user_root = match user.map(|mfn| take(&mut tables, mfn)).transpose() {
        Ok(root) => root,
        Err(why) => {
            drop_root(&mut tables, Some(kernel_root));
            return Err(why);
        }
    };
    let mut pv = vcpu.pv.lock();
    install(vcpu, &mut pv, Mode::Kernel, Some(kernel_root), false);
    install(vcpu, &mut pv, Mode::User, user_root, false);
    Ok(())
}

/// Pins a root for the builder of Domain 0, for as long as that takes.
pub fn pin_root(domain: &Domain, mfn: Mfn) -> Result<(), Errno> {
    loop {
        let mut tables = Tables::lock_patiently(domain);
        match tables.space().pin(mfn.raw(), Kind::L4) {
            Ok(()) => return Ok(()),
            Err(stop) => {
                if let Some(why) = tables.note_stop(stop) {
                    return Err(table_errno(why));
                }
            }
        }
    }
}

/// Gives a vcpu another GDT of `entries` descriptors, which the frames hold. `EINVAL` if a frame is not the domain's,
/// is in use otherwise, or holds a bad descriptor; the old one stays then. `ERESTART`: ask again.
pub fn set_gdt_frames(vcpu: &VcpuRef, frames: &[Mfn; 14], entries: u32) -> Result<(), Errno> {
    if entries as usize > FIRST_RESERVED_GDT_ENTRY {
        return Err(Errno::EINVAL);
    }
    let count = (entries as usize).div_ceil(512);
    let tables = Tables::lock(vcpu.domain()).map_err(|NotYet| Errno::ERESTART)?;
    let space = tables.space();
    let wanted = frames.get(..count).ok_or(Errno::EINVAL)?;
    for (index, mfn) in wanted.iter().enumerate() {
        if space.take_descriptors(mfn.raw()).is_err() {
            wanted[..index]
                .iter()
                .for_each(|taken| space.drop_descriptors(taken.raw()));
            return Err(Errno::EINVAL);
        }
    }
    let mut pv = vcpu.pv.lock();
    let old = pv.gdt;
    let old_count = pv.gdt_frames().len();
    pv.gdt = [Mfn::INVALID; 14];
    for (slot, mfn) in pv.gdt.iter_mut().zip(wanted) {
        *slot = *mfn;
    }
    pv.gdt_entries = entries;
    if is_running_here(vcpu) {
        crate::domain::context::load_gdt(&pv);
    }
    drop(pv);
    for mfn in old.iter().take(old_count) {
        space.drop_descriptors(mfn.raw());
    }
    Ok(())
}

fn is_running_here(vcpu: &VcpuRef) -> bool {
    crate::cpu::current().is_some_and(|current| current.is(vcpu))
}

/// Says where the running vcpu's LDT lies (`MMUEXT_SET_LDT`); its pages are looked at when the processor does.
pub fn set_ldt(tables: &mut Tables<'_>, vcpu: &VcpuRef, base: Vaddr, entries: u64) -> Result<(), Errno> {
    let entries = u32::try_from(entries)
        .ok()
        .filter(|&entries| entries <= LDT_ENTRIES)
        .ok_or(Errno::EINVAL)?;
    if base.offset() != 0 || !is_guest_address(base) {
        return Err(Errno::EINVAL);
    }
    let mut pv = vcpu.pv.lock();
    if pv.ldt_entries == entries && pv.ldt_base == base.raw() {
        return Ok(());
    }
    (pv.ldt_base, pv.ldt_entries) = (base.raw(), entries);
    drop(pv);
    ldt::drop_pages(vcpu.domain(), &mut tables.state, Some(vcpu.id));
    segments::load_ldt(entries);
    Ok(())
}

/// Whether a guest may have something at an address: canonical and not ours.
pub fn is_guest_address(at: Vaddr) -> bool {
    use ferroxen_abi::xen::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};
    at.is_canonical() && !(HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&at.raw())
}

/// Our number among the functions that CPUs run on request: writes back and empties a CPU's caches.
pub const WBINVD_SLOT: u8 = 13;

/// Registers what other CPUs are asked for.
pub fn init() {
    smp::register_call(WBINVD_SLOT, paging::wbinvd);
    ldt::init();
}

/// Takes roots, GDT and LDT of a dying domain's vcpus. `false`: the time was up.
pub fn relinquish_roots(domain: &Arc<Domain>) -> bool {
    VcpuRef::all(domain).all(|vcpu| release_roots(&vcpu))
}

/// Takes roots, GDT and LDT of a vcpu that does not run: a CPU leaves a vcpu's root before it says so.
/// `false`: the time was up.
pub fn release_roots(vcpu: &VcpuRef) -> bool {
    let Ok(mut tables) = Tables::lock(vcpu.domain()) else {
        return false;
    };
    ldt::drop_pages(vcpu.domain(), &mut tables.state, Some(vcpu.id));
    let (gdt, count) = {
        let mut pv = vcpu.pv.lock();
        let count = pv.gdt_frames().len();
        pv.gdt_entries = 0;
        pv.ldt_entries = 0;
        (pv.gdt, count)
    };
    for mfn in gdt.iter().take(count) {
        tables.space().drop_descriptors(mfn.raw());
    }
    for mode in [Mode::Kernel, Mode::User] {
        let root = take_from(vcpu, &mut vcpu.pv.lock(), mode);
        drop_root(&mut tables, root);
        if tables.settle().is_err() {
            return false;
        }
    }
    true
}
