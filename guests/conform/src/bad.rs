//! Arguments that no honest guest passes.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::abi::xen::HYPERVISOR_VIRT_START;
use pv::memory::{self, Page, SIZE};

/// Nothing is mapped there.
pub const UNMAPPED: u64 = 0x7f00_0000_0000;
/// The machine-to-physical table: a guest may read it, but it is not the guest's.
pub const HYPERVISORS: u64 = HYPERVISOR_VIRT_START;
/// Further up in what is the hypervisor's.
pub const HYPERVISORS_TOO: u64 = 0xffff_82d0_4020_0000;
/// Neither half of the address space has it.
pub const NON_CANONICAL: u64 = 0x0123_0000_0000_0000;
/// So near the end that an object there wraps around.
pub const LAST: u64 = u64::MAX - 7;
/// A domain that is not there.
pub const NO_DOMAIN: u16 = 77;
/// A frame that no machine of ours has.
pub const NO_FRAME: u64 = 0x7_ffff_ffff;

/// Unmapped, the hypervisor's (twice), not canonical, wrapping around, and running into an unmapped page.
pub fn pointers() -> [u64; 6] {
    [
        UNMAPPED,
        HYPERVISORS,
        HYPERVISORS_TOO,
        NON_CANONICAL,
        LAST,
        straddling(4),
    ]
}

/// Returns an address with `bytes` to the end of its page, behind which nothing is mapped.
pub fn straddling(bytes: u64) -> u64 {
    static EDGE: AtomicU64 = AtomicU64::new(0);
    if EDGE.load(Ordering::SeqCst) == 0 {
        // Pages come from the pool in order.
        Page::new();
        let second = Page::new();
        memory::unmap(second.address());
        EDGE.store(second.address(), Ordering::SeqCst);
    }
    EDGE.load(Ordering::SeqCst) - bytes.min(SIZE)
}
