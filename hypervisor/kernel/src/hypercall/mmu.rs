//! Page tables, descriptor tables and TLBs of PV guests: `mmu_update`, `update_va_mapping`, `mmuext_op`, `set_gdt`,
//! `update_descriptor`.
//!
//! What may be changed is decided under the page-table lock of the tables' owner ([`crate::pv::mm::Tables`]); here the
//! arguments are taken apart, batches are counted, and long ones are interrupted.

use super::{Answer, Call};
use crate::access;
use crate::domain::{self, Domain, VcpuRef};
use crate::guest::GuestPtr;
use crate::memory;
use crate::pv::mm::{self, NotYet, Tables, Updated};
use alloc::sync::Arc;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::x86::FIRST_RESERVED_GDT_ENTRY;
use ferroxen_abi::xen::{MmuUpdate, MmuextOp};
use ferroxen_access::Operation;
use ferroxen_frames::{Flavour, Kind, descriptor};
use ferroxen_machine::smp::{self, CpuSet, Request};
use ferroxen_machine::{m2p, paging, time};
use ferroxen_words::{DomId, Mfn, RawDomId, Vaddr, VcpuId};

/// Set in the count when a batch is continued (`MMU_UPDATE_PREEMPTED`).
const PREEMPTED: u32 = 0x8000_0000;

/// How many entries of a batch are done between looks at the clock. What may take long by itself looks at it too.
const LOOK_AT_CLOCK: u32 = 4;

/// Commands in the low three bits of `mmu_update`'s `ptr`.
mod update {
    pub const NORMAL: u64 = 0;
    pub const MACHPHYS: u64 = 1;
    pub const PRESERVE_AD: u64 = 2;
    pub const NO_TRANSLATE: u64 = 3;
}

/// `UVMF_*`: what `update_va_mapping` flushes.
mod uvmf {
    pub const TLB_FLUSH: u64 = 1;
    pub const INVLPG: u64 = 2;
    pub const TYPE_MASK: u64 = 3;
    pub const ALL: u64 = 1 << 2;
}

/// Commands of `mmuext_op`.
mod ext {
    pub const PIN_L1_TABLE: u32 = 0;
    pub const PIN_L4_TABLE: u32 = 3;
    pub const UNPIN_TABLE: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    pub const INVLPG_LOCAL: u32 = 7;
    pub const TLB_FLUSH_MULTI: u32 = 8;
    pub const INVLPG_MULTI: u32 = 9;
    pub const TLB_FLUSH_ALL: u32 = 10;
    pub const INVLPG_ALL: u32 = 11;
    pub const FLUSH_CACHE: u32 = 12;
    pub const SET_LDT: u32 = 13;
    pub const NEW_USER_BASEPTR: u32 = 15;
    pub const CLEAR_PAGE: u32 = 16;
    pub const COPY_PAGE: u32 = 17;
    pub const FLUSH_CACHE_GLOBAL: u32 = 18;
    pub const MARK_SUPER: u32 = 19;
    pub const UNMARK_SUPER: u32 = 20;
}

/// Whose frames a leaf entry may name.
enum PageOwner {
    /// The caller.
    Caller,
    /// Another domain.
    Other(Arc<Domain>),
    /// Device memory, or what the hypervisor shows.
    Special(RawDomId),
}

impl PageOwner {
    /// As `mmu_update` and `mmuext_op` name it. `ESRCH`: no such domain, or the caller by its own number.
    fn resolve(caller: &VcpuRef, id: RawDomId) -> Result<PageOwner, Errno> {
        if id == RawDomId::SELF {
            return Ok(PageOwner::Caller);
        }
        if id == RawDomId::IO || id == RawDomId::XEN {
            return Ok(PageOwner::Special(id));
        }
        let other = DomId::new(id.0).filter(|id| *id != caller.domain().id);
        other.and_then(domain::by_id).map(PageOwner::Other).ok_or(Errno::ESRCH)
    }

    /// `EPERM` unless the caller may map that owner's frames. Device memory is looked at frame by frame.
    fn check(&self, caller: &VcpuRef) -> Result<(), Errno> {
        match self {
            PageOwner::Caller => Ok(()),
            PageOwner::Other(owner) => access::to_domain(caller.domain(), owner, Operation::Memory),
            PageOwner::Special(id) if *id == RawDomId::IO => Ok(()),
            PageOwner::Special(_) => access::to_host(caller.domain(), Operation::Memory),
        }
    }

    #[inline(always)]
    fn id(&self, caller: &VcpuRef) -> u16 {
        match self {
            PageOwner::Caller => caller.domain().id.raw(),
            PageOwner::Other(owner) => owner.id.raw(),
            PageOwner::Special(id) => id.0,
        }
    }
}

/// How a batch ended before its end.
enum Halt {
    /// An entry was refused.
    Refused(Errno),
    /// The time is up.
    Again,
}

impl From<Errno> for Halt {
    fn from(why: Errno) -> Halt {
        if why == Errno::ERESTART {
            Halt::Again
        } else {
            Halt::Refused(why)
        }
    }
}

impl From<NotYet> for Halt {
    fn from(NotYet: NotYet) -> Halt {
        Halt::Again
    }
}

/// Runs `one` for each entry of a batch, and answers as `mmu_update` and `mmuext_op` do: the count of entries done so
/// far goes to `pdone`, and an interrupted batch is asked for again from where it stands.
#[inline(always)]
fn batch<T>(call: &mut Call<'_>, mut one: impl FnMut(T) -> Result<(), Halt>) -> Answer
where
    T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable,
{
    let [list, count, done_at, ..] = call.args();
    let mut at = GuestPtr::<T>::new(list);
    let done_at = GuestPtr::<u32>::new(done_at);
    let mut count = count as u32;
    let mut before = 0;
    if count & PREEMPTED != 0 {
        count &= !PREEMPTED;
        if !done_at.is_null() {
            before = done_at.read()?;
        }
    }
    let mut done = 0u32;
    let mut answer = Ok(0);
    while done < count {
        let halt = if done != 0 && done.is_multiple_of(LOOK_AT_CLOCK) && time::entry_budget_spent() {
            Err(Halt::Again)
        } else {
            at.read().map_err(Halt::Refused).and_then(&mut one)
        };
        match halt {
            Ok(()) => {
                done += 1;
                // One beyond the last address: there is no next one, and reading it is refused.
                at = at.element(1).unwrap_or(GuestPtr::new(u64::MAX));
            }
            Err(Halt::Refused(why)) => {
                answer = Err(why);
                break;
            }
            Err(Halt::Again) => {
                answer = call.again([at.raw(), u64::from((count - done) | PREEMPTED)]);
                break;
            }
        }
    }
    if !done_at.is_null() {
        // What was done is done, whether or not the caller can be told.
        let _ = done_at.write(&before.wrapping_add(done));
    }
    answer
}

/// A batch is refused as a whole: the caller hears that nothing of it was done.
///
/// Linux (`xen_remap_pfn`) believes the word whatever the answer is, and goes on behind that many entries: a domain that
/// ended while its pages were being mapped made Domain 0 count past the end of its array, and clear whatever was there.
#[cold]
fn nothing_done(call: &Call<'_>, why: Errno) -> Answer {
    let [_, count, done_at, ..] = call.args();
    let done_at = GuestPtr::<u32>::new(done_at);
    // Of one that goes on, the word says what was done before.
    if count as u32 & PREEMPTED == 0 && !done_at.is_null() {
        let _ = done_at.write(&0);
    }
    Err(why)
}

/// `mmu_update(requests, count, done, foreign domains)`
#[inline(always)]
pub fn mmu_update(call: &mut Call<'_>) -> Answer {
    let caller = call.caller;
    let foreign = call.args()[3] as u32;
    let table_owner = match (foreign >> 16) as u16 {
        0 => None,
        // One more than the domid.
        id => Some(DomId::new(id - 1).and_then(domain::by_id).ok_or(Errno::ESRCH)?),
    };
    let table_owner = table_owner.as_ref().unwrap_or(caller.domain());
    if !Arc::ptr_eq(table_owner, caller.domain()) {
        access::to_domain(caller.domain(), table_owner, Operation::Memory)?;
        if table_owner.vcpus().is_empty() {
            return Err(Errno::EINVAL);
        }
    }
    let page_owner = match PageOwner::resolve(caller, RawDomId(foreign as u16)) {
        Ok(owner) => owner,
        Err(why) => return nothing_done(call, why),
    };
    page_owner.check(caller)?;
    let owner = page_owner.id(caller);
    // Locked at the first entry that needs it, for as many as there is time for.
    let mut tables = None;
    let answer = batch(call, |request: MmuUpdate| {
        update_one(table_owner, &mut tables, owner, request)
    });
    drop(tables);
    memory::reap_emptied();
    answer
}

#[inline(always)]
fn update_one<'a>(
    table_owner: &'a Domain,
    tables: &mut Option<Tables<'a>>,
    owner: u16,
    request: MmuUpdate,
) -> Result<(), Halt> {
    let command = request.ptr & 7;
    let at = request.ptr & !7;
    let flavour = match command {
        update::NORMAL | update::NO_TRANSLATE => Flavour::Plain,
        update::PRESERVE_AD => Flavour::PreserveAccessedDirty,
        update::MACHPHYS => return set_machphys(table_owner, owner, at >> 12, request.val).map_err(Halt::Refused),
        _ => return Err(Halt::Refused(Errno::ENOSYS)),
    };
    if tables.as_ref().is_some_and(Tables::owes) {
        // Let go first: locking again settles it.
        *tables = None;
    }
    let tables = match tables {
        Some(tables) => tables,
        None => tables.insert(Tables::lock(table_owner)?),
    };
    match tables.update_word(at >> 12, (at & 0xfff) as usize / 8, request.val, flavour, owner)? {
        Updated::Done => Ok(()),
        Updated::Again => Err(Halt::Again),
    }
}

/// `MMU_MACHPHYS_UPDATE`: the owner's number for one of its frames.
fn set_machphys(through: &Domain, owner: u16, mfn: u64, number: u64) -> Result<(), Errno> {
    let hands = mm::Hands::of(through);
    let space = ferroxen_frames::Space::new(&hands, owner);
    let frame = space.get(mfn, owner).map_err(|_| Errno::EINVAL)?;
    m2p::set(Mfn::new(mfn), number);
    // Under its new number nobody has seen it.
    frame.mark_dirty();
    space.put(mfn, frame);
    Ok(())
}

/// `update_va_mapping(address, entry, flags)`
#[inline(always)]
pub fn update_va_mapping(call: &mut Call<'_>) -> Answer {
    let owner = call.caller.domain().id.raw();
    update_mapping(call, owner)
}

/// `update_va_mapping_otherdomain(address, entry, flags, domain)`
pub fn update_va_mapping_otherdomain(call: &mut Call<'_>) -> Answer {
    let owner = PageOwner::resolve(call.caller, RawDomId(call.args()[3] as u16))?;
    owner.check(call.caller)?;
    let owner = owner.id(call.caller);
    update_mapping(call, owner)
}

#[inline(always)]
fn update_mapping(call: &mut Call<'_>, owner: u16) -> Answer {
    let [at, entry, flags, ..] = call.args();
    let caller = call.caller;
    let at = Vaddr::new(at);
    {
        let Ok(mut tables) = Tables::lock(caller.domain()) else {
            return Err(Errno::ERESTART);
        };
        // The caller is in its kernel, so this is its kernel's root.
        let root = mm::running_root(caller).ok_or(Errno::EINVAL)?;
        tables.update_leaf_at(root, at, entry, owner)?;
    }
    memory::reap_emptied();
    match flags & uvmf::TYPE_MASK {
        uvmf::TLB_FLUSH => match flags & !uvmf::TYPE_MASK {
            0 => paging::flush_local(),
            uvmf::ALL => flush_domain(caller),
            mask => flush(cpus_of(caller, mask)?),
        },
        uvmf::INVLPG => match flags & !uvmf::TYPE_MASK {
            0 => invlpg_local(at),
            uvmf::ALL => flush_domain(caller),
            mask => flush(cpus_of(caller, mask)?),
        },
        _ => {}
    }
    Ok(0)
}

fn invlpg_local(at: Vaddr) {
    // One of our own addresses could only cost time; a guest has none there.
    if mm::is_guest_address(at) {
        paging::invlpg(at);
    }
}

fn flush_domain(caller: &VcpuRef) {
    flush(caller.domain().dirty_cpus.snapshot());
}

fn flush(cpus: CpuSet) {
    smp::request(cpus, Request::FlushTlb);
}

/// The CPUs that may know translations of some of the caller's vcpus, which a bitmap in its memory names.
fn cpus_of(caller: &VcpuRef, mask_at: u64) -> Result<CpuSet, Errno> {
    let vcpus = caller.domain().vcpus().len();
    let mask = GuestPtr::<u64>::new(mask_at);
    let mut cpus = CpuSet::EMPTY;
    for first in (0..vcpus).step_by(64) {
        let word = mask.read_element(first as u64 / 64)?;
        for bit in 0..64.min(vcpus - first) {
            if word >> bit & 1 == 0 {
                continue;
            }
            let id = VcpuId((first + bit) as u32);
            let Some(cpu) = VcpuRef::of(caller.domain(), id).and_then(|vcpu| vcpu.sched.cpu()) else {
                continue;
            };
            cpus.insert(cpu);
        }
    }
    // A vcpu that does not run now loads its root, and so flushes, before it does.
    Ok(cpus)
}

/// `mmuext_op(requests, count, done, foreign domain)`
#[inline(always)]
pub fn mmuext_op(call: &mut Call<'_>) -> Answer {
    let caller = call.caller;
    let owner = match PageOwner::resolve(caller, RawDomId(call.args()[3] as u16))? {
        PageOwner::Caller => None,
        PageOwner::Other(domain) => Some(domain),
        // The machine has no vcpus to flush for, and no tables.
        PageOwner::Special(_) => return Err(Errno::EINVAL),
    };
    if let Some(owner) = &owner {
        access::to_domain(caller.domain(), owner, Operation::Memory)?;
    }
    let owner = owner.as_ref();
    batch(call, |op: MmuextOp| extended(caller, owner, op))
}

/// One extended operation. `other`: the domain whose frames it concerns, if not the caller.
///
/// What each switch of processes asks for comes first, by itself.
#[inline(always)]
fn extended(caller: &VcpuRef, other: Option<&Arc<Domain>>, op: MmuextOp) -> Result<(), Halt> {
    match op.cmd {
        ext::NEW_BASEPTR if other.is_none() => {
            let mut tables = Tables::lock(caller.domain())?;
            Ok(mm::switch_root(&mut tables, caller, Mfn::new(op.arg1))?)
        }
        ext::NEW_USER_BASEPTR if other.is_none() => {
            let mut tables = Tables::lock(caller.domain())?;
            Ok(mm::new_user_root(&mut tables, caller, Mfn::new(op.arg1))?)
        }
        ext::NEW_BASEPTR | ext::NEW_USER_BASEPTR => Err(Halt::Refused(Errno::EPERM)),
        _ => extended_more(caller, other, op),
    }
}

#[inline(never)]
fn extended_more(caller: &VcpuRef, other: Option<&Arc<Domain>>, op: MmuextOp) -> Result<(), Halt> {
    let owner = other.unwrap_or(caller.domain());
    let own = || {
        if other.is_some() {
            Err(Halt::Refused(Errno::EPERM))
        } else {
            Ok(())
        }
    };
    match op.cmd {
        ext::PIN_L1_TABLE..=ext::PIN_L4_TABLE => {
            let kind = Kind::table((op.cmd - ext::PIN_L1_TABLE) as u8 + 1).ok_or(Errno::EINVAL)?;
            let mut tables = Tables::lock(owner)?;
            // Bound to a variable: the accounts are looked at again below.
            let pinned = tables.space().pin(op.arg1, kind);
            match pinned {
                Ok(()) => {}
                Err(stop) => match tables.note_stop(stop) {
                    Some(why) => return Err(Halt::Refused(mm::table_errno(why))),
                    None => return Err(Halt::Again),
                },
            }
            // The domain may have begun to die, past the search for pinned tables.
            if other.is_some()
                && owner.life() != domain::Life::Alive
                && let Some(dropped) = tables.space().unpin(op.arg1)
            {
                tables.note(dropped);
            }
            Ok(())
        }
        ext::UNPIN_TABLE => {
            let mut tables = Tables::lock(owner)?;
            let space = tables.space();
            let frame = space.get(op.arg1, owner.id.raw()).map_err(|_| Errno::EINVAL)?;
            let unpinned = space.unpin(op.arg1);
            space.put(op.arg1, frame);
            tables.note(unpinned.ok_or(Errno::EINVAL)?);
            Ok(())
        }
        ext::TLB_FLUSH_LOCAL => {
            own()?;
            paging::flush_local();
            Ok(())
        }
        ext::INVLPG_LOCAL => {
            own()?;
            invlpg_local(Vaddr::new(op.arg1));
            Ok(())
        }
        ext::TLB_FLUSH_MULTI | ext::INVLPG_MULTI => {
            own()?;
            flush(cpus_of(caller, op.arg2).map_err(|_| Errno::EINVAL)?);
            Ok(())
        }
        ext::TLB_FLUSH_ALL | ext::INVLPG_ALL => {
            own()?;
            flush_domain(caller);
            Ok(())
        }
        ext::FLUSH_CACHE => {
            own()?;
            if !may_flush_caches(caller) {
                return Err(Halt::Refused(Errno::EACCES));
            }
            paging::wbinvd();
            Ok(())
        }
        ext::FLUSH_CACHE_GLOBAL => {
            own()?;
            if !may_flush_caches(caller) {
                return Err(Halt::Refused(Errno::EINVAL));
            }
            smp::request(CpuSet::online(), Request::CallSlot(mm::WBINVD_SLOT));
            Ok(())
        }
        ext::SET_LDT => {
            own()?;
            let mut tables = Tables::lock(owner)?;
            // `nr_ents` is 32 bits wide.
            let entries = op.arg2 & 0xffff_ffff;
            Ok(mm::set_ldt(&mut tables, caller, Vaddr::new(op.arg1), entries)?)
        }
        // What a domain is built in is mostly this.
        ext::CLEAR_PAGE if memory::is_as_given(owner, Mfn::new(op.arg1)) => Ok(()),
        ext::CLEAR_PAGE => {
            let page = memory::hold_writable(owner, Mfn::new(op.arg1)).map_err(|_| Errno::EINVAL)?;
            page.page().clear();
            Ok(())
        }
        ext::COPY_PAGE => {
            let from = memory::hold(owner, Mfn::new(op.arg2)).map_err(|_| Errno::EINVAL)?;
            let to = memory::hold_writable(owner, Mfn::new(op.arg1)).map_err(|_| Errno::EINVAL)?;
            to.page().copy_from(from.page());
            Ok(())
        }
        ext::MARK_SUPER | ext::UNMARK_SUPER => Err(Halt::Refused(Errno::EOPNOTSUPP)),
        _ => Err(Halt::Refused(Errno::ENOSYS)),
    }
}

/// Only who has devices can have a reason to.
fn may_flush_caches(caller: &VcpuRef) -> bool {
    caller.domain().is_privileged
}

/// `set_gdt(frames, entries)`
pub fn set_gdt(call: &mut Call<'_>) -> Answer {
    let [list, entries, ..] = call.args();
    let entries = entries as u32;
    if entries as usize > FIRST_RESERVED_GDT_ENTRY {
        return Err(Errno::EINVAL);
    }
    let mut frames = [Mfn::INVALID; 14];
    let list = GuestPtr::<u64>::new(list);
    for (index, slot) in frames.iter_mut().enumerate().take((entries as usize).div_ceil(512)) {
        *slot = Mfn::new(list.read_element(index as u64)?);
    }
    mm::set_gdt_frames(call.caller, &frames, entries).map(|()| 0)
}

/// `update_descriptor(machine address, descriptor)`
pub fn update_descriptor(call: &mut Call<'_>) -> Answer {
    let [at, new, ..] = call.args();
    let fit = descriptor::checked(new).ok_or(Errno::EINVAL)?;
    if !at.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let Ok(tables) = Tables::lock(call.caller.domain()) else {
        return Err(Errno::ERESTART);
    };
    tables.write_descriptor(at >> 12, (at & 0xfff) as usize / 8, fit)?;
    Ok(0)
}
