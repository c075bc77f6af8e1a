//! `console_io`: writing to and reading from the hypervisor's console.
//!
//! Domain 0 may; a domU may not, unless the hypervisor was built to debug. Promised by: public/xen.h
//! (`CONSOLEIO_*`).

use pv::hypercall::{address, call, number};

use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let io = |command: u64, count: u64, pointer: u64| call(number::CONSOLE_IO, [command, count, pointer]);
    let mut bytes = [b'.'; 64];
    let pointer = address(&mut bytes);
    report.saw("write of nothing", io(0, 0, pointer));
    report.saw("read of nothing", io(1, 0, pointer));
    report.saw("read when nobody types", io(1, 64, pointer));
    report.saw_all("no such command", [2, 3, 99].map(|command| io(command, 1, pointer)));
    report.saw_pointers("write", |pointer| io(0, 8, pointer));
    report.saw_pointers("write of nothing", |pointer| io(0, 0, pointer));
    report.saw_pointers("read", |pointer| io(1, 8, pointer));
    report.saw_all("huge counts, bad pointer", [1 << 31, 1 << 32, u64::MAX].map(|count| io(0, count, 0x7f00_0000_0000)));
    Ok(())
}
