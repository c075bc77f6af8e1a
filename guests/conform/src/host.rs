//! How much memory is to be had, by which a leak shows: of the host's as Domain 0, of its own as a domU.

use pv::abi::memory::MemoryReservation;
use pv::abi::sysctl::{Physinfo, SYSCTL_INTERFACE_VERSION, Sysctl, SysctlCmd};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use pv::{Answer, start};
use zerocopy::FromZeros;

/// `XENMEM_current_reservation`
const CURRENT: u64 = 3;
/// `XENMEM_maximum_reservation`
const MAXIMUM: u64 = 4;
/// `XENMEM_decrease_reservation`
pub const DECREASE: u64 = 1;
/// `XENMEM_populate_physmap`
pub const POPULATE: u64 = 6;

/// Returns how many pages nobody has; as a domU, how many more it may have.
pub fn free_pages() -> Result<u64, Answer> {
    if !start::is_dom0() {
        let ask = |command: u64| call(number::MEMORY_OP, [command, address(&mut u64::from(SELF))]).ok();
        return Ok(ask(MAXIMUM)?.saturating_sub(ask(CURRENT)?));
    }
    let mut request = Sysctl::new_zeroed();
    (request.cmd, request.interface_version) = (SysctlCmd::PHYSINFO, SYSCTL_INTERFACE_VERSION);
    call(number::SYSCTL, [address(&mut request)]).ok()?;
    Ok(request.payload::<Physinfo>().free_pages)
}

/// Asks for memory, or gives some back.
pub fn reservation(command: u64, extents: &mut [u64], order: u32, flags: u32) -> Answer {
    let mut request = MemoryReservation::new_zeroed();
    (request.extent_start, request.nr_extents) = (address(extents), extents.len() as u64);
    (request.extent_order, request.mem_flags, request.domid.0) = (order, flags, SELF);
    call(number::MEMORY_OP, [command, address(&mut request)])
}
