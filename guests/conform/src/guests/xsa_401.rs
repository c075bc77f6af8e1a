//! XSA-401 (CVE-2022-26362): a page that becomes a table and writable at once.
//!
//! Two vcpus want the same page as different things. Taking a type was not one step, so that both could be told yes.
//! Vcpu 1 maps the page writable, writes to it, and unmaps it without a flush, over and over; vcpu 0 pins it as a table
//! meanwhile. Whenever the pin is there, what the page holds must not change any more.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::hypercall::{call, number};
use pv::memory::{self, ORDINARY, Page};
use pv::{insn, tables, trap, vcpu};

use crate::report::{Report, Verdict};

const ROUNDS: u32 = 3000;
/// Where the two hardly ever run at once, it takes longer until each has had its way.
const AT_MOST: u32 = 100 * ROUNDS;
static FRAME: AtomicU64 = AtomicU64::new(0);
static WINDOW: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);
static WROTE: AtomicU64 = AtomicU64::new(0);

fn disturb() {
    let (window, mfn) = (WINDOW.load(Ordering::SeqCst), FRAME.load(Ordering::SeqCst));
    let mut even = false;
    while STOP.load(Ordering::SeqCst) == 0 {
        if memory::map(window, mfn, ORDINARY).is_ok() {
            // Not present, so that it is a table's either way; what changes tells of the write.
            even = !even;
            let written = trap::attempt(|| insn::poke(window, if even { 0x10 } else { 0x20 }));
            WROTE.fetch_add(written.is_ok().into(), Ordering::SeqCst);
        }
        call(number::UPDATE_VA_MAPPING, [window, 0, 0]);
    }
    STOP.store(2, Ordering::SeqCst);
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (page, window) = (Page::new(), Page::new());
    page.seal()?;
    memory::unmap(window.address()).ok()?;
    FRAME.store(page.mfn(), Ordering::SeqCst);
    WINDOW.store(window.address(), Ordering::SeqCst);
    vcpu::start(disturb).ok()?;
    let (mut pinned, mut changed) = (0, 0);
    for round in 0..AT_MOST {
        if round >= ROUNDS && pinned > 0 && WROTE.load(Ordering::SeqCst) > 0 {
            break;
        }
        let level = 1 + round % 4;
        if !tables::pin(level, page.mfn()).is_ok() {
            continue;
        }
        pinned += 1;
        let first = page.word(0);
        changed += u32::from((0..40).any(|_| page.word(0) != first));
        tables::unpin(page.mfn()).ok()?;
    }
    STOP.store(1, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) != 2 {
        core::hint::spin_loop();
    }
    report.check("it was a table at times", pinned > 0);
    report.check("it was written at times", WROTE.load(Ordering::SeqCst) > 0);
    report.expect("changed while it was a table", changed, 0);
    Ok(())
}
