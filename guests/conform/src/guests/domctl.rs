//! `domctl`: every command by its number, and each that a toolstack needs, rightly and wrongly asked for.
//!
//! First all numbers that there are, and some that there are not: of nobody, of ourselves, and of a domain that was made
//! for it, with an operand of zeros, of ones, and of addresses that lead nowhere. That tells what is built in at all,
//! what is refused to whom, and in which order things are looked at. Then the commands of a toolstack, one by one: each
//! field of their operands must count for something, and a value that it cannot have must be refused.
//! Promised by: public/domctl.h.

use pv::abi::domctl::{
    AddressSize, CpuPolicy, CpuidLeaf, Createdomain, DomctlCmd, ExtVcpucontext, Getdomaininfo, Getpageframeinfo3, Getvcpuinfo, HypercallInit,
    IomemPermission, IoportPermission, IrqPermission, MaxMem, MaxVcpus, MemoryMapping, MsrEntry, Nodeaffinity, SchedCredit, SchedulerCmd, SchedulerId,
    SchedulerOp, Sendtrigger, SetTarget, SetVirqHandler, Setdebugging, Setdomainhandle, Settimeoffset, ShadowOp, ShadowOpCmd, Subscribe, Trigger,
    TscInfo, VcpuMsr, VcpuMsrs, Vcpuaffinity, Vcpucontext, Vcpuextstate, XenctlBitmap, cdf, dominf,
};
use pv::abi::sched::{RemoteShutdown, schedop};
use pv::hypercall::{address, call, number};
use pv::memory::Page;
use pv::{Answer, event, start};
use zerocopy::FromZeros;

use crate::bad::{HYPERVISORS, NO_FRAME, UNMAPPED};
use crate::host::{self, Child};
use crate::report::{End, Hex, Report, Verdict};

/// Domain 0's id, which is ours.
const OURS: u16 = 0;
/// A domain that is not there, nor will be among those that are made here.
const NOBODY: u16 = 0x7000;

/// `SHUTDOWN_suspend`
const SUSPEND: u32 = 2;

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !start::is_dom0() {
        return Err(End::Skip("domains are Domain 0's to control"));
    }
    every_number(report)?;
    creating(report)?;
    limits(report)?;
    vcpus(report)?;
    scheduling(report)?;
    permissions(report)?;
    time(report)?;
    policy(report)?;
    saving(report)?;
    ending(report)
}

fn every_number(report: &Report) -> Verdict {
    for cmd in (0..=90).chain(998..=1005).map(DomctlCmd) {
        let ask = |id: u16, word: u64| host::domctl(id, cmd, &mut [word; 16]);
        let name = cmd.name().unwrap_or("no command");
        if cmd == DomctlCmd::CREATEDOMAIN {
            report.saw_all(format_args!("{} {name}: zeros, ones", cmd.0), [ask(0, 0), ask(0, !0)]);
            continue;
        }
        // Zeros would send us an NMI, for which we are not ready here.
        let ourselves = ask(OURS, if cmd == DomctlCmd::SENDTRIGGER { !0 } else { 0 });
        let child = Child::new(1)?;
        let answers = [ask(NOBODY, 0), ask(0x7ff4, 0), ourselves, ask(child.id, 0)];
        let more = [!0, UNMAPPED].map(|word| ask(child.id, word));
        report.saw_all(
            format_args!("{} {name}: of nobody, of no id, of ourselves, zeros, ones, addresses", cmd.0),
            answers.into_iter().chain(more),
        );
    }
    Ok(())
}

fn info_of(id: u16) -> Result<Getdomaininfo, Answer> {
    let mut info = Getdomaininfo::new_zeroed();
    host::domctl(id, DomctlCmd::GETDOMAININFO, &mut info).ok()?;
    Ok(info)
}

fn creating(report: &mut Report) -> Verdict {
    let with = |change: &dyn Fn(&mut Createdomain)| {
        let mut wanted = host::ordinary();
        change(&mut wanted);
        Child::create(0, wanted).map_or_else(|refused| refused, |_| Answer::OK)
    };
    report.saw_all("createdomain: each flag", (0..9).map(|bit| with(&|wanted| wanted.flags = 1 << bit)));
    report.saw("HVM with HAP", with(&|wanted| wanted.flags = cdf::HVM | cdf::HAP));
    report.saw_all("IOMMU options", [1, 2].map(|options| with(&|wanted| wanted.iommu_opts = options)));
    report.saw_all("vcpus: 0, 1, 128, 8192, 8193, all ones", [0, 1, 128, 8192, 8193, !0].map(|max| with(&|wanted| wanted.max_vcpus = max)));
    report.saw_all("ports: 0, 1, 63, 1023, all ones", [0, 1, 63, 1023, !0].map(|max| with(&|wanted| wanted.max_evtchn_port = max)));
    report.saw_all(
        "grant frames: none, 1, 64, 65, the most, the least number",
        [0, 1, 64, 65, i32::MAX, i32::MIN].map(|max| with(&|wanted| wanted.max_grant_frames = max)),
    );
    report.saw_all(
        "maptrack frames: none, 1, 1024, 1025, the most, the least number",
        [0, 1, 1024, 1025, i32::MAX, i32::MIN].map(|max| with(&|wanted| wanted.max_maptrack_frames = max)),
    );
    report.saw_all("grant versions 0 to 3, an unknown option", [0, 1, 2, 3, 0x11].map(|options| with(&|wanted| wanted.grant_opts = options)));
    report.saw_all("a trace of 1, 4096 bytes", [1, 4096].map(|size| with(&|wanted| wanted.vmtrace_size = size)));
    report.saw_all("pools 0, 1, all ones", [0, 1, !0].map(|pool| with(&|wanted| wanted.cpupool_id = pool)));
    report.saw_all("each device", (0..12).map(|bit| with(&|wanted| wanted.arch.emulation_flags = 1 << bit)));
    report.saw_all("registers: relaxed, an unknown option", [1, 2].map(|flags| with(&|wanted| wanted.arch.misc_flags = flags)));
    report.saw("a label", with(&|wanted| wanted.ssidref = 5));
    let named = |id: u16| Child::create(id, host::ordinary()).map_or_else(|refused| refused, |child| Answer(child.id.into()));
    report.saw_all("of an id: 99, reserved, invalid, all ones", [0x7fef, 0x7ff0, 0x7ff4, 0xffff].map(|id| Answer(i64::from(named(id).is_ok()))));
    let child = Child::create(99, host::ordinary())?;
    report.saw("of one that is there", named(99));
    let info = info_of(99)?;
    report.saw_all(
        "getdomaininfo: flags, pages, vcpus, highest",
        [info.flags.into(), info.tot_pages, info.nr_online_vcpus.into(), info.max_vcpu_id.into()].map(Hex),
    );
    report.saw_all(
        "claimed, shared, paged, time, label, pool, devices, options, address bits",
        [
            info.outstanding_pages,
            info.shr_pages,
            info.paged_pages,
            info.cpu_time,
            info.ssidref.into(),
            info.cpupool.into(),
            info.arch_config.emulation_flags.into(),
            info.arch_config.misc_flags.into(),
            info.gpaddr_bits.into(),
        ]
        .map(Hex),
    );
    report.saw("the one from 98", host::domctl(98, DomctlCmd::GETDOMAININFO, &mut [0_u64; 14]));
    report.saw("setdomainhandle", host::domctl(99, DomctlCmd::SETDOMAINHANDLE, &mut Setdomainhandle { handle: [7; 16] }));
    report.check("it is told", info_of(99)?.handle == [7; 16]);
    drop(child);
    let wanted = Createdomain {
        flags: cdf::XS_DOMAIN,
        ..host::ordinary()
    };
    let store = Child::create(0, wanted)?;
    report.saw("a domain for xenstore says so", info_of(store.id)?.flags & dominf::XS_DOMAIN != 0);
    Ok(())
}

fn limits(report: &mut Report) -> Verdict {
    let child = Child::create(0, host::ordinary())?;
    let max = |max: u32| host::domctl(child.id, DomctlCmd::MAX_VCPUS, &mut MaxVcpus { max });
    report.saw_all("max_vcpus: 5 of 4, 0, 3, 4, again, 3", [5, 0, 3, 4, 4, 3].map(max));
    for max_memkb in [0, 3, 4, 4097, u64::MAX] {
        let answer = host::domctl(child.id, DomctlCmd::MAX_MEM, &mut MaxMem { max_memkb });
        report.saw(
            format_args!("max_mem of {max_memkb:x} KiB, and the pages that makes"),
            format_args!("{answer} {:x}", info_of(child.id)?.max_pages),
        );
    }
    Ok(())
}

fn vcpus(report: &mut Report) -> Verdict {
    let child = Child::new(2)?;
    let id = child.id;
    let context = |cmd: DomctlCmd, vcpu: u32, ctxt: u64| host::domctl(id, cmd, &mut Vcpucontext { vcpu, pad: 0, ctxt });
    report.saw_all(
        "getvcpucontext: of a new one, of vcpu 2, of all ones",
        [0, 2, !0].map(|vcpu| context(DomctlCmd::GETVCPUCONTEXT, vcpu, UNMAPPED)),
    );
    report.saw_all("setvcpucontext: none, of vcpu 2, of all ones, nowhere", [
        context(DomctlCmd::SETVCPUCONTEXT, 0, 0),
        context(DomctlCmd::SETVCPUCONTEXT, 2, 0),
        context(DomctlCmd::SETVCPUCONTEXT, !0, 0),
        context(DomctlCmd::SETVCPUCONTEXT, 0, UNMAPPED),
    ]);
    let ask = |vcpu: u32| {
        let mut wanted = Getvcpuinfo { vcpu, ..Getvcpuinfo::default() };
        (host::domctl(id, DomctlCmd::GETVCPUINFO, &mut wanted), wanted)
    };
    report.saw_all("getvcpuinfo of 0, 1, 2, all ones", [0, 1, 2, !0].map(|vcpu| ask(vcpu).0));
    let (_, told) = ask(1);
    report.saw_all(
        "online, blocked, running, time",
        [told.online.into(), told.blocked.into(), told.running.into(), told.cpu_time],
    );
    let trigger = |trigger: u32, vcpu: u32| {
        let trigger = Trigger(trigger);
        host::domctl(id, DomctlCmd::SENDTRIGGER, &mut Sendtrigger { trigger, vcpu })
    };
    report.saw_all("sendtrigger: each", (0..6).map(|kind| trigger(kind, 0)));
    report.saw_all("each, to vcpu 2", (0..6).map(|kind| trigger(kind, 2)));
    let size = |size: u32| host::domctl(id, DomctlCmd::SET_ADDRESS_SIZE, &mut AddressSize { size });
    report.saw_all("set_address_size: 64, 32, 0, 16, all ones", [64, 32, 0, 16, !0].map(size));
    let mut width = AddressSize { size: 0 };
    report.saw("get_address_size", host::domctl(id, DomctlCmd::GET_ADDRESS_SIZE, &mut width));
    report.saw("that is", width.size);
    let debugging = |(id, enable): (u16, u8)| host::domctl(id, DomctlCmd::SETDEBUGGING, &mut Setdebugging { enable });
    report.saw_all("setdebugging: on, off, on for ourselves", [(id, 1), (id, 0), (OURS, 1)].map(debugging));
    let target = |id: u16, target: u16| {
        let mut wanted = SetTarget::new_zeroed();
        wanted.target.0 = target;
        host::domctl(id, DomctlCmd::SET_TARGET, &mut wanted)
    };
    report.saw_all("set_target: nobody, itself, ourselves", [NOBODY, id, OURS].map(|wanted| target(id, wanted)));
    report.saw_all(
        "subscribe: to port 0, to one that there is not",
        [0, 9999].map(|port| host::domctl(id, DomctlCmd::SUBSCRIBE, &mut Subscribe { port })),
    );
    let far = event::alloc_unbound(id, event::SELF)?;
    let port = event::bind_interdomain(id, far)?;
    event::take(port);
    host::domctl(id, DomctlCmd::SUBSCRIBE, &mut Subscribe { port: far }).ok()?;
    let mut suspended = RemoteShutdown::new_zeroed();
    (suspended.domain_id.0, suspended.reason) = (id, SUSPEND);
    report.expect("it suspends", call(number::SCHED_OP, [schedop::REMOTE_SHUTDOWN, address(&mut suspended)]), Answer::OK);
    report.check("who subscribed hears of it", event::take(port));
    report.saw("flags then", Hex(info_of(id)?.flags.into()));
    report.saw("resumed", host::domctl(id, DomctlCmd::RESUMEDOMAIN, &mut 0_u64));
    report.saw("flags then", Hex(info_of(id)?.flags.into()));
    Ok(())
}

const fn bitmap(bitmap: u64, nr_bits: u32) -> XenctlBitmap {
    XenctlBitmap { bitmap, nr_bits, pad: 0 }
}

fn scheduling(report: &mut Report) -> Verdict {
    let child = Child::new(1)?;
    let (id, page) = (child.id, Page::new());
    let at = page.address();
    for (name, cmd) in [
        ("setvcpuaffinity", DomctlCmd::SETVCPUAFFINITY),
        ("getvcpuaffinity", DomctlCmd::GETVCPUAFFINITY),
    ] {
        // What was asked for is overwritten with what is in force.
        let ask = |cpus: u64, vcpu: u32, flags: u32, hard: XenctlBitmap| {
            page.set_word(0, cpus);
            let (cpumap_hard, cpumap_soft) = (hard, bitmap(at + 8, 64));
            page.set_word(1, cpus);
            host::domctl(id, cmd, &mut Vcpuaffinity { vcpu, flags, cpumap_hard, cpumap_soft })
        };
        report.saw_all(format_args!("{name}: flags 0 to 8"), (0..9).map(|flags| ask(1, 0, flags, bitmap(at, 64))));
        report.saw_all(format_args!("{name}: of vcpu 1, nowhere, in the hypervisor, no bits, no CPU, one that there is not"), [
            ask(1, 1, 1, bitmap(at, 64)),
            ask(1, 0, 1, bitmap(UNMAPPED, 64)),
            ask(1, 0, 1, bitmap(HYPERVISORS, 64)),
            ask(1, 0, 1, bitmap(at, 0)),
            ask(0, 0, 1, bitmap(at, 64)),
            ask(1 << 40, 0, 1, bitmap(at, 64)),
        ]);
        let answer = ask(1 << 40 | 1, 0, 3, bitmap(at, 64));
        report.saw(format_args!("{name}: in force"), format_args!("{answer} {:x} {:x}", page.word(0), page.word(1)));
    }
    let nodes = |cmd: DomctlCmd, nodes: u64, map: XenctlBitmap| {
        page.set_word(0, nodes);
        host::domctl(id, cmd, &mut Nodeaffinity { nodemap: map })
    };
    report.saw_all("setnodeaffinity: 0, 0 and 1, 1, none, nowhere", [
        nodes(DomctlCmd::SETNODEAFFINITY, 1, bitmap(at, 64)),
        nodes(DomctlCmd::SETNODEAFFINITY, 3, bitmap(at, 64)),
        nodes(DomctlCmd::SETNODEAFFINITY, 2, bitmap(at, 64)),
        nodes(DomctlCmd::SETNODEAFFINITY, 0, bitmap(at, 64)),
        nodes(DomctlCmd::SETNODEAFFINITY, 1, bitmap(UNMAPPED, 64)),
    ]);
    let answer = nodes(DomctlCmd::GETNODEAFFINITY, 0, bitmap(at, 64));
    report.saw("getnodeaffinity", format_args!("{answer} {:x}", page.word(0)));
    let adjust = |sched_id: u32, cmd: u32, weight: u16, cap: u16| {
        let mut wanted = SchedulerOp::new_zeroed();
        (wanted.sched_id, wanted.cmd) = (SchedulerId(sched_id), SchedulerCmd(cmd));
        wanted.set_payload(&SchedCredit { weight, cap });
        (host::domctl(id, DomctlCmd::SCHEDULER_OP, &mut wanted), wanted.payload::<SchedCredit>())
    };
    report.saw_all("scheduler_op: schedulers 4 to 10", (4..=10).map(|sched| adjust(sched, 1, 0, 0).0));
    report.saw_all("commands 0 to 4", (0..=4).map(|cmd| adjust(6, cmd, 100, 0).0));
    for (weight, cap) in [(512, 50), (0, 60), (1, 0xffff), (65535, 0), (256, 800), (256, 0)] {
        let (put, _) = adjust(6, 0, weight, cap);
        let (_, told) = adjust(6, 1, 0, 0);
        report.saw(format_args!("weight {weight}, cap {cap}"), format_args!("{put} {} {}", told.weight, told.cap));
    }
    Ok(())
}

fn permissions(report: &mut Report) -> Verdict {
    let child = Child::new(1)?;
    let id = child.id;
    let irq = |pirq: u32, allow_access: u8| host::domctl(id, DomctlCmd::IRQ_PERMISSION, &mut IrqPermission { pirq, allow_access, pad: [0; 3] });
    report.saw_all("irq_permission: 4, 5000, all ones, taken back, never given", [irq(4, 1), irq(5000, 1), irq(!0, 1), irq(4, 0), irq(7, 0)]);
    let iomem = |(first_mfn, nr_mfns): (u64, u64)| {
        let mut wanted = IomemPermission {
            first_mfn,
            nr_mfns,
            allow_access: 1,
            pad: [0; 7],
        };
        host::domctl(id, DomctlCmd::IOMEM_PERMISSION, &mut wanted)
    };
    report.saw_all(
        "iomem_permission: a card, none, wrapping, beyond the machine, up to the end",
        [(0xfd000, 16), (0xfd000, 0), (u64::MAX, 2), (1 << 52, 1), (0, u64::MAX)].map(iomem),
    );
    report.saw_all("of the local APIC, of the I/O APIC", [(0xfee00, 1), (0xfec00, 1)].map(iomem));
    let mapping = |(first_mfn, nr_mfns): (u64, u64), add_mapping: u32| {
        let mut wanted = MemoryMapping {
            first_gfn: first_mfn,
            first_mfn,
            nr_mfns,
            add_mapping,
            padding: 0,
        };
        host::domctl(id, DomctlCmd::MEMORY_MAPPING, &mut wanted)
    };
    report.saw_all(
        "memory_mapping: that card, a frame behind it, 65, none, wrapping, beyond the machine",
        [(0xfd000, 16), (0xfd010, 1), (0xfd000, 65), (0xfd000, 0), (u64::MAX, 2), (1 << 52, 1)].map(|frames| mapping(frames, 1)),
    );
    report.saw_all("and away again", [(0xfd000, 16), (0xfd010, 1)].map(|frames| mapping(frames, 0)));
    let ports = |(first_port, nr_ports): (u32, u32)| {
        let mut wanted = IoportPermission {
            first_port,
            nr_ports,
            allow_access: 1,
            pad: [0; 3],
        };
        host::domctl(id, DomctlCmd::IOPORT_PERMISSION, &mut wanted)
    };
    report.saw_all(
        "ioport_permission: one, none, up to the last, beyond, wrapping",
        [(0x378, 8), (0x378, 0), (0xffff, 1), (0xffff, 2), (0x10000, 1), (!0, 2)].map(ports),
    );
    report.saw_all("of the first interrupt controller, the timer, PCI's", [(0x20, 2), (0x40, 4), (0xcf8, 4)].map(ports));
    let virq = |id: u16, virq: u32| host::domctl(id, DomctlCmd::SET_VIRQ_HANDLER, &mut SetVirqHandler { virq });
    report.saw_all("set_virq_handler to ourselves: each", (0..26).map(|number| virq(OURS, number)));
    let page = |gmfn: u64| host::domctl(id, DomctlCmd::HYPERCALL_INIT, &mut HypercallInit { gmfn });
    report.saw_all("hypercall_init: of a frame of ours, of none", [page(Page::new().mfn()), page(NO_FRAME)]);
    Ok(())
}

fn time(report: &mut Report) -> Verdict {
    let child = Child::new(1)?;
    let id = child.id;
    let offset = |time_offset_seconds: i64| host::domctl(id, DomctlCmd::SETTIMEOFFSET, &mut Settimeoffset { time_offset_seconds });
    report.saw_all("settimeoffset", [0, 3600, -3600, i64::MIN, i64::MAX].map(offset));
    let set = |tsc_mode: u32, gtsc_khz: u32, incarnation: u32| {
        let mut wanted = TscInfo {
            tsc_mode,
            gtsc_khz,
            incarnation,
            pad: 0,
            elapsed_nsec: 1,
        };
        host::domctl(id, DomctlCmd::SETTSCINFO, &mut wanted)
    };
    let get = || {
        let mut told = TscInfo::new_zeroed();
        (host::domctl(id, DomctlCmd::GETTSCINFO, &mut told), told)
    };
    for mode in 0..5 {
        let answer = set(mode, 1_000_000, 0);
        let (_, told) = get();
        report.saw(format_args!("settscinfo: mode {mode}"), format_args!("{answer} {}", told.tsc_mode));
    }
    report.saw_all("of ourselves", [host::domctl(OURS, DomctlCmd::SETTSCINFO, &mut TscInfo::new_zeroed())]);
    report.saw("mode 0, moved once", set(0, 1_000_000, 1));
    report.saw("moves are counted", get().1.incarnation);
    Ok(())
}

fn policy(report: &mut Report) -> Verdict {
    let child = Child::new(1)?;
    let id = child.id;
    let pages = [Page::new(), Page::new()];
    let leaves = pages[0].address();
    let ask = |cmd: DomctlCmd, leaves: u64, nr_leaves: u32, msrs: u64, nr_msrs: u32| {
        let mut wanted = CpuPolicy::new_zeroed();
        (wanted.leaves, wanted.nr_leaves, wanted.msrs, wanted.nr_msrs) = (leaves, nr_leaves, msrs, nr_msrs);
        let answer = host::domctl(id, cmd, &mut wanted);
        (answer, wanted)
    };
    let (answer, told) = ask(DomctlCmd::GET_CPU_POLICY, 0, 0, 0, 0);
    report.saw("get_cpu_policy without room", format_args!("{answer} {} {}", told.nr_leaves, told.nr_msrs));
    let msrs = pages[1].address();
    for (name, nr_leaves, nr_msrs) in [("of leaves", 1, 1), ("of registers", 100, 1)] {
        let (answer, told) = ask(DomctlCmd::GET_CPU_POLICY, leaves, nr_leaves, msrs, nr_msrs);
        report.saw(format_args!("too little room, {name}"), format_args!("{answer} {} {}", told.nr_leaves, told.nr_msrs));
    }
    let (answer, told) = ask(DomctlCmd::GET_CPU_POLICY, leaves, 100, msrs, 100);
    report.saw("room enough", format_args!("{answer} {} {}", told.nr_leaves, told.nr_msrs));
    report.saw_all("nowhere", [
        ask(DomctlCmd::GET_CPU_POLICY, UNMAPPED, 100, msrs, 100).0,
        ask(DomctlCmd::GET_CPU_POLICY, leaves, 100, UNMAPPED, 100).0,
        ask(DomctlCmd::SET_CPU_POLICY, UNMAPPED, 1, msrs, 0).0,
        ask(DomctlCmd::SET_CPU_POLICY, leaves, 0, UNMAPPED, 1).0,
    ]);
    let set = |leaf: [u32; 6]| {
        let [leaf, subleaf, a, b, c, d] = leaf;
        let mut leaves = [CpuidLeaf { leaf, subleaf, a, b, c, d }];
        let (answer, told) = ask(DomctlCmd::SET_CPU_POLICY, address(&mut leaves), 1, 0, 0);
        (answer, told.err_leaf, told.err_subleaf, told.err_msr)
    };
    const NONE: u32 = !0;
    for (name, leaf) in [
        ("nothing known", [0x1234, NONE, 0, 0, 0, 0]),
        ("a leaf beyond the last", [0x8000_0100, NONE, 0, 0, 0, 0]),
        ("a subleaf where there is none", [1, 0, 0, 0, 0, 0]),
        ("none where there are some", [7, NONE, 0, 0, 0, 0]),
        ("a subleaf beyond the last", [7, 99, 0, 0, 0, 0]),
        ("a higher last leaf", [0, NONE, 0xff, 0, 0, 0]),
        ("a higher last extended leaf", [0x8000_0000, NONE, 0x8000_0100, 0, 0, 0]),
        ("the hypervisor's", [0x4000_0000, NONE, 0x4000_0003, 0, 0, 0]),
    ] {
        let (answer, leaf, subleaf, msr) = set(leaf);
        report.saw(format_args!("set_cpu_policy: {name}"), format_args!("{answer} {leaf:x} {subleaf:x} {msr:x}"));
    }
    for (name, idx, flags, val) in [
        ("no register", 0x1234, 0, 0),
        ("flags", 0xce, 1, 0),
        ("faults where there are none", 0xce, 0, 1 << 31),
        ("a bit that means nothing", 0xce, 0, 1),
        ("nothing", 0xce, 0, 0),
    ] {
        let mut registers = [MsrEntry { idx, flags, val }];
        let (answer, told) = ask(DomctlCmd::SET_CPU_POLICY, 0, 0, address(&mut registers), 1);
        report.saw(format_args!("set_cpu_policy, a register: {name}"), format_args!("{answer} {:x} {:x}", told.err_leaf, told.err_msr));
    }
    report.saw_all("huge counts", [
        ask(DomctlCmd::SET_CPU_POLICY, leaves, NONE, msrs, 0).0,
        ask(DomctlCmd::SET_CPU_POLICY, leaves, 0, msrs, NONE).0,
    ]);
    Ok(())
}

fn saving(report: &mut Report) -> Verdict {
    let child = Child::new(1)?;
    let (id, page) = (child.id, Page::new());
    let frames = |num: u64, array: u64| host::domctl(id, DomctlCmd::GETPAGEFRAMEINFO3, &mut Getpageframeinfo3 { num, array });
    page.set_word(0, page.mfn());
    page.set_word(1, NO_FRAME);
    report.saw_all("getpageframeinfo3: two, none, 1024 nowhere, 1025", [
        frames(2, page.address()),
        frames(0, page.address()),
        frames(1024, UNMAPPED),
        frames(1025, page.address()),
    ]);
    report.saw_all("of ours, of none", [page.word(0), page.word(1)].map(Hex));
    let extended = |cmd: DomctlCmd, change: &dyn Fn(&mut ExtVcpucontext)| {
        let mut wanted = ExtVcpucontext::new_zeroed();
        wanted.size = size_of::<ExtVcpucontext>() as u32;
        change(&mut wanted);
        (host::domctl(id, cmd, &mut wanted), wanted)
    };
    let (answer, told) = extended(DomctlCmd::GET_EXT_VCPUCONTEXT, &|_| {});
    report.saw(
        "get_ext_vcpucontext",
        format_args!("{answer} {} {:x} {:x} {:x}", told.size, told.syscall32_callback_cs, told.vmce.caps, told.vmce.mcg_ext_ctl),
    );
    report.saw("of vcpu 1", extended(DomctlCmd::GET_EXT_VCPUCONTEXT, &|wanted| wanted.vcpu = 1).0);
    let set = |change: &dyn Fn(&mut ExtVcpucontext)| extended(DomctlCmd::SET_EXT_VCPUCONTEXT, change).0;
    report.saw_all("set_ext_vcpucontext: zeros, of vcpu 1, sizes 0, 31, 32, 33, 63, 64, 65", [
        set(&|_| {}),
        set(&|wanted| wanted.vcpu = 1),
        set(&|wanted| wanted.size = 0),
        set(&|wanted| wanted.size = 31),
        set(&|wanted| wanted.size = 32),
        set(&|wanted| wanted.size = 33),
        set(&|wanted| wanted.size = 63),
        set(&|wanted| wanted.size = 64),
        set(&|wanted| wanted.size = 65),
    ]);
    report.saw_all("addresses that there are not, capabilities: those told, others", [
        set(&|wanted| wanted.syscall32_callback_eip = 1 << 60),
        set(&|wanted| wanted.sysenter_callback_eip = 1 << 60),
        set(&|wanted| wanted.vmce.caps = told.vmce.caps),
        set(&|wanted| wanted.vmce.caps = 1 << 8),
        set(&|wanted| wanted.vmce.caps = !0),
    ]);
    let states = |cmd: DomctlCmd, vcpu: u32, xfeature_mask: u64, size: u64, buffer: u64| {
        let mut wanted = Vcpuextstate {
            vcpu,
            pad: 0,
            xfeature_mask,
            size,
            buffer,
        };
        (host::domctl(id, cmd, &mut wanted), wanted)
    };
    let (answer, told) = states(DomctlCmd::GETVCPUEXTSTATE, 0, 0, 0, 0);
    report.saw("getvcpuextstate", format_args!("{answer} {:x} {}", told.xfeature_mask, told.size));
    let at = page.address();
    report.saw_all("of vcpu 1, too little, too much, other states, nowhere", [
        states(DomctlCmd::GETVCPUEXTSTATE, 1, told.xfeature_mask, told.size, at).0,
        states(DomctlCmd::GETVCPUEXTSTATE, 0, told.xfeature_mask, 1, at).0,
        states(DomctlCmd::GETVCPUEXTSTATE, 0, told.xfeature_mask, 4096, at).0,
        states(DomctlCmd::GETVCPUEXTSTATE, 0, !0, told.size, at).0,
        states(DomctlCmd::GETVCPUEXTSTATE, 0, told.xfeature_mask, told.size, UNMAPPED).0,
    ]);
    page.fill(0);
    report.saw_all(
        "setvcpuextstate: of vcpu 1, of 0, 15, 16, 17, 592, 4096, too many bytes",
        [(1, 16), (0, 0), (0, 15), (0, 16), (0, 17), (0, 592), (0, 4096), (0, 1 << 20)].map(|(vcpu, size)| states(DomctlCmd::SETVCPUEXTSTATE, vcpu, 0, size, at).0),
    );
    registers(report, id);
    logging(report, id);
    Ok(())
}

fn registers(report: &Report, id: u16) {
    let page = Page::new();
    let list = |cmd: DomctlCmd, vcpu: u32, msr_count: u32, msrs: u64| {
        let mut wanted = VcpuMsrs { vcpu, msr_count, msrs };
        (host::domctl(id, cmd, &mut wanted), wanted.msr_count)
    };
    let show = |name: &str, (answer, count): (Answer, u32)| report.saw(name, format_args!("{answer} {count}"));
    show("get_vcpu_msrs: how many", list(DomctlCmd::GET_VCPU_MSRS, 0, 0, 0));
    show("no room", list(DomctlCmd::GET_VCPU_MSRS, 0, 0, page.address()));
    show("room enough", list(DomctlCmd::GET_VCPU_MSRS, 0, 16, page.address()));
    show("of vcpu 1", list(DomctlCmd::GET_VCPU_MSRS, 1, 16, page.address()));
    show("set_vcpu_msrs: none", list(DomctlCmd::SET_VCPU_MSRS, 0, 0, page.address()));
    show("too many", list(DomctlCmd::SET_VCPU_MSRS, 0, 1000, page.address()));
    show("nowhere", list(DomctlCmd::SET_VCPU_MSRS, 0, 1, UNMAPPED));
    show("of vcpu 1", list(DomctlCmd::SET_VCPU_MSRS, 1, 1, page.address()));
    let set = |name: &str, index: u32, reserved: u32, value: u64| {
        let mut one = [VcpuMsr { index, reserved, value }];
        show(name, list(DomctlCmd::SET_VCPU_MSRS, 0, 1, address(&mut one)));
    };
    set("one that there is not", 0x1234, 0, 0);
    set("the counter's number, reserved bits", 0xc000_0103, 1, 0);
    set("the counter's number", 0xc000_0103, 0, 7);
    set("the counter's number, too long", 0xc000_0103, 0, 1 << 32);
}

fn logging(report: &Report, id: u16) {
    let shadow = |op: u32, mode: u32, mb: u32, pages: u64| {
        let mut wanted = ShadowOp::new_zeroed();
        (wanted.op, wanted.mode, wanted.mb, wanted.pages) = (ShadowOpCmd(op), mode, mb, pages);
        host::domctl(id, DomctlCmd::SHADOW_OP, &mut wanted)
    };
    report.saw_all("shadow_op 1, 3 to 12, 29 to 33", [1].into_iter().chain(3..=12).chain(29..=33).map(|op| shadow(op, 0, 0, 0)));
    report.saw_all("enable: refcount, translate, external, unknown", [2, 8, 16, 64].map(|mode| shadow(32, mode, 0, 0)));
    report.saw_all("clean, peek: an unknown mode", [11, 12].map(|op| shadow(op, 2, 0, 0)));
    report.saw("an allocation of all that there is", shadow(31, 0, !0, 0));
}

fn ending(report: &mut Report) -> Verdict {
    let child = Child::new(1)?;
    let id = child.id;
    let ask = |cmd: DomctlCmd| host::domctl(id, cmd, &mut [0_u64; 16]);
    report.saw_all("unpause, unpause, pause, pause, unpause, unpause, unpause", [
        ask(DomctlCmd::UNPAUSEDOMAIN),
        ask(DomctlCmd::UNPAUSEDOMAIN),
        ask(DomctlCmd::PAUSEDOMAIN),
        ask(DomctlCmd::PAUSEDOMAIN),
        ask(DomctlCmd::UNPAUSEDOMAIN),
        ask(DomctlCmd::UNPAUSEDOMAIN),
        ask(DomctlCmd::UNPAUSEDOMAIN),
    ]);
    report.saw("resume of one that is not shut down", ask(DomctlCmd::RESUMEDOMAIN));
    report.saw("soft_reset of one that is not shut down", ask(DomctlCmd::SOFT_RESET));
    report.saw("set_cpu_policy of one that has run", ask(DomctlCmd::SET_CPU_POLICY));
    let mut wanted = Vcpucontext::new_zeroed();
    report.saw("setvcpucontext then", host::domctl(id, DomctlCmd::SETVCPUCONTEXT, &mut wanted));
    report.saw_all("destroy, and again", [ask(DomctlCmd::DESTROYDOMAIN), ask(DomctlCmd::DESTROYDOMAIN)]);
    Ok(())
}
