//! Asks `logic/access` in the kernel's words.

use crate::domain::Domain;
use alloc::sync::Arc;
use ferroxen_abi::errno::Errno;
use ferroxen_access::{Caller, Operation, Subject, permits};

fn caller_of(domain: &Domain) -> Caller {
    if domain.is_privileged {
        Caller::Privileged
    } else {
        Caller::Unprivileged
    }
}

/// `EPERM` unless `caller` may do this to the host.
#[inline]
pub fn to_host(caller: &Domain, operation: Operation) -> Result<(), Errno> {
    permits(caller_of(caller), Subject::Host, operation).map_err(|_| Errno::EPERM)
}

/// `EPERM` unless `caller` may do this to `subject`.
#[inline]
pub fn to_domain(caller: &Arc<Domain>, subject: &Arc<Domain>, operation: Operation) -> Result<(), Errno> {
    let whom = if Arc::ptr_eq(caller, subject) {
        Subject::Itself
    } else {
        Subject::Other
    };
    permits(caller_of(caller), whom, operation).map_err(|_| Errno::EPERM)
}
