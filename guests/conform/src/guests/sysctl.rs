//! `sysctl`: every command by its number, and each that a toolstack needs, rightly and wrongly asked for.
//!
//! As in `domctl`: all numbers with an operand of zeros, of ones, and of addresses that lead nowhere; then the commands one
//! by one, with each of their fields. What depends on the machine's speed and size is not told.
//! Promised by: public/sysctl.h.

use pv::Answer;
use pv::abi::domctl::{Getdomaininfo, SchedulerId, XenctlBitmap};
use pv::abi::physdev::PciDevice;
use pv::abi::sysctl::{
    Availheap, CPUPOOL_PAR_ANY, CpuFeatureset, CpuHotplug, CpuLevellingCaps, CpuPolicy, CpuPolicyIndex, CpupoolCmd, CpupoolOp, Cputopo,
    Cputopoinfo, Credit2Schedule, DebugKeys, FeaturesetIndex, GetPmstat, Getcpuinfo, Getdomaininfolist, LivepatchList, Numainfo, PageOfflineOp,
    Pcitopoinfo, PerfcOp, Physinfo, PmOp, PsrAlloc, PsrCmtOp, Readconsole, SchedId, SchedulerOp, SysctlCmd, TbufOp,
};
use pv::hypercall::address;
use pv::memory::Page;
use pv::start;
use zerocopy::FromZeros;

use crate::bad::{NO_FRAME, UNMAPPED};
use crate::host;
use crate::report::{End, Hex, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !start::is_dom0() {
        return Err(End::Skip("the host is Domain 0's to control"));
    }
    // Xen takes its time over a CPU that is to come or go; see below for those that cannot.
    for cmd in (0..=32).chain([63, 99]).filter(|cmd| *cmd != 11).map(SysctlCmd) {
        let ask = |word: u64| host::sysctl(cmd, &mut [word; 16]);
        let name = cmd.name().unwrap_or("no command");
        report.saw_all(format_args!("{} {name}: zeros, ones, addresses", cmd.0), [0, !0, UNMAPPED].map(ask));
    }
    console(report);
    the_host(report);
    domains(report);
    pools(report);
    power(report);
    policies(report);
    devices(report);
    Ok(())
}

fn console(report: &Report) {
    let page = Page::new();
    let read = |count: u32, buffer: u64| {
        let mut wanted = Readconsole::new_zeroed();
        (wanted.buffer, wanted.count) = (buffer, count);
        (host::sysctl(SysctlCmd::READCONSOLE, &mut wanted), wanted)
    };
    report.saw_all("readconsole: 16 bytes, none, nowhere", [(16, page.address()), (0, page.address()), (16, UNMAPPED)].map(|(count, at)| read(count, at).0));
    report.saw("as many came", read(16, page.address()).1.count);
    let mut ahead = Readconsole::new_zeroed();
    (ahead.incremental, ahead.buffer, ahead.count) = (1, page.address(), 16);
    report.saw("incremental, from the start", host::sysctl(SysctlCmd::READCONSOLE, &mut ahead));
    report.saw("as many came", ahead.count);
    let first = ahead.index;
    let answer = host::sysctl(SysctlCmd::READCONSOLE, &mut ahead);
    report.saw("further on", format_args!("{answer} {} {}", ahead.count, ahead.index.wrapping_sub(first)));
    let keys = |keys: u64, nr_keys: u32| host::sysctl(SysctlCmd::DEBUG_KEYS, &mut DebugKeys { keys, nr_keys, pad: 0 });
    report.saw_all("debug_keys: none, none from nowhere, one from nowhere", [keys(page.address(), 0), keys(UNMAPPED, 0), keys(UNMAPPED, 1)]);
    let trace = |cmd: u32, change: &dyn Fn(&mut TbufOp)| {
        let mut wanted = TbufOp::new_zeroed();
        wanted.cmd = cmd;
        change(&mut wanted);
        host::sysctl(SysctlCmd::TBUF_OP, &mut wanted)
    };
    report.saw_all("tbuf_op: each", (0..8).map(|cmd| trace(cmd, &|_| {})));
    report.saw("a mask of CPUs from nowhere", trace(1, &|wanted| (wanted.cpu_mask.bitmap, wanted.cpu_mask.nr_bits) = (UNMAPPED, 8)));
    let count = |cmd: u32| {
        let mut wanted = PerfcOp::new_zeroed();
        wanted.cmd = cmd;
        host::sysctl(SysctlCmd::PERFC_OP, &mut wanted)
    };
    report.saw_all("perfc_op: each", (0..4).map(count));
}

fn the_host(report: &Report) {
    let mut told = Physinfo::new_zeroed();
    report.saw("physinfo", host::sysctl(SysctlCmd::PHYSINFO, &mut told));
    report.saw_all(
        "threads, cores, CPUs, highest, nodes, highest, what the machine can",
        [
            told.threads_per_core,
            told.cores_per_socket,
            told.nr_cpus,
            told.max_cpu_id,
            told.nr_nodes,
            told.max_node_id,
            told.arch_capabilities,
        ],
    );
    report.saw("PV, grants of version 1", Hex((told.capabilities & 0x102).into()));
    report.saw_all("words of features", told.hw_cap.map(|word| Hex(word.into())));
    let mut scheduler = SchedId::new_zeroed();
    report.saw("sched_id", host::sysctl(SysctlCmd::SCHED_ID, &mut scheduler));
    report.saw("that is", scheduler.sched_id.0);
    let heap = |min_bitwidth: u32, max_bitwidth: u32, node: i32| {
        let mut wanted = Availheap {
            min_bitwidth,
            max_bitwidth,
            node,
            pad: 0,
            avail_bytes: 0,
        };
        (host::sysctl(SysctlCmd::AVAILHEAP, &mut wanted), wanted.avail_bytes)
    };
    report.saw_all("availheap: nodes -2, -1, 0, 1, 63, 64", [-2, -1, 0, 1, 63, 64].map(|node| heap(0, 0, node).0));
    let all = heap(0, 0, -1).1;
    report.saw("all is with node 0", heap(0, 0, 0).1 == all);
    report.saw_all("below 2 bytes, 4 GiB, above 4 GiB, nothing: as much as all", [(0, 1), (0, 32), (33, 64), (64, 12)].map(|(min, max)| {
        let (answer, bytes) = heap(min, max, -1);
        if answer.is_ok() { Answer((bytes == all).into()) } else { answer }
    }));
    report.saw_all("and some at all", [(0, 1), (0, 32), (33, 64), (64, 12)].map(|(min, max)| heap(min, max, -1).1 != 0));
    let page = Page::new();
    let at = page.address();
    let cpus = |max_cpus: u32, info: u64| {
        let mut wanted = Getcpuinfo {
            max_cpus,
            pad: 0,
            info,
            nr_cpus: 9,
            pad2: 0,
        };
        (host::sysctl(SysctlCmd::GETCPUINFO, &mut wanted), wanted.nr_cpus)
    };
    for (name, max, at) in [("one", 1, at), ("many", 64, at), ("none", 0, at), ("nowhere", 1, UNMAPPED)] {
        let (answer, count) = cpus(max, at);
        report.saw(format_args!("getcpuinfo: {name}"), format_args!("{answer} {count}"));
    }
    let topology = |num_cpus: u32, cputopo: u64| {
        let mut wanted = Cputopoinfo { num_cpus, pad: 0, cputopo };
        (host::sysctl(SysctlCmd::CPUTOPOINFO, &mut wanted), wanted.num_cpus)
    };
    let mut list = [Cputopo::new_zeroed(); 4];
    for (name, count, at) in [("how many", 0, 0), ("one", 1, address(&mut list)), ("four", 4, address(&mut list)), ("none", 0, UNMAPPED), ("nowhere", 4, UNMAPPED)] {
        let (answer, count) = topology(count, at);
        report.saw(format_args!("cputopoinfo: {name}"), format_args!("{answer} {count}"));
    }
    let [first, second, ..] = list;
    report.saw_all("core, socket, node of the first two", [first.core, first.socket, first.node, second.core, second.socket, second.node]);
    let nodes = |num_nodes: u32, meminfo: u64, distance: u64| {
        let mut wanted = Numainfo {
            num_nodes,
            pad: 0,
            meminfo,
            distance,
        };
        (host::sysctl(SysctlCmd::NUMAINFO, &mut wanted), wanted.num_nodes)
    };
    for (name, count, memory, distance) in [
        ("how many", 0, 0, 0),
        ("one", 1, at, at + 64),
        ("four", 4, at, at + 128),
        ("none", 0, at, at + 64),
        ("memory nowhere", 1, UNMAPPED, at),
        ("distance nowhere", 1, at, UNMAPPED),
    ] {
        let (answer, count) = nodes(count, memory, distance);
        report.saw(format_args!("numainfo: {name}"), format_args!("{answer} {count}"));
    }
    report.saw("a node is as far from itself as", page.word(16) & 0xffff_ffff);
}

fn domains(report: &Report) {
    let mut list = [Getdomaininfo::new_zeroed(); 2];
    let at = address(&mut list);
    let ask = |first: u16, max_domains: u32, buffer: u64| {
        let mut wanted = Getdomaininfolist::new_zeroed();
        (wanted.first_domain.0, wanted.max_domains, wanted.buffer, wanted.num_domains) = (first, max_domains, buffer, 9);
        let answer = host::sysctl(SysctlCmd::GETDOMAININFOLIST, &mut wanted);
        (answer, wanted.num_domains)
    };
    for (name, first, max, at) in [
        ("from 0", 0, 2, at),
        ("from 1", 1, 2, at),
        ("from no id", 0x7ff4, 2, at),
        ("none", 0, 0, at),
        ("nowhere", 0, 2, UNMAPPED),
    ] {
        let (answer, count) = ask(first, max, at);
        report.saw(format_args!("getdomaininfolist: {name}"), format_args!("{answer} {count}"));
    }
}

fn pools(report: &Report) {
    let page = Page::new();
    let op = |op: u32, change: &dyn Fn(&mut CpupoolOp)| {
        let mut wanted = CpupoolOp::new_zeroed();
        (wanted.op, wanted.sched_id, wanted.cpu) = (CpupoolCmd(op), SchedulerId::CREDIT2, CPUPOOL_PAR_ANY);
        wanted.cpumap = XenctlBitmap {
            bitmap: page.address(),
            nr_bits: 64,
            pad: 0,
        };
        change(&mut wanted);
        (host::sysctl(SysctlCmd::CPUPOOL_OP, &mut wanted), wanted)
    };
    const CREATE: u32 = 1;
    const DESTROY: u32 = 2;
    const INFO: u32 = 3;
    const ADD: u32 = 4;
    const REMOVE: u32 = 5;
    const MOVE: u32 = 6;
    const FREE: u32 = 7;
    report.saw_all("cpupool_op 0, 8, 99", [0, 8, 99].map(|command| op(command, &|_| {}).0));
    let (answer, told) = op(INFO, &|_| {});
    report.saw("info of 0", format_args!("{answer} {} {} {}", told.cpupool_id, told.sched_id.0, told.n_dom));
    report.saw_all("info of any, of 5, to nowhere", [
        op(INFO, &|wanted| wanted.cpupool_id = CPUPOOL_PAR_ANY).0,
        op(INFO, &|wanted| wanted.cpupool_id = 5).0,
        op(INFO, &|wanted| wanted.cpumap.bitmap = UNMAPPED).0,
    ]);
    report.saw_all("create: with no scheduler, with 0, of 0, of 7, of 7 again", [
        op(CREATE, &|wanted| (wanted.cpupool_id, wanted.sched_id) = (7, SchedulerId(99))).0,
        op(CREATE, &|wanted| (wanted.cpupool_id, wanted.sched_id) = (7, SchedulerId(0))).0,
        op(CREATE, &|_| {}).0,
        op(CREATE, &|wanted| wanted.cpupool_id = 7).0,
        op(CREATE, &|wanted| wanted.cpupool_id = 7).0,
    ]);
    let cpu = |command: u32, pool: u32, cpu: u32| op(command, &|wanted| (wanted.cpupool_id, wanted.cpu) = (pool, cpu)).0;
    report.saw_all("free CPUs to it: none there, one that there is not, to no pool, all to no pool", [
        cpu(ADD, 7, CPUPOOL_PAR_ANY),
        cpu(ADD, 7, 99),
        cpu(ADD, 9, 0),
        cpu(ADD, 9, CPUPOOL_PAR_ANY),
    ]);
    report.saw_all("a CPU from it: none there, one that there is not, another's, from no pool", [
        cpu(REMOVE, 7, CPUPOOL_PAR_ANY),
        cpu(REMOVE, 7, 99),
        cpu(REMOVE, 7, 0),
        cpu(REMOVE, 9, 0),
    ]);
    let (answer, _) = op(FREE, &|_| {});
    report.saw("freeinfo", format_args!("{answer} {:x}", page.word(0)));
    let domain = |id: u32, pool: u32| op(MOVE, &|wanted| (wanted.domid, wanted.cpupool_id) = (id, pool)).0;
    report.saw_all("movedomain: nobody, ourselves, no id, to no pool", [domain(0x7000, 0), domain(0, 0), domain(!0, 0), domain(0, 9)]);
    report.saw_all("destroy: 7, again, 0, 5", [7, 7, 0, 5].map(|pool| op(DESTROY, &|wanted| wanted.cpupool_id = pool).0));
    let rate = |pool: u32, scheduler: u32, cmd: u32, ratelimit_us: u32| {
        let mut wanted = SchedulerOp::new_zeroed();
        (wanted.cpupool_id, wanted.sched_id, wanted.cmd) = (pool, SchedulerId(scheduler), cmd);
        wanted.set_payload(&Credit2Schedule { ratelimit_us });
        (host::sysctl(SysctlCmd::SCHEDULER_OP, &mut wanted), wanted.payload::<Credit2Schedule>().ratelimit_us)
    };
    let (answer, now) = rate(0, 6, 1, 0);
    report.saw("scheduler_op: the rate limit", format_args!("{answer} {now}"));
    report.saw_all("set: 0, 99, 100, 500000, 500001", [0, 99, 100, 500_000, 500_001].map(|limit| rate(0, 6, 0, limit).0));
    report.saw("which is now", rate(0, 6, 1, 0).1);
    rate(0, 6, 0, now);
    report.saw_all("of no pool, of another scheduler, no command", [rate(5, 6, 1, 0).0, rate(0, 5, 1, 0).0, rate(0, 6, 2, 0).0]);
}

fn power(report: &Report) {
    let statistics = |type_: u32, cpuid: u32| {
        let mut wanted = GetPmstat::new_zeroed();
        (wanted.type_, wanted.cpuid) = (type_, cpuid);
        host::sysctl(SysctlCmd::GET_PMSTAT, &mut wanted)
    };
    report.saw_all("get_pmstat: frequencies: how many, which, forget", [0x11, 0x12, 0x13].map(|kind| statistics(kind, 0)));
    report.saw_all("sleep: how many, which", [0x21, 0x22].map(|kind| statistics(kind, 0)));
    report.saw_all("neither, of CPU 99", [statistics(0x31, 0), statistics(0x21, 99), statistics(0x11, 99)]);
    let control = |cmd: u32, cpuid: u32, value: u32| {
        let mut wanted = PmOp {
            cmd,
            cpuid,
            value,
            pad: 0,
        };
        (host::sysctl(SysctlCmd::PM_OP, &mut wanted), wanted.value)
    };
    report.saw_all("pm_op: governors: 0x11 to 0x14", (0x11..=0x14).map(|cmd| control(cmd, 0, 0).0));
    report.saw_all("0x20, 0x24, 0x25, 0x28, of CPU 99", [control(0x20, 0, 0).0, control(0x24, 0, 0).0, control(0x25, 0, 0).0, control(0x28, 0, 0).0, control(0x21, 99, 0).0]);
    report.saw_all("turbo: on, off", [control(0x26, 0, 0).0, control(0x27, 0, 0).0]);
    let (first, second) = (control(0x21, 0, 1), control(0x21, 0, 0));
    report.saw("siblings first, and not", format_args!("{} {} {} {}", first.0, first.1, second.0, second.1));
    let plug = |cpu: u32, op: u32| host::sysctl(SysctlCmd::CPU_HOTPLUG, &mut CpuHotplug { cpu, op });
    report.saw_all("cpu_hotplug: on, off: 99; no command", [plug(99, 0), plug(99, 1), plug(0, 9)]);
    let page = Page::new();
    let offline = |cmd: u32, start: u32, end: u32, status: u64| {
        let mut wanted = PageOfflineOp {
            cmd,
            start,
            end,
            pad: 0,
            status,
        };
        host::sysctl(SysctlCmd::PAGE_OFFLINE_OP, &mut wanted)
    };
    let own = Page::new().mfn() as u32;
    report.saw_all("page_offline_op: ask for one, for none, backwards, no frame, nowhere, no command", [
        offline(3, own, own, page.address()),
        offline(3, own, own.wrapping_sub(1), page.address()),
        offline(3, 9, 3, page.address()),
        offline(3, NO_FRAME as u32, NO_FRAME as u32, page.address()),
        offline(3, own, own, UNMAPPED),
        offline(9, own, own, page.address()),
    ]);
    let patch = |cmd: u32, pad: u32, pad2: u32| {
        let mut wanted = LivepatchList::new_zeroed();
        (wanted.cmd, wanted.pad, wanted.pad2) = (cmd, pad, pad2);
        host::sysctl(SysctlCmd::LIVEPATCH_OP, &mut wanted)
    };
    report.saw_all("livepatch_op: each, padded, the list padded", (0..5).map(|cmd| patch(cmd, 0, 0)).chain([patch(2, 1, 0), patch(2, 0, 1)]));
    let watch = |cmd: u32| {
        let mut wanted = PsrCmtOp::new_zeroed();
        wanted.cmd = cmd;
        host::sysctl(SysctlCmd::PSR_CMT_OP, &mut wanted)
    };
    report.saw_all("psr_cmt_op: each", (0..5).map(watch));
    let share = |cmd: u32, target: u32| {
        let mut wanted = PsrAlloc::new_zeroed();
        (wanted.cmd, wanted.target) = (cmd, target);
        host::sysctl(SysctlCmd::PSR_ALLOC, &mut wanted)
    };
    report.saw_all("psr_alloc: each, of no socket", (0..5).map(|cmd| share(cmd, 0)).chain([share(0, 99)]));
}

fn policies(report: &Report) {
    let mut caps = CpuLevellingCaps::new_zeroed();
    report.saw("get_cpu_levelling_caps", host::sysctl(SysctlCmd::GET_CPU_LEVELLING_CAPS, &mut caps));
    report.saw("what can be hidden from CPUID itself", Hex(caps.caps.into()));
    let mut words = [0_u32; 32];
    let at = address(&mut words);
    let set = |index: u32, nr_features: u32, features: u64| {
        let mut wanted = CpuFeatureset {
            index: FeaturesetIndex(index),
            nr_features,
            features,
        };
        (host::sysctl(SysctlCmd::GET_CPU_FEATURESET, &mut wanted), wanted.nr_features)
    };
    for index in 0..8 {
        let answers = [(0, 0), (32, at), (1, at), (0, at), (32, UNMAPPED)].map(|(count, at)| set(index, count, at));
        let [how_many, all, one, none, nowhere] = answers;
        report.saw(
            format_args!("get_cpu_featureset {index}: how many, all, one, none, nowhere"),
            format_args!("{} {}, {} {}, {} {}, {} {}, {} {}", how_many.0, how_many.1, all.0, all.1, one.0, one.1, none.0, none.1, nowhere.0, nowhere.1),
        );
    }
    let pages = [Page::new(), Page::new()];
    let policy = |index: u32, nr_leaves: u32, leaves: u64, nr_msrs: u32, msrs: u64, rsvd: u32| {
        let mut wanted = CpuPolicy {
            index: CpuPolicyIndex(index),
            nr_leaves,
            nr_msrs,
            rsvd,
            leaves,
            msrs,
        };
        (host::sysctl(SysctlCmd::GET_CPU_POLICY, &mut wanted), wanted)
    };
    let (leaves, msrs) = (pages[0].address(), pages[1].address());
    for index in 0..8 {
        let answers = [(0, 0, 0, 0), (150, leaves, 50, msrs), (1, leaves, 50, msrs), (150, leaves, 0, msrs), (150, UNMAPPED, 50, msrs), (150, leaves, 50, UNMAPPED)];
        report.saw_all(
            format_args!("get_cpu_policy {index}: how many, all, one leaf, no register, leaves nowhere, registers nowhere"),
            answers.map(|(nr_leaves, leaves, nr_msrs, msrs)| policy(index, nr_leaves, leaves, nr_msrs, msrs, 0).0),
        );
    }
    let (_, most) = policy(1, 0, 0, 0, 0, 0);
    report.saw("there can be", format_args!("{} {}", most.nr_leaves, most.nr_msrs));
    report.saw("padded", policy(1, 0, 0, 0, 0, 1).0);
}

fn devices(report: &Report) {
    let mut list = [PciDevice { seg: 0, bus: 0, devfn: 0xf8 }, PciDevice { seg: 5, bus: 0, devfn: 0 }];
    let mut nodes = [0_u32; 2];
    let (list, at) = (address(&mut list), address(&mut nodes));
    let ask = |num_devs: u32, devs: u64, nodes: u64| {
        let mut wanted = Pcitopoinfo {
            num_devs,
            pad: 0,
            devs,
            nodes,
        };
        (host::sysctl(SysctlCmd::PCITOPOINFO, &mut wanted), wanted.num_devs)
    };
    for (name, count, devs, at) in [
        ("two that nobody told of", 2, list, at),
        ("none", 0, list, at),
        ("no list", 2, 0, at),
        ("no room", 2, list, 0),
        ("list nowhere", 2, UNMAPPED, at),
        ("room nowhere", 2, list, UNMAPPED),
    ] {
        let (answer, count) = ask(count, devs, at);
        report.saw(format_args!("pcitopoinfo: {name}"), format_args!("{answer} {count}"));
    }
    report.saw_all("their nodes", nodes.map(|node| Hex(node.into())));
}
