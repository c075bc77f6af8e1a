//! Watchdogs: a domain that does not report in time is shut down (`SCHEDOP_watchdog`).

use super::{Alarm, Armed, arm, drop_alarm, now};
use crate::domain::{Domain, SHUTDOWN_WATCHDOG};
use alloc::sync::Arc;
use ferroxen_abi::errno::Errno;

/// How many a domain may have (`NR_DOMAIN_WATCHDOG_TIMERS`).
const COUNT: usize = 2;
const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Copy)]
enum Dog {
    /// Not in use.
    Away,
    /// Barks when its alarm goes off.
    Watches(Armed),
}

/// A domain's watchdogs.
pub struct Watchdogs {
    dogs: [Dog; COUNT],
}

impl Default for Watchdogs {
    fn default() -> Self {
        Self::new()
    }
}

impl Watchdogs {
    /// None in use.
    pub const fn new() -> Self {
        Watchdogs {
            dogs: [Dog::Away; COUNT],
        }
    }
}

/// Sets one up (`id` 0; answers its id), puts it off (`id` and seconds), or takes it away (0 seconds).
pub(crate) fn set(domain: &Arc<Domain>, id: u32, seconds: u32) -> Result<u64, Errno> {
    let mut watchdogs = domain.sched.watchdogs.lock();
    let due_ns = now().saturating_add(u64::from(seconds).saturating_mul(SECOND));
    let start = |number: usize| arm(due_ns, Alarm::Watchdog(domain.clone(), number)).map(Dog::Watches);
    if id == 0 {
        if seconds == 0 {
            return Err(Errno::EINVAL);
        }
        let number = watchdogs
            .dogs
            .iter()
            .position(|dog| matches!(dog, Dog::Away))
            .ok_or(Errno::ENOSPC)?;
        watchdogs.dogs[number] = start(number).ok_or(Errno::ENOMEM)?;
        return Ok(number as u64 + 1);
    }
    let number = id as usize - 1;
    let dog = watchdogs.dogs.get_mut(number).ok_or(Errno::EINVAL)?;
    let Dog::Watches(armed) = *dog else {
        return Err(Errno::EINVAL);
    };
    drop_alarm(armed);
    *dog = if seconds == 0 {
        Dog::Away
    } else {
        start(number).ok_or(Errno::ENOMEM)?
    };
    Ok(0)
}

/// One was not put off in time.
pub(super) fn bark(domain: &Arc<Domain>, number: usize) {
    let mut watchdogs = domain.sched.watchdogs.lock();
    if let Some(dog) = watchdogs.dogs.get_mut(number) {
        *dog = Dog::Away;
    }
    drop(watchdogs);
    crate::guest!(Warn, "{}: watchdog {} went off", domain.id, number + 1);
    domain.shut_down(SHUTDOWN_WATCHDOG);
}

/// Takes all away: the domain is dying, or has been shut down.
pub(crate) fn stop_all(domain: &Arc<Domain>) {
    let mut watchdogs = domain.sched.watchdogs.lock();
    for dog in &mut watchdogs.dogs {
        if let Dog::Watches(armed) = core::mem::replace(dog, Dog::Away) {
            drop_alarm(armed);
        }
    }
}
