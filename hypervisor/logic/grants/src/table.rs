//! The owner's side: which entries are in use, by whom, how often.

use crate::entry::{Access, Entry, Place, SharedEntries};
use crate::maptrack::MapTrack;
use crate::{NoMemory, Refused};
use alloc::boxed::Box;
use alloc::vec::Vec;
use ferroxen_words::{DomId, Gref, Mfn};

/// Entries in one frame of the shared table.
pub const ENTRIES_PER_FRAME: u32 = 512;

/// How often a changing entry is read again before its owner is told off.
const RETRIES: u32 = 4;

/// Counts of uses of one entry.
#[derive(Clone, Copy, Default)]
struct Active {
    frame: Mfn,
    by: u16,
    /// Uses for reading only, and for writing.
    readers: u16,
    writers: u16,
}

/// A use of an entry that has begun.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pinned {
    /// The granted frame.
    pub frame: Mfn,
}

/// A frame of the shared table: its entries, and how each is used.
struct Frame {
    mfn: Mfn,
    uses: Box<Uses>,
}

type Uses = [Active; ENTRIES_PER_FRAME as usize];

/// One domain's grants and mappings. `O` is how the owner of a mapped page is remembered.
pub struct GrantTable<O> {
    max_frames: u32,
    /// The frames of the shared table; entry `n` lies in frame `n / 512`.
    frames: Vec<Frame>,
    /// For the uses of the next frame's entries.
    prepared: Option<Box<Uses>>,
    /// What the domain has mapped from others.
    pub maps: MapTrack<O>,
}

impl<O> GrantTable<O> {
    /// An empty table that may grow to `max_frames`, and may map as much as fits `max_maptrack_frames`.
    pub fn new(max_frames: u32, max_maptrack_frames: u32) -> Result<Self, NoMemory> {
        Ok(GrantTable {
            max_frames,
            frames: Vec::new(),
            prepared: None,
            maps: MapTrack::new(max_maptrack_frames),
        })
    }

    /// Frames that the table has.
    pub fn frame_count(&self) -> u32 {
        self.frames.len() as u32
    }

    /// Frames that it may have.
    pub fn max_frames(&self) -> u32 {
        self.max_frames
    }

    /// A frame of the table.
    #[inline]
    pub fn frame(&self, index: u32) -> Option<Mfn> {
        self.frames.get(index as usize).map(|frame| frame.mfn)
    }

    /// Makes room to remember the uses of one more frame; [`Self::add_frame`] then cannot fail.
    pub fn prepare_frame(&mut self) -> Result<(), Refused> {
        if self.frame_count() >= self.max_frames {
            return Err(Refused::NoSuchGrant);
        }
        self.frames.try_reserve(1).map_err(|_| Refused::NoMemory)?;
        if self.prepared.is_none() {
            let mut uses = Vec::new();
            uses.try_reserve_exact(ENTRIES_PER_FRAME as usize)
                .map_err(|_| Refused::NoMemory)?;
            uses.resize(ENTRIES_PER_FRAME as usize, Active::default());
            self.prepared = uses.into_boxed_slice().try_into().ok();
        }
        Ok(())
    }

    /// Adds a zeroed frame to the table. The caller has prepared it.
    ///
    /// # Panics
    /// If it has not.
    pub fn add_frame(&mut self, mfn: Mfn) {
        let Some(uses) = self.prepared.take() else {
            panic!("a grant frame was added unprepared")
        };
        self.frames.push(Frame { mfn, uses });
    }

    /// Whether any entry is in use.
    pub fn is_in_use(&self) -> bool {
        self.frames.iter().flat_map(|frame| &*frame.uses).any(Active::is_pinned)
    }

    /// Begins a use of `gref` by `by`.
    #[inline(always)]
    pub fn pin(
        &mut self,
        shared: &impl SharedEntries,
        gref: Gref,
        by: DomId,
        access: Access,
    ) -> Result<Pinned, Refused> {
        let (place, active) = self.place(shared, gref).ok_or(Refused::NoSuchGrant)?;
        let frame = if active.is_pinned() {
            active.pin_again(place, by, access)?
        } else {
            let entry = change(place, |entry| entry.claim(by, access))?;
            *active = Active {
                frame: entry.frame(),
                by: by.raw(),
                readers: 0,
                writers: 0,
            };
            entry.frame()
        };
        active.count(access);
        Ok(Pinned { frame })
    }

    /// Ends a use that [`Self::pin`] began.
    ///
    /// # Panics
    /// If there was no such use: the caller's books are wrong.
    #[inline(always)]
    pub fn unpin(&mut self, shared: &impl SharedEntries, gref: Gref, access: Access) {
        let Some((place, active)) = self.place(shared, gref) else {
            panic!("unpinned a grant beyond the table")
        };
        let flags = active.uncount(access);
        if flags != 0 {
            place.shared.clear_flags(place.frame, place.index, flags);
        }
    }

    /// Exchanges two entries that are not in use.
    pub fn swap(&mut self, shared: &impl SharedEntries, one: Gref, other: Gref) -> Result<(), Refused> {
        let (first, active) = self.place(shared, one).ok_or(Refused::NoSuchGrant)?;
        let first_in_use = active.is_pinned();
        let (second, active) = self.place(shared, other).ok_or(Refused::NoSuchGrant)?;
        if first_in_use || active.is_pinned() {
            return Err(Refused::TooOften);
        }
        if one == other {
            return Ok(());
        }
        // The owner asks for this and has promised not to touch them; one that does harms only itself.
        let (a, b) = (change(first, Ok)?, change(second, Ok)?);
        let _ = change(first, |_| Ok(b))?;
        change(second, |_| Ok(a)).map(drop)
    }

    #[inline(always)]
    fn place<'a, S: SharedEntries>(&mut self, shared: &'a S, gref: Gref) -> Option<(Place<'a, S>, &mut Active)> {
        let index = (gref.raw() % ENTRIES_PER_FRAME) as usize;
        let Frame { mfn, uses } = self.frames.get_mut((gref.raw() / ENTRIES_PER_FRAME) as usize)?;
        let frame = shared.frame(*mfn);
        Some((Place { shared, frame, index }, &mut uses[index]))
    }

    /// How an entry is used: (reading only, writing), and by whom.
    pub fn uses(&self, gref: Gref) -> Option<(u16, u16, u16)> {
        let frame = self.frames.get((gref.raw() / ENTRIES_PER_FRAME) as usize)?;
        let active = &frame.uses[(gref.raw() % ENTRIES_PER_FRAME) as usize];
        active
            .is_pinned()
            .then_some((active.readers, active.writers, active.by))
    }

    /// Checks that the counts and the maps are consistent.
    ///
    /// What the shared entries say is left out: that memory is the guest's, which may write there what it likes.
    pub fn audit(&self) -> Result<(), &'static str> {
        if self.frame_count() > self.max_frames {
            return Err("more frames than there may be");
        }
        self.maps.audit()
    }
}

impl Active {
    #[inline(always)]
    fn is_pinned(&self) -> bool {
        self.readers != 0 || self.writers != 0
    }

    #[cold]
    fn pin_again<S: SharedEntries>(&mut self, place: Place<'_, S>, by: DomId, access: Access) -> Result<Mfn, Refused> {
        if self.by != by.raw() {
            return Err(Refused::NotForYou);
        }
        let count = match access {
            Access::ReadOnly => self.readers,
            Access::ReadWrite => self.writers,
        };
        if count == u16::MAX {
            return Err(Refused::TooOften);
        }
        if access == Access::ReadWrite && self.writers == 0 {
            change(place, Entry::claim_writing)?;
        }
        Ok(self.frame)
    }

    #[inline(always)]
    fn count(&mut self, access: Access) {
        match access {
            Access::ReadOnly => self.readers += 1,
            Access::ReadWrite => self.writers += 1,
        }
    }

    /// Counts one use less; answers which flags to clear.
    #[inline(always)]
    fn uncount(&mut self, access: Access) -> u16 {
        let count = match access {
            Access::ReadOnly => &mut self.readers,
            Access::ReadWrite => &mut self.writers,
        };
        let Some(less) = count.checked_sub(1) else {
            panic!("a grant was unpinned more often than pinned")
        };
        *count = less;
        let mut flags = 0;
        if access == Access::ReadWrite && self.writers == 0 {
            flags |= Entry::WRITING;
        }
        if !self.is_pinned() {
            flags |= Entry::READING;
        }
        flags
    }
}

/// Changes an entry in one step, as long as its owner does not change it at the same time again and again.
#[inline(always)]
fn change<S: SharedEntries>(
    place: Place<'_, S>,
    step: impl Fn(Entry) -> Result<Entry, Refused>,
) -> Result<Entry, Refused> {
    let Place { shared, frame, index } = place;
    for _ in 0..RETRIES {
        let old = Entry(shared.load(frame, index));
        let new = step(old)?;
        if shared.replace(frame, index, old.0, new.0) {
            return Ok(new);
        }
    }
    Err(Refused::Unstable)
}

#[cfg(test)]
mod tests;
