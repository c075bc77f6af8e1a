//! The list of domains.

use super::{Domain, Limits};
use crate::lock::{Lock, Rank};
use crate::trace;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::trace::{dom0, sched};
use ferroxen_words::{DomId, RawDomId};

static DOMAINS: Lock<BTreeMap<DomId, Arc<Domain>>> = Lock::new(Rank::Domains, BTreeMap::new());

/// The domain of that number, in whatever state of life.
pub fn by_id(id: DomId) -> Option<Arc<Domain>> {
    DOMAINS.lock().get(&id).cloned()
}

/// The first domain whose number is not below `from`.
pub fn at_or_after(from: DomId) -> Option<Arc<Domain>> {
    DOMAINS.lock().range(from..).next().map(|(_, domain)| domain.clone())
}

/// All domains, by number. Allocates: for control operations only.
pub fn all() -> Vec<Arc<Domain>> {
    DOMAINS.lock().values().cloned().collect()
}

/// The domain that a caller means by an ABI field: itself by `DOMID_SELF`, else by number.
pub fn resolve(caller: &Arc<Domain>, id: RawDomId) -> Result<Arc<Domain>, Errno> {
    if id == RawDomId::SELF {
        return Ok(caller.clone());
    }
    DomId::new(id.0).and_then(by_id).ok_or(Errno::ESRCH)
}

/// Makes a domain and lists it. `wanted` 0 asks for the next free number (Domain 0 itself passes `None`
/// only through [`crate::dom0`]).
pub fn create(
    wanted: Option<DomId>,
    is_privileged: bool,
    limits: Limits,
    handle: [u8; 16],
) -> Result<Arc<Domain>, Errno> {
    let mut domains = DOMAINS.lock();
    let id = match wanted {
        Some(id) if domains.contains_key(&id) => return Err(Errno::EEXIST),
        Some(id) => id,
        None => next_free(&domains).ok_or(Errno::ENOMEM)?,
    };
    // The list's node: the only allocation below that cannot be refused politely.
    if ferroxen_machine::heap::free_bytes() < HEAP_RESERVE {
        return Err(Errno::ENOMEM);
    }
    let (memory, shared_info) = crate::memory::new_domain_memory(id)?;
    let domain = Arc::new(Domain::new(id, is_privileged, limits, handle, shared_info, memory)?);
    domains.insert(id, domain.clone());
    note(sched::DOM_ADD, dom0::DOM_ADD, id);
    Ok(domain)
}

/// Heap kept free so that small allocations after a check cannot fail.
pub const HEAP_RESERVE: usize = 256 * 1024;

/// Numbers are handed out upwards so that one that was just freed is not soon met again.
fn next_free(domains: &BTreeMap<DomId, Arc<Domain>>) -> Option<DomId> {
    use core::sync::atomic::{AtomicU16, Ordering};
    static LAST: AtomicU16 = AtomicU16::new(0);
    let span = RawDomId::FIRST_RESERVED.0 - 1;
    let last = LAST.load(Ordering::Relaxed);
    let id = (0..span)
        .map(|step| 1 + (last + step) % span)
        .filter_map(DomId::new)
        .find(|id| !domains.contains_key(id))?;
    LAST.store(id.raw(), Ordering::Relaxed);
    Some(id)
}

/// Forgets a domain of which nothing is left.
pub fn remove(id: DomId) {
    let gone = DOMAINS.lock().remove(&id);
    if gone.is_some() {
        note(sched::DOM_REM, dom0::DOM_REM, id);
        crate::hypercall::event_channel::send_global_virq(ferroxen_abi::xen::virq::DOM_EXC);
    }
}

/// Traces that a domain comes or goes, as the scheduler's and as the control interface's.
fn note(scheduler: u32, control: u32, id: DomId) {
    if trace::is_on() {
        let id = id.raw().into();
        trace::note(scheduler, &[id]);
        trace::note(control, &[id]);
    }
}
