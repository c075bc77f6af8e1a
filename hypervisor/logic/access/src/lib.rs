//! Who may ask what of whom: one table, and what is not in it is denied.
//!
//! A hypercall that concerns more than the caller's own vcpu names its operation here before it does anything.
//! What a domain may do to *itself* is not in question: only `subject` being somebody else, or the host.
//!
//! Always true: an unprivileged caller is allowed nothing whose subject is the host or another domain, except
//! what both domains agreed on (an event channel offered to it, a grant made to it), which is checked where
//! the agreement is kept.
#![no_std]
#![forbid(unsafe_code)]

/// What a caller wants to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Control one domain (`domctl`).
    ControlDomain,
    /// Control the host (`sysctl`, `platform_op`).
    ControlHost,
    /// Use the hypervisor's own console.
    Console,
    /// Own devices: interrupts, configuration space, MSI (`physdev_op`).
    OwnDevices,
    /// Map, allocate or type memory of the subject (`mmu_update` with a foreign domain, `memory_op`).
    Memory,
    /// Allocate or inspect event channels on the subject's behalf.
    EventChannels,
    /// Set up or inspect the subject's grant table.
    GrantTable,
    /// Shut the subject down.
    Shutdown,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// The control domain.
    Privileged,
    /// Any other.
    Unprivileged,
}

/// Whom it concerns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The caller itself.
    Itself,
    /// Another domain.
    Other,
    /// The machine.
    Host,
}

/// The table's "no".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Denied;

/// Looks the operation up.
#[inline]
pub const fn permits(caller: Caller, subject: Subject, operation: Operation) -> Result<(), Denied> {
    use Operation::{EventChannels, GrantTable, Memory, Shutdown};
    match (caller, subject, operation) {
        (Caller::Privileged, _, _) => Ok(()),
        (Caller::Unprivileged, Subject::Itself, Memory | EventChannels | GrantTable | Shutdown) => Ok(()),
        (Caller::Unprivileged, _, _) => Err(Denied),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Operation; 8] = [
        Operation::ControlDomain,
        Operation::ControlHost,
        Operation::Console,
        Operation::OwnDevices,
        Operation::Memory,
        Operation::EventChannels,
        Operation::GrantTable,
        Operation::Shutdown,
    ];

    #[test]
    fn a_guest_may_do_nothing_to_others_or_to_the_host() {
        for operation in ALL {
            for subject in [Subject::Other, Subject::Host] {
                assert_eq!(
                    permits(Caller::Unprivileged, subject, operation),
                    Err(Denied),
                    "{operation:?}"
                );
            }
        }
    }

    #[test]
    fn a_guest_may_not_control_even_itself() {
        for operation in [
            Operation::ControlDomain,
            Operation::ControlHost,
            Operation::OwnDevices,
            Operation::Console,
        ] {
            assert_eq!(
                permits(Caller::Unprivileged, Subject::Itself, operation),
                Err(Denied),
                "{operation:?}"
            );
        }
    }

    #[test]
    fn the_control_domain_may_do_all() {
        for operation in ALL {
            assert_eq!(permits(Caller::Privileged, Subject::Other, operation), Ok(()));
        }
    }
}
