//! The hypervisor's own heap, of a size fixed at boot.

/// Bytes that are free.
pub fn free_bytes() -> usize {
    todo!()
}

/// Bytes in all.
pub fn total_bytes() -> usize {
    todo!()
}
