//! `vcpu_op`: starting, stopping and asking about vcpus; where they keep their records.
//!
//! Promised by: public/vcpu.h.

use core::sync::atomic::{AtomicU32, Ordering};

use pv::abi::vcpu::{RegisterMemoryArea, RegisterVcpuInfo, RunstateInfo, vcpuop};
use pv::abi::x86::VcpuGuestContext;
use pv::hypercall::{call, number};
use pv::memory::Page;
use pv::{Answer, event, start, tables, vcpu};

use crate::bad;
use crate::report::{End, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let bare = vcpu::bare_op;
    if !bare(vcpuop::IS_UP, 1).is_ok() {
        return Err(End::Skip("needs two vcpus"));
    }
    report.saw_all("is_up of 0, 1, 2, 31, 99, -1", [0, 1, 2, 31, 99, u64::MAX].map(|of| bare(vcpuop::IS_UP, of)));
    report.saw_all("no such command", [14, 99].map(|command| bare(command, 0)));
    for command in [0, 4, 5, 6, 8, 10, 12, 13] {
        report.saw_pointers(format_args!("command {command}"), |pointer| {
            call(number::VCPU_OP, [command, 0, pointer])
        });
    }
    bringing_up(report)?;
    records(report)?;
    moving(report)
}

static STEPS: AtomicU32 = AtomicU32::new(0);

fn bringing_up(report: &mut Report) -> Verdict {
    let bare = vcpu::bare_op;
    report.saw_all("up before initialise; initialise of the running one", [
        bare(vcpuop::UP, 1),
        vcpu::op(vcpuop::INITIALISE, 0, &mut vcpu::context()),
    ]);
    let with = |change: &dyn Fn(&mut VcpuGuestContext)| {
        let mut context = vcpu::context();
        change(&mut context);
        vcpu::op(vcpuop::INITIALISE, 1, &mut context)
    };
    report.saw_all("initialise without a root, with a foreign one, one that is no table", [
        with(&|context| context.ctrlreg[3] = 0),
        with(&|context| context.ctrlreg[3] = bad::NO_FRAME << 12),
        with(&|context| context.ctrlreg[3] = Page::new().mfn() << 12),
    ]);
    report.saw_all("initialise with odd callbacks: event, failsafe, syscall", [
        with(&|context| context.event_callback_eip = bad::NON_CANONICAL),
        with(&|context| context.failsafe_callback_eip = bad::NON_CANONICAL),
        with(&|context| context.syscall_callback_eip = bad::NON_CANONICAL),
    ]);
    report.saw_all("initialise with odd bases, descriptors", [
        with(&|context| context.fs_base = bad::NON_CANONICAL),
        with(&|context| context.gs_base_kernel = bad::NON_CANONICAL),
        with(&|context| context.gs_base_user = bad::NON_CANONICAL),
        with(&|context| context.gdt_ents = 513),
        with(&|context| context.gdt_ents = 7169),
        with(&|context| (context.ldt_ents, context.ldt_base) = (8193, 0x1000)),
        with(&|context| (context.ldt_ents, context.ldt_base) = (1, 0x1001)),
        with(&|context| (context.ldt_ents, context.ldt_base) = (1, bad::HYPERVISORS)),
    ]);
    report.saw("start", vcpu::start(|| {
        STEPS.fetch_add(1, Ordering::SeqCst);
        while STEPS.load(Ordering::SeqCst) < 2 {
            core::hint::spin_loop();
        }
    }));
    report.saw("initialise of one that is up", vcpu::op(vcpuop::INITIALISE, 1, &mut vcpu::context()));
    while STEPS.load(Ordering::SeqCst) < 1 {
        core::hint::spin_loop();
    }
    report.saw_all("it is up; up again", [bare(vcpuop::IS_UP, 1), bare(vcpuop::UP, 1)]);
    report.saw("another takes it down", bare(vcpuop::DOWN, 1));
    report.saw_all("it is down; down again; up", [
        bare(vcpuop::IS_UP, 1),
        bare(vcpuop::DOWN, 1),
        bare(vcpuop::UP, 1),
    ]);
    STEPS.store(2, Ordering::SeqCst);
    while bare(vcpuop::IS_UP, 1) == Answer(1) {
        core::hint::spin_loop();
    }
    report.saw("it took itself down", bare(vcpuop::IS_UP, 1));
    Ok(())
}

fn records(report: &mut Report) -> Verdict {
    let mut state = RunstateInfo::default();
    report.saw("get_runstate_info of 0", vcpu::op(vcpuop::GET_RUNSTATE_INFO, 0, &mut state));
    report.check("it runs, and has run", state.state == 0 && state.time[0] > 0);
    // It counts as down a moment before it has left its CPU.
    while vcpu::op(vcpuop::GET_RUNSTATE_INFO, 1, &mut state) == Answer(0) && state.state == 0 {
        core::hint::spin_loop();
    }
    report.saw("get_runstate_info of 1", vcpu::op(vcpuop::GET_RUNSTATE_INFO, 1, &mut state));
    report.saw("it is", state.state);
    let page = Page::new();
    let area = |command: u64, of: u64, addr: u64| vcpu::op(command, of, &mut RegisterMemoryArea { addr });
    for (name, command) in [("runstate", 5), ("time", 13)] {
        report.saw_all(format_args!("{name} area: ours, of vcpu 1, none"), [
            area(command, 0, page.address()),
            area(command, 1, page.address() + 64),
            area(command, 1, 0),
        ]);
        report.saw_pointers(format_args!("{name} area"), |pointer| area(command, 0, pointer));
    }
    report.saw("runstate area", area(5, 0, page.address() + 512));
    call(number::SCHED_OP, [0, 0]);
    report.saw("the area says", page.word(64) as u32);
    if start::is_dom0() {
        report.saw("get_physid unless pinned", vcpu::op(vcpuop::GET_PHYSID, 0, &mut [0_u64]));
    }
    report.saw("send_nmi to a vcpu that is not there", vcpu::bare_op(vcpuop::SEND_NMI, 9));
    Ok(())
}

fn moving(report: &mut Report) -> Verdict {
    let page = Page::new();
    let register = |of: u64, mfn: u64, offset: u32| {
        vcpu::op(vcpuop::REGISTER_VCPU_INFO, of, &mut RegisterVcpuInfo { mfn, offset, rsvd: 0 })
    };
    report.saw_all("vcpu_info across the end, off its alignment", [4095, 4064, 4096, !0, 4, 1].map(|offset| {
        register(1, page.mfn(), offset)
    }));
    report.saw_all("vcpu_info on a frame that is not there, a page table", [
        register(1, bad::NO_FRAME, 0),
        register(1, tables::root_mfn(), 0),
    ]);
    report.saw("vcpu_info of vcpu 9", register(9, page.mfn(), 0));
    page.fill(!0);
    report.saw("vcpu_info of 1", register(1, page.mfn(), 128));
    report.saw("what it holds", format_args!("{:x} {:x}", page.word(16), page.word(17)));
    report.saw("again", register(1, page.mfn(), 256));
    // Our own, while it runs.
    let port = event::bind_ipi(0)?;
    page.fill(0);
    report.saw("vcpu_info of 0", register(0, page.mfn(), 1024));
    event::vcpu_info_moved(0, page.address() + 1024);
    report.saw("what it holds", format_args!("{:x} {:x}", page.word(128) & 0xffff, page.word(129)));
    event::set_mask(port, false);
    event::set_upcall_mask(false);
    let before = event::upcalls(0);
    event::send(port).ok()?;
    report.expect("an upcall through the new place", event::upcalls(0) - before, 1);
    report.saw("the page cannot become a table now", tables::pin(1, page.mfn()));
    Ok(())
}
