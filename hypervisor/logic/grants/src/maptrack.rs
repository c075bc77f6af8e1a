//! The mapper's side: handles, and what each stands for.

use crate::Refused;
use crate::entry::Access;
use alloc::vec::Vec;
use ferroxen_words::{Gref, Handle, Mfn};

/// Handles that one "frame" of `max_maptrack_frames` stands for (a page of Xen's 16-byte records).
const HANDLES_PER_FRAME: u32 = 256;
/// End of the free list.
const NONE: u32 = u32::MAX;

/// For whom a grant is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Use {
    /// CPUs, through a page table (`GNTMAP_host_map`).
    pub host: bool,
    /// Devices (`GNTMAP_device_map`).
    pub device: bool,
}

/// What a handle stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping<O> {
    /// Whose page it is.
    pub owner: O,
    /// Which entry of the owner's table.
    pub gref: Gref,
    /// The page.
    pub frame: Mfn,
    /// Read-only or not.
    pub access: Access,
    /// Which uses are left.
    pub uses: Use,
    /// The page-table entry was named by its machine address (`GNTMAP_contains_pte`).
    pub names_entry: bool,
}

impl<O> Mapping<O> {
    #[inline(always)]
    fn facts(&self) -> Facts {
        Facts {
            frame: self.frame,
            access: self.access,
            uses: self.uses,
            names_entry: self.names_entry,
        }
    }
}

enum Slot<O> {
    Free {
        next: u32,
    },
    /// Handed out, and stands for nothing yet.
    Taken,
    Live(Mapping<O>),
    /// Somebody is at work on it: nobody else may touch it.
    Busy(Mapping<O>),
}

/// What there is to know about a mapping but its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The page.
    pub frame: Mfn,
    /// Read-only or not.
    pub access: Access,
    /// Which uses are left.
    pub uses: Use,
    /// The page-table entry was named by its machine address.
    pub names_entry: bool,
}

/// A domain's mappings of other domains' pages. `O` is how an owner is remembered.
pub struct MapTrack<O> {
    max: u32,
    slots: Vec<Slot<O>>,
    free: u32,
    used: u32,
}

impl<O> MapTrack<O> {
    /// No mappings yet, and at most so many "frames" of them.
    pub const fn new(max_frames: u32) -> Self {
        MapTrack {
            max: max_frames.saturating_mul(HANDLES_PER_FRAME),
            slots: Vec::new(),
            free: NONE,
            used: 0,
        }
    }

    /// How many handles are in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// One past the highest handle that was ever in use.
    pub fn end(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Whether the next [`Self::take`] needs more memory (for 256 more handles).
    pub fn must_grow(&self) -> bool {
        self.free == NONE && self.slots.len() == self.slots.capacity()
    }

    /// Hands out a handle, which stands for nothing until [`Self::set`].
    #[inline(always)]
    pub fn take(&mut self) -> Result<Handle, Refused> {
        let at = if self.free != NONE {
            let at = self.free;
            let Some(Slot::Free { next }) = self.slots.get(at as usize) else {
                panic!("the free handle {at} is none")
            };
            self.free = *next;
            self.slots[at as usize] = Slot::Taken;
            at
        } else {
            let at = self.slots.len() as u32;
            if at >= self.max {
                return Err(Refused::NoHandleLeft);
            }
            if self.slots.len() == self.slots.capacity() {
                self.slots
                    .try_reserve_exact(HANDLES_PER_FRAME as usize)
                    .map_err(|_| Refused::NoMemory)?;
            }
            self.slots.push(Slot::Taken);
            at
        };
        self.used += 1;
        Ok(Handle::new(at))
    }

    /// Says what a handle that was just taken stands for.
    #[inline(always)]
    pub fn set(&mut self, handle: Handle, mapping: Mapping<O>) {
        if let Some(slot @ Slot::Taken) = self.slots.get_mut(handle.raw() as usize) {
            *slot = Slot::Live(mapping);
        } else {
            panic!("{handle} was filled but not taken");
        }
    }

    /// Begins to work on a mapping; until that is kept or finished, nobody else finds it.
    #[inline(always)]
    pub fn begin(&mut self, handle: Handle) -> Result<Facts, Refused> {
        let slot = self.slots.get_mut(handle.raw() as usize).ok_or(Refused::NoSuchHandle)?;
        match core::mem::replace(slot, Slot::Taken) {
            Slot::Live(mapping) => {
                let facts = mapping.facts();
                *slot = Slot::Busy(mapping);
                Ok(facts)
            }
            other => {
                *slot = other;
                Err(Refused::NoSuchHandle)
            }
        }
    }

    /// Ends the work on a mapping, of which these uses are left.
    pub fn keep(&mut self, handle: Handle, uses: Use) -> Facts {
        let slot = self.slots.get_mut(handle.raw() as usize);
        match slot.map(|slot| (core::mem::replace(slot, Slot::Taken), slot)) {
            Some((Slot::Busy(mapping), slot)) => {
                let facts = mapping.facts();
                *slot = Slot::Live(Mapping { uses, ..mapping });
                facts
            }
            _ => panic!("{handle} was kept, but nobody worked on it"),
        }
    }

    /// Ends a mapping that the caller works on, and gives its handle back.
    #[inline(always)]
    pub fn finish(&mut self, handle: Handle) -> Mapping<O> {
        let slot = self.slots.get_mut(handle.raw() as usize);
        let free = Slot::Free { next: self.free };
        match slot.map(|slot| core::mem::replace(slot, free)) {
            Some(Slot::Busy(mapping)) => {
                self.free = handle.raw();
                self.used -= 1;
                mapping
            }
            _ => panic!("{handle} was finished, but nobody worked on it"),
        }
    }

    /// Gives back a handle that was taken, and stands for nothing.
    #[inline(always)]
    pub fn free(&mut self, handle: Handle) {
        if let Some(slot @ Slot::Taken) = self.slots.get_mut(handle.raw() as usize) {
            *slot = Slot::Free { next: self.free };
            self.free = handle.raw();
            self.used -= 1;
        } else {
            panic!("{handle} was freed but not taken");
        }
    }

    /// Ends the first live mapping at or after `from` (for a dying domain), and says which it was.
    pub fn finish_next(&mut self, from: u32) -> Option<(Handle, Mapping<O>)> {
        let rest = self.slots.get(from as usize..)?;
        let at = from + rest.iter().position(|slot| matches!(slot, Slot::Live(_)))? as u32;
        let handle = Handle::new(at);
        self.begin(handle).ok().map(|_| (handle, self.finish(handle)))
    }

    /// The mappings that nobody is at work on.
    pub fn live(&self) -> impl Iterator<Item = &Mapping<O>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Live(mapping) => Some(mapping),
            Slot::Free { .. } | Slot::Taken | Slot::Busy(_) => None,
        })
    }

    /// Checks that the free list is exactly the free slots.
    pub fn audit(&self) -> Result<(), &'static str> {
        let free = self
            .slots
            .iter()
            .filter(|slot| matches!(slot, Slot::Free { .. }))
            .count();
        let mut listed = 0;
        let mut next = self.free;
        while next != NONE {
            let Some(Slot::Free { next: after }) = self.slots.get(next as usize) else {
                return Err("a handle is listed as free, but it is not");
            };
            listed += 1;
            if listed > free {
                return Err("the list of free handles goes in a circle");
            }
            next = *after;
        }
        if listed != free || self.used as usize + free != self.slots.len() {
            return Err("a free handle is not listed");
        }
        if self.slots.len() as u64 > u64::from(self.max) {
            return Err("more handles than there may be");
        }
        Ok(())
    }
}
