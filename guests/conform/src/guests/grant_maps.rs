//! Mapped grants: what the owner sees, what the mapper can do, how it ends.
//!
//! While a grant is mapped its flags say so (reading, writing), so that the owner can tell whether it may take the
//! page back; revoking then does not end the mapping. Unmapping must name the right handle and the right address,
//! and leaves nothing behind. Promised by: public/grant_table.h. In the spirit of XSA-224 and XSA-227.

use pv::abi::grant_table::UnmapAndReplace;
use pv::abi::grant_table::gnttabop;
use pv::grant::{self, Table, gntmap, gtf};
use pv::memory::{self, ORDINARY, Page};
use pv::tables::{self, Slot};
use pv::{insn, start, trap};
use zerocopy::FromZeros;

use crate::bad;
use crate::report::{End, Report, Verdict};

const RW: u32 = gntmap::HOST_MAP;
const RO: u32 = gntmap::HOST_MAP | gntmap::READONLY;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    let status = |status: pv::abi::grant_table::GrantStatus| End::Fail(if status.0 == 0 { "" } else { "a map was refused" });

    let (data, window) = (Page::new(), Page::new());
    table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
    let handle = grant::map(own, 8, window.address(), RW).map_err(status)?;
    report.expect("flags when mapped", table.flags(8), gtf::PERMIT_ACCESS | gtf::READING | gtf::WRITING);
    insn::poke(data.address(), 0x1234);
    report.expect("seen through it", window.word(0), 0x1234);
    window.set_word(1, 0x5678);
    report.expect("written through it", data.word(1), 0x5678);
    report.check("the owner cannot tell it is free", !table.revoke(8));
    report.saw("the entry it made", format_args!("{:x}", Slot::of(window.address(), 1).map_or(0, Slot::get) & 0x67 ));

    let second = Page::new();
    let again = grant::map(own, 8, second.address(), RO).map_err(status)?;
    report.saw("mapped twice", table.flags(8));
    let stored = trap::attempt(|| insn::poke(second.address(), 1));
    report.saw("a store through the read-only one", stored.map_or_else(|frame| frame.error_code.unwrap_or(0), |()| 0));
    report.saw("unmapping the first", grant::unmap(handle, window.address()).0);
    report.saw("flags then", table.flags(8));
    report.saw_all("unmap: handle that never was, wrong address, no address", [
        grant::unmap(4000, second.address()).0,
        grant::unmap(again, data.address()).0,
        grant::unmap(again, bad::UNMAPPED).0,
    ]);
    report.saw("unmap", grant::unmap(again, second.address()).0);
    report.saw("again", grant::unmap(again, second.address()).0);
    report.expect("flags at the end", table.flags(8), gtf::PERMIT_ACCESS);
    report.check("nothing is mapped there", trap::attempt(|| insn::peek(second.address())).is_err());
    report.check("it can be revoked", table.revoke(8));

    table.offer(9, own, data.mfn(), gtf::PERMIT_ACCESS | gtf::READ_ONLY);
    let handle = grant::map(own, 9, window.address(), RO).map_err(status)?;
    report.saw("flags of a read-only offer, mapped", table.flags(9));
    memory::map(second.address(), data.mfn(), ORDINARY).ok()?;
    report.saw("overwriting the entry by hand", memory::unmap(window.address()));
    report.saw("unmap then", grant::unmap(handle, window.address()).0);
    report.saw("flags then", table.flags(9));
    report.saw("unmap with nothing there, by 0", grant::unmap(handle, 0).0);
    report.saw("flags then", table.flags(9));

    revoked_while_mapped(report, table, own)?;
    by_entry(report, table, own)?;
    replaced(report, table, own)?;
    taken_into_account(report, table, own)
}

fn refused(_: pv::abi::grant_table::GrantStatus) -> End {
    End::Fail("a map was refused")
}

fn revoked_while_mapped(report: &mut Report, table: Table, own: u16) -> Verdict {
    let (data, window) = (Page::new(), Page::new());
    table.offer(20, own, data.mfn(), gtf::PERMIT_ACCESS);
    let handle = grant::map(own, 20, window.address(), RW).map_err(refused)?;
    // What a rude owner does: clears the whole entry.
    table.offer(20, 0, 0, 0);
    report.saw("the mapping outlives its offer", trap::attempt(|| insn::poke(window.address(), 0)).is_ok());
    report.saw("a page that is mapped as a table", {
        data.seal()?;
        tables::pin(1, data.mfn())
    });
    report.saw("unmap", grant::unmap(handle, window.address()).0);
    report.saw("flags then", table.flags(20));
    report.saw("as a table now", tables::pin(1, data.mfn()));
    Ok(())
}

/// `GNTMAP_contains_pte`: the entry is named by its machine address.
fn by_entry(report: &mut Report, table: Table, own: u16) -> Verdict {
    let (data, window) = (Page::new(), Page::new());
    table.offer(21, own, data.mfn(), gtf::PERMIT_ACCESS);
    data.set_word(0, 77);
    let slot = Slot::of(window.address(), 1).ok_or(End::Fail("no table"))?;
    let flags = RW | gntmap::CONTAINS_PTE;
    memory::unmap(window.address()).ok()?;
    let handle = grant::map(own, 21, slot.maddr(), flags).map_err(refused)?;
    report.expect("mapped by its entry", window.word(0), 77);
    report.saw("unmap by the address", grant::unmap(handle, window.address()).0);
    report.saw("unmap by the entry", grant::unmap(handle, slot.maddr()).0);
    report.saw_all("entries that are none: odd, a data page, not there", [
        slot.maddr() + 4,
        data.mfn() << 12,
        bad::NO_FRAME << 12,
    ].map(|at| grant::map(own, 21, at, flags).map_or_else(|status| status.0, |_| 0)));
    report.saw("flags then", table.flags(21));
    Ok(())
}

fn replaced(report: &mut Report, table: Table, own: u16) -> Verdict {
    let (data, window, other) = (Page::new(), Page::new(), Page::new());
    table.offer(22, own, data.mfn(), gtf::PERMIT_ACCESS);
    other.set_word(0, 88);
    let handle = grant::map(own, 22, window.address(), RW).map_err(refused)?;
    let mut request = UnmapAndReplace::new_zeroed();
    (request.host_addr, request.new_addr, request.handle) = (window.address(), other.address(), handle);
    let answer = grant::op(gnttabop::UNMAP_AND_REPLACE, core::slice::from_mut(&mut request));
    report.saw("unmap_and_replace", format_args!("{answer} {}", request.status.0));
    report.saw("flags then", table.flags(22));
    grant::unmap(handle, window.address());
    Ok(())
}

/// The frame is counted: it cannot become a table while another's mapping writes to it.
fn taken_into_account(report: &mut Report, table: Table, own: u16) -> Verdict {
    let (data, window) = (Page::new(), Page::new());
    table.offer(23, own, data.mfn(), gtf::PERMIT_ACCESS);
    data.seal()?;
    let handle = grant::map(own, 23, window.address(), RW).map_err(refused)?;
    let pinned = tables::pin(1, data.mfn());
    report.check("mapped writable, it cannot be a table", !pinned.is_ok());
    report.saw("unmap", grant::unmap(handle, window.address()).0);
    report.saw("as a table", tables::pin(1, data.mfn()));
    let table_now = grant::map(own, 23, window.address(), RW);
    report.check("a table cannot be mapped writable", table_now.is_err());
    let read_only = grant::map(own, 23, window.address(), RO).map_err(refused)?;
    report.saw("but read-only", grant::unmap(read_only, window.address()).0);
    report.saw("flags at the end", table.flags(23));
    // One offer, mapped many times: each counts, and a count that is full must refuse, not wrap.
    const MANY: usize = 300;
    table.offer(24, own, Page::new().mfn(), gtf::PERMIT_ACCESS);
    let windows = [(); MANY].map(|()| Page::new());
    let handles = windows.map(|window| grant::map(own, 24, window.address(), RW).ok());
    let mapped = handles.iter().flatten().count();
    report.saw("mapped 300 times", mapped);
    let distinct = (0..MANY).filter(|index| handles[*index].is_some() && !handles[..*index].contains(&handles[*index]));
    report.check("with as many handles", distinct.count() == mapped);
    let unmapped = windows.iter().zip(handles).filter(|(window, handle)| {
        handle.is_some_and(|handle| grant::unmap(handle, window.address()).0 == 0)
    });
    report.check("unmapped", unmapped.count() == mapped);
    report.expect("flags at the end", table.flags(24), gtf::PERMIT_ACCESS);
    Ok(())
}
