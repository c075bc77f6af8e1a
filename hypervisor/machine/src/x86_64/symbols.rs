//! Names for addresses, from the table that the build appends to the image.
//!
//! Little-endian words: how many functions; for each, in order of address, its distance from the image's
//! start and where its name ends; then the names, one after the other. An image without a table is fine too.

use core::ptr::addr_of;
use core::slice;

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __symbols_start: u8;
    static __symbols_end: u8;
}

/// The function that holds an address, and the distance from its start.
pub fn find(address: u64) -> Option<(&'static str, u64)> {
    let image = addr_of!(__image_start) as u64;
    if address < image || address >= addr_of!(__text_end) as u64 {
        return None;
    }
    let start = addr_of!(__symbols_start);
    // SAFETY: between the linker's two symbols lie bytes that nobody writes.
    let table = unsafe { slice::from_raw_parts(start, addr_of!(__symbols_end) as usize - start as usize) };
    look_up(table, (address - image) as u32).map(|(name, distance)| (name, distance.into()))
}

fn look_up(table: &[u8], offset: u32) -> Option<(&str, u32)> {
    let word = |at: usize| Some(u32::from_le_bytes(*table.get(at..)?.first_chunk()?));
    let count = word(0)? as usize;
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if word(4 + 8 * middle)? <= offset { low = middle + 1 } else { high = middle }
    }
    let found = low.checked_sub(1)?;
    let name_start = if found == 0 { 0 } else { word(4 + 8 * found - 4)? } as usize;
    let name_end = word(4 + 8 * found + 4)? as usize;
    let name = table.get(4 + 8 * count..)?.get(name_start..name_end)?;
    Some((core::str::from_utf8(name).ok()?, offset - word(4 + 8 * found)?))
}
