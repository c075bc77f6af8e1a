//! XSA-26 (CVE-2012-5510), XSA-24 (CVE-2012-4539), XSA-255 (CVE-2018-7541), XSA-379 (CVE-2021-28697) and XSA-382
//! (CVE-2021-28699): switching a grant table's version.
//!
//! Version 2 has pages of status beside the table. Lists of them were left linked after a switch back, asked for by
//! counts that were believed, freed while mapped, and found missing by maps that began before. The guest switches to and
//! fro with and without a mapped grant and asks for more status pages than there are. Whoever has no version 2 must say
//! so, for every way of asking, and version 1 must go on.

use pv::abi::grant_table::{GetStatusFrames, SetVersion, gnttabop};
use pv::event::SELF;
use pv::grant::{self, Table, gntmap, gtf};
use pv::hypercall::address;
use pv::memory::{self, Page};
use pv::{Answer, start};
use zerocopy::FromZeros;

use crate::report::{End, Report, Verdict};

fn switch(version: u32) -> Answer {
    grant::op(gnttabop::SET_VERSION, &mut [SetVersion { version }])
}

fn status_frames(count: u32) -> (Answer, i16) {
    let mut list = [0_u64; 64];
    let mut request = GetStatusFrames::new_zeroed();
    (request.nr_frames, request.dom.0, request.frame_list) = (count, SELF, address(&mut list));
    let answer = grant::op(gnttabop::GET_STATUS_FRAMES, core::slice::from_mut(&mut request));
    (answer, request.status.0)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    for round in 0..3 {
        report.saw_all(format_args!("{round}: to 2, to 1"), [switch(2), switch(1)]);
    }
    report.saw("to 2", switch(2));
    for count in [0, 1, 64, 1 << 20, u32::MAX] {
        let (answer, status) = status_frames(count);
        report.saw(format_args!("{count} status frames"), format_args!("{answer} {status}"));
    }
    report.saw("to 1", switch(1));
    report.saw("a status frame of version 1", status_frames(1).0);
    let table = Table::setup()?;
    let (data, window) = (Page::new(), Page::new());
    data.set_word(0, 0x255);
    table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
    let mapped = grant::map(own, 8, window.address(), gntmap::HOST_MAP);
    report.check("version 1 maps", mapped.is_ok() && window.word(0) == 0x255);
    report.saw_all("to 2, to 1 while mapped", [switch(2), switch(1)]);
    report.check("the mapping is what it was", window.word(0) == 0x255);
    if let Ok(handle) = mapped {
        report.expect("unmapped", grant::unmap(handle, window.address()).0, 0);
    }
    memory::map(window.address(), window.mfn(), memory::ORDINARY).ok()?;
    Ok(())
}
