//! The machine-to-phys table: for each frame, the owner's own number for it.
//!
//! Guests read it at its ABI address; it is written through the direct map. It comes in pieces of 2 MiB,
//! each for the frames of one gigabyte; a gigabyte without RAM has none.

use super::layout::{DIRECT_MAP, M2P};
use super::memory;
use core::sync::atomic::{AtomicU64, Ordering};
use ferroxen_words::{Maddr, Mfn, PAGE_SIZE, Vaddr};

/// What stands for frames that no guest counts.
pub const INVALID_ENTRY: u64 = !0;

/// As many pieces as the direct map can hold gigabytes.
const PIECES: usize = 5120;
const ENTRIES: u64 = (2 << 20) / 8;

/// Physical addresses of the pieces; 0 for none.
static PIECE: [AtomicU64; PIECES] = [const { AtomicU64::new(0) }; PIECES];

/// Notes where a piece lies.
pub(super) fn set_piece(piece: usize, physical: u64) {
    if let Some(slot) = PIECE.get(piece) {
        slot.store(physical, Ordering::Release);
    }
}

/// Fills all pieces with [`INVALID_ENTRY`].
pub(super) fn fill() {
    for gigabyte in 0..PIECES as u64 {
        if entry(Mfn::new(gigabyte * ENTRIES)).is_some() {
            for mfn in gigabyte * ENTRIES..(gigabyte + 1) * ENTRIES {
                set(Mfn::new(mfn), INVALID_ENTRY);
            }
        }
    }
}

#[inline]
fn entry(mfn: Mfn) -> Option<&'static AtomicU64> {
    let piece = PIECE.get((mfn.raw() / ENTRIES) as usize)?.load(Ordering::Relaxed);
    if piece == 0 {
        return None;
    }
    let at = DIRECT_MAP + piece + 8 * (mfn.raw() % ENTRIES);
    // SAFETY: within the piece, which is the table's for ever and only accessed atomically.
    Some(unsafe { &*(at as *const AtomicU64) })
}

/// Writes a frame's entry; does nothing for a frame beyond the table.
#[inline]
pub fn set(mfn: Mfn, value: u64) {
    if let Some(entry) = entry(mfn) {
        entry.store(value, Ordering::Relaxed);
    }
}

/// Reads a frame's entry; `None` beyond the table.
#[inline]
pub fn get(mfn: Mfn) -> Option<u64> {
    entry(mfn).map(|entry| entry.load(Ordering::Relaxed))
}

/// Where guests see the table: first address, one past the last, and the number of entries.
pub fn bounds() -> (Vaddr, Vaddr, u64) {
    let entries = memory::max_mfn();
    (Vaddr::new(M2P), Vaddr::new(M2P + 8 * entries), entries)
}

/// The first frames of the table's 2 MiB pieces, in order of address; a gigabyte without RAM has none.
pub fn frames() -> impl Iterator<Item = Option<Mfn>> {
    let pieces = (memory::max_mfn().div_ceil(ENTRIES) as usize).min(PIECES);
    PIECE[..pieces].iter().map(|piece| match piece.load(Ordering::Relaxed) {
        0 => None,
        physical => Some(Maddr::new(physical).mfn()),
    })
}

/// Whether a frame is part of the table (which guests may map to read).
pub fn holds(mfn: Mfn) -> bool {
    let large = (2 << 20) / PAGE_SIZE as u64;
    frames()
        .flatten()
        .any(|first| first.raw() <= mfn.raw() && mfn.raw() < first.raw() + large)
}
