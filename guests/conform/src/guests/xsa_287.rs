//! XSA-287 (CVE-2019-17340 and others): a page that is taken away while it is being mapped.
//!
//! `memory_exchange` and `decrease_reservation` take a page from its owner, who maps it on another vcpu at that moment:
//! without the right order of looking at owner and count, the page had no owner and a mapping. Vcpu 1 maps and unmaps one
//! page without pause, while vcpu 0 exchanges it, or gives it back and takes another. Afterwards as many pages are free
//! as before, the last frame is ours, and no earlier one can be mapped. A page that is given back while it is mapped can
//! be, as long as it is: nobody else can have it till then.

use core::sync::atomic::{AtomicU64, Ordering};

use pv::abi::memory::{MemoryExchange, MemoryReservation};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page};
use pv::{Answer, vcpu};
use zerocopy::FromZeros;

use crate::host::{self, DECREASE, POPULATE};
use crate::report::{End, Report, Verdict};

static FRAME: AtomicU64 = AtomicU64::new(0);
static WINDOW: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);

/// As many of the frames that went are tried again.
const EARLIER: usize = 64;

fn disturb() {
    let window = WINDOW.load(Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) == 0 {
        memory::map(window, FRAME.load(Ordering::SeqCst), ORDINARY);
        memory::unmap(window);
    }
    STOP.store(2, Ordering::SeqCst);
}

fn exchange(mfn: u64, pfn: u64) -> Result<u64, Answer> {
    let (mut given, mut taken) = ([mfn], [pfn]);
    let mut request = MemoryExchange::new_zeroed();
    let side = |list: &mut [u64; 1]| {
        let mut side = MemoryReservation::new_zeroed();
        (side.extent_start, side.nr_extents, side.domid.0) = (address(list), 1, SELF);
        side
    };
    (request.in_, request.out) = (side(&mut given), side(&mut taken));
    call(number::MEMORY_OP, [11, address(&mut request)]).ok()?;
    Ok(taken[0])
}

/// Gives a frame back and takes another.
fn replace(mfn: u64, pfn: u64) -> Option<u64> {
    let mut list = [pfn];
    let mut came = || host::reservation(POPULATE, &mut list, 0, 0).0 == 1;
    (host::reservation(DECREASE, &mut [mfn], 0, 0).0 == 1 && came()).then(|| list[0])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (page, window, third) = (Page::new(), Page::new(), Page::new());
    let pfn = page.address() >> 12;
    memory::unmap(page.address()).ok()?;
    memory::unmap(window.address()).ok()?;
    let before = host::free_pages()?;
    FRAME.store(page.mfn(), Ordering::SeqCst);
    WINDOW.store(window.address(), Ordering::SeqCst);
    vcpu::start(disturb).ok()?;
    let (mut exchanged, mut replaced) = (0, 0);
    let mut earlier = [u64::MAX; EARLIER];
    for round in 0..600 {
        let mfn = FRAME.load(Ordering::SeqCst);
        let next = if round % 2 == 0 {
            exchange(mfn, pfn).ok().inspect(|_| exchanged += 1)
        } else {
            replace(mfn, pfn).inspect(|_| replaced += 1)
        };
        let Some(next) = next else { continue };
        FRAME.store(next, Ordering::SeqCst);
        earlier[round % EARLIER] = mfn;
    }
    STOP.store(1, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) != 2 {
        core::hint::spin_loop();
    }
    report.check("some were exchanged", exchanged > 0);
    report.check("some went and came", replaced > 0);
    let last = FRAME.load(Ordering::SeqCst);
    let can_be_mapped = |mfn: u64| {
        let answer = memory::map(third.address(), mfn, ORDINARY);
        memory::unmap(third.address());
        answer
    };
    let mut gone = earlier.iter().filter(|&&mfn| mfn != last);
    report.check("no earlier one can be mapped", gone.all(|&mfn| can_be_mapped(mfn) != Answer::OK));
    report.expect("the last frame", can_be_mapped(last), Answer::OK);
    report.check("as many are free as before", host::free_pages()? == before);

    memory::map(window.address(), last, ORDINARY).ok()?;
    let next = replace(last, pfn).ok_or(End::Fail("the last was not replaced"))?;
    report.check("another came for what is mapped", next != last);
    report.saw("what was given back while mapped, once more", can_be_mapped(last));
    memory::unmap(window.address()).ok()?;
    report.check("and when it no longer is", can_be_mapped(last) != Answer::OK);
    report.check("as many are free at the end", host::free_pages()? == before);
    Ok(())
}
