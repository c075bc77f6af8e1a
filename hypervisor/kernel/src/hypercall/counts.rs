//! How often each hypercall was made: what the debug key `p`, and `xenperf` through `XEN_SYSCTL_perfc_op`, show.
//!
//! Each call counts where it is dispatched, those inside a multicall too, and one that asks again each time it does.

use crate::guest::GuestPtr;
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::sysctl as abi;
use ferroxen_machine::MAX_CPUS;
use spin::Once;

/// Numbers that are counted: all of upstream's are below.
const NUMBERS: usize = 64;

/// What the tools look for among the counters; `xenperf` names each number then.
const NAME: &[u8] = b"hypercalls";

/// One CPU's counts, which wrap around as upstream's do.
pub struct Counts([AtomicU32; NUMBERS]);

static OF_CPUS: [Once<&'static Counts>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

impl Counts {
    /// Makes this CPU's; called once on each.
    pub fn of_this_cpu() -> &'static Counts {
        let here = ferroxen_machine::cpu::cpu_id();
        OF_CPUS[here.0 as usize].call_once(|| Box::leak(Box::new(Counts([const { AtomicU32::new(0) }; NUMBERS]))))
    }

    /// Counts a call. Only this CPU does, so nothing needs to be locked.
    #[inline(always)]
    pub fn note(&self, number: u32) {
        if let Some(count) = self.0.get(number as usize) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }
}

fn all() -> impl Iterator<Item = &'static Counts> {
    OF_CPUS.iter().filter_map(|of| of.get().copied())
}

/// Returns how often hypercall `number` was made on all CPUs; 0 for numbers that are not counted.
pub fn of(number: usize) -> u32 {
    let made = all().filter_map(|counts| counts.0.get(number));
    made.fold(0, |sum, count| sum.wrapping_add(count.load(Ordering::Relaxed)))
}

/// Returns the numbers that were called at least once, and how often.
pub fn made() -> impl Iterator<Item = (usize, u32)> {
    (0..NUMBERS)
        .map(|number| (number, of(number)))
        .filter(|(_, count)| *count != 0)
}

/// `XEN_SYSCTL_perfc_op`: one array of counters. `EINVAL` for commands other than reset and query.
///
/// A reset does not stop other CPUs: a call that one of them counts in this moment may bring its old count back.
pub fn perfc_op(wanted: &mut abi::PerfcOp) -> Result<(), Errno> {
    match wanted.cmd {
        abi::PERFCOP_RESET => all()
            .flat_map(|counts| &counts.0)
            .for_each(|count| count.store(0, Ordering::Relaxed)),
        abi::PERFCOP_QUERY => {}
        _ => return Err(Errno::EINVAL),
    }
    (wanted.nr_counters, wanted.nr_vals) = (1, NUMBERS as u32);
    if wanted.desc != 0 {
        let mut desc = abi::PerfcDesc {
            name: [0; 80],
            nr_vals: NUMBERS as u32,
        };
        desc.name[..NAME.len()].copy_from_slice(NAME);
        GuestPtr::new(wanted.desc).write(&desc)?;
    }
    if wanted.val != 0 {
        let values = GuestPtr::<u32>::new(wanted.val);
        for number in 0..NUMBERS {
            values.write_element(number as u64, &of(number))?;
        }
    }
    Ok(())
}
