//! Scheduling parameters as the tools set them: those of Xen's `credit2`.

use crate::domain::{Domain, VcpuRef};
use alloc::sync::Arc;
use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicU32, Ordering};
use ferroxen_abi::domctl::{self, SchedulerCmd, SchedulerId};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::sysctl;
use ferroxen_sched::{PoolId, WEIGHTS};

/// The scheduler that we answer for.
pub const SCHEDULER: SchedulerId = SchedulerId::CREDIT2;
/// `XEN_SYSCTL_SCHEDOP_putinfo`
const PUTINFO: u32 = 0;
/// `XEN_SYSCTL_SCHEDOP_getinfo`
const GETINFO: u32 = 1;
/// Wake-ups do not interrupt a vcpu that has run for less (µs): what `xl sched-credit2 -s` shows and sets.
static RATE_LIMIT_US: AtomicU32 = AtomicU32::new((ferroxen_sched::RATE_LIMIT_NS / 1000) as u32);
/// What it can be set to, if not to none at all (`XEN_SYSCTL_SCHED_RATELIMIT_*`).
const RATE_LIMITS_US: RangeInclusive<u32> = 100..=500_000;

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
            // More than all of its vcpus can use is no cap. The weight is set by then, as upstream does it.
            if usize::from(wanted.cap) > 100 * subject.vcpus().len() {
                return Err(Errno::EINVAL);
            }
            let mut cap = sched.cap.lock();
            cap.set_percent(u32::from(wanted.cap));
            sched.has_cap.store(wanted.cap != 0, Ordering::Relaxed);
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

/// `XEN_SYSCTL_scheduler_op`: the rate limit.
pub fn global(request: &mut sysctl::SchedulerOp) -> Result<(), Errno> {
    if !matches!(request.cmd, PUTINFO | GETINFO) {
        return Err(Errno::EINVAL);
    }
    if !super::pools::exists(PoolId(request.cpupool_id)) {
        return Err(Errno::ESRCH);
    }
    if request.sched_id != SCHEDULER {
        return Err(Errno::EINVAL);
    }
    match request.cmd {
        PUTINFO => {
            let wanted: sysctl::Credit2Schedule = request.payload();
            if wanted.ratelimit_us != 0 && !RATE_LIMITS_US.contains(&wanted.ratelimit_us) {
                return Err(Errno::EINVAL);
            }
            RATE_LIMIT_US.store(wanted.ratelimit_us, Ordering::Relaxed);
            super::QUEUES
                .all()
                .iter()
                .for_each(|queue| queue.lock().set_rate_limit(u64::from(wanted.ratelimit_us) * 1000));
            Ok(())
        }
        GETINFO => {
            request.set_payload(&sysctl::Credit2Schedule {
                ratelimit_us: RATE_LIMIT_US.load(Ordering::Relaxed),
            });
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}
