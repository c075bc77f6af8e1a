//! The host and its domains, as Domain 0 has them in hand; and how much memory is to be had, by which a leak shows: of the
//! host's as Domain 0, of its own as a domU.

use pv::abi::domctl::{Createdomain, DOMCTL_INTERFACE_VERSION, Domctl, DomctlCmd, MaxVcpus};
use pv::abi::memory::MemoryReservation;
use pv::abi::sysctl::{Physinfo, SYSCTL_INTERFACE_VERSION, Sysctl, SysctlCmd};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use pv::{Answer, start};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

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

/// Asks for `cmd` to be done to a domain. `operand` is what the command's union begins with, before and after.
pub fn domctl<T: FromBytes + IntoBytes + Immutable>(domid: u16, cmd: DomctlCmd, operand: &mut T) -> Answer {
    let mut request = Domctl::new_zeroed();
    (request.cmd, request.interface_version, request.domain.0) = (cmd, DOMCTL_INTERFACE_VERSION, domid);
    request.set_payload(operand);
    let answer = call(number::DOMCTL, [address(&mut request)]);
    *operand = request.payload();
    answer
}

/// Asks the host for `cmd`, likewise.
pub fn sysctl<T: FromBytes + IntoBytes + Immutable>(cmd: SysctlCmd, operand: &mut T) -> Answer {
    let mut request = Sysctl::with(cmd, operand);
    let answer = call(number::SYSCTL, [address(&mut request)]);
    *operand = request.payload();
    answer
}

/// What a toolstack asks for when it makes a PV domain of no particular kind.
pub fn ordinary() -> Createdomain {
    Createdomain {
        max_vcpus: 4,
        max_evtchn_port: 1023,
        max_grant_frames: 8,
        max_maptrack_frames: 8,
        grant_opts: 1,
        ..Createdomain::default()
    }
}

/// A domain of ours, which is destroyed when it is dropped.
pub struct Child {
    /// Its id.
    pub id: u16,
}

impl Child {
    /// Makes one as `wanted`, of that id unless it is 0.
    pub fn create(id: u16, wanted: Createdomain) -> Result<Child, Answer> {
        let mut request = Domctl::new_zeroed();
        (request.cmd, request.interface_version) = (DomctlCmd::CREATEDOMAIN, DOMCTL_INTERFACE_VERSION);
        request.domain.0 = id;
        request.set_payload(&wanted);
        call(number::DOMCTL, [address(&mut request)]).ok()?;
        Ok(Child { id: request.domain.0 })
    }

    /// Makes an ordinary one that has as many vcpus.
    pub fn new(vcpus: u32) -> Result<Child, Answer> {
        let wanted = Createdomain {
            max_vcpus: vcpus,
            ..ordinary()
        };
        let child = Self::create(0, wanted)?;
        domctl(child.id, DomctlCmd::MAX_VCPUS, &mut MaxVcpus { max: vcpus }).ok()?;
        Ok(child)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may be gone already.
        domctl(self.id, DomctlCmd::DESTROYDOMAIN, &mut 0_u64);
    }
}
