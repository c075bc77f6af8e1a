//! XSA-218 (CVE-2017-10913 and 10914): one grant unmapped by two vcpus at once.
//!
//! Two calls that name the same handle at the same time were both carried out, and took the page's reference away twice:
//! the page was free while it was still mapped elsewhere. In every round vcpu 0 maps a grant, and both vcpus unmap it as
//! fast as they can. Exactly one of them may succeed, and the offer must then be unused.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pv::grant::{self, Table, gntmap, gtf};
use pv::memory::Page;
use pv::{start, vcpu};

use crate::report::{End, Report, Verdict};

const ROUNDS: u32 = 400;
/// The round that both work on; vcpu 1 answers by [`ANSWERED`].
static ROUND: AtomicU32 = AtomicU32::new(0);
static ANSWERED: AtomicU32 = AtomicU32::new(0);
static WINS: AtomicU32 = AtomicU32::new(0);
static HANDLE: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);

fn unmap() -> u32 {
    let handle = HANDLE.load(Ordering::SeqCst) as u32;
    u32::from(grant::unmap(handle, ADDRESS.load(Ordering::SeqCst)).0 == 0)
}

fn second() {
    for round in 1..=ROUNDS {
        while ROUND.load(Ordering::SeqCst) != round {
            core::hint::spin_loop();
        }
        WINS.fetch_add(unmap(), Ordering::SeqCst);
        ANSWERED.store(round, Ordering::SeqCst);
    }
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    let (data, window) = (Page::new(), Page::new());
    table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
    ADDRESS.store(window.address(), Ordering::SeqCst);
    vcpu::start(second).ok()?;
    let (mut wins, mut unused) = (0, 0);
    for round in 1..=ROUNDS {
        let handle = grant::map(own, 8, window.address(), gntmap::HOST_MAP).map_err(|_| End::Fail("a map was refused"))?;
        HANDLE.store(handle.into(), Ordering::SeqCst);
        ROUND.store(round, Ordering::SeqCst);
        wins += unmap();
        while ANSWERED.load(Ordering::SeqCst) != round {
            core::hint::spin_loop();
        }
        unused += u32::from(table.flags(8) == gtf::PERMIT_ACCESS);
    }
    report.expect("unmapped, by either", wins + WINS.load(Ordering::SeqCst), ROUNDS);
    report.expect("unused after the round", unused, ROUNDS);
    report.check("the page can be revoked", table.revoke(8));
    Ok(())
}
