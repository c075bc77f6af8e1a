//! XSA-45 (CVE-2013-1918), XSA-252 (CVE-2018-7540), XSA-264 (CVE-2018-12891) and XSA-290 (CVE-2019-17344): tables that
//! take too long.
//!
//! To validate a large tree, or to take it apart, must not keep a CPU in the hypervisor: each of these advisories found a
//! level, or a way there, that was not interruptible. The tree has 512 tables of level 1 under one L2, each full, and
//! goes through every way of being promoted and dropped: pinned, as a root in use, by an entry. Vcpu 1 keeps ringing
//! meanwhile; if a call stood in its way, the rings would wait for it. In the end every page is free.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::memory::{ORDINARY, Page};
use pv::tables;
use pv::{Answer, event, time, vcpu};

use crate::report::{Report, Verdict};

const LEAVES: usize = 512;
static PORT: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);
static RUNG: AtomicU64 = AtomicU64::new(0);

fn ring() {
    while STOP.load(Ordering::SeqCst) == 0 {
        event::send(PORT.load(Ordering::SeqCst) as u32);
        RUNG.fetch_add(1, Ordering::SeqCst);
        let next = time::now() + 200_000;
        while time::now() < next {
            core::hint::spin_loop();
        }
    }
    STOP.store(2, Ordering::SeqCst);
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (root, l3, l2) = (tables::copy_of_root(), Page::new(), Page::new());
    let data = Page::new();
    let mut leaves = [l2; LEAVES];
    for (index, leaf) in leaves.iter_mut().enumerate() {
        *leaf = tables::hang_leaf(l2, index, data)?;
    }
    l3.set_word(0, l2.mfn() << 12 | ORDINARY);
    root.set_word(300, l3.mfn() << 12 | ORDINARY);
    for page in [l2, l3, root] {
        page.seal()?;
    }
    let port = event::bind_ipi(0)?;
    event::set_mask(port, false);
    event::set_upcall_mask(false);
    PORT.store(port.into(), Ordering::SeqCst);
    vcpu::start(ring).ok()?;
    while RUNG.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    let before = event::upcalls(0);
    let slot = (root.mfn() << 12) + 300 * 8;
    let mut all = Answer::OK;
    let mut note = |answer: Answer| {
        event::take(port);
        if !answer.is_ok() {
            all = answer;
        }
    };
    for _ in 0..2 {
        note(tables::pin(2, l2.mfn()));
        note(tables::unpin(l2.mfn()));
        note(tables::pin(4, root.mfn()));
        note(tables::set(slot, 0));
        note(tables::set(slot, l3.mfn() << 12 | ORDINARY));
        note(tables::unpin(root.mfn()));
        note(tables::set_root(root.mfn()));
        note(tables::set_root(tables::root_mfn()));
        note(tables::set_user_root(root.mfn()));
        note(tables::set_user_root(0));
    }
    report.expect("all of it", all, Answer::OK);
    report.check("rings came through meanwhile", event::upcalls(0) > before);
    STOP.store(1, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) != 2 {
        event::take(port);
    }
    let free = leaves.iter().chain(&[l2, l3, root]).filter(|page| page.unseal().is_ok()).count();
    report.expect("pages that are free again", free, LEAVES + 3);
    Ok(())
}
