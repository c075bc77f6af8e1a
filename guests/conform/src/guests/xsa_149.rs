//! XSA-149 (CVE-2015-7969), XSA-151 (CVE-2015-7969) and XSA-207: what a domain that is gone leaves behind.
//!
//! Arrays of vcpus, of profiling and of device state were allocated for each domain and freed for none, so that whoever
//! makes and destroys guests all day ran the host out of memory. Domains are made here, given vcpus, memory, ports, a
//! grant table and permissions, and destroyed, many times over; forty of them must not cost a page each. (Xen's heap keeps
//! a few of what it once had.) A page of the last one that is still mapped keeps it from going, and nothing else does.

use pv::abi::domctl::DomctlCmd;
use pv::abi::grant_table::{SetupTable, gnttabop};
use pv::abi::memory::MemoryReservation;
use pv::abi::xen::MmuUpdate;
use pv::event::{self, SELF};
use pv::grant;
use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page};
use pv::tables::Slot;
use pv::{Answer, start, time};
use zerocopy::FromZeros;

use crate::host::{self, Child};
use crate::report::{End, Report, Verdict};

const ROUNDS: u64 = 40;
const PAGES: usize = 64;

/// Makes a domain with a bit of everything; returns it and its first frame.
fn make() -> Result<(Child, u64), Answer> {
    let child = Child::new(4)?;
    let id = child.id;
    host::domctl(id, DomctlCmd::MAX_MEM, &mut (PAGES as u64 * 4)).ok()?;
    let mut frames: [u64; PAGES] = core::array::from_fn(|pfn| pfn as u64);
    let mut request = MemoryReservation::new_zeroed();
    (request.extent_start, request.nr_extents, request.domid.0) = (address(&mut frames), PAGES as u64, id);
    call(number::MEMORY_OP, [host::POPULATE, address(&mut request)]).ok()?;
    let mut setup = SetupTable::new_zeroed();
    let mut list = [0_u64; 4];
    (setup.dom.0, setup.nr_frames, setup.frame_list) = (id, 4, address(&mut list));
    grant::op(gnttabop::SETUP_TABLE, core::slice::from_mut(&mut setup)).ok()?;
    for _ in 0..8 {
        let port = event::alloc_unbound(id, SELF)?;
        event::bind_interdomain(id, port)?;
    }
    Ok((child, frames[0]))
}

/// Pages that are free when what was let go has been given back, which Xen does some time later.
fn settled() -> Result<u64, Answer> {
    const LATER_NS: u64 = 200_000_000;
    let until = time::now() + LATER_NS;
    let mut most = 0;
    while time::now() < until {
        most = most.max(host::free_pages()?);
        call(number::SCHED_OP, [0, 0]);
    }
    Ok(most)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !start::is_dom0() {
        return Err(End::Skip("only Domain 0 makes domains"));
    }
    let mut free = [0; 2];
    // In the first rounds the heap takes what it then keeps.
    for round in 0..2 * ROUNDS {
        drop(make()?);
        event::op(pv::abi::event_channel::evtchnop::RESET, &mut [SELF]).ok()?;
        if round % ROUNDS == ROUNDS - 1 {
            free[usize::from(round >= ROUNDS)] = settled()?;
        }
    }
    report.check("forty domains cost less than a page each", free[0].saturating_sub(free[1]) < ROUNDS);
    let (child, mfn) = make()?;
    let id = child.id;
    let window = Page::new();
    let slot = Slot::of(window.address(), 1).ok_or(End::Fail("no table"))?;
    let mut update = [MmuUpdate { ptr: slot.maddr(), val: mfn << 12 | ORDINARY }];
    report.saw("one page is mapped", call(number::MMU_UPDATE, [address(&mut update), 1, 0, id.into()]));
    drop(child);
    let is_there = || host::domctl(id, DomctlCmd::GETDOMAININFO, &mut [0_u64; 14]).ok().is_ok();
    report.expect("it is still there", is_there(), true);
    memory::unmap(window.address()).ok()?;
    event::op(pv::abi::event_channel::evtchnop::RESET, &mut [SELF]).ok()?;
    report.expect("and then it is not", is_there(), false);
    report.check("nor is its memory", free[1].saturating_sub(host::free_pages()?) < PAGES as u64);
    Ok(())
}
