//! What Domain 0 may know of the host: how much memory is free, by which a leak shows.

use pv::Answer;
use pv::abi::memory::MemoryReservation;
use pv::abi::sysctl::{Physinfo, SYSCTL_INTERFACE_VERSION, Sysctl, SysctlCmd};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use zerocopy::FromZeros;

/// `XENMEM_decrease_reservation`
pub const DECREASE: u64 = 1;
/// `XENMEM_populate_physmap`
pub const POPULATE: u64 = 6;

/// Returns how many pages nobody has.
pub fn free_pages() -> Result<u64, Answer> {
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
