//! `sysctl`: what a toolstack asks of the host. Domain 0 only.

use super::{Answer, Call, cpu_policy, domctl, pm};
use crate::cpu::CpuBitmap;
use crate::guest::GuestPtr;
use crate::pv::{levelling, policy};
use crate::sched::pools;
use crate::{access, console, domain, irq, memory, sched, trace};
use ferroxen_abi::domctl::SchedulerId;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::physdev::PciDevice;
use ferroxen_abi::sysctl::{self as abi, Sysctl, SysctlCmd, physcap};
use ferroxen_access::Operation;
use ferroxen_machine::memory::is_ram;
use ferroxen_machine::ports::PciFunction;
use ferroxen_machine::smp::CpuSet;
use ferroxen_machine::{cpu, time};
use ferroxen_sched::{CpuMask, PoolId};
use ferroxen_words::{CpuId, DomId, Mfn};

/// `sysctl(request)`: `EPERM` for anyone but Domain 0, `EACCES` for another interface version.
pub fn sysctl(call: &mut Call<'_>) -> Answer {
    access::to_host(call.caller.domain(), Operation::ControlHost)?;
    let at = GuestPtr::<Sysctl>::new(call.args()[0]);
    let mut request = at.read()?;
    if request.interface_version != abi::SYSCTL_INTERFACE_VERSION {
        return Err(Errno::EACCES);
    }
    let answer = run(call, &mut request);
    if answer.is_ok() || answer == Err(Errno::ENOBUFS) {
        // Upstream: what did fit goes back as well.
        at.write(&request)?;
    }
    answer.map(|()| 0)
}

fn run(call: &Call<'_>, request: &mut Sysctl) -> Result<(), Errno> {
    match request.cmd {
        SysctlCmd::READCONSOLE => read_console(request),
        SysctlCmd::PHYSINFO => {
            request.set_payload(&physinfo());
            Ok(())
        }
        SysctlCmd::SCHED_ID => {
            request.set_payload(&abi::SchedId {
                sched_id: SchedulerId::CREDIT2,
            });
            Ok(())
        }
        SysctlCmd::PERFC_OP => {
            let mut wanted: abi::PerfcOp = request.payload();
            super::counts::perfc_op(&mut wanted)?;
            request.set_payload(&wanted);
            Ok(())
        }
        SysctlCmd::TBUF_OP => {
            let mut wanted: abi::TbufOp = request.payload();
            trace::tbuf_op(&mut wanted)?;
            request.set_payload(&wanted);
            Ok(())
        }
        SysctlCmd::GETDOMAININFOLIST => list_domains(request),
        SysctlCmd::DEBUG_KEYS => {
            let wanted: abi::DebugKeys = request.payload();
            let keys = GuestPtr::<u8>::new(wanted.keys);
            for index in 0..u64::from(wanted.nr_keys.min(64)) {
                crate::debug_keys::press(keys.read_element(index)?);
            }
            Ok(())
        }
        SysctlCmd::GETCPUINFO => cpu_info(request),
        SysctlCmd::AVAILHEAP => {
            let mut wanted: abi::Availheap = request.payload();
            wanted.avail_bytes = free_pages_of(&wanted) * 4096;
            request.set_payload(&wanted);
            Ok(())
        }
        SysctlCmd::GET_PMSTAT => {
            let mut wanted: abi::GetPmstat = request.payload();
            pm::statistics(&mut wanted)?;
            request.set_payload(&wanted);
            Ok(())
        }
        SysctlCmd::PM_OP => {
            let mut wanted: abi::PmOp = request.payload();
            pm::control(&mut wanted)?;
            request.set_payload(&wanted);
            Ok(())
        }
        SysctlCmd::CPU_HOTPLUG => cpu_hotplug(&request.payload()),
        SysctlCmd::PAGE_OFFLINE_OP => page_offline(&request.payload()),
        SysctlCmd::LIVEPATCH_OP => livepatch(request),
        SysctlCmd::CPUTOPOINFO => cpu_topology(request),
        SysctlCmd::NUMAINFO => numa_info(request),
        SysctlCmd::SCHEDULER_OP => {
            let mut wanted: abi::SchedulerOp = request.payload();
            sched::control::global(&mut wanted)?;
            request.set_payload(&wanted);
            Ok(())
        }
        SysctlCmd::CPUPOOL_OP => cpupool(call, request),
        SysctlCmd::GET_CPU_LEVELLING_CAPS => {
            let caps = levelling::caps();
            request.set_payload(&abi::CpuLevellingCaps { caps });
            Ok(())
        }
        SysctlCmd::GET_CPU_FEATURESET => cpu_policy::feature_set(request),
        SysctlCmd::GET_CPU_POLICY => cpu_policy::of_host(request),
        SysctlCmd::PCITOPOINFO => pci_topology(request),
        // As a build without it.
        SysctlCmd::COVERAGE_OP => Err(Errno::EOPNOTSUPP),
        // No cache can be watched, or shared out: the questions that there are.
        SysctlCmd::PSR_ALLOC if request.u[0] as u32 > PSR_GET_MBA_INFO => Err(Errno::EOPNOTSUPP),
        SysctlCmd::PSR_CMT_OP | SysctlCmd::PSR_ALLOC => Err(Errno::ENODEV),
        _ => Err(Errno::ENOSYS),
    }
}

/// The last of `XEN_SYSCTL_PSR_*`.
const PSR_GET_MBA_INFO: u32 = 2;

/// Free pages of a node, whose addresses have no fewer and no more bits than wanted; 0 for either is no limit.
fn free_pages_of(wanted: &abi::Availheap) -> u64 {
    const ALL_NODES: i32 = -1;
    /// With fewer bits there is but page 0.
    const OF_A_PAGE: u32 = ferroxen_words::PAGE_SHIFT + 1;
    if !matches!(wanted.node, ALL_NODES | 0) {
        return 0;
    }
    let bits_of_ram =
        u64::BITS - (ferroxen_machine::memory::max_mfn() - 1).leading_zeros() + ferroxen_words::PAGE_SHIFT;
    // Pages that are being scrubbed count as free, wherever they are.
    let up_to = |bits: u32| {
        if bits >= bits_of_ram {
            memory::free_pages()
        } else {
            memory::free_pages_below(bits)
        }
    };
    let most = match wanted.max_bitwidth {
        0 => memory::free_pages(),
        bits => up_to(bits),
    };
    let below = match wanted.min_bitwidth {
        ..=OF_A_PAGE => 0,
        bits => up_to(bits - 1),
    };
    most.saturating_sub(below)
}

fn read_console(request: &mut Sysctl) -> Result<(), Errno> {
    let mut wanted: abi::Readconsole = request.payload();
    let mut at = (wanted.incremental != 0).then_some(wanted.index);
    let buffer = GuestPtr::<u8>::new(wanted.buffer);
    let mut done = 0u32;
    while done < wanted.count {
        let mut bytes = [0; 256];
        let room = bytes.len().min((wanted.count - done) as usize);
        let (next, read) = console::read_ring(at, &mut bytes[..room]);
        at = Some(next);
        if read == 0 {
            break;
        }
        buffer.element(u64::from(done))?.write_slice(&bytes[..read])?;
        done += read as u32;
    }
    if wanted.clear != 0 {
        console::clear_ring();
    }
    wanted.index = at.unwrap_or(0);
    wanted.count = done;
    request.set_payload(&wanted);
    Ok(())
}

/// As many NUMA nodes could a host have, as upstream has it.
const MAX_NODES: u32 = 64;

fn physinfo() -> abi::Physinfo {
    /// Bits of leaf 0x80000001's `edx` that repeat those of leaf 1.
    const COMMON_FEATURES: u32 = 0x0183_f3ff;
    let cpus = cpu::cpus_online();
    let mut hw_cap = [0; 8];
    let words = policy::of_host().host.feature_set().0;
    hw_cap.iter_mut().zip(words).for_each(|(word, host)| *word = host);
    // As upstream: what AMD says in both leaves is told once.
    hw_cap[2] &= !COMMON_FEATURES;
    abi::Physinfo {
        threads_per_core: 1,
        cores_per_socket: cpus,
        nr_cpus: cpus,
        max_cpu_id: cpus - 1,
        nr_nodes: 1,
        max_node_id: MAX_NODES - 1,
        cpu_khz: (ferroxen_machine::time::tsc_hz() / 1000) as u32,
        capabilities: physcap::GNTTAB_V1 | if domctl::allows_pv() { physcap::PV } else { 0 },
        total_pages: memory::total_pages(),
        free_pages: memory::free_pages(),
        scrub_pages: memory::pages_to_scrub(),
        outstanding_pages: memory::claimed_pages(),
        max_mfn: ferroxen_machine::memory::max_mfn() - 1,
        hw_cap,
        ..abi::Physinfo::default()
    }
}

fn list_domains(request: &mut Sysctl) -> Result<(), Errno> {
    let mut wanted: abi::Getdomaininfolist = request.payload();
    let buffer = GuestPtr::<ferroxen_abi::domctl::Getdomaininfo>::new(wanted.buffer);
    let mut next = DomId::new(wanted.first_domain.0);
    let mut found = 0;
    while found < wanted.max_domains
        && let Some(from) = next
        && let Some(subject) = domain::list::at_or_after(from)
    {
        buffer.write_element(u64::from(found), &domctl::info_of(&subject))?;
        found += 1;
        next = DomId::new(subject.id.raw() + 1);
    }
    wanted.num_domains = found;
    request.set_payload(&wanted);
    Ok(())
}

fn cpu_info(request: &mut Sysctl) -> Result<(), Errno> {
    let mut wanted: abi::Getcpuinfo = request.payload();
    let count = wanted.max_cpus.min(cpu::cpus_online());
    let info = GuestPtr::<abi::Cpuinfo>::new(wanted.info);
    for index in 0..count {
        info.write_element(
            u64::from(index),
            &abi::Cpuinfo {
                idletime: sched::idle_ns(CpuId(index)),
            },
        )?;
    }
    wanted.nr_cpus = count;
    request.set_payload(&wanted);
    Ok(())
}

fn cpu_topology(request: &mut Sysctl) -> Result<(), Errno> {
    let mut wanted: abi::Cputopoinfo = request.payload();
    let cpus = cpu::cpus_online();
    if wanted.cputopo != 0 {
        let topology = GuestPtr::<abi::Cputopo>::new(wanted.cputopo);
        let count = wanted.num_cpus.min(cpus);
        for index in 0..count {
            topology.write_element(
                u64::from(index),
                &abi::Cputopo {
                    core: index,
                    socket: 0,
                    node: 0,
                },
            )?;
        }
        wanted.num_cpus = count;
    } else {
        wanted.num_cpus = cpus;
    }
    request.set_payload(&wanted);
    Ok(())
}

/// `XEN_SYSCTL_cpu_hotplug`: what runs is online, and stays so.
fn cpu_hotplug(wanted: &abi::CpuHotplug) -> Result<(), Errno> {
    use abi::hotplug;
    match wanted.op {
        hotplug::ONLINE | hotplug::OFFLINE if wanted.cpu >= cpu::cpus_online() => Err(Errno::EINVAL),
        hotplug::ONLINE => Err(Errno::EEXIST),
        // The first is the last to go.
        hotplug::OFFLINE if wanted.cpu == 0 => Err(Errno::EINVAL),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// `XEN_SYSCTL_page_offline_op`: every page of RAM is in use, and none can be taken out of use.
fn page_offline(wanted: &abi::PageOfflineOp) -> Result<(), Errno> {
    if wanted.end < wanted.start {
        return Err(Errno::EINVAL);
    }
    match wanted.cmd {
        abi::QUERY_PAGE_OFFLINE => {}
        abi::PAGE_OFFLINE | abi::PAGE_ONLINE => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    }
    let status = GuestPtr::<u32>::new(wanted.status);
    for (index, mfn) in (0..).zip(wanted.start..=wanted.end) {
        // That below 1 MiB is RAM too, although nobody is given it.
        if !is_ram(Mfn::new(mfn.into())) {
            return Err(Errno::EINVAL);
        }
        status.write_element(index, &abi::PAGE_IS_ONLINE)?;
        if mfn != wanted.end && time::entry_budget_spent() {
            return Err(Errno::E2BIG);
        }
    }
    Ok(())
}

/// `XEN_SYSCTL_livepatch_op`: there are no patches, and none can be loaded.
fn livepatch(request: &mut Sysctl) -> Result<(), Errno> {
    use abi::livepatch;
    /// With its zero byte.
    const LONGEST_NAME: u32 = 128;
    let wanted: abi::LivepatchList = request.payload();
    match wanted.cmd {
        _ if wanted.pad != 0 => Err(Errno::EINVAL),
        livepatch::LIST if wanted.pad2 != 0 => Err(Errno::EINVAL),
        livepatch::LIST => {
            request.set_payload(&abi::LivepatchList {
                version: 0,
                nr: 0,
                name_total_size: 0,
                metadata_total_size: 0,
                ..wanted
            });
            Ok(())
        }
        // These begin with a name: its address, its length, and 6 bytes of 0.
        livepatch::UPLOAD | livepatch::GET | livepatch::ACTION
            if !(1..=LONGEST_NAME).contains(&wanted.nr) || wanted.pad2 != 0 =>
        {
            Err(Errno::EINVAL)
        }
        livepatch::GET | livepatch::ACTION => Err(Errno::ENOENT),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn numa_info(request: &mut Sysctl) -> Result<(), Errno> {
    let mut wanted: abi::Numainfo = request.payload();
    let wants_some = wanted.meminfo != 0 || wanted.distance != 0;
    if wanted.num_nodes != 0 {
        if wanted.meminfo != 0 {
            let info = abi::Meminfo {
                memsize: memory::total_pages() * 4096,
                memfree: memory::free_pages() * 4096,
            };
            GuestPtr::new(wanted.meminfo).write(&info)?;
        }
        if wanted.distance != 0 {
            // A node is 10 away from itself (ACPI SLIT).
            GuestPtr::new(wanted.distance).write(&10u32)?;
        }
    }
    wanted.num_nodes = if wants_some { wanted.num_nodes.min(1) } else { 1 };
    request.set_payload(&wanted);
    Ok(())
}

/// `XEN_SYSCTL_pcitopoinfo`: of each device that Domain 0 has told us of, that its node is not known.
fn pci_topology(request: &mut Sysctl) -> Result<(), Errno> {
    let wanted: abi::Pcitopoinfo = request.payload();
    if wanted.devs == 0 || wanted.nodes == 0 {
        return Err(Errno::EINVAL);
    }
    let devices = GuestPtr::<PciDevice>::new(wanted.devs);
    let nodes = GuestPtr::<u32>::new(wanted.nodes);
    for index in 0..u64::from(wanted.num_devs) {
        let PciDevice { seg, bus, devfn } = devices.read_element(index)?;
        let known = irq::has_function(irq::Function {
            segment: seg,
            at: PciFunction { bus, devfn },
        });
        let node = if known { abi::INVALID_NODE_ID } else { abi::INVALID_DEV };
        nodes.write_element(index, &node)?;
        if time::entry_budget_spent() {
            // As upstream: the caller learns how many there were, and asks for the others.
            request.set_payload(&abi::Pcitopoinfo {
                num_devs: index as u32 + 1,
                ..wanted
            });
            break;
        }
    }
    Ok(())
}

/// CPU pools. Upstream's numbers for refusals.
fn cpupool(call: &Call<'_>, request: &mut Sysctl) -> Result<(), Errno> {
    let mut wanted: abi::CpupoolOp = request.payload();
    let any = abi::CPUPOOL_PAR_ANY;
    let pool = PoolId(wanted.cpupool_id);
    let cpu = (wanted.cpu != any).then_some(CpuId(wanted.cpu));
    match wanted.op {
        abi::CpupoolCmd::CREATE => {
            if wanted.sched_id != sched::control::SCHEDULER {
                return Err(Errno::ENOENT);
            }
            wanted.cpupool_id = pools::create((wanted.cpupool_id != any).then_some(pool))?.0;
        }
        abi::CpupoolCmd::DESTROY => pools::destroy(pool)?,
        abi::CpupoolCmd::INFO => {
            let found = pools::info(pool).ok_or(Errno::ENOENT)?;
            wanted.cpupool_id = found.id.0;
            wanted.sched_id = sched::control::SCHEDULER;
            wanted.n_dom = found.domains;
            bitmap(found.cpus).write(&wanted.cpumap)?;
        }
        abi::CpupoolCmd::ADDCPU => pools::give_cpu(pool, cpu)?,
        abi::CpupoolCmd::RMCPU => pools::take_cpu(pool, cpu)?,
        abi::CpupoolCmd::MOVEDOMAIN => {
            let subject = u16::try_from(wanted.domid).ok().and_then(DomId::new);
            let subject = subject.and_then(domain::by_id).ok_or(Errno::ESRCH)?;
            if subject.id == call.caller.domain().id {
                return Err(Errno::EPERM);
            }
            pools::move_domain(&subject, pool)?;
        }
        abi::CpupoolCmd::FREEINFO => bitmap(pools::free()).write(&wanted.cpumap)?,
        _ => return Err(Errno::ENOSYS),
    }
    request.set_payload(&wanted);
    Ok(())
}

fn bitmap(mask: CpuMask) -> CpuBitmap {
    let mut set = CpuSet::EMPTY;
    mask.iter().for_each(|cpu| set.insert(cpu));
    CpuBitmap::of(&set)
}
