//! XSA-113 (CVE-2014-9030): a reference that an update of the machine-to-physical table kept.
//!
//! Refused updates of that table did not give back the reference to the frame they were about, so that the frame could
//! never be freed, nor its owner. A thousand updates, good and refused, are done on a page, and as many on a frame that
//! is not ours; then the page is given back, and must be found among the free ones.

use pv::abi::xen::MmuUpdate;
use pv::hypercall::{address, call, number};
use pv::memory::{self, Page};
use pv::{start, tables};

use crate::bad;
use crate::host::{self, DECREASE, POPULATE};
use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let page = Page::new();
    let pfn = page.address() >> 12;
    let place = page.mfn() << 12 | 1;
    let (mut good, mut refused) = (0, 0);
    for round in 0..1000 {
        good += u32::from(tables::set(place, pfn).is_ok());
        let mut update = [MmuUpdate { ptr: place, val: pfn }];
        for subject in [u64::from(bad::NO_DOMAIN), 0x7ff1, 0x7ff2, 1 << 16 | tables::SELF] {
            let answer = call(number::MMU_UPDATE, [address(&mut update), 1, 0, subject]);
            refused += u32::from(!answer.is_ok());
        }
        refused += u32::from(!tables::set(bad::NO_FRAME << 12 | 1, round).is_ok());
    }
    report.expect("good updates", good, 1000);
    report.saw("refused ones", refused);
    report.saw("the shared page's", tables::set(start::info().shared_info & !0xfff | 1, 7));
    report.check("the table says so", memory::m2p(page.mfn()) == Some(pfn));
    memory::unmap(page.address()).ok()?;
    let before = host::free_pages()?;
    report.expect("given back", host::reservation(DECREASE, &mut [page.mfn()], 0, 0).0, 1);
    report.check("it is free", host::free_pages()? == before + 1);
    report.expect("another taken", host::reservation(POPULATE, &mut [pfn], 0, 0).0, 1);
    Ok(())
}
