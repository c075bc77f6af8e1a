//! Grants, as a PV guest maps them: straight into an entry of its own level-1 tables.
//!
//! The entry owns the references that [`map_grant`] takes, as any other entry does. A guest that overwrites the
//! entry by itself has lost the mapping, and unmapping it will be refused; nothing leaks by that.

use super::mirror::mirrored_root;
use super::{Tables, walk};
use crate::domain::VcpuRef;
use crate::memory;
use ferroxen_frames::Refused;
use ferroxen_frames::entry::{Entry, bits};
use ferroxen_machine::memory::Page;
use ferroxen_machine::smp::{self, Request};
use ferroxen_machine::{cpu, paging};
use ferroxen_words::{DomId, Mfn, Vaddr};

/// Which entry a grant is mapped by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantPlace {
    /// That of a virtual address.
    Address(u64),
    /// The one at a machine address (`GNTMAP_contains_pte`).
    Entry(u64),
}

/// Why a grant is not mapped or unmapped (all are `GNTST_general_error` to the guest).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotMapped {
    /// There is no such level-1 entry, or its table is not in use.
    NoEntry,
    /// The frame cannot be mapped as asked.
    Refused(Refused),
    /// The entry does not map that frame in that way.
    Mismatch,
    /// The time was up before anything was done: ask again.
    NotYet,
}

/// Flags of `gnttab_map_grant_ref` that concern the entry.
mod gntmap {
    pub const READONLY: u32 = 1 << 2;
    pub const APPLICATION: u32 = 1 << 3;
    pub const AVAILABLE_SHIFT: u32 = 16;
}

/// Maps a frame of the granter's for the caller; `flags` are those of the operation (`GNTMAP_*`).
///
/// What is no RAM is refused as [`Refused::NoSuchFrame`]: device memory is not the owner's to lend, whoever may map it
/// otherwise.
#[inline(always)]
pub fn map_grant(caller: &VcpuRef, place: GrantPlace, granter: DomId, frame: Mfn, flags: u32) -> Result<(), NotMapped> {
    if caller.domain().is_logged() {
        return map_while_logged(caller, place, granter, frame, flags);
    }
    map::<false>(caller, place, granter, frame, flags)
}

#[cold]
#[inline(never)]
fn map_while_logged(
    caller: &VcpuRef,
    place: GrantPlace,
    granter: DomId,
    frame: Mfn,
    flags: u32,
) -> Result<(), NotMapped> {
    map::<true>(caller, place, granter, frame, flags)
}

/// A domain begins and ends to be logged while it does not run, so the caller knows whether it is.
#[inline(always)]
fn map<const LOGGED: bool>(
    caller: &VcpuRef,
    place: GrantPlace,
    granter: DomId,
    frame: Mfn,
    flags: u32,
) -> Result<(), NotMapped> {
    let mut raw = frame.maddr().raw() | bits::PRESENT | bits::ACCESSED | bits::DIRTY;
    if flags & gntmap::READONLY == 0 {
        raw |= bits::WRITABLE;
    }
    if flags & gntmap::APPLICATION != 0 {
        raw |= bits::USER;
    }
    raw |= u64::from(flags >> gntmap::AVAILABLE_SHIFT & 7) << 9;
    let tables = Tables::lock(caller.domain()).map_err(|_| NotMapped::NotYet)?;
    let (table, index) = find::<LOGGED>(&tables, caller, place)?;
    let space = tables.space();
    let held = if flags & gntmap::READONLY == 0 {
        space.get_writable(frame.raw(), granter.raw())
    } else {
        space.get(frame.raw(), granter.raw())
    };
    held.map_err(NotMapped::Refused)?;
    let old = space.host.swap::<LOGGED>(table, index, Entry(raw).adjusted(1).0);
    space.put_leaf(Entry(old));
    Ok(())
}

/// Takes a mapping made by [`map_grant`] away. Other CPUs may still use it until [`flush_after_unmap`].
#[inline(always)]
pub fn unmap_grant(caller: &VcpuRef, place: GrantPlace, frame: Mfn, flags: u32) -> Result<(), NotMapped> {
    if caller.domain().is_logged() {
        return unmap_while_logged(caller, place, frame, flags);
    }
    unmap::<false>(caller, place, frame, flags)
}

#[cold]
#[inline(never)]
fn unmap_while_logged(caller: &VcpuRef, place: GrantPlace, frame: Mfn, flags: u32) -> Result<(), NotMapped> {
    unmap::<true>(caller, place, frame, flags)
}

#[inline(always)]
fn unmap<const LOGGED: bool>(caller: &VcpuRef, place: GrantPlace, frame: Mfn, flags: u32) -> Result<(), NotMapped> {
    let tables = Tables::lock(caller.domain()).map_err(|_| NotMapped::NotYet)?;
    let (table, index) = find::<LOGGED>(&tables, caller, place)?;
    let wanted = bits::PRESENT
        | if flags & gntmap::READONLY == 0 {
            bits::WRITABLE
        } else {
            0
        };
    let old = Entry(table.load_u64(index));
    if old.mfn() != frame.raw() || old.0 & (bits::PRESENT | bits::WRITABLE) != wanted {
        return Err(NotMapped::Mismatch);
    }
    let space = tables.space();
    let old = Entry(space.host.swap::<LOGGED>(table, index, 0));
    space.put_leaf(old);
    Ok(())
}

/// Makes every CPU that runs the caller's domain forget what was unmapped. Before the granter is told.
#[inline(always)]
pub fn flush_after_unmap(caller: &VcpuRef) {
    let cpus = &caller.domain().dirty_cpus;
    if cpus.is_only(cpu::cpu_id()) {
        paging::flush_local();
    } else {
        smp::request(cpus.snapshot(), Request::FlushTlb);
    }
}

/// The entry's table, which the lock keeps what it is, and the index.
#[inline(always)]
fn find<const LOGGED: bool>(
    tables: &Tables<'_>,
    caller: &VcpuRef,
    place: GrantPlace,
) -> Result<(Page, usize), NotMapped> {
    let (mfn, index) = match place {
        GrantPlace::Address(at) => {
            // The caller is in its kernel, so this is its kernel's root.
            let root = if LOGGED {
                mirrored_root(caller)
            } else {
                paging::active()
            };
            let root = root.ok_or(NotMapped::NoEntry)?;
            let walked = walk(root, Vaddr::new(at)).ok_or(NotMapped::NoEntry)?;
            (walked.table, walked.index)
        }
        GrantPlace::Entry(at) if at.is_multiple_of(8) => (at >> 12, (at & 0xfff) as usize / 8),
        GrantPlace::Entry(_) => return Err(NotMapped::NoEntry),
    };
    memory::level_1_table(mfn, tables.space().owner).ok_or(NotMapped::NoEntry)?;
    Page::new(Mfn::new(mfn))
        .map(|page| (page, index))
        .ok_or(NotMapped::NoEntry)
}
