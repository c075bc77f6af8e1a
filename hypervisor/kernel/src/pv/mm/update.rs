//! One entry of a table, found by its machine address or by the guest's own virtual address.

use super::{Hands, Tables};
use crate::memory;
use ferroxen_abi::errno::Errno;
use ferroxen_frames::entry::Entry;
use ferroxen_frames::{Dropped, Flavour, Frame, Host, Kind, Refused, Stop};
use ferroxen_machine::paging::{self, Leaf};
use ferroxen_words::{Mfn, Vaddr};

/// Xen's error number for a refused level-1 entry.
pub fn leaf_errno(why: Refused) -> Errno {
    match why {
        Refused::BadBits(_) | Refused::NotATable | Refused::OwnSlot => Errno::EINVAL,
        Refused::NotPermitted => Errno::EPERM,
        _ => Errno::EBUSY,
    }
}

/// Xen's error number for a table that is refused, or an entry that would name one.
pub fn table_errno(why: Refused) -> Errno {
    match why {
        Refused::NotPermitted => Errno::EPERM,
        Refused::TooMany | Refused::Raced => Errno::EBUSY,
        _ => Errno::EINVAL,
    }
}

/// Where a virtual address is mapped from.
#[derive(Clone, Copy, Debug)]
pub struct Walked {
    /// The level-1 table.
    pub table: u64,
    /// The entry in it.
    pub index: usize,
    /// What it says now.
    pub entry: Entry,
}

/// Follows a guest's tables, which the caller has locked, from `root` to the level-1 entry of an address.
#[inline(always)]
pub fn walk(root: Mfn, at: Vaddr) -> Option<Walked> {
    let Leaf { table, index, entry } = paging::leaf(root, at)?;
    Some(Walked {
        table: table.raw(),
        index,
        entry: Entry(entry),
    })
}

/// What one update came to.
pub enum Updated {
    /// Done; something may be owed.
    Done,
    /// The time was up: nothing changed, ask again.
    Again,
}

impl Tables<'_> {
    /// Changes the level-1 entry that maps an address: `EINVAL` if no table does.
    #[inline(always)]
    pub fn update_leaf_at(&mut self, root: Mfn, at: Vaddr, new: u64, owner: u16) -> Result<(), Errno> {
        let walked = walk(root, at).ok_or(Errno::EINVAL)?;
        let space = self.space();
        memory::level_1_table(walked.table, space.owner).ok_or(Errno::EINVAL)?;
        let table = space.host.table(walked.table).ok_or(Errno::EINVAL)?;
        match space.update_leaf(table, walked.index, Entry(new), Flavour::Plain, owner) {
            Ok(()) => Ok(()),
            Err(Stop::Refused(why) | Stop::Unwinding(why, _)) => Err(leaf_errno(why)),
            // A leaf names no table.
            Err(Stop::Preempted) => Err(Errno::EBUSY),
        }
    }

    /// Writes a word of one of the domain's frames: a table's entry with all checks, an ordinary page's as it is.
    #[inline(always)]
    pub fn update_word(
        &mut self,
        mfn: u64,
        index: usize,
        new: u64,
        flavour: Flavour,
        owner: u16,
    ) -> Result<Updated, Errno> {
        let frame = memory::frame(mfn).ok_or(Errno::EINVAL)?;
        let space = self.space();
        // Under the lock a live table of the domain's stays one: whoever holds it as a table cannot let it go.
        if !frame.word().is_live_table() || frame.owner() != space.owner {
            write_plainly(&space, mfn, index, new)?;
            return Ok(Updated::Done);
        }
        match space.update(mfn, frame, index, new, flavour, owner) {
            Ok(Dropped::Done) => Ok(Updated::Done),
            Ok(dropped) => {
                self.note(dropped);
                Ok(Updated::Done)
            }
            Err(stop) => match self.note_stop(stop) {
                Some(why) => Err(update_errno(frame, why)),
                None => Ok(Updated::Again),
            },
        }
    }
}

fn update_errno(table: &Frame, why: Refused) -> Errno {
    if table.word().kind() == Kind::L1 {
        leaf_errno(why)
    } else {
        table_errno(why)
    }
}

/// A page that is no table may be written through this door too, if it may be written at all.
#[cold]
fn write_plainly(space: &ferroxen_frames::Space<'_, Hands<'_>>, mfn: u64, index: usize, new: u64) -> Result<(), Errno> {
    let frame = space.get_writable(mfn, space.owner).map_err(|_| Errno::EINVAL)?;
    let written = space.host.table(mfn).map(|page| page.store_u64(index, new));
    frame.mark_dirty();
    space.put_writable(mfn, frame);
    written.ok_or(Errno::EINVAL)
}

impl Tables<'_> {
    /// Writes a checked descriptor into one of the domain's frames: a descriptor page in use, or an ordinary page.
    pub fn write_descriptor(&self, mfn: u64, index: usize, descriptor: u64) -> Result<(), Errno> {
        let space = self.space();
        let frame = space.get(mfn, space.owner).map_err(|_| Errno::EINVAL)?;
        let word = frame.word();
        let written = if word.kind() == Kind::SegDesc && word.type_count() != 0 {
            // Under the page-table lock it stays one.
            frame.mark_dirty();
            space
                .host
                .table(mfn)
                .map(|page| page.store_u64(index, descriptor))
                .ok_or(Errno::EINVAL)
        } else {
            write_plainly(&space, mfn, index, descriptor)
        };
        space.put(mfn, frame);
        written
    }
}
