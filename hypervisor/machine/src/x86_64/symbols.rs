//! Names for addresses, from a table that the build appends to the image.

/// The function that holds an address, and the distance from its start.
pub fn find(address: u64) -> Option<(&'static str, u64)> {
    let _ = address;
    None
}
