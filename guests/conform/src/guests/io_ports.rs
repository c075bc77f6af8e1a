//! I/O privilege: `set_iopl`, `set_iobitmap`, the flags, and which ports there are behind them.
//!
//! Nothing but the hypervisor's word lets a guest at a port: IOPL in the flags it sees is a fiction. Domain 0 reaches
//! most ports, but not those that the hypervisor drives itself. Promised by: public/physdev.h, public/xen.h
//! (`VMASST_TYPE_architectural_iopl`). In the spirit of XSA-171 and XSA-174.

use pv::code::Code;
use pv::hypercall::{address, call, number};
use pv::memory::Page;
use pv::trap::{Frame, General};
use pv::user;

use crate::bad;
use crate::report::{Report, Verdict};

const SET_IOPL: u64 = 6;
const SET_IOBITMAP: u64 = 7;

fn set_iopl(level: u32) -> pv::Answer {
    call(number::PHYSDEV_OP, [SET_IOPL, address(&mut [level, 0])])
}

fn set_bitmap(bitmap: u64, ports: u32) -> pv::Answer {
    call(number::PHYSDEV_OP, [SET_IOBITMAP, address(&mut [bitmap, ports.into()])])
}

fn word(outcome: Result<(), Frame>) -> &'static str {
    match outcome {
        Ok(()) => "done",
        Err(frame) if frame.cause == pv::trap::Cause::Vector(13) => "#GP",
        Err(_) => "another trap",
    }
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    // in al, dx
    code.set(&[0xec]);
    let try_port = |code: &Code, port: u64| {
        let registers = || General { rdx: port, ..General::default() };
        [word(code.in_kernel(&mut registers())), word(code.in_user(&mut registers()))]
    };
    report.saw_all("as it starts, port 0x80: kernel, user", try_port(&code, 0x80));
    for level in [0, 1, 2, 3, 4, !0] {
        report.saw(format_args!("set_iopl {level}"), set_iopl(level));
        report.saw_all("port 0x80", try_port(&code, 0x80));
    }
    set_iopl(0).ok()?;
    let bitmap = Page::new();
    bitmap.fill(!0);
    // Port 0x80 alone.
    bitmap.set_byte(16, 0xfe);
    report.saw("set_iobitmap", set_bitmap(bitmap.address(), 1024));
    report.saw_all("port 0x80, 0x81", try_port(&code, 0x80).into_iter().chain(try_port(&code, 0x81)));
    let mut wide = Code::new();
    // in ax, dx
    wide.set(&[0x66, 0xed]);
    report.saw_all("0x80 and 0x81 in one", try_port(&wide, 0x80));
    report.saw_all("bitmaps: 65536 ports, 65537, too many, none", [
        set_bitmap(bitmap.address(), 65_536),
        set_bitmap(bitmap.address(), 65_537),
        set_bitmap(bitmap.address(), !0),
        set_bitmap(0, 0),
    ]);
    report.saw_all("bitmaps: nowhere, the hypervisor's, not canonical", [
        set_bitmap(bad::UNMAPPED, 1024),
        set_bitmap(bad::HYPERVISORS, 1024),
        set_bitmap(bad::NON_CANONICAL, 1024),
    ]);
    set_bitmap(bad::UNMAPPED, 1024).ok()?;
    report.saw_all("with a bitmap nowhere, port 0x80", try_port(&code, 0x80));
    set_bitmap(0, 0).ok()?;

    set_iopl(1).ok()?;
    for (name, port) in [
        ("the PIC", 0x20),
        ("the second PIC", 0xa1),
        ("the timer", 0x40),
        ("the speaker", 0x61),
        ("the CMOS", 0x71),
        ("the first serial port", 0x3f8),
        ("the second", 0x2f8),
        ("PCI configuration", 0xcf8),
        ("the VGA", 0x3c8),
        ("the last port", 0xffff),
    ] {
        let mut registers = General { rdx: port, ..General::default() };
        let outcome = code.in_kernel(&mut registers);
        report.saw(name, format_args!("{}{}", word(outcome), if registers.rax & 0xff == 0xff { ", all ones" } else { "" }));
    }
    let strings: [(&str, &[u8]); 4] = [("outsb", &[0x6e]), ("insb", &[0x6c]), ("rep outsb", &[0xf3, 0x6e]), ("outsb from nowhere", &[0x6e])];
    for (name, bytes) in strings {
        code.set(bytes);
        let buffer = if name.ends_with("nowhere") { bad::UNMAPPED } else { bitmap.address() };
        let mut registers = General { rdx: 0x80, rcx: 8, rsi: buffer, rdi: buffer, ..General::default() };
        match code.in_kernel(&mut registers) {
            Ok(()) => report.saw(name, format_args!("done, moved {}, left {}", registers.rsi - buffer + registers.rdi - buffer, registers.rcx)),
            Err(frame) => report.saw(name, frame),
        }
    }
    // The flags: what popf can change.
    let mut flags = Code::new();
    // push rax; popf; pushf; pop rbx; push 0x202; popf
    flags.set(&[0x50, 0x9d, 0x9c, 0x5b, 0x68, 2, 2, 0, 0, 0x9d]);
    for value in [0x0, 0x202, 0x3202, 0x7202, 0x24_0202] {
        let mut registers = General { rax: value, ..General::default() };
        let outcome = flags.in_kernel(&mut registers);
        report.saw(format_args!("popf {value:x}"), format_args!("{}, then {:x}", word(outcome), registers.rbx));
    }
    Ok(())
}
