//! `GNTTABOP_copy`: bytes between pages, by grant or by frame, within a page and not a byte further.
//!
//! Promised by: public/grant_table.h. In the spirit of XSA-226 and XSA-230.

use pv::abi::grant_table::{Copy, CopyPtr, gntcopy, gnttabop};
use pv::event::SELF;
use pv::grant::{self, Table, gtf};
use pv::memory::Page;
use pv::{start, tables};
use zerocopy::FromZeros;

use crate::bad::{NO_DOMAIN, NO_FRAME};
use crate::report::{End, Report, Verdict};

const FROM: u16 = gntcopy::SOURCE_GREF;
const TO: u16 = gntcopy::DEST_GREF;

fn end(u: u64, domid: u16, offset: u16) -> CopyPtr {
    let mut end = CopyPtr::new_zeroed();
    (end.u, end.domid.0, end.offset) = (u, domid, offset);
    end
}

fn copy(source: CopyPtr, dest: CopyPtr, len: u16, flags: u16) -> i16 {
    let mut request = Copy { source, dest, len, flags, ..Copy::new_zeroed() };
    match grant::op(gnttabop::COPY, core::slice::from_mut(&mut request)) {
        pv::Answer::OK => request.status.0,
        _ => 99,
    }
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    let (data, other, read_only, sealed) = (Page::new(), Page::new(), Page::new(), Page::new());
    table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
    table.offer(9, own, read_only.mfn(), gtf::PERMIT_ACCESS | gtf::READ_ONLY);
    table.offer(10, 7, data.mfn(), gtf::PERMIT_ACCESS);
    table.offer(11, own, sealed.mfn(), gtf::PERMIT_ACCESS);
    sealed.seal()?;
    tables::pin(1, sealed.mfn()).ok()?;
    let by_ref = |gref: u32, offset: u16| end(gref.into(), own, offset);
    let by_frame = |page: Page, offset: u16| end(page.mfn(), SELF, offset);

    data.set_word(0, 0x1111);
    data.set_word(511, 0x2222);
    report.saw("from a grant to a frame", copy(by_ref(8, 0), by_frame(other, 8), 8, FROM));
    report.expect("copied", other.word(1), 0x1111);
    report.saw("from a frame to a grant", copy(by_frame(other, 8), by_ref(8, 16), 8, TO));
    report.expect("copied", data.word(2), 0x1111);
    report.saw("from grant to grant", copy(by_ref(9, 0), by_ref(8, 24), 8, FROM | TO));
    report.saw("from frame to frame", copy(by_frame(data, 0), by_frame(other, 0), 8, 0));
    report.saw("a page", copy(by_ref(8, 0), by_frame(other, 0), 4096, FROM));
    report.expect("to its last word", other.word(511), 0x2222);
    report.saw("the last byte", copy(by_ref(8, 4095), by_frame(other, 4095), 1, FROM));
    report.saw("no byte", copy(by_ref(8, 0), by_frame(other, 0), 0, FROM));
    report.saw("within one page, overlapping", copy(by_frame(data, 0), by_frame(data, 4), 64, 0));

    let ends = [
        ("one byte too far in the source", copy(by_ref(8, 4089), by_frame(other, 0), 8, FROM)),
        ("one byte too far in the target", copy(by_ref(8, 0), by_frame(other, 4089), 8, FROM)),
        ("a page and a byte", copy(by_ref(8, 0), by_frame(other, 0), 4097, FROM)),
        ("64 KiB less one", copy(by_ref(8, 0), by_frame(other, 0), 65_535, FROM)),
        ("offset beyond the page", copy(by_ref(8, 4097), by_frame(other, 0), 0, FROM)),
        ("offset and length that wrap", copy(by_ref(8, 65_535), by_frame(other, 0), 2, FROM)),
        ("offset at the end, nothing", copy(by_ref(8, 4096), by_frame(other, 0), 0, FROM)),
    ];
    for (name, status) in ends {
        report.saw(name, status);
    }
    report.expect("nothing was spilt", other.word(511), 0x2222);
    let wrong = [
        ("a reference out of range", copy(by_ref(99_999, 0), by_frame(other, 0), 8, FROM)),
        ("nothing offered", copy(by_ref(20, 0), by_frame(other, 0), 8, FROM)),
        ("offered to another", copy(by_ref(10, 0), by_frame(other, 0), 8, FROM)),
        ("to a read-only offer", copy(by_frame(data, 0), by_ref(9, 0), 8, TO)),
        ("to a table", copy(by_frame(data, 0), by_ref(11, 0), 8, TO)),
        ("to a table by its frame", copy(by_ref(8, 0), by_frame(sealed, 0), 8, FROM)),
        ("from a table", copy(by_ref(11, 0), by_frame(other, 0), 8, FROM)),
        ("no domain", copy(end(8, NO_DOMAIN, 0), by_frame(other, 0), 8, FROM)),
        ("a frame that is not there", copy(by_ref(8, 0), end(NO_FRAME, SELF, 0), 8, FROM)),
        ("from a frame that is not there", copy(end(NO_FRAME, SELF, 0), by_frame(other, 0), 8, 0)),
        ("a frame by own id, without a grant", copy(by_ref(8, 0), end(other.mfn(), own, 0), 8, FROM)),
        ("a grant by DOMID_SELF", copy(end(8, SELF, 0), by_frame(other, 0), 8, FROM)),
        ("strange flags", copy(by_ref(8, 0), by_frame(other, 0), 8, FROM | 0x80)),
        ("the shared page", copy(by_frame(data, 0), end(start::info().shared_info >> 12, SELF, 512), 8, 0)),
    ];
    for (name, status) in wrong {
        report.saw(name, status);
    }
    report.saw_all("offers at the end", [8, 9, 10, 11].map(|gref| table.flags(gref)));
    let mut batch = [Copy { source: by_ref(8, 0), dest: by_frame(other, 0), len: 8, flags: FROM, ..Copy::new_zeroed() }; 5];
    batch[2].source.u = 20;
    report.saw("five, the third bad", grant::op(gnttabop::COPY, &mut batch));
    report.saw_all("status", batch.map(|copy| copy.status.0));
    Ok(())
}
