//! XSA-212 (CVE-2017-7228): `memory_exchange` writes its results where the guest says, checked in the wrong place.
//!
//! The address of the list was checked, but the results went behind it by as many entries as the guest claimed to be
//! done already: with a fitting claim, into the hypervisor. The target here is the entry of the machine-to-physical
//! table for a frame of our own, which we can read and so watch. The same exchange with an honest list works, which
//! shows that the claim is what is refused.

use pv::abi::memory::MemoryExchange;
use pv::abi::xen::MACH2PHYS_VIRT_START;
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use pv::memory::{self, Page};
use pv::{Answer, insn};
use zerocopy::FromZeros;

use crate::report::{Report, Verdict};

/// Exchanges the frames, from the given number on, writing to `list`.
fn exchange(frames: &mut [u64], list: u64, done: u64) -> (Answer, u64) {
    let mut request = MemoryExchange::new_zeroed();
    let count = frames.len() as u64;
    request.in_.extent_start = address(frames);
    request.out.extent_start = list;
    (request.in_.nr_extents, request.out.nr_extents, request.nr_exchanged) = (count, count, done);
    (request.in_.domid.0, request.out.domid.0) = (SELF, SELF);
    let answer = call(number::MEMORY_OP, [11, address(&mut request)]);
    (answer, request.nr_exchanged)
}

/// Takes a frame out of use, and returns its page number with it.
fn spare() -> Result<(u64, u64), Answer> {
    let page = Page::new();
    memory::unmap(page.address()).ok()?;
    Ok((page.address() >> 12, page.mfn()))
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let watched = Page::new();
    let target = MACH2PHYS_VIRT_START + watched.mfn() * 8;
    let value = insn::peek(target);
    report.check("the target is readable", value == watched.address() >> 12);

    let (_, first) = spare()?;
    let (_, second) = spare()?;
    for done in [1, 0] {
        // The entry written is number `done`.
        let (answer, _) = exchange(&mut [first, second], target - done * 8, done);
        report.check("a list in the hypervisor is refused", !answer.is_ok());
        report.check("the target is what it was", insn::peek(target) == value);
    }
    // A list that starts in our half and runs over into the hypervisor's by the claim alone.
    let claim = (target - 0x1000) / 8;
    let (answer, _) = exchange(&mut [first, second], 0x1000, claim);
    report.check("a claim beyond the end is refused", !answer.is_ok());
    let (answer, _) = exchange(&mut [first, second], target.wrapping_sub(u64::MAX << 3), u64::MAX);
    report.check("a claim that wraps is refused", !answer.is_ok());
    report.check("the target is what it was", insn::peek(target) == value);

    let (pfn, third) = spare()?;
    let mut list = [pfn];
    let place = address(&mut list);
    let (answer, done) = exchange(&mut [third], place, 0);
    report.expect("an honest exchange", answer, Answer::OK);
    report.expect("done", done, 1);
    report.check("its result is where it was asked for", memory::m2p(list[0]) == Some(pfn));
    Ok(())
}
