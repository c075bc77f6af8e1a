//! The machine-to-phys table: for each frame, the owner's own number for it.
//!
//! Guests read it at its ABI address; it is written through the direct map.

use ferroxen_words::{Mfn, Vaddr};

/// What stands for frames that no guest counts.
pub const INVALID_ENTRY: u64 = !0;

/// Writes a frame's entry; does nothing for a frame beyond the table.
pub fn set(mfn: Mfn, value: u64) {
    let _ = (mfn, value);
    todo!()
}

/// Reads a frame's entry; `None` beyond the table.
pub fn get(mfn: Mfn) -> Option<u64> {
    let _ = mfn;
    todo!()
}

/// Where guests see the table: first address, one past the last, and the number of entries.
pub fn bounds() -> (Vaddr, Vaddr, u64) {
    todo!()
}

/// The frames that hold the table's 2 MiB pieces, in order of address; a hole in RAM has none.
pub fn frames() -> impl Iterator<Item = Option<Mfn>> {
    core::iter::empty()
}
