//! XSA-149 (CVE-2015-7969), XSA-151 (CVE-2015-7969) and XSA-207: what a domain that is gone leaves behind.
//!
//! Arrays of vcpus, of profiling and of device state were allocated for each domain and freed for none, so that whoever
//! makes and destroys guests all day ran the host out of memory. Domains are made here, given vcpus, memory, ports, a
//! grant table and permissions, and destroyed, many times over; forty of them must not cost a page each. (Xen's heap keeps
//! a few of what it once had.) A page of the last one that is still mapped keeps it from going, and nothing else does.

use pv::abi::domctl::{Createdomain, DOMCTL_INTERFACE_VERSION, Domctl, DomctlCmd};
use pv::abi::grant_table::{SetupTable, gnttabop};
use pv::abi::memory::MemoryReservation;
use pv::abi::xen::MmuUpdate;
use pv::event::{self, SELF};
use pv::grant;
use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page};
use pv::tables::Slot;
use pv::{Answer, start, time};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::host;
use crate::report::{End, Report, Verdict};

const ROUNDS: u64 = 40;
const PAGES: usize = 64;

fn control<T: IntoBytes + Immutable>(domid: u16, cmd: DomctlCmd, payload: &T) -> Result<u16, Answer> {
    let mut request = Domctl::new_zeroed();
    (request.cmd, request.interface_version, request.domain.0) = (cmd, DOMCTL_INTERFACE_VERSION, domid);
    request.set_payload(payload);
    call(number::DOMCTL, [address(&mut request)]).ok()?;
    Ok(request.domain.0)
}

/// Makes a domain with a bit of everything; returns its id and its first frame.
fn make() -> Result<(u16, u64), Answer> {
    let wanted = Createdomain {
        max_vcpus: 4,
        max_evtchn_port: 1023,
        max_grant_frames: 8,
        max_maptrack_frames: 8,
        grant_opts: 1,
        ..Createdomain::default()
    };
    let id = control(0, DomctlCmd::CREATEDOMAIN, &wanted)?;
    control(id, DomctlCmd::MAX_VCPUS, &4_u32)?;
    control(id, DomctlCmd::MAX_MEM, &(PAGES as u64 * 4))?;
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
    Ok((id, frames[0]))
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
        let (id, _) = make()?;
        control(id, DomctlCmd::DESTROYDOMAIN, &0_u64)?;
        event::op(pv::abi::event_channel::evtchnop::RESET, &mut [SELF]).ok()?;
        if round % ROUNDS == ROUNDS - 1 {
            free[usize::from(round >= ROUNDS)] = settled()?;
        }
    }
    report.check("forty domains cost less than a page each", free[0].saturating_sub(free[1]) < ROUNDS);
    let (id, mfn) = make()?;
    let window = Page::new();
    let slot = Slot::of(window.address(), 1).ok_or(End::Fail("no table"))?;
    let mut update = [MmuUpdate { ptr: slot.maddr(), val: mfn << 12 | ORDINARY }];
    report.saw("one page is mapped", call(number::MMU_UPDATE, [address(&mut update), 1, 0, id.into()]));
    control(id, DomctlCmd::DESTROYDOMAIN, &0_u64)?;
    let info = |id: u16| control(id, DomctlCmd::GETDOMAININFO, &[0_u64; 14]);
    report.expect("it is still there", info(id) == Ok(id), true);
    memory::unmap(window.address()).ok()?;
    event::op(pv::abi::event_channel::evtchnop::RESET, &mut [SELF]).ok()?;
    report.expect("and then it is not", info(id) == Ok(id), false);
    report.check("nor is its memory", free[1].saturating_sub(host::free_pages()?) < PAGES as u64);
    Ok(())
}
