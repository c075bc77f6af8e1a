//! Grant tables: one domain lets another use one of its pages.
//!
//! The owner writes an entry into a page that it shares with us: who, which frame, read-only or not. While
//! somebody uses the entry, we hold it *pinned* and say so in its flags, so that the owner knows not to take
//! it back. This crate counts the pins ([`GrantTable`]) and remembers what a domain has mapped from others
//! ([`MapTrack`]); it touches no page table and no page.
//!
//! Version 1 only: version 2, transitive grants and sub-page grants keep producing security advisories,
//! and no stock kernel needs them.
//!
//! Always true ([`GrantTable::audit`], [`MapTrack::audit`]):
//! 1. An entry is pinned by at most one domain, the one that it names, and its frame does not change.
//! 2. `GTF_reading` is set while there is any pin, `GTF_writing` while there is one for writing.
//! 3. A handle names one mapping, and a free handle is on the free list once.
//! 4. Memory grows only up to what createdomain allowed.
//!
//! Caller holds the domain's grant lock; mapping needs the owner's and the mapper's, one after the other,
//! never both. Guests see this as `abi::xen::grant_table`; upstream: `xen/common/grant_table.c`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod entry;
mod maptrack;
mod table;

pub use entry::{Access, Entry, SharedEntries};
pub use maptrack::{Facts, MapTrack, Mapping, Use};
pub use table::{ENTRIES_PER_FRAME, GrantTable, Pinned};

/// Not enough memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

/// Why a grant or a mapping was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The owner's table is not that long.
    NoSuchGrant,
    /// The entry offers nothing, or something else than access.
    NotOffered,
    /// It is offered to another domain, or in use by another.
    NotForYou,
    /// Writing was asked for, reading is offered.
    ReadOnly,
    /// The owner keeps changing the entry under us.
    Unstable,
    /// It is in use so often that the count would overflow.
    TooOften,
    /// All handles that the domain may have are in use.
    NoHandleLeft,
    /// There is no such mapping.
    NoSuchHandle,
    /// There is no memory to remember it in.
    NoMemory,
}
