//! Instructions that may fault, and where to go on if they do.
//!
//! An `asm!` block adds two 32-bit words to section `.fixups`: the distances from each word itself to the
//! instruction and to the place to go on. The table is read-only and short, so it is searched through.

use core::ptr::addr_of;

/// The table's entry for the instruction at one label: after its fault, go on at another.
macro_rules! fixup {
    ($fault:literal => $go_on:literal) => {
        concat!(
            ".pushsection .fixups, \"a\"\n",
            ".long ",
            $fault,
            " - ., ",
            $go_on,
            " - .\n",
            ".popsection"
        )
    };
}

/// Ends a block whose instruction at `2` may fault: these steps come first then, and what follows comes in either case.
macro_rules! on_fault {
    ($($step:expr),+) => {
        concat!(
            "3:\n",
            ".pushsection .text.fixup, \"ax\"\n",
            "4:\n",
            $($step, "\n",)+
            "jmp 3b\n",
            ".popsection\n",
            ".pushsection .fixups, \"a\"\n",
            ".long 2b - ., 4b - .\n",
            ".popsection"
        )
    };
}

pub(super) use {fixup, on_fault};

unsafe extern "C" {
    static __fixups_start: [i32; 2];
    static __fixups_end: [i32; 2];
}

/// Where to go on after the instruction at `rip` faulted.
pub fn find(rip: u64) -> Option<u64> {
    let mut at = addr_of!(__fixups_start) as u64;
    let end = addr_of!(__fixups_end) as u64;
    while at + 8 <= end {
        // SAFETY: between the linker's two symbols lie pairs of words that nobody writes.
        let [fault, go_on] = unsafe { *(at as *const [i32; 2]) };
        if at.wrapping_add_signed(fault.into()) == rip {
            return Some((at + 4).wrapping_add_signed(go_on.into()));
        }
        at += 8;
    }
    None
}
