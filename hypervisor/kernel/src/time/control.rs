//! How a domain sees the time stamp counter, as the tools ask and set it.

use crate::domain::Domain;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use ferroxen_abi::domctl::TscInfo;
use ferroxen_abi::errno::Errno;
use ferroxen_machine::{cpu, time};

/// `TSC_MODE_DEFAULT`: native where that is safe.
const MODE_DEFAULT: u32 = 0;
/// `TSC_MODE_ALWAYS_EMULATE`
const MODE_EMULATED: u32 = 1;
/// `TSC_MODE_NEVER_EMULATE`
const MODE_NATIVE: u32 = 2;

/// `XEN_DOMCTL_gettscinfo`: every domain reads the counter itself.
pub fn tsc_info(subject: &Arc<Domain>) -> TscInfo {
    let tsc_mode = subject.tsc_mode.load(Ordering::Relaxed);
    let hz = time::tsc_hz();
    // Who is told to leave the counter alone is not told what it counts.
    let (gtsc_khz, elapsed_nsec) = if tsc_mode == MODE_NATIVE {
        (0, 0)
    } else {
        let elapsed = u128::from(cpu::tsc()) * 1_000_000_000 / u128::from(hz.max(1));
        ((hz / 1000) as u32, elapsed as u64)
    };
    TscInfo {
        tsc_mode,
        gtsc_khz,
        incarnation: subject.incarnation.load(Ordering::Relaxed),
        pad: 0,
        elapsed_nsec,
    }
}

/// `XEN_DOMCTL_settscinfo`: the modes that read the counter itself; emulation is not offered.
pub fn set_tsc_info(subject: &Arc<Domain>, wanted: &TscInfo) -> Result<(), Errno> {
    match wanted.tsc_mode {
        MODE_DEFAULT | MODE_NATIVE => {}
        MODE_EMULATED => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    }
    subject.tsc_mode.store(wanted.tsc_mode, Ordering::Relaxed);
    let incarnation = wanted.incarnation.wrapping_add(1);
    subject.incarnation.store(incarnation, Ordering::Relaxed);
    Ok(())
}
