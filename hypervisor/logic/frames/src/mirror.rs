//! Mirrors: the tables that a CPU walks while what a guest writes is being logged.
//!
//! A mirror stands beside a guest's table and is filled when the processor misses something in it. Here is what may
//! stand in one, and what a fault means: the guest's own tables decide, as the processor would have decided by them.
//!
//! Always true of an entry of a mirror that is present (the kernel's audit checks it):
//! 1. It allows nothing that the guest's entry does not.
//! 2. The guest's entry has A.
//! 3. In a leaf, it allows writes only if the guest's entry has D and the frame is in the log. So no write is missed,
//!    and the guest sees D as soon as the processor would have set it.
//!
//! Who fills mirrors, and under which lock: the kernel's `pv::mm::mirror`; why no guest notices:
//! docs/decisions/0006-log-dirty-by-mirrored-tables.md.

use crate::entry::{Entry, bits};

/// What was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To execute.
    Execute,
}

/// Why the guest's tables do not allow an access: its kernel is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing is mapped there.
    Absent,
    /// Not for that.
    Forbidden,
}

/// What the entries that lead to an address allow together. All are user-accessible ([`Entry::adjusted`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    writes: bool,
    executes: bool,
}

impl Rights {
    /// Before any entry was looked at.
    pub const ALL: Rights = Rights {
        writes: true,
        executes: true,
    };

    /// What is left of them behind one more entry.
    pub const fn behind(self, entry: Entry) -> Result<Rights, Fault> {
        if !entry.is_present() {
            return Err(Fault::Absent);
        }
        Ok(Rights {
            writes: self.writes && entry.is_writable(),
            executes: self.executes && entry.0 & bits::NO_EXECUTE == 0,
        })
    }

    /// Whether they allow an access.
    pub const fn allow(self, access: Access) -> Result<(), Fault> {
        let allowed = match access {
            Access::Read => true,
            Access::Write => self.writes,
            Access::Execute => self.executes,
        };
        if allowed { Ok(()) } else { Err(Fault::Forbidden) }
    }
}

/// The guest's entry of that level after the access, as the processor leaves it.
pub const fn touched(entry: Entry, level: u8, access: Access) -> Entry {
    let dirty = match access {
        Access::Write if level == 1 => bits::DIRTY,
        _ => 0,
    };
    Entry(entry.0 | bits::ACCESSED | dirty)
}

/// The mirror's entry above level 1: the guest's flags over the lower table's mirror.
pub const fn upper(entry: Entry, mirror: u64) -> u64 {
    entry.0 & (bits::PRESENT | bits::WRITABLE | bits::USER | bits::NO_EXECUTE) | bits::ACCESSED | mirror << 12
}

/// The mirror's entry of level 1 for the guest's; 0 as long as the processor has to be asked to set A.
pub const fn leaf(entry: Entry, is_logged: bool) -> u64 {
    if !entry.is_present() || entry.0 & bits::ACCESSED == 0 {
        0
    } else if entry.0 & bits::DIRTY != 0 && is_logged {
        entry.0
    } else {
        entry.0 & !bits::WRITABLE
    }
}

/// Whether an entry may stand in a mirror of level 1: what [`leaf`] would answer, or less.
pub const fn is_fit_leaf(mirror: u64, entry: Entry, is_logged: bool) -> bool {
    let most = leaf(entry, is_logged);
    mirror & bits::PRESENT == 0 || mirror == most || mirror == most & !bits::WRITABLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use bits::*;

    const ALL: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

    fn rights(path: &[u64]) -> Result<Rights, Fault> {
        path.iter()
            .try_fold(Rights::ALL, |rights, &raw| rights.behind(Entry(raw)))
    }

    #[test]
    fn one_entry_that_forbids_is_enough() {
        let free = PRESENT | USER | WRITABLE;
        assert!(
            ALL.iter()
                .all(|&access| rights(&[free; 4]).unwrap().allow(access).is_ok())
        );
        for level in 0..4 {
            let mut path = [free; 4];
            path[level] = PRESENT | USER | NO_EXECUTE;
            let allowed = ALL.map(|access| rights(&path).unwrap().allow(access));
            assert_eq!(allowed, [Ok(()), Err(Fault::Forbidden), Err(Fault::Forbidden)]);
            path[level] = WRITABLE;
            assert_eq!(rights(&path), Err(Fault::Absent));
        }
    }

    #[test]
    fn only_a_write_sets_dirty_and_only_in_the_leaf() {
        for level in 1..=4 {
            for access in ALL {
                let is_dirty = touched(Entry(PRESENT), level, access).0 & DIRTY != 0;
                assert_eq!(is_dirty, level == 1 && access == Access::Write);
                assert_ne!(touched(Entry(PRESENT), level, access).0 & ACCESSED, 0);
            }
        }
    }

    #[test]
    fn a_leaf_is_written_through_only_if_it_is_dirty_and_its_frame_logged() {
        let writable = 0x7000 | PRESENT | WRITABLE | USER | ACCESSED;
        assert_eq!(leaf(Entry(writable), true), writable & !WRITABLE);
        assert_eq!(leaf(Entry(writable | DIRTY), false), (writable | DIRTY) & !WRITABLE);
        assert_eq!(leaf(Entry(writable | DIRTY), true), writable | DIRTY);
        // What the guest may not write, nobody may.
        let fixed = (writable | DIRTY) & !WRITABLE;
        assert_eq!(leaf(Entry(fixed), true), fixed);
    }

    #[test]
    fn what_was_not_accessed_or_is_not_there_is_absent() {
        assert_eq!(leaf(Entry(0x7000 | PRESENT | WRITABLE | DIRTY), true), 0);
        assert_eq!(leaf(Entry(0x7000 | ACCESSED | DIRTY), true), 0);
        assert!(is_fit_leaf(0, Entry(0), false));
        assert!(!is_fit_leaf(0x7000 | PRESENT, Entry(0), false));
    }

    #[test]
    fn an_upper_entry_has_the_guests_rights_and_the_mirrors_frame() {
        let entry = Entry(0x5000 | PRESENT | USER | NO_EXECUTE | AVAILABLE | AVAILABLE_HIGH);
        assert_eq!(
            Entry(upper(entry, 9)),
            Entry(9 << 12 | PRESENT | USER | NO_EXECUTE | ACCESSED)
        );
        assert_eq!(Entry(upper(Entry(PRESENT | WRITABLE), 9)).mfn(), 9);
    }
}
