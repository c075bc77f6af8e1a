//! Stale translations: a frame must not change its use while some CPU can still write to it by an old entry.
//!
//! Vcpu 1 keeps writing to a page. Vcpu 0 takes the mapping away without asking for a flush, and makes the frame a
//! page table at once. The hypervisor must flush vcpu 1's CPU before that frame is a table: vcpu 1's next write
//! must fault, and the table must hold nothing that vcpu 0 did not put there. Promised by: the rule of
//! xen/arch/x86/mm.c that a type changes only after `tlbflush_timestamp`; in the spirit of XSA-241 and XSA-401.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::hypercall::{call, number};
use pv::memory::{self, Page};
use pv::{event, insn, tables, trap, vcpu};

use crate::bad;
use crate::report::{Report, Verdict};

/// The page that vcpu 1 writes to; 0 ends it.
static TARGET: AtomicU64 = AtomicU64::new(0);
static WRITES: AtomicU64 = AtomicU64::new(0);
static FAULTS: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// Writes to the target until that faults.
fn write_on() {
    while TARGET.load(Ordering::SeqCst) != 0 {
        let target = TARGET.load(Ordering::SeqCst);
        let outcome = trap::attempt(|| {
            while TARGET.load(Ordering::SeqCst) == target {
                insn::poke(target + 8, bad::NO_FRAME << 12 | memory::ORDINARY);
                WRITES.fetch_add(1, Ordering::SeqCst);
            }
        });
        if outcome.is_err() {
            FAULTS.fetch_add(1, Ordering::SeqCst);
            while TARGET.load(Ordering::SeqCst) == target {
                core::hint::spin_loop();
            }
        }
    }
    DONE.store(1, Ordering::SeqCst);
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    const ROUNDS: u64 = 64;
    let (mut tables_made, mut clean) = (0, 0);
    for round in 0..ROUNDS {
        let page = Page::new();
        TARGET.store(page.address(), Ordering::SeqCst);
        if round == 0 {
            vcpu::start(write_on).ok()?;
        }
        let before = WRITES.load(Ordering::SeqCst);
        while WRITES.load(Ordering::SeqCst) < before + 3 {
            call(number::SCHED_OP, [0, 0]);
        }
        // No flush asked for: that is the point.
        call(number::UPDATE_VA_MAPPING, [page.address(), 0, 0]).ok()?;
        // From here on the frame must be safe as a table: an entry of vcpu 1's would make the pin fail.
        let view = Page::new();
        memory::map(view.address(), page.mfn(), memory::ORDINARY).ok()?;
        view.fill(0);
        memory::map(view.address(), page.mfn(), memory::READ_ONLY).ok()?;
        // A write of vcpu 1's that came before the flush makes this a refusal, and is no harm.
        let pinned = tables::pin(1, page.mfn());
        tables_made += u64::from(pinned.is_ok());
        let faults = FAULTS.load(Ordering::SeqCst);
        while FAULTS.load(Ordering::SeqCst) == faults && faults <= round {
            call(number::SCHED_OP, [0, 0]);
        }
        clean += u64::from(pinned.is_ok() && view.word(1) == 0);
    }
    TARGET.store(0, Ordering::SeqCst);
    while DONE.load(Ordering::SeqCst) == 0 {
        call(number::SCHED_OP, [0, 0]);
    }
    report.check("vcpu 1 wrote", WRITES.load(Ordering::SeqCst) >= 3 * ROUNDS);
    report.expect("its writes ended in faults", FAULTS.load(Ordering::SeqCst), ROUNDS);
    report.check("tables hold no stranger's entry", clean == tables_made);
    event::acknowledge(0);
    Ok(())
}
