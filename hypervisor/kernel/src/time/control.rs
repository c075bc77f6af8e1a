//! How a domain sees the time stamp counter, as the tools ask and set it.

use crate::domain::Domain;
use alloc::sync::Arc;
use ferroxen_abi::domctl::TscInfo;
use ferroxen_abi::errno::Errno;

/// `TSC_MODE_DEFAULT`: native where that is safe.
const MODE_DEFAULT: u32 = 0;
/// `TSC_MODE_NEVER_EMULATE`
const MODE_NATIVE: u32 = 2;

/// `XEN_DOMCTL_gettscinfo`: every domain reads the counter itself.
pub fn tsc_info(_subject: &Arc<Domain>) -> TscInfo {
    TscInfo {
        tsc_mode: MODE_NATIVE,
        gtsc_khz: (ferroxen_machine::time::tsc_hz() / 1000) as u32,
        incarnation: 0,
        pad: 0,
        elapsed_nsec: 0,
    }
}

/// `XEN_DOMCTL_settscinfo`: the modes that read the counter itself; emulation is not offered.
pub fn set_tsc_info(_subject: &Arc<Domain>, wanted: &TscInfo) -> Result<(), Errno> {
    match wanted.tsc_mode {
        MODE_DEFAULT | MODE_NATIVE => Ok(()),
        _ => Err(Errno::EOPNOTSUPP),
    }
}
