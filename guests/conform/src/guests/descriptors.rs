//! Descriptor tables: which descriptors a guest may have, how a page becomes a table of them, and what it may not.
//!
//! The CPU loads descriptors in ring 0's name, so a guest must not have one that leads there: no system segments, no
//! gates into the hypervisor's code, nothing of a privilege that is not its own. Promised by: public/xen.h
//! (`set_gdt`, `update_descriptor`), SDM 3A "Segment Descriptors". In the spirit of XSA-212's gate.

use pv::code::Code;
use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page};
use pv::tables::{self, ext};
use pv::trap::General;
use pv::{Answer, start, user};

use crate::bad;
use crate::report::{End, Report, Verdict};

/// Name and bits (SDM 3A "Segment Descriptors").
const DESCRIPTORS: [(&str, u64); 22] = [
    ("nothing", 0),
    ("not present, all else set", 0xffff_7fff_ffff_ffff),
    ("64-bit code, DPL 3", 0x00af_fb00_0000_ffff),
    ("64-bit code, DPL 3, not accessed", 0x00af_fa00_0000_ffff),
    ("64-bit code, DPL 0", 0x00af_9b00_0000_ffff),
    ("64-bit code, DPL 1", 0x00af_bb00_0000_ffff),
    ("64-bit code, conforming", 0x00af_ff00_0000_ffff),
    ("64-bit code, and the 32-bit flag", 0x00ef_fb00_0000_ffff),
    ("32-bit code, DPL 3", 0x00cf_fb00_0000_ffff),
    ("16-bit code, DPL 3, small", 0x0000_fb00_0000_0fff),
    ("data, DPL 3", 0x00cf_f300_0000_ffff),
    ("data, DPL 0", 0x00cf_9300_0000_ffff),
    ("data, expand down", 0x00cf_f700_0000_ffff),
    ("data, read-only, with a base", 0x12cf_f134_5678_ffff),
    ("call gate to the hypervisor, DPL 3", 0xffff_ec00_e008_1000),
    ("call gate to guest code, DPL 3", 0x0010_ec00_e033_0000),
    ("interrupt gate, DPL 3", 0x0010_ee00_e033_0000),
    ("trap gate, DPL 3", 0x0010_ef00_e033_0000),
    ("task, available", 0x0000_e900_1000_0067),
    ("LDT", 0x0000_e200_1000_ffff),
    ("task gate", 0x0000_e500_e040_0000),
    ("data, long-mode flag", 0x00ef_f300_0000_ffff),
];

fn set_gdt(frames: &mut [u64], entries: u64) -> Answer {
    call(number::SET_GDT, [address(frames), entries])
}

fn update(maddr: u64, descriptor: u64) -> Answer {
    call(number::UPDATE_DESCRIPTOR, [maddr, descriptor])
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let gdt = Page::new();
    arguments(report, gdt)?;
    one_by_one(report, gdt)?;
    whole_pages(report)?;
    in_use(report, gdt)?;
    local(report)
}

fn arguments(report: &mut Report, gdt: Page) -> Verdict {
    report.saw("set_gdt to a page that is mapped writable", set_gdt(&mut [gdt.mfn()], 512));
    gdt.seal()?;
    report.saw("sealed", set_gdt(&mut [gdt.mfn()], 512));
    report.saw("mapped writable then", memory::map(gdt.address(), gdt.mfn(), ORDINARY));
    report.saw("as a page table", tables::pin(1, gdt.mfn()));
    report.saw("set_gdt to none", set_gdt(&mut [], 0));
    report.saw_all("set_gdt: 1, 511, 512 entries", [1, 511, 512].map(|entries| set_gdt(&mut [gdt.mfn()], entries)));
    report.saw("the same page 14 times", set_gdt(&mut [gdt.mfn(); 14], 7168));
    report.saw_all("7169, 8192, all", [7169, 8192, u64::MAX].map(|entries| set_gdt(&mut [gdt.mfn(); 16], entries)));
    report.saw_all("frames: none, a table, the shared page", [
        set_gdt(&mut [bad::NO_FRAME], 512),
        set_gdt(&mut [tables::root_mfn()], 512),
        set_gdt(&mut [start::info().shared_info >> 12], 512),
    ]);
    report.saw("a good and a bad one", set_gdt(&mut [gdt.mfn(), bad::NO_FRAME], 1024));
    report.saw_pointers("set_gdt", |pointer| call(number::SET_GDT, [pointer, 512]));
    report.saw("and the good one at the end", set_gdt(&mut [gdt.mfn()], 512));
    let entry = gdt.mfn() << 12;
    let data = DESCRIPTORS[10].1;
    report.saw_all("update_descriptor: odd, a page table, no frame, the shared page", [
        update(entry + 4, data),
        update(tables::root_mfn() << 12, data),
        update(bad::NO_FRAME << 12, data),
        update(start::info().shared_info, data),
    ]);
    let page = Page::new();
    report.saw("to a data page", update(page.mfn() << 12, data));
    report.saw("which has it", page.word(0) == data);
    Ok(())
}

fn one_by_one(report: &mut Report, gdt: Page) -> Verdict {
    for (name, descriptor) in DESCRIPTORS {
        update((gdt.mfn() << 12) + 64, 0);
        let answer = update((gdt.mfn() << 12) + 64, descriptor);
        report.saw(name, format_args!("{answer}, reads {:x}", gdt.word(8)));
    }
    Ok(())
}

/// The same, found in a page that is to become a table.
fn whole_pages(report: &mut Report) -> Verdict {
    for (name, descriptor) in DESCRIPTORS {
        let page = Page::new();
        page.set_word(77, descriptor);
        page.seal()?;
        let answer = set_gdt(&mut [page.mfn()], 512);
        report.saw(format_args!("in a page: {name}"), format_args!("{answer}, reads {:x}", page.word(77)));
        set_gdt(&mut [], 0);
    }
    Ok(())
}

/// What the CPU makes of them: `lar` and `lsl` of each, and running on them.
fn in_use(report: &mut Report, gdt: Page) -> Verdict {
    set_gdt(&mut [gdt.mfn()], 512).ok()?;
    let mut code = Code::new();
    // lar rbx, eax; lsl rdx, eax
    code.set(&[0x31, 0xdb, 0x31, 0xd2, 0x0f, 0x02, 0xd8, 0x0f, 0x03, 0xd0]);
    for (name, index) in [("64-bit code, DPL 3", 2), ("data, DPL 3", 10), ("nothing", 0)] {
        update((gdt.mfn() << 12) + 64, DESCRIPTORS[index].1).ok()?;
        let mut registers = General { rax: 0x43, ..General::default() };
        code.in_kernel(&mut registers).map_err(|_| End::Fail("lar faults"))?;
        report.saw(format_args!("lar, lsl: {name}"), format_args!("{:x} {:x}", registers.rbx, registers.rdx));
    }
    let see = |name: &str, selector: u64| {
        let mut registers = General { rax: selector, ..General::default() };
        code.in_kernel(&mut registers).map_err(|_| End::Fail("lar faults"))?;
        report.saw(format_args!("lar, lsl: {name}"), format_args!("{:x} {:x}", registers.rbx, registers.rdx));
        Ok::<(), End>(())
    };
    for (name, selector) in [
        ("null", 0),
        ("the hypervisor's code", 0xe008),
        ("the hypervisor's data", 0xe010),
        ("flat 32-bit code", 0xe023),
        ("flat data", 0xe02b),
        ("flat 64-bit code", 0xe033),
        ("beyond the flat ones", 0xe078),
        ("the last", 0xfff8),
    ] {
        see(name, selector)?;
    }
    update((gdt.mfn() << 12) + 64, DESCRIPTORS[2].1).ok()?;
    let mut leave = Code::new();
    leave.set(&[0x8c, 0xcb, 0x0f, 0x05]);
    let at = user::Start::at_address(leave.address(), General::default());
    let frame = user::enter(&user::Start { cs: 0x43, ..at });
    report.saw("user mode on its own code segment", format_args!("{frame}, cs was {:x}", frame.general.rbx));
    update((gdt.mfn() << 12) + 64, 0).ok()?;
    let frame = user::enter(&user::Start { cs: 0x43, ..at });
    report.saw("when that is gone", frame);
    // Data segments: what a bad one does to the register.
    let mut load = Code::new();
    load.set(&[0x8e, 0xd8, 0x8c, 0xdb, 0x31, 0xc0, 0x8e, 0xd8]);
    for (name, selector) in [("null", 0), ("flat data", 0xe02b), ("the hypervisor's", 0xe010), ("code", 0xe033), ("empty", 0x4b), ("far", 0xfffb)] {
        let mut registers = General { rax: selector, ..General::default() };
        match load.in_kernel(&mut registers) {
            Ok(()) => report.saw(format_args!("mov ds: {name}"), format_args!("{:x}", registers.rbx & 0xffff)),
            Err(frame) => report.saw(format_args!("mov ds: {name}"), frame),
        }
    }
    set_gdt(&mut [], 0).ok()?;
    Ok(())
}

fn local(report: &mut Report) -> Verdict {
    let ldt = Page::new();
    for (index, (_, descriptor)) in DESCRIPTORS.iter().enumerate() {
        ldt.set_word(index, *descriptor);
    }
    tables::extended(ext::SET_LDT, ldt.address(), 64).ok()?;
    let mut load = Code::new();
    // mov es, eax; mov ebx, es; mov es, 0
    load.set(&[0x8e, 0xc0, 0x8c, 0xc3, 0x31, 0xc0, 0x8e, 0xc0]);
    let try_load = |selector: u64| {
        let mut registers = General { rax: selector, ..General::default() };
        load.in_kernel(&mut registers).map(|()| registers.rbx & 0xffff)
    };
    let show = |report: &Report, name: &str, outcome: Result<u64, pv::trap::Frame>| match outcome {
        Ok(selector) => report.saw(name, format_args!("{selector:x}")),
        Err(frame) => report.saw(name, frame),
    };
    show(report, "LDT with bad descriptors, a data segment of it", try_load(10 << 3 | 7));
    for index in (3..8).chain([14, 15, 16, 17, 18, 19, 20, 21, 11]) {
        ldt.set_word(index, 0);
    }
    show(report, "without the bad ones, but writable", try_load(10 << 3 | 7));
    ldt.seal()?;
    show(report, "sealed", try_load(10 << 3 | 7));
    report.saw("mapped writable, in use", memory::map(ldt.address(), ldt.mfn(), ORDINARY));
    show(report, "nothing there", try_load(3 << 3 | 7));
    show(report, "its first", try_load(7));
    show(report, "beyond its end", try_load(64 << 3 | 7));
    let mut leave = Code::new();
    leave.set(&[0x0f, 0x05]);
    let at = user::Start::at_address(leave.address(), General::default());
    let frame = user::enter(&user::Start { cs: 2 << 3 | 7, ..at });
    report.saw("user mode on its code", frame);
    tables::extended(ext::SET_LDT, 0, 0).ok()?;
    show(report, "gone", try_load(10 << 3 | 7));
    report.saw("mapped writable, no longer in use", memory::map(ldt.address(), ldt.mfn(), ORDINARY));
    Ok(())
}
