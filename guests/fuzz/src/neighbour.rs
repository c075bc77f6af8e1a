//! A domain beside ours, with memory, a grant table and no life: what calls about other domains are about.
//!
//! Only Domain 0 can make one. It never runs; its frames are mapped, its grants taken and its ports bound by us.

use pv::abi::domctl::{Createdomain, DOMCTL_INTERFACE_VERSION, Domctl, DomctlCmd};
use pv::abi::grant_table::{SetupTable, gnttabop};
use pv::abi::memory::MemoryReservation;
use pv::abi::xen::MmuUpdate;
use pv::hypercall::{address, call, number};
use pv::memory::{ORDINARY, Page};
use pv::tables::Slot;
use pv::{Answer, grant};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Its id.
pub const DOMID: u16 = 1;
/// How many pages it has.
pub const PAGES: usize = 32;
/// KiB of a page.
const KIB: u64 = 4;

fn control<T: IntoBytes + Immutable>(cmd: DomctlCmd, payload: &T) -> Answer {
    let mut request = Domctl::new_zeroed();
    (request.cmd, request.interface_version, request.domain.0) = (cmd, DOMCTL_INTERFACE_VERSION, DOMID);
    request.set_payload(payload);
    call(number::DOMCTL, [address(&mut request)])
}

/// Makes it, and returns its frames.
pub fn make() -> Result<[u64; PAGES], Answer> {
    let request = Createdomain {
        max_vcpus: 1,
        max_evtchn_port: 1023,
        max_grant_frames: 4,
        max_maptrack_frames: 4,
        grant_opts: 1,
        ..Createdomain::default()
    };
    control(DomctlCmd::CREATEDOMAIN, &request).ok()?;
    control(DomctlCmd::MAX_VCPUS, &1_u32).ok()?;
    control(DomctlCmd::MAX_MEM, &(PAGES as u64 * KIB)).ok()?;
    let mut frames = core::array::from_fn(|pfn| pfn as u64);
    let mut request = MemoryReservation::new_zeroed();
    request.extent_start = address(&mut frames);
    request.nr_extents = PAGES as u64;
    request.domid.0 = DOMID;
    call(number::MEMORY_OP, [6, address(&mut request)]).ok()?;
    Ok(frames)
}

/// Maps its grant table at `page`.
pub fn map_grants(page: Page) -> Result<(), Answer> {
    let mut frame = [0_u64];
    let mut request = SetupTable::new_zeroed();
    (request.dom.0, request.nr_frames, request.frame_list) = (DOMID, 1, address(&mut frame));
    grant::op(gnttabop::SETUP_TABLE, core::slice::from_mut(&mut request)).ok()?;
    let slot = Slot::of(page.address(), 1).ok_or(Answer(-1))?;
    let mut update = [MmuUpdate {
        ptr: slot.maddr(),
        val: frame[0] << 12 | ORDINARY,
    }];
    call(number::MMU_UPDATE, [address(&mut update), 1, 0, DOMID.into()])
        .ok()
        .map(drop)
}

/// Ends it, however long that takes; what others hold of it keeps its last remains.
pub fn destroy() {
    while !control(DomctlCmd::DESTROYDOMAIN, &0_u64).is_ok() {
        // Not there at all: it was never made.
        if control(DomctlCmd::PAUSEDOMAIN, &0_u64) == Answer::refused(pv::abi::errno::Errno::ESRCH) {
            return;
        }
    }
}
