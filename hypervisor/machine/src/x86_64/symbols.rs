//! Names for addresses, from the table that the build appends to the image.
//!
//! An address in it is the distance from the image's start. An image without a table is fine too.

use core::ptr::addr_of;
use core::slice;
use ferroxen_nametable::{Name, Table};

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __symbols_start: u8;
    static __symbols_end: u8;
}

/// The function that holds an address, and the distance from its start.
pub fn find(address: u64) -> Option<(Name, u64)> {
    let image = addr_of!(__image_start) as u64;
    if address < image || address >= addr_of!(__text_end) as u64 {
        return None;
    }
    let (name, distance) = table().at((address - image) as u32)?;
    Some((name, distance.into()))
}

/// A function by its number, in order of address, and where it begins.
pub fn by_number(number: u32) -> Option<(Name, u64)> {
    let (name, offset) = table().by_number(number as usize)?;
    Some((name, addr_of!(__image_start) as u64 + u64::from(offset)))
}

fn table() -> Table<'static> {
    let start = addr_of!(__symbols_start);
    // SAFETY: between the linker's two symbols lie bytes that nobody writes.
    Table::new(unsafe { slice::from_raw_parts(start, addr_of!(__symbols_end) as usize - start as usize) })
}
