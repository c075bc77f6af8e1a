//! The parts that are plain arithmetic and can be tried on any host.

/// Splits an address of a four-level table into its indices, level 4 first.
#[inline]
pub const fn table_indices(vaddr: u64) -> [usize; 4] {
    [
        (vaddr >> 39 & 511) as usize,
        (vaddr >> 30 & 511) as usize,
        (vaddr >> 21 & 511) as usize,
        (vaddr >> 12 & 511) as usize,
    ]
}

/// First byte that belongs to the hypervisor in every address space.
pub const RESERVED_START: u64 = 0xffff_8000_0000_0000;
/// First byte above the hypervisor's part.
pub const RESERVED_END: u64 = 0xffff_8800_0000_0000;

/// Bytes from [`RESERVED_END`] on, and after the last address from 0 on, that are a guest's: up to the hole.
const GUEST_BYTES: u64 = 0x8000_0000_0000u64.wrapping_sub(RESERVED_END);

/// Whether `len` bytes at `start` lie wholly in a guest's part of the address space.
///
/// An empty range is a guest's wherever it is; one that begins in the last page may end in the first, as the
/// processor has it.
#[inline(always)]
pub const fn is_guest_range(start: u64, len: usize) -> bool {
    let len = len as u64;
    len == 0 || (len <= GUEST_BYTES && start.wrapping_sub(RESERVED_END) <= GUEST_BYTES - len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_range_never_touches_ours_nor_a_hole() {
        assert!(is_guest_range(0, 4096));
        assert!(is_guest_range(0x7fff_ffff_f000, 4096));
        assert!(!is_guest_range(0x7fff_ffff_f000, 4097));
        assert!(!is_guest_range(0x7fff_ffff_f000, usize::MAX));
        assert!(!is_guest_range(RESERVED_START, 1));
        assert!(!is_guest_range(RESERVED_END - 1, 1));
        assert!(is_guest_range(RESERVED_END, 1));
        assert!(is_guest_range(0xffff_ffff_ffff_ffff, 1));
        assert!(is_guest_range(0xffff_ffff_ffff_ffff, 2));
        assert!(!is_guest_range(0xffff_ffff_ffff_ffff, 0x8000_0000_0002));
        assert!(!is_guest_range(0xffff_ffff_ffff_ffff, usize::MAX));
        assert!(is_guest_range(RESERVED_START, 0));
    }

    #[test]
    fn indices_are_nine_bits_each() {
        assert_eq!(table_indices(0xffff_82d0_4020_1000), [261, 321, 1, 1]);
        assert_eq!(table_indices(!0), [511; 4]);
    }
}
