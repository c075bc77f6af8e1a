//! Scheduling parameters as the tools set them: those of Xen's `credit2`.

use crate::domain::{Domain, VcpuRef};
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use ferroxen_abi::domctl::{self, SchedulerCmd, SchedulerId};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::sysctl;
use ferroxen_sched::WEIGHTS;

/// The scheduler that we answer for.
pub const SCHEDULER: SchedulerId = SchedulerId::CREDIT2;
/// `XEN_SYSCTL_SCHEDOP_putinfo`
const PUTINFO: u32 = 0;
/// `XEN_SYSCTL_SCHEDOP_getinfo`
const GETINFO: u32 = 1;
/// Wake-ups do not interrupt a vcpu that has run for less (µs): what `xl sched-credit2` shows.
const RATELIMIT_US: u32 = (ferroxen_sched::PREEMPT_NS / 1000) as u32;

/// `XEN_DOMCTL_scheduler_op`: weight and cap of a domain.
pub fn adjust(subject: &Arc<Domain>, request: &mut domctl::SchedulerOp) -> Result<(), Errno> {
    if request.sched_id != SCHEDULER {
        return Err(Errno::EINVAL);
    }
    let sched = &subject.sched;
    match request.cmd {
        SchedulerCmd::GETINFO => {
            let weight = sched.weight.load(Ordering::Relaxed) as u16;
            let cap = sched.cap.lock().percent() as u16;
            request.set_payload(&domctl::SchedCredit { weight, cap });
            Ok(())
        }
        SchedulerCmd::PUTINFO => {
            let wanted: domctl::SchedCredit = request.payload();
            if wanted.weight != 0 && WEIGHTS.contains(&u32::from(wanted.weight)) {
                set_weight(subject, u32::from(wanted.weight));
            }
            // As upstream: all ones leave the cap alone.
            if wanted.cap != u16::MAX {
                let mut cap = sched.cap.lock();
                cap.set_percent(u32::from(wanted.cap));
                sched.has_cap.store(wanted.cap != 0, Ordering::Relaxed);
            }
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}

fn set_weight(subject: &Arc<Domain>, weight: u32) {
    subject.sched.weight.store(weight, Ordering::Relaxed);
    for vcpu in VcpuRef::all(subject) {
        if let Some((_, slot, mut queue)) = super::home(&vcpu)
            && let Some(unit) = queue.unit_mut(slot)
        {
            unit.set_weight(weight);
        }
    }
}

/// `XEN_SYSCTL_scheduler_op`: the rate limit can be asked for, and set to what it is.
pub fn global(request: &mut sysctl::SchedulerOp) -> Result<(), Errno> {
    if request.sched_id != SCHEDULER || request.cpupool_id != 0 {
        return Err(Errno::EINVAL);
    }
    let fixed = sysctl::Credit2Schedule {
        ratelimit_us: RATELIMIT_US,
    };
    match request.cmd {
        PUTINFO => {
            let wanted: sysctl::Credit2Schedule = request.payload();
            if wanted.ratelimit_us == RATELIMIT_US {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            }
        }
        GETINFO => {
            request.set_payload(&fixed);
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}
