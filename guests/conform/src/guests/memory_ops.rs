//! `memory_op`: giving memory back and getting it again, one frame for another, and questions about it.
//!
//! Promised by: public/memory.h.

use pv::abi::memory::{MemoryExchange, MemoryReservation};
use pv::event::SELF;
use pv::hypercall::{address, call, number};
use pv::memory::{self, Page};
use pv::tables;
use pv::{Answer, start};
use zerocopy::FromZeros;

use crate::bad::{self, NO_DOMAIN, NO_FRAME};
use crate::report::{Report, Verdict};

const INCREASE: u64 = 0;
const DECREASE: u64 = 1;
const POPULATE: u64 = 6;

fn op<T>(command: u64, argument: &mut T) -> Answer {
    call(number::MEMORY_OP, [command, address(argument)])
}

fn reservation(extents: &mut [u64], order: u32) -> MemoryReservation {
    let mut request = MemoryReservation::new_zeroed();
    request.extent_start = address(extents);
    request.nr_extents = extents.len() as u64;
    request.extent_order = order;
    request.domid.0 = SELF;
    request
}

/// Gives a frame of ours away, and leaves a hole at its page.
fn spare() -> Result<(Page, u64), Answer> {
    let page = Page::new();
    let mfn = page.mfn();
    memory::unmap(page.address()).ok()?;
    Ok((page, mfn))
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    questions(report);
    giving(report)?;
    wrong_reservations(report)?;
    exchanging(report)?;
    // Every number, and some behind the last. For calls that give and take pages, a list of none.
    for command in (0..=31).chain([63]) {
        let answers = [0, !0, bad::UNMAPPED].map(|word| op(command, &mut [word; 16]));
        report.saw_all(format_args!("command {command}: zeros, ones, addresses"), answers);
    }
    foreign(report);
    for command in 0..=28 {
        report.saw_pointers(format_args!("command {command}"), |pointer| call(number::MEMORY_OP, [command, pointer]));
    }
    Ok(())
}

fn questions(report: &Report) {
    let ask = |command: u64, dom: u16| op(command, &mut [dom, 0, 0, 0]);
    let pages = start::info().nr_pages as i64;
    report.saw("current_reservation is what we were told", ask(3, SELF) == Answer(pages));
    report.saw("maximum_reservation is no less", ask(4, SELF).0 >= pages);
    report.saw("maximum_ram_page is some", call(number::MEMORY_OP, [2, 0]).0 > pages);
    for (name, dom) in [("no domain", NO_DOMAIN), ("no id", 0x7ff4)] {
        report.saw_all(format_args!("current, maximum, gpfn of {name}"), [3, 4, 14].map(|command| ask(command, dom)));
    }
    report.saw_all("no such command", [8, 29, 30, 63].map(|command| op(command, &mut [0_u64; 16])));
    let mut mapping = [0_u64; 3];
    report.saw("machphys_mapping", op(12, &mut mapping));
    report.saw_all("from, to", [format_args!("{:x}", mapping[0]), format_args!("{:x}", mapping[1])]);
    let mut frames = [0_u64; 4];
    let mut list = [4_u64, address(&mut frames), 0];
    report.saw("machphys_mfn_list", op(5, &mut list));
    report.saw("the first piece is a frame", frames[0] != 0);
    let mut map = [0_u64; 64];
    let mut request = [64_u64, address(&mut map)];
    report.saw("memory_map", op(9, &mut request));
    let mut request = [0_u64, address(&mut map)];
    report.saw("memory_map without room", op(9, &mut request));
    let mut request = [0_u64, address(&mut map)];
    report.saw("machine_memory_map without room", op(10, &mut request));
    let mut request = [128_u64, bad::UNMAPPED];
    report.saw("machine_memory_map nowhere", op(10, &mut request));
}

fn giving(report: &mut Report) -> Verdict {
    let current = || op(3, &mut [SELF, 0, 0, 0]).0;
    let before = current();
    let (page, mfn) = spare()?;
    report.expect("decrease by one", op(DECREASE, &mut reservation(&mut [mfn], 0)), Answer(1));
    report.expect("one less", before - current(), 1);
    report.saw("the frame again", op(DECREASE, &mut reservation(&mut [mfn], 0)));
    report.saw("mapping it", memory::map(page.address(), mfn, memory::ORDINARY));
    let pfn = page.address() >> 12;
    let mut extents = [pfn];
    report.expect("populate by one", op(POPULATE, &mut reservation(&mut extents, 0)), Answer(1));
    report.check("a frame came back", extents[0] != pfn && memory::m2p(extents[0]) == Some(pfn));
    report.expect("as many as before", current(), before);
    memory::map(page.address(), extents[0], memory::ORDINARY).ok()?;
    memory::set_p2m(pfn, extents[0]);
    report.expect("it is clean", page.word(0) | page.word(511), 0);
    page.fill(1);

    // In use: it does not go.
    let used = Page::new();
    report.saw("decrease by one that is mapped", op(DECREASE, &mut reservation(&mut [used.mfn()], 0)));
    report.saw("it is still ours", memory::map(Page::new().address(), used.mfn(), memory::READ_ONLY));
    used.set_word(0, 1);
    let (page, mfn) = spare()?;
    let mut extents = [mfn, NO_FRAME, mfn];
    report.saw("decrease: good, no frame, the first again", op(DECREASE, &mut reservation(&mut extents, 0)));
    let mut extents = [page.address() >> 12];
    report.saw("populate", op(POPULATE, &mut reservation(&mut extents, 0)));
    memory::set_p2m(page.address() >> 12, extents[0]);
    report.saw("more than we may have", {
        let (_, mfn) = spare()?;
        op(DECREASE, &mut reservation(&mut [mfn], 0)).ok()?;
        let mut extents = [page.address() >> 12; 64];
        Answer(op(POPULATE, &mut reservation(&mut extents, 0)).0.min(2))
    });
    Ok(())
}

fn wrong_reservations(report: &mut Report) -> Verdict {
    let (_, mfn) = spare()?;
    let with = |change: &dyn Fn(&mut MemoryReservation)| {
        [INCREASE, DECREASE, POPULATE].map(|command| {
            let mut extents = [NO_FRAME];
            let mut request = reservation(&mut extents, 0);
            change(&mut request);
            op(command, &mut request)
        })
    };
    report.saw_all("none", with(&|request| request.nr_extents = 0));
    report.saw_all("no domain", with(&|request| request.domid.0 = NO_DOMAIN));
    report.saw_all("no id", with(&|request| request.domid.0 = 0x7ff4));
    report.saw_all("the hypervisor's", with(&|request| request.domid.0 = 0x7ff2));
    report.saw_all("order 19", with(&|request| request.extent_order = 19));
    report.saw_all("order 63", with(&|request| request.extent_order = 63));
    report.saw_all("order of all bits", with(&|request| request.extent_order = !0));
    report.saw_all("list nowhere", with(&|request| request.extent_start = bad::UNMAPPED));
    report.saw_all("list in the hypervisor", with(&|request| request.extent_start = bad::HYPERVISORS));
    report.saw_all("list that wraps around", with(&|request| request.extent_start = bad::LAST));
    report.saw_all("2^40 extents", with(&|request| request.nr_extents = 1 << 40));
    report.saw_all("2^64 - 1 extents", with(&|request| request.nr_extents = u64::MAX));
    report.saw_all("address bits below a page", with(&|request| request.mem_flags = 3));
    report.saw("continued from beyond the end", {
        let mut extents = [mfn];
        op(DECREASE | 5 << 6, &mut reservation(&mut extents, 0))
    });
    Ok(())
}

/// What is not a PV guest's to ask for, or not of others, with arguments that are in order.
fn foreign(report: &Report) {
    // Domain, space or size, index, page.
    let physmap = |id: u16, space: u32| op(7, &mut [u64::from(id) | u64::from(space) << 32, 0, 0, 0]);
    report.saw_all("add_to_physmap: each space", (0..7).map(|space| physmap(SELF, space)));
    report.saw("of no domain", physmap(NO_DOMAIN, 0));
    let batch = |id: u16, space: u16, size: u16| op(23, &mut [u64::from(id) | u64::from(space) << 16 | u64::from(size) << 32, 0, 0, 0, 0]);
    report.saw_all("add_to_physmap_batch: none, one, of no domain", [batch(SELF, 2, 0), batch(SELF, 2, 1), batch(NO_DOMAIN, 2, 1)]);
    let remove = |id: u16, gfn: u64| op(15, &mut [u64::from(id), gfn]);
    report.saw_all("remove_from_physmap: ours, none, of no domain", [remove(SELF, Page::new().mfn()), remove(SELF, NO_FRAME), remove(NO_DOMAIN, 0)]);
    let mut map = [0_u64; 64];
    let mut set = |id: u16, count: u32, at: u64| op(13, &mut [u64::from(id), u64::from(count), if at == 0 { address(&mut map) } else { at }]);
    report.saw_all("set_memory_map: none, 1024 nowhere, 1025, of no domain", [
        set(NO_DOMAIN, 0, 0),
        set(SELF, 1024, bad::UNMAPPED),
        set(SELF, 1025, bad::UNMAPPED),
        set(NO_DOMAIN, 1, 0),
    ]);
    let claim = |pages: u64, id: u16, order: u32, flags: u32, at: u64| op(24, &mut [at, pages, u64::from(order) | u64::from(flags) << 32, u64::from(id)]);
    report.saw_all("claim_pages: a list, an order, flags, of no domain, more than there are", [
        claim(1, SELF, 0, 0, bad::UNMAPPED),
        claim(1, SELF, 1, 0, 0),
        claim(1, SELF, 0, 1, 0),
        claim(1, NO_DOMAIN, 0, 0, 0),
        claim(1 << 40, SELF, 0, 0, 0),
    ]);
    let pod = |command: u64, id: u16| op(command, &mut [0, 0, 0, 0, u64::from(id)]);
    report.saw_all("set, get_pod_target: ours, of no domain", [pod(16, SELF), pod(17, SELF), pod(16, NO_DOMAIN), pod(17, NO_DOMAIN)]);
    let nodes = |id: u16, pad: u16| op(26, &mut [u64::from(id) | u64::from(pad) << 16, 0, 0, 0, 0, 0, 0]);
    report.saw_all("get_vnumainfo: ours, padded, of no domain", [nodes(SELF, 0), nodes(SELF, 1), nodes(NO_DOMAIN, 0)]);
    // Flags, entries and where; a device by segment, bus and function.
    let reserved = |flags: u32| op(27, &mut [u64::from(flags), 0, 0]);
    report.saw_all("reserved_device_memory_map: of one, of all, an unknown flag", [0, 1, 2].map(reserved));
    let resource = |id: u16, kind: u16, which: u32, count: u32, pad: u32| {
        op(28, &mut [u64::from(id) | u64::from(kind) << 16 | u64::from(which) << 32, u64::from(count) | u64::from(pad) << 32, 0, 0])
    };
    report.saw_all("acquire_resource: of ourselves, of no domain, padded", [resource(SELF, 1, 0, 0, 0), resource(NO_DOMAIN, 1, 0, 0, 0), resource(NO_DOMAIN, 1, 0, 0, 1)]);
}

fn exchanging(report: &mut Report) -> Verdict {
    let exchange = |inward: &mut [u64], outward: &mut [u64], orders: (u32, u32), change: &dyn Fn(&mut MemoryExchange)| {
        let mut request = MemoryExchange::new_zeroed();
        request.in_ = reservation(inward, orders.0);
        request.out = reservation(outward, orders.1);
        change(&mut request);
        let answer = op(11, &mut request);
        (answer, request.nr_exchanged)
    };
    let show = |report: &Report, name: &str, outcome: (Answer, u64)| report.saw(name, format_args!("{} {}", outcome.0, outcome.1));
    let (page, mfn) = spare()?;
    let pfn = page.address() >> 12;
    let mut outward = [pfn];
    show(report, "one for one", exchange(&mut [mfn], &mut outward, (0, 0), &|_| {}));
    report.check("another frame, which counts as the page", outward[0] != pfn && memory::m2p(outward[0]) == Some(pfn));
    memory::set_p2m(pfn, outward[0]);
    report.saw("mapped", memory::map(page.address(), outward[0], memory::ORDINARY));
    report.saw("the old one is gone", memory::map(Page::new().address(), mfn, memory::READ_ONLY).is_ok());
    let used = Page::new();
    show(report, "one that is mapped", exchange(&mut [used.mfn()], &mut [used.address() >> 12], (0, 0), &|_| {}));
    show(report, "a table", exchange(&mut [tables::root_mfn()], &mut [1], (0, 0), &|_| {}));
    show(report, "no frame", exchange(&mut [NO_FRAME], &mut [1], (0, 0), &|_| {}));
    used.set_word(0, 1);
    let (_, mfn) = spare()?;
    let with = |report: &Report, name: &str, change: &dyn Fn(&mut MemoryExchange)| {
        show(report, name, exchange(&mut [mfn], &mut [1], (0, 0), change));
    };
    with(report, "counts that do not match", &|request| request.out.nr_extents = 2);
    with(report, "orders that do not match", &|request| request.out.extent_order = 1);
    with(report, "order 19", &|request| (request.in_.extent_order, request.out.extent_order) = (19, 19));
    with(report, "huge counts", &|request| (request.in_.nr_extents, request.out.nr_extents) = (1 << 62, 1 << 62));
    with(report, "order and count that wrap", &|request| {
        (request.in_.nr_extents, request.in_.extent_order) = (1 << 63, 1);
        (request.out.nr_extents, request.out.extent_order) = (1, 0);
    });
    with(report, "other domains", &|request| request.in_.domid.0 = NO_DOMAIN);
    with(report, "two domains", &|request| request.out.domid.0 = start::domid().unwrap_or(0));
    with(report, "already beyond the end", &|request| request.nr_exchanged = 5);
    with(report, "already done", &|request| request.nr_exchanged = 1);
    with(report, "input nowhere", &|request| request.in_.extent_start = bad::UNMAPPED);
    with(report, "output nowhere", &|request| request.out.extent_start = bad::UNMAPPED);
    with(report, "output in the hypervisor", &|request| request.out.extent_start = bad::HYPERVISORS);
    with(report, "output beyond the hypervisor's start", &|request| request.out.extent_start = bad::HYPERVISORS_TOO);
    Ok(())
}
