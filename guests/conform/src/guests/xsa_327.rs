//! XSA-327 (CVE-2020-15564): a `vcpu_info` across the end of its page.
//!
//! Where a vcpu's record goes was not checked for alignment: at the end of a page it reached into the next frame,
//! whoever's that was, and an unaligned one could not be written atomically. Every offset of a page is tried for vcpu 1;
//! only multiples of eight with room for the record may be taken, and the first that is taken is the last, since a record
//! moves once.

use pv::abi::vcpu::{RegisterVcpuInfo, vcpuop};
use pv::memory::Page;
use pv::{Answer, vcpu};

use crate::bad;
use crate::report::{Report, Verdict};

fn register(mfn: u64, offset: u32) -> Answer {
    vcpu::op(vcpuop::REGISTER_VCPU_INFO, 1, &mut RegisterVcpuInfo { mfn, offset, rsvd: 0 })
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let page = Page::new();
    let odd = (0..4096).filter(|offset| offset % 8 != 0);
    report.expect("unaligned ones taken", odd.filter(|offset| register(page.mfn(), *offset).is_ok()).count(), 0);
    report.saw_all("too near the end, or beyond", [4040, 4048, 4056, 4088, 4095, 4096, 8192, u32::MAX, u32::MAX - 7].map(|offset| {
        register(page.mfn(), offset)
    }));
    report.saw_all("of strange frames", [bad::NO_FRAME, u64::MAX, pv::tables::root_mfn()].map(|mfn| register(mfn, 0)));
    report.expect("a good one", register(page.mfn(), 4032), Answer::OK);
    report.saw_all("another then, and the same", [register(page.mfn(), 0), register(page.mfn(), 4032)]);
    Ok(())
}
