//! The end of a domain: everything it holds goes back, in steps short enough to be interrupted.

use super::{Domain, Life, VcpuRef, list};
use crate::memory;
use alloc::sync::Arc;

/// Whether the work is done.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// All that can be taken back was.
    Done,
    /// Time is up; ask again.
    More,
}

/// Destroys a domain, or goes on destroying it.
///
/// A vcpu that spins is stopped by an interrupt; none runs again from the first call on. When this says
/// [`Progress::Done`] the domain holds no port, grant, pirq, timer or page of its own; it disappears from
/// the list as soon as nobody else maps any of its pages.
pub fn destroy(domain: &Arc<Domain>) -> Progress {
    if domain.start_dying() {
        domain.pause();
        crate::sched::pools::leave(domain);
        crate::debug!("{}: dying", domain.id);
    }
    if domain.life() == Life::Zombie {
        return Progress::Done;
    }
    for vcpu in VcpuRef::all(domain) {
        crate::time::stop_all(&vcpu);
        crate::sched::forget(&vcpu);
        vcpu.release_info();
    }
    if crate::hypercall::event_channel::release_all(domain) == Progress::More
        || crate::hypercall::grant_table::release_all(domain) == Progress::More
    {
        return Progress::More;
    }
    crate::irq::release_all(domain);
    if memory::relinquish(domain) == Progress::More {
        return Progress::More;
    }
    domain.become_zombie();
    // Daemons that map its rings let go of them when they hear of this.
    crate::hypercall::event_channel::send_global_virq(ferroxen_abi::xen::virq::DOM_EXC);
    reap(domain);
    Progress::Done
}

/// Forgets a zombie of which no page is left. Called whenever one of its pages went.
pub fn reap(domain: &Domain) {
    if domain.life() == Life::Zombie && memory::is_empty(domain) {
        list::remove(domain.id);
    }
}
