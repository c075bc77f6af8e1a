//! What one guest leaves in memory, and whether the next one finds it.

use pv::memory::{self, Page};
use pv::{println, start};

/// Pages behind what the builder put there, which hold nothing but what somebody left. The builder maps 4 MiB at a
/// time, and all of its own lies in the first pieces.
fn free_pages() -> core::ops::Range<u64> {
    let info = start::info();
    // These guests are mapped from address 0 on.
    let tables = info.pt_base / memory::SIZE;
    (tables + info.nr_pt_frames + 1).next_multiple_of(1024)..info.nr_pages
}

/// Runs `each` on every free page in turn, mapped for it; counts them.
fn for_each_free(mut each: impl FnMut(Page)) -> u64 {
    let window = Page::new();
    let own = window.mfn();
    let mut seen = 0;
    for pfn in free_pages() {
        if memory::map(window.address(), memory::p2m(pfn), memory::ORDINARY).is_ok() {
            each(window);
            seen += 1;
        }
    }
    // What was the window's is needed for nothing any more, but tidy is tidy.
    let _ = memory::map(window.address(), own, memory::ORDINARY);
    seen
}

/// Writes `mark` into every word of free memory.
pub fn leave(mark: u64) {
    let pages = for_each_free(|page| page.fill(mark));
    println!("marked {} MiB", (pages * memory::SIZE) >> 20);
}

/// Counts words of free memory that are `mark`.
pub fn search(mark: u64) {
    let mut found = 0_u64;
    let pages = for_each_free(|page| {
        for index in 0..512 {
            found += u64::from(page.word(index) == mark);
        }
    });
    println!("searched {} MiB, found {found} words", (pages * memory::SIZE) >> 20);
}
