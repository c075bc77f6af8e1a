//! XSA-18 (CVE-2012-3516) and XSA-134 (CVE-2015-4163): exchanging two grants that are not there.
//!
//! `swap_grant_ref` looked at references without asking whether the table has them, and at a table that was not set up.
//! So it is called before there is a table, and then with references around the table's end and far beyond it; two that
//! are there are exchanged in between.

use pv::abi::grant_table::{SwapGrantRef, gnttabop};
use pv::grant::{self, Table, gtf};
use pv::{Answer, start};

use crate::report::{End, Report, Verdict};

fn swap(first: u32, second: u32) -> Answer {
    let mut request = SwapGrantRef { ref_a: first, ref_b: second, ..SwapGrantRef::default() };
    match grant::op(gnttabop::SWAP_GRANT_REF, core::slice::from_mut(&mut request)) {
        Answer::OK => Answer(request.status.0.into()),
        refused => refused,
    }
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    report.saw_all("before there is a table", [swap(0, 1), swap(8, 9), swap(512, 513), swap(u32::MAX, 8)]);
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    table.offer(8, own, 1, gtf::PERMIT_ACCESS);
    table.offer(9, own, 2, gtf::PERMIT_ACCESS | gtf::READ_ONLY);
    report.expect("two that are there", swap(8, 9), Answer::OK);
    let exchanged = table.flags(9) == gtf::PERMIT_ACCESS && table.flags(8) == gtf::PERMIT_ACCESS | gtf::READ_ONLY;
    report.check("are exchanged", exchanged);
    let far = [511, 512, 513, 4096, 32767, 32768, 1 << 20, 1 << 29, i32::MAX.cast_unsigned(), u32::MAX];
    report.saw_all("with one far off", far.map(|far| swap(8, far)));
    report.saw_all("the other way round", far.map(|far| swap(far, 8)));
    report.saw_all("both", far.map(|far| swap(far, far)));
    report.check("what is there is as it was", table.flags(9) == gtf::PERMIT_ACCESS);
    Ok(())
}
