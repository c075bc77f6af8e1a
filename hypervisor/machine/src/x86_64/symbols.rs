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
    look_up(table(), (address - image) as u32).map(|(name, distance)| (name, distance.into()))
}

/// A function by its number, in order of address, and where it begins.
pub fn by_number(number: u32) -> Option<(&'static str, u64)> {
    let (name, offset) = entry(table(), number as usize)?;
    Some((name, addr_of!(__image_start) as u64 + u64::from(offset)))
}

fn table() -> &'static [u8] {
    let start = addr_of!(__symbols_start);
    // SAFETY: between the linker's two symbols lie bytes that nobody writes.
    unsafe { slice::from_raw_parts(start, addr_of!(__symbols_end) as usize - start as usize) }
}

fn look_up(table: &[u8], offset: u32) -> Option<(&str, u32)> {
    let (mut low, mut high) = (0, word(table, 0)? as usize);
    while low < high {
        let middle = low + (high - low) / 2;
        if word(table, 4 + 8 * middle)? <= offset {
            low = middle + 1
        } else {
            high = middle
        }
    }
    let (name, start) = entry(table, low.checked_sub(1)?)?;
    Some((name, offset - start))
}

/// The name of function `number`, and its distance from the image's start.
fn entry(table: &[u8], number: usize) -> Option<(&str, u32)> {
    let count = word(table, 0)? as usize;
    if number >= count {
        return None;
    }
    let name_start = if number == 0 {
        0
    } else {
        word(table, 4 + 8 * number - 4)?
    } as usize;
    let name_end = word(table, 4 + 8 * number + 4)? as usize;
    let name = table.get(4 + 8 * count..)?.get(name_start..name_end)?;
    Some((core::str::from_utf8(name).ok()?, word(table, 4 + 8 * number)?))
}

fn word(table: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*table.get(at..)?.first_chunk()?))
}
