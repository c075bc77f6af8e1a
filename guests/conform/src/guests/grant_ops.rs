//! `grant_table_op`: what each command answers, rightly and wrongly asked.
//!
//! Promised by: public/grant_table.h. Each element of a batch has a status of its own; the call fails only when
//! the batch itself cannot be read or written, or the command is not known.

use pv::abi::grant_table::{
    DumpTable, GetVersion, MapGrantRef, QuerySize, SetVersion, SetupTable, SwapGrantRef, UnmapGrantRef, gnttabop,
};
use pv::grant::{self, Table, gntmap, gtf};
use pv::hypercall::{address, call, number};
use pv::memory::Page;
use pv::{event::SELF, start};
use zerocopy::FromZeros;

use crate::bad::{self, NO_DOMAIN};
use crate::report::{End, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    tables(report);
    let table = Table::setup()?;
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    offers(report, table, own);
    versions(report);
    swaps(report, table, own);
    batches(report, table, own);
    Ok(())
}

fn tables(report: &mut Report) {
    let mut frames = [0_u64; 128];
    let place = address(&mut frames);
    let setup = |dom: u16, nr_frames: u32, frame_list: u64| {
        let mut request = SetupTable::new_zeroed();
        (request.dom.0, request.nr_frames, request.frame_list) = (dom, nr_frames, frame_list);
        let answer = grant::op(gnttabop::SETUP_TABLE, core::slice::from_mut(&mut request));
        (answer, request.status.0)
    };
    let cases = [
        ("one frame", SELF, 1, place),
        ("none", SELF, 0, place),
        ("by own id", start::domid().unwrap_or(0), 1, place),
        ("64 frames", SELF, 64, place),
        ("65 frames", SELF, 65, place),
        ("all there are", SELF, !0, place),
        ("of no domain", NO_DOMAIN, 1, place),
        ("of no id", 0x7ff4, 1, place),
        ("list nowhere", SELF, 1, bad::UNMAPPED),
        ("list in the hypervisor", SELF, 1, bad::HYPERVISORS),
    ];
    for (name, dom, count, list) in cases {
        let (answer, status) = setup(dom, count, list);
        report.saw(format_args!("setup_table: {name}"), format_args!("{answer} {status}"));
    }
    for (name, dom) in [("self", SELF), ("no domain", NO_DOMAIN), ("no id", 0x7ff4)] {
        let mut request = QuerySize::new_zeroed();
        request.dom.0 = dom;
        let answer = grant::op(gnttabop::QUERY_SIZE, core::slice::from_mut(&mut request));
        report.saw(format_args!("query_size of {name}"), format_args!("{answer} {}: {} of {}", request.status.0, request.nr_frames, request.max_nr_frames));
    }
}

fn offers(report: &mut Report, table: Table, own: u16) {
    let (data, read_only, free) = (Page::new(), Page::new(), Page::new());
    let window = Page::new();
    table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
    table.offer(9, own, read_only.mfn(), gtf::PERMIT_ACCESS | gtf::READ_ONLY);
    table.offer(10, 7, data.mfn(), gtf::PERMIT_ACCESS);
    table.offer(11, own, 0x7ff_ffff, gtf::PERMIT_ACCESS);
    table.offer(12, own, data.mfn(), gtf::ACCEPT_TRANSFER);
    table.offer(13, own, pv::tables::root_mfn(), gtf::PERMIT_ACCESS);
    table.offer(14, own, start::info().shared_info >> 12, gtf::PERMIT_ACCESS);
    table.offer(15, own, free.mfn(), 3);
    let map = |dom, gref, at: u64, flags| {
        let outcome = grant::map(dom, gref, at, flags);
        outcome.map_or_else(|status| i64::from(status.0), |handle| {
            grant::unmap(handle, at);
            0
        })
    };
    const RW: u32 = gntmap::HOST_MAP;
    const RO: u32 = gntmap::HOST_MAP | gntmap::READONLY;
    let at = window.address();
    let cases = [
        ("of no domain", map(NO_DOMAIN, 8, at, RW)),
        ("of self by DOMID_SELF", map(SELF, 8, at, RW)),
        ("without saying where", map(own, 8, at, 0)),
        ("a reference out of range", map(own, 99_999, at, RW)),
        ("the last reference", map(own, !0, at, RW)),
        ("nothing is offered", map(own, 20, at, RW)),
        ("offered to another", map(own, 10, at, RW)),
        ("a frame that is not there", map(own, 11, at, RW)),
        ("for a transfer", map(own, 12, at, RW)),
        ("read-only, wanted writable", map(own, 9, at, RW)),
        ("a page table, writable", map(own, 13, at, RW)),
        ("a page table, read-only", map(own, 13, at, RO)),
        ("the shared page, writable", map(own, 14, at, RW)),
        ("a type that does not exist", map(own, 15, at, RW)),
        ("at an address without tables", map(own, 8, 0x7000_0000_0000, RW)),
        ("in the hypervisor", map(own, 8, bad::HYPERVISORS, RW)),
        ("at no canonical address", map(own, 8, bad::NON_CANONICAL, RW)),
        ("at an odd address", map(own, 8, at + 1, RW)),
        ("for a device alone", map(own, 8, at, gntmap::DEVICE_MAP)),
        ("by a page-table entry that is none", map(own, 8, data.mfn() << 12, RW | gntmap::CONTAINS_PTE)),
        ("with strange flags", map(own, 8, at, RW | 0x100)),
        ("for applications", map(own, 8, at, RW | gntmap::APPLICATION_MAP)),
    ];
    for (name, status) in cases {
        report.saw(format_args!("map: {name}"), status);
    }
    report.saw_all("offers 8 to 15 after that", (8..16).map(|gref| table.flags(gref)));
    let mut dump = DumpTable::new_zeroed();
    dump.dom.0 = NO_DOMAIN;
    report.saw("dump_table of no domain", grant::op(gnttabop::DUMP_TABLE, core::slice::from_mut(&mut dump)));
}

fn versions(report: &mut Report) {
    let get = |dom: u16| {
        let mut request = GetVersion::new_zeroed();
        request.dom.0 = dom;
        let answer = grant::op(gnttabop::GET_VERSION, core::slice::from_mut(&mut request));
        (answer, request.version)
    };
    for (name, dom) in [("self", SELF), ("no domain", NO_DOMAIN)] {
        let (answer, version) = get(dom);
        report.saw(format_args!("get_version of {name}"), format_args!("{answer} {version}"));
    }
    let set = |version: u32| grant::op(gnttabop::SET_VERSION, &mut [SetVersion { version }]);
    report.saw_all("set_version to 0, 1, 3, -1", [0, 1, 3, !0].map(set));
}

fn swaps(report: &mut Report, table: Table, own: u16) {
    let data = Page::new();
    table.offer(30, own, data.mfn(), gtf::PERMIT_ACCESS);
    table.offer(31, own, data.mfn(), gtf::PERMIT_ACCESS | gtf::READ_ONLY);
    let swap = |ref_a: u32, ref_b: u32| {
        let mut request = SwapGrantRef::new_zeroed();
        (request.ref_a, request.ref_b) = (ref_a, ref_b);
        let answer = grant::op(gnttabop::SWAP_GRANT_REF, core::slice::from_mut(&mut request));
        if answer.is_ok() { pv::Answer(request.status.0.into()) } else { answer }
    };
    report.saw_all("swap two, one with itself, with one out of range", [swap(30, 31), swap(30, 30), swap(30, 99_999)]);
    report.saw_all("flags then", [30, 31].map(|gref| table.flags(gref)));
    swap(30, 31);
    let window = Page::new();
    match grant::map(own, 30, window.address(), gntmap::HOST_MAP) {
        Ok(handle) => {
            report.saw("swap one that is mapped", swap(30, 31));
            report.saw("unmapped", grant::unmap(handle, window.address()).0);
        }
        Err(status) => report.saw("map", status.0),
    }
}

fn batches(report: &mut Report, table: Table, own: u16) {
    let raw = |command: u64, batch: u64, count: u64| call(number::GRANT_TABLE_OP, [command, batch, count]);
    let mut bytes = [0_u64; 64];
    let place = address(&mut bytes);
    report.saw_all("no such command", [12, 13, 99, 0x7fff_ffff].map(|command| raw(command, place, 1)));
    report.saw_all("negative counts", [0, 1, 5].map(|command| raw(command, place, 0xffff_ffff)));
    for command in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] {
        report.saw_pointers(format_args!("command {command}"), |pointer| raw(command, pointer, 1));
    }
    report.saw_all("none", [0, 1, 5, 11].map(|command| raw(command, place, 0)));
    report.saw_all("two of what takes one: setup, query, set_version", [2, 6, 8].map(|command| raw(command, place, 2)));
    // A batch with a bad one in the middle goes on.
    let data = Page::new();
    let windows = [Page::new(), Page::new(), Page::new()];
    table.offer(40, own, data.mfn(), gtf::PERMIT_ACCESS);
    let mut maps = windows.map(|window| {
        let mut request = MapGrantRef::new_zeroed();
        (request.dom.0, request.gref) = (own, 40);
        (request.host_addr, request.flags) = (window.address(), gntmap::HOST_MAP);
        request
    });
    maps[1].gref = 41;
    report.saw("three maps, the second bad", grant::op(gnttabop::MAP_GRANT_REF, &mut maps));
    report.saw_all("status", maps.map(|map| map.status.0));
    let mut unmaps = maps.map(|map| {
        let mut request = UnmapGrantRef::new_zeroed();
        (request.handle, request.host_addr) = (map.handle, map.host_addr);
        request
    });
    unmaps[1].handle = !0;
    report.saw("unmapped, the second bad", grant::op(gnttabop::UNMAP_GRANT_REF, &mut unmaps));
    report.saw_all("status", unmaps.map(|unmap| unmap.status.0));
    report.saw("the offer is free", table.flags(40));
}
