//! XSA-224 (CVE-2017-10920 to 10922) and XSA-394 (CVE-2022-23034): grants mapped for a device and for the host.
//!
//! A map can be for the processor, for a device, or for both, and be taken away in parts. The parts were counted apart
//! and taken away together, so that the page was free while the rest of the map stood. Every combination is mapped and
//! taken apart in every order; the offer says "in use" to the last part, and never after it.

use pv::abi::grant_table::{MapGrantRef, UnmapGrantRef, gnttabop};
use pv::grant::{self, Table, gntmap, gtf};
use pv::memory::Page;
use pv::start;
use zerocopy::FromZeros;

use crate::report::{End, Report, Verdict};

fn unmap(handle: u32, host_addr: u64, dev_bus_addr: u64) -> i16 {
    let mut request = UnmapGrantRef::new_zeroed();
    (request.handle, request.host_addr, request.dev_bus_addr) = (handle, host_addr, dev_bus_addr);
    let answer = grant::op(gnttabop::UNMAP_GRANT_REF, core::slice::from_mut(&mut request));
    if answer.is_ok() { request.status.0 } else { -99 }
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    let table = Table::setup()?;
    let (data, window) = (Page::new(), Page::new());
    for (name, flags) in [
        ("the host", gntmap::HOST_MAP),
        ("a device", gntmap::DEVICE_MAP),
        ("both", gntmap::HOST_MAP | gntmap::DEVICE_MAP),
        ("both, read-only", gntmap::HOST_MAP | gntmap::DEVICE_MAP | gntmap::READONLY),
    ] {
        for (order, parts) in [("host, device", [true, false]), ("device, host", [false, true])] {
            table.offer(8, own, data.mfn(), gtf::PERMIT_ACCESS);
            let mut request = MapGrantRef::new_zeroed();
            (request.dom.0, request.gref, request.host_addr, request.flags) = (own, 8, window.address(), flags);
            grant::op(gnttabop::MAP_GRANT_REF, core::slice::from_mut(&mut request)).ok()?;
            report.saw(format_args!("mapped for {name}"), format_args!("{}, flags {}", request.status.0, table.flags(8)));
            let bus = request.dev_bus_addr;
            report.check_quietly("a device's address is the frame's", bus == 0 || bus >> 12 == data.mfn());
            let done = parts.map(|host| {
                let status = if host { unmap(request.handle, window.address(), 0) } else { unmap(request.handle, 0, bus) };
                (status, table.flags(8))
            });
            report.saw(
                format_args!("taken away: {order}"),
                format_args!("{} {}, {} {}", done[0].0, done[0].1, done[1].0, done[1].1),
            );
            // Whatever is left goes now, and then nothing may be.
            unmap(request.handle, window.address(), bus);
            unmap(request.handle, 0, 0);
            report.saw("in the end", table.flags(8));
        }
    }
    report.expect("no use is left", table.flags(8), gtf::PERMIT_ACCESS);
    Ok(())
}
