//! XSA-228 (CVE-2017-12136) and XSA-236 (CVE-2017-15597): two vcpus that map and unmap.
//!
//! The list of free handles was taken apart without its lock, and a page's count of uses could pass its end: the same
//! handle was given out twice. Each vcpu maps eight grants, its own and one that both use, looks that its handles lead to
//! its own pages, and unmaps them, many times over. In the end no offer is in use.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pv::grant::{self, Table, gntmap, gtf};
use pv::memory::Page;
use pv::{start, vcpu};

use crate::report::{End, Report, Verdict};

const ROUNDS: u32 = 150;
const GRANTS: usize = 8;
/// The windows of both vcpus.
static WINDOWS: [AtomicU64; 2 * GRANTS] = [const { AtomicU64::new(0) }; 2 * GRANTS];
static OWN: AtomicU32 = AtomicU32::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);

/// The reference that window `index` of `vcpu` maps: the last is everybody's.
fn gref(vcpu: usize, index: usize) -> u32 {
    if index == GRANTS - 1 { 8 } else { (16 + vcpu * GRANTS + index) as u32 }
}

fn work(vcpu: usize) {
    let own = OWN.load(Ordering::SeqCst) as u16;
    for _ in 0..ROUNDS {
        let mut handles = [0; GRANTS];
        for (index, handle) in handles.iter_mut().enumerate() {
            let window = WINDOWS[vcpu * GRANTS + index].load(Ordering::SeqCst);
            match grant::map(own, gref(vcpu, index), window, gntmap::HOST_MAP) {
                Ok(mapped) => *handle = mapped,
                Err(_) => _ = WRONG.fetch_add(1, Ordering::SeqCst),
            }
            let right = Page::at(window).word(0) == gref(vcpu, index).into();
            WRONG.fetch_add((!right).into(), Ordering::SeqCst);
        }
        for (index, handle) in handles.iter().enumerate() {
            let window = WINDOWS[vcpu * GRANTS + index].load(Ordering::SeqCst);
            WRONG.fetch_add((grant::unmap(*handle, window).0 != 0).into(), Ordering::SeqCst);
        }
    }
    DONE.fetch_add(1, Ordering::SeqCst);
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    OWN.store(own.into(), Ordering::SeqCst);
    let table = Table::setup()?;
    let everybodys = Page::new();
    everybodys.set_word(0, 8);
    table.offer(8, own, everybodys.mfn(), gtf::PERMIT_ACCESS);
    for vcpu in 0..2 {
        for index in 0..GRANTS {
            let page = Page::new();
            page.set_word(0, gref(vcpu, index).into());
            if index < GRANTS - 1 {
                table.offer(gref(vcpu, index), own, page.mfn(), gtf::PERMIT_ACCESS);
            }
            WINDOWS[vcpu * GRANTS + index].store(Page::new().address(), Ordering::SeqCst);
        }
    }
    vcpu::start(|| work(1)).ok()?;
    work(0);
    while DONE.load(Ordering::SeqCst) < 2 {
        core::hint::spin_loop();
    }
    report.expect("went wrong", WRONG.load(Ordering::SeqCst), 0);
    let unused = (0..2).flat_map(|vcpu| (0..GRANTS).map(move |index| gref(vcpu, index)));
    let unused = unused.filter(|gref| table.flags(*gref) == gtf::PERMIT_ACCESS).count();
    report.expect("offers that are unused", unused, 2 * GRANTS);
    Ok(())
}
