//! XSA-310 (CVE-2019-19580): promotions that stop half-way, on two vcpus.
//!
//! A large tree is promoted under one root by vcpu 0 and under another by vcpu 1, and each drops it again, so that one
//! often finds it half validated by the other, or half taken apart. The references that each holds on the way are then
//! its own to give back: the count went wrong, and a table was freed in use. In the end every page must be free.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::memory::{ORDINARY, Page};
use pv::{tables, vcpu};

use crate::report::{Report, Verdict};

const LEAVES: usize = 300;
const ROUNDS: usize = 12;
static ROOT: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// Pins and unpins, and counts what did not work.
fn work(root: u64) -> u64 {
    let refused = (0..ROUNDS).flat_map(|_| [tables::pin(4, root), tables::unpin(root)]).filter(|answer| !answer.is_ok());
    refused.count() as u64
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let roots = [tables::copy_of_root(), tables::copy_of_root()];
    let (l3, l2, data) = (Page::new(), Page::new(), Page::new());
    let mut leaves = [l2; LEAVES];
    for (index, leaf) in leaves.iter_mut().enumerate() {
        *leaf = tables::hang_leaf(l2, index, data)?;
    }
    l3.set_word(0, l2.mfn() << 12 | ORDINARY);
    l2.seal()?;
    l3.seal()?;
    for root in roots {
        root.set_word(300, l3.mfn() << 12 | ORDINARY);
        root.seal()?;
    }
    ROOT.store(roots[1].mfn(), Ordering::SeqCst);
    vcpu::start(|| DONE.store(1 + work(ROOT.load(Ordering::SeqCst)), Ordering::SeqCst)).ok()?;
    let refused = work(roots[0].mfn());
    while DONE.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    report.expect("refused", refused + DONE.load(Ordering::SeqCst) - 1, 0);
    let free = leaves.iter().chain(&roots).chain(&[l2, l3]).filter(|page| page.unseal().is_ok()).count();
    report.expect("pages that are free again", free, LEAVES + 4);
    Ok(())
}
