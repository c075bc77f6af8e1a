//! How deep CPUs sleep and how fast they run, as `xenpm` asks: by `HLT`, and as the firmware left it.
//!
//! Each CPU has two states, C0 (it runs) and C1 (it waits in `HLT`). Nobody has told of frequencies, so there are none to be
//! read or chosen: the refusals are upstream's on such a machine.

use crate::guest::GuestPtr;
use crate::sched;
use core::sync::atomic::{AtomicU32, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::sysctl::{self as abi, GetPmstat, PmOp, PmStat, pm, pmstat};
use ferroxen_machine::cpu;
use ferroxen_words::CpuId;

/// C0 and C1.
const STATES: u32 = 2;
/// The deepest state that may be used, which a tool may set; deeper than C1 there is none.
static MAX_CSTATE: AtomicU32 = AtomicU32::new(1);
static MAX_SUBSTATE: AtomicU32 = AtomicU32::new(abi::CX_UNLIMITED);
/// Whether siblings are to be filled before other cores: no CPU here has any.
static SMT_POWER_SAVINGS: AtomicU32 = AtomicU32::new(0);

fn online(number: u32) -> Result<CpuId, Errno> {
    (number < cpu::cpus_online())
        .then_some(CpuId(number))
        .ok_or(Errno::EINVAL)
}

/// `XEN_SYSCTL_get_pmstat`: `EINVAL` for a CPU that there is not, `ENODEV` for what is not kept.
pub(super) fn statistics(wanted: &mut GetPmstat) -> Result<(), Errno> {
    let cpu = online(wanted.cpuid)?;
    match wanted.type_ {
        pmstat::GET_MAX_CX => {
            wanted.cx.nr = STATES;
            Ok(())
        }
        pmstat::GET_CXSTAT => times(cpu, &mut wanted.cx),
        // They are never forgotten.
        pmstat::RESET_CXSTAT => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::ENODEV),
    }
}

/// How long a CPU has run and waited. How often is not counted: once each, as upstream says of a CPU that only halts.
fn times(cpu: CpuId, wanted: &mut PmStat) -> Result<(), Errno> {
    let idle = sched::idle_ns(cpu);
    let busy = ferroxen_machine::time::now_ns().saturating_sub(idle);
    let given = wanted.nr.min(STATES);
    for (index, residency) in (0..u64::from(given)).zip([busy, idle]) {
        GuestPtr::<u64>::new(wanted.triggers).write_element(index, &1)?;
        GuestPtr::<u64>::new(wanted.residencies).write_element(index, &residency)?;
    }
    (wanted.nr, wanted.last, wanted.idle_time) = (STATES, 1, idle);
    (wanted.nr_pc, wanted.nr_cc) = (0, 0);
    Ok(())
}

/// `XEN_SYSCTL_pm_op`.
pub(super) fn control(wanted: &mut PmOp) -> Result<(), Errno> {
    online(wanted.cpuid)?;
    match wanted.cmd {
        pm::SET_SCHED_OPT_SMT => {
            // What it was goes back.
            wanted.value = SMT_POWER_SAVINGS.swap(u32::from(wanted.value != 0), Ordering::Relaxed);
            Ok(())
        }
        pm::GET_MAX_CSTATE | pm::SET_MAX_CSTATE => {
            let limit = match wanted.cpuid {
                0 => &MAX_CSTATE,
                1 => &MAX_SUBSTATE,
                _ => return Err(Errno::EINVAL),
            };
            if wanted.cmd == pm::GET_MAX_CSTATE {
                wanted.value = limit.load(Ordering::Relaxed);
            } else if wanted.cpuid == 0 && wanted.value == 0 {
                // A CPU with nothing to do would have to spin.
                return Err(Errno::EOPNOTSUPP);
            } else {
                limit.store(wanted.value, Ordering::Relaxed);
            }
            Ok(())
        }
        pm::ENABLE_TURBO | pm::DISABLE_TURBO => Err(Errno::EACCES),
        command if command & pm::CATEGORY == pm::CPUFREQ => Err(Errno::EINVAL),
        _ => Err(Errno::ENOSYS),
    }
}
