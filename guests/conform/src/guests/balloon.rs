//! Ballooning to the bone and back: every frame that is not in use goes, all of them come back, and clean.
//!
//! Promised by: public/memory.h. Xen leaves it to a living domain to clear what it gives back, so that a frame may
//! come back with what this same domain left in it; ours clears it.

use pv::abi::memory::MemoryReservation;
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use pv::memory::{self, Page};
use pv::{Answer, start};
use zerocopy::FromZeros;

use crate::report::{Report, Verdict};

const DECREASE: u64 = 1;
const POPULATE: u64 = 6;
/// Pages per call.
const BATCH: usize = 256;

fn op(command: u64, extents: &mut [u64]) -> Answer {
    let mut request = MemoryReservation::new_zeroed();
    request.extent_start = address(extents);
    request.nr_extents = extents.len() as u64;
    request.domid.0 = SELF;
    call(number::MEMORY_OP, [command, address(&mut request)])
}

fn current() -> i64 {
    call(number::MEMORY_OP, [3, address(&mut [SELF, 0, 0, 0])]).0
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let pages = start::info().nr_pages;
    // What the builder mapped is in use; behind it lies the rest. The builder maps whole 4 MiB at the most.
    let first = (pv::tables::root().address() >> 12 | 1023) + 1 + 1024;
    let before = current();
    let window = Page::new();
    let mut marked = 0;
    for pfn in (first..pages).step_by(16) {
        if memory::map(window.address(), memory::p2m(pfn), memory::ORDINARY).is_ok() {
            window.set_word(7, 0x5eed_5eed);
            marked += 1;
        }
    }
    memory::map(window.address(), window.mfn(), memory::ORDINARY).ok()?;
    report.check("pages with a pattern", marked > 100);

    let mut extents = [0; BATCH];
    for _ in 0..3 {
        let mut gone = 0;
        for start in (first..pages).step_by(BATCH) {
            let count = BATCH.min((pages - start) as usize);
            for (slot, pfn) in extents.iter_mut().zip(start..pages) {
                *slot = memory::p2m(pfn);
            }
            gone += op(DECREASE, &mut extents[..count]).0;
        }
        report.check("all of them went", gone as u64 == pages - first);
        report.check("and are not counted any more", before - current() == gone);
        let mut back = 0;
        for start in (first..pages).step_by(BATCH) {
            let count = BATCH.min((pages - start) as usize);
            for (slot, pfn) in extents.iter_mut().zip(start..pages) {
                *slot = pfn;
            }
            back += op(POPULATE, &mut extents[..count]).0;
            for (mfn, pfn) in extents[..count].iter().zip(start..pages) {
                memory::set_p2m(pfn, *mfn);
            }
        }
        report.check("all of them came back", back == gone && current() == before);
    }
    let (mut dirty, mut counted) = (0, 0);
    for pfn in first..pages {
        let mfn = memory::p2m(pfn);
        memory::map(window.address(), mfn, memory::ORDINARY).ok()?;
        dirty += u64::from(window.word(7) != 0);
        counted += u64::from(memory::m2p(mfn) == Some(pfn));
    }
    report.saw("all are clean", dirty == 0);
    report.check("each counts as its page", counted == pages - first);
    Ok(())
}
