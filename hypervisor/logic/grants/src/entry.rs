//! One entry of the shared table, as a single atomic word.

use crate::Refused;
use ferroxen_words::{DomId, Mfn};

/// What the grantee may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Only read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// The words of the shared table. Each method but [`Self::frame`] is one atomic access; a frame has 512 entries of 8
/// bytes.
pub trait SharedEntries {
    /// A frame, found.
    type Frame: Copy;

    /// Finds a frame of the table.
    fn frame(&self, frame: Mfn) -> Self::Frame;
    /// Reads entry `index` of a frame.
    fn load(&self, frame: Self::Frame, index: usize) -> u64;
    /// Replaces entry `index` of a frame if it still is `old`.
    fn replace(&self, frame: Self::Frame, index: usize, old: u64, new: u64) -> bool;
    /// Clears bits of the flags (the entry's low 16 bits).
    fn clear_flags(&self, frame: Self::Frame, index: usize, flags: u16);
}

/// Where an entry lies.
pub(crate) struct Place<'a, S: SharedEntries> {
    pub shared: &'a S,
    pub frame: S::Frame,
    pub index: usize,
}

impl<S: SharedEntries> Clone for Place<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: SharedEntries> Copy for Place<'_, S> {}

/// `grant_entry_v1`: flags, grantee, frame; read as one little-endian word, so never torn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(pub u64);

impl Entry {
    /// `GTF_permit_access`
    pub const PERMIT_ACCESS: u16 = 1;
    /// `GTF_type_mask`
    pub const TYPE_MASK: u16 = 3;
    /// `GTF_readonly`
    pub const READONLY: u16 = 1 << 2;
    /// `GTF_reading`
    pub const READING: u16 = 1 << 3;
    /// `GTF_writing`
    pub const WRITING: u16 = 1 << 4;
    /// `GTF_sub_page`
    pub const SUB_PAGE: u16 = 1 << 8;

    /// The flags.
    pub const fn flags(self) -> u16 {
        self.0 as u16
    }

    /// The grantee as it stands there.
    pub const fn grantee(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The granted frame: for a PV owner, an mfn.
    pub const fn frame(self) -> Mfn {
        Mfn::new(self.0 >> 32)
    }

    /// Marks the entry as being used by `by`, if it offers that.
    #[inline(always)]
    pub const fn claim(self, by: DomId, access: Access) -> Result<Entry, Refused> {
        if self.flags() & (Self::TYPE_MASK | Self::SUB_PAGE) != Self::PERMIT_ACCESS {
            return Err(Refused::NotOffered);
        }
        if self.grantee() != by.raw() {
            return Err(Refused::NotForYou);
        }
        match access {
            Access::ReadOnly => Ok(Entry(self.0 | Self::READING as u64)),
            Access::ReadWrite if self.flags() & Self::READONLY != 0 => Err(Refused::ReadOnly),
            Access::ReadWrite => Ok(Entry(self.0 | (Self::READING | Self::WRITING) as u64)),
        }
    }

    /// Marks an entry that is in use for reading as being used for writing, too.
    pub const fn claim_writing(self) -> Result<Entry, Refused> {
        if self.flags() & Self::READONLY != 0 {
            return Err(Refused::ReadOnly);
        }
        Ok(Entry(self.0 | (Self::READING | Self::WRITING) as u64))
    }
}
