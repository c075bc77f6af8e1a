//! `sched_op` and `set_timer_op`: a vcpu gives its CPU away, for a while or for good.

use super::{Answer, Call};
use crate::domain::{self, VcpuRef};
use crate::guest::GuestPtr;
use crate::hypercall::event_channel;
use crate::{sched, time};
use core::sync::atomic::Ordering;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::sched::{self as abi, schedop};
use ferroxen_words::{CpuId, DomId, Port};

const DONE: Answer = Ok(0);

/// The hypercall: a command, and where its operands are.
pub fn sched_op(call: &mut Call<'_>) -> Answer {
    let [command, at, ..] = call.args();
    let caller = call.caller;
    match command {
        schedop::YIELD => sched::yield_now(caller),
        schedop::BLOCK => block(caller),
        schedop::SHUTDOWN => {
            let request = GuestPtr::<abi::Shutdown>::new(at).read()?;
            shut_down(caller, request.reason as u8);
        }
        schedop::POLL => poll(caller, &GuestPtr::<abi::Poll>::new(at).read()?)?,
        schedop::REMOTE_SHUTDOWN => {
            let request = GuestPtr::<abi::RemoteShutdown>::new(at).read()?;
            let subject = DomId::new(request.domain_id.0)
                .and_then(domain::by_id)
                .ok_or(Errno::ESRCH)?;
            if !caller.domain().is_privileged {
                return Err(Errno::EPERM);
            }
            subject.shut_down(request.reason as u8);
        }
        schedop::SHUTDOWN_CODE => {
            let request = GuestPtr::<abi::Shutdown>::new(at).read()?;
            let latched = &caller.domain().sched.latched_code;
            // The first one counts.
            let _ = latched.compare_exchange(
                0,
                u32::from(request.reason as u8) + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        schedop::WATCHDOG => {
            let request = GuestPtr::<abi::Watchdog>::new(at).read()?;
            return time::set_watchdog(caller.domain(), request.id, request.timeout);
        }
        schedop::PIN_OVERRIDE => {
            if !caller.domain().is_privileged {
                return Err(Errno::EPERM);
            }
            let request = GuestPtr::<abi::PinOverride>::new(at).read()?;
            sched::pin(caller, u32::try_from(request.pcpu).ok().map(CpuId))?;
        }
        _ => return Err(Errno::ENOSYS),
    }
    DONE
}

/// The form of the hypercall before Xen 3.0.2: the operand itself.
pub fn sched_op_compat(call: &mut Call<'_>) -> Answer {
    let [command, operand, ..] = call.args();
    match command {
        schedop::YIELD => sched::yield_now(call.caller),
        schedop::BLOCK => block(call.caller),
        schedop::SHUTDOWN => shut_down(call.caller, operand as u8),
        _ => return Err(Errno::ENOSYS),
    }
    DONE
}

fn shut_down(caller: &VcpuRef, reason: u8) {
    let domain = caller.domain();
    let latched = domain.sched.latched_code.swap(0, Ordering::Relaxed);
    time::stop_watchdogs(domain);
    domain.shut_down(latched.checked_sub(1).map_or(reason, |code| code as u8));
}

/// Waits for an event. Lets upcalls in first: nothing can be missed in between.
fn block(caller: &VcpuRef) {
    if let Some(info) = caller.info() {
        info.set_masked(false);
    }
    sched::block(caller, || wants_upcall(caller));
}

fn wants_upcall(caller: &VcpuRef) -> bool {
    caller.info().is_some_and(|info| info.wants_upcall())
}

/// Waits until one of some ports is pending, an upcall can be made, or the time has come.
/// The most ports that a vcpu polls at once, as upstream has it: all are looked at in one go.
const MAX_POLLED: u64 = 128;

fn poll(caller: &VcpuRef, request: &abi::Poll) -> Result<(), Errno> {
    let domain = caller.domain();
    let count = u64::from(request.nr_ports);
    if count > MAX_POLLED {
        return Err(Errno::EINVAL);
    }
    let ports = GuestPtr::<u32>::new(request.ports);
    // All are read before anything is done, and looked at again afterwards: the guest may change the list, but
    // then it does not care which of them wakes it.
    let only = if count == 1 {
        Some(Port::new(ports.read()?))
    } else {
        None
    };
    let any_pending = || -> Result<bool, Errno> {
        if let Some(port) = only {
            return event_channel::is_pending(domain, port);
        }
        for index in 0..count {
            if event_channel::is_pending(domain, Port::new(ports.read_element(index)?))? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    if any_pending()? {
        return Ok(());
    }
    // What cannot be read a second time counts as pending: the guest looks for itself.
    let waits = sched::poll(caller, only, || wants_upcall(caller) || any_pending().unwrap_or(true));
    if waits && request.timeout != 0 {
        time::set_poll_timeout(caller, request.timeout);
    } else {
        time::stop_poll_timeout(caller);
    }
    Ok(())
}

/// Further ahead than this is taken for a wrapped counter of the guest's, as upstream does (about 13 days).
const ABSURD_NS: u64 = 1 << 50;
/// What is done instead.
const SOON_NS: u64 = 100_000_000;

/// `set_timer_op`: the vcpu's singleshot timer; 0 stops it.
pub fn set_timer_op(call: &mut Call<'_>) -> Answer {
    let due_ns = call.args()[0];
    let now = time::now();
    if due_ns == 0 {
        time::stop_singleshot(call.caller);
    } else if i64::try_from(due_ns).is_err() || due_ns.saturating_sub(now) >= ABSURD_NS {
        time::set_singleshot_at(call.caller, now.saturating_add(SOON_NS), now);
    } else {
        time::set_singleshot_at(call.caller, due_ns, now);
    }
    DONE
}
