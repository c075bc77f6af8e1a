//! XSA-67 (CVE-2013-4368) and XSA-63 (CVE-2013-4355): what an emulated string instruction reads and writes.
//!
//! `outs` and `ins` that the hypervisor carries out must use the segment's base, and must stop where the guest's memory
//! ends; `outs` with FS or GS went to the wrong address, and a failed `ins` gave the guest what lay on the hypervisor's
//! stack. Port 0x80 is a place to write to; the addresses are good, unmapped, and the hypervisor's, with and without a
//! base that makes the difference.

use pv::code::Code;
use pv::hypercall::{address, call, number};
use pv::memory::Page;
use pv::trap::General;

use crate::bad;
use crate::report::{Ended, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    call(number::PHYSDEV_OP, [6, address(&mut [1_u32, 0])]).ok()?;
    let page = Page::new();
    call(number::SET_SEGMENT_BASE, [0, page.address()]).ok()?;
    call(number::SET_SEGMENT_BASE, [2, bad::UNMAPPED]).ok()?;
    let mut code = Code::new();
    let ways: [(&str, &[u8]); 5] = [
        ("outsb", &[0x6e]),
        ("fs outsb", &[0x64, 0x6e]),
        ("gs outsb", &[0x65, 0x6e]),
        ("insb", &[0x6c]),
        ("fs insb", &[0x64, 0x6c]),
    ];
    for (name, bytes) in ways {
        code.set(bytes);
        for (what, place) in [("0", 0), ("8", 8), ("a page", page.address()), ("nothing", bad::UNMAPPED), ("the hypervisor", bad::HYPERVISORS_TOO)] {
            let start = General { rdx: 0x80, rsi: place, rdi: place, ..General::default() };
            let mut registers = start;
            let ended = code.in_kernel(&mut registers);
            let about = match &ended {
                Err(frame) if frame.error_code.is_some() => match frame.cr2 {
                    bad::UNMAPPED => ", at what is not mapped",
                    bad::HYPERVISORS_TOO => ", at the hypervisor",
                    0 | 8 => ", at the start",
                    _ => "",
                },
                _ => "",
            };
            let moved = registers.rsi.wrapping_sub(start.rsi) + registers.rdi.wrapping_sub(start.rdi);
            report.saw(format_args!("{name} at {what}"), format_args!("{}{about}, moved {moved}", Ended(ended)));
        }
    }
    call(number::SET_SEGMENT_BASE, [0, 0]).ok()?;
    call(number::SET_SEGMENT_BASE, [2, 0]).ok()?;
    Ok(())
}
