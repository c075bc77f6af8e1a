//! The hypervisor beneath Domain 0: Xen 4.17's control calls, through `/dev/xen/privcmd`.

mod contents;

use crate::error::Doing;
use crate::hyper::{Affinity, Contents, Hypervisor};
use ferroxen_abi::domctl::{self, CpuidLeaf, Domctl, DomctlCmd, Getdomaininfo, MsrEntry, XenctlBitmap};
use ferroxen_abi::memory::{self, GRANT_TABLE_ID_SHARED, MemoryCmd, ResourceType};
use ferroxen_abi::physdev;
use ferroxen_abi::sysctl::{self, Sysctl, SysctlCmd};
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_stream::image::VcpuPart;
use ferroxen_words::{DomId, Gfn, Mfn, Port, RawDomId};
use ferroxen_xenctl::{Access, ForeignPages, HypercallBuffer, Privcmd};
use std::collections::BTreeSet;
use std::io;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `GNTTABOP_setup_table`
const SETUP_TABLE: u32 = 2;
/// What Xen returns when a long operation wants to be asked again.
const ERESTART: i32 = 85;
const EAGAIN: i32 = 11;
const EINVAL: i32 = 22;
/// `PHYSDEVOP_map_pirq`
const MAP_PIRQ: u32 = 13;

/// A handle to the hypervisor's control calls.
#[derive(Debug)]
pub struct Xen {
    pub(crate) privcmd: Privcmd,
}

/// `gnttab_setup_table`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SetupTable {
    dom: u16,
    pad: u16,
    nr_frames: u32,
    status: i16,
    pad2: [u16; 3],
    frame_list: u64,
}

impl Xen {
    /// Opens the way to the hypervisor; only Domain 0's administrator may.
    pub fn open() -> crate::Result<Xen> {
        let privcmd = Privcmd::open().doing(|| "reaching the hypervisor".to_owned())?;
        Ok(Xen { privcmd })
    }

    fn plain(&self, cmd: DomctlCmd, domid: DomId) -> io::Result<()> {
        self.privcmd.domctl(&mut Domctl::new(cmd, domid.to_abi())).map(drop)
    }

    pub(crate) fn tell<T: IntoBytes + Immutable>(&self, cmd: DomctlCmd, domid: DomId, payload: &T) -> io::Result<()> {
        self.privcmd
            .domctl(&mut Domctl::with(cmd, domid.to_abi(), payload))
            .map(drop)
    }

    fn ask<T: FromBytes + IntoBytes + Immutable>(&self, cmd: DomctlCmd, domid: DomId, payload: &T) -> io::Result<T> {
        let mut op = Domctl::with(cmd, domid.to_abi(), payload);
        self.privcmd.domctl(&mut op)?;
        Ok(op.payload())
    }

    pub(crate) fn ask_host<T: FromBytes + IntoBytes + Immutable>(&self, cmd: SysctlCmd, payload: &T) -> io::Result<T> {
        let mut op = Sysctl::with(cmd, payload);
        self.privcmd.sysctl(&mut op)?;
        Ok(op.payload())
    }
}

impl Xen {
    /// Memory for so many leaves and registers of a CPU policy.
    fn policy_room(&self, leaves: u32, registers: u32) -> io::Result<(HypercallBuffer, HypercallBuffer)> {
        let leaves = self.privcmd.buffer(leaves as usize * size_of::<CpuidLeaf>())?;
        let registers = self.privcmd.buffer(registers as usize * size_of::<MsrEntry>())?;
        Ok((leaves, registers))
    }
}

impl Hypervisor for Xen {
    fn create_domain(&self, request: &domctl::Createdomain, wanted: Option<DomId>) -> io::Result<DomId> {
        // Zero: whichever is free.
        let wanted = wanted.map_or(RawDomId(0), DomId::to_abi);
        let mut op = Domctl::with(DomctlCmd::CREATEDOMAIN, wanted, request);
        self.privcmd.domctl(&mut op)?;
        DomId::new(op.domain.0).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn destroy_domain(&self, domid: DomId) -> io::Result<()> {
        loop {
            match self.plain(DomctlCmd::DESTROYDOMAIN, domid) {
                Err(error) if matches!(error.raw_os_error(), Some(ERESTART | EAGAIN)) => {}
                other => return other,
            }
        }
    }

    fn pause(&self, domid: DomId) -> io::Result<()> {
        self.plain(DomctlCmd::PAUSEDOMAIN, domid)
    }

    fn unpause(&self, domid: DomId) -> io::Result<()> {
        self.plain(DomctlCmd::UNPAUSEDOMAIN, domid)
    }

    fn domain(&self, domid: DomId) -> io::Result<Option<Getdomaininfo>> {
        let mut op = Domctl::new(DomctlCmd::GETDOMAININFO, domid.to_abi());
        match self.privcmd.domctl(&mut op) {
            // The call may answer for the next domain that exists.
            Ok(_) if op.domain == domid.to_abi() => Ok(Some(op.payload())),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(3) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn domains(&self) -> io::Result<Vec<Getdomaininfo>> {
        const BATCH: usize = 128;
        let mut found: Vec<Getdomaininfo> = Vec::new();
        let buffer = self.privcmd.buffer(BATCH * size_of::<Getdomaininfo>())?;
        let mut first = 0;
        loop {
            let request = sysctl::Getdomaininfolist {
                first_domain: RawDomId(first),
                max_domains: BATCH as u32,
                buffer: buffer.handle(),
                ..Default::default()
            };
            let answer: sysctl::Getdomaininfolist = self.ask_host(SysctlCmd::GETDOMAININFOLIST, &request)?;
            let batch: Vec<Getdomaininfo> = buffer.get_many(0, (answer.num_domains as usize).min(BATCH))?;
            let Some(last) = batch.last().map(|info| info.domain.0) else {
                return Ok(found);
            };
            let is_full = batch.len() == BATCH;
            found.extend(batch);
            if !is_full {
                return Ok(found);
            }
            first = last.saturating_add(1);
        }
    }

    fn set_max_vcpus(&self, domid: DomId, max: u32) -> io::Result<()> {
        self.tell(DomctlCmd::MAX_VCPUS, domid, &domctl::MaxVcpus { max })
    }

    fn set_max_memory_kib(&self, domid: DomId, max_memkb: u64) -> io::Result<()> {
        self.tell(DomctlCmd::MAX_MEM, domid, &domctl::MaxMem { max_memkb })
    }

    fn set_time_offset(&self, domid: DomId, time_offset_seconds: i64) -> io::Result<()> {
        self.tell(
            DomctlCmd::SETTIMEOFFSET,
            domid,
            &domctl::Settimeoffset { time_offset_seconds },
        )
    }

    fn set_tsc_mode(&self, domid: DomId, tsc_mode: u32) -> io::Result<()> {
        self.tell(
            DomctlCmd::SETTSCINFO,
            domid,
            &domctl::TscInfo {
                tsc_mode,
                ..Default::default()
            },
        )
    }

    fn init_hypercall_page(&self, domid: DomId, frame: Mfn) -> io::Result<()> {
        self.tell(
            DomctlCmd::HYPERCALL_INIT,
            domid,
            &domctl::HypercallInit { gmfn: frame.raw() },
        )
    }

    fn set_affinity(&self, domid: DomId, vcpu: u32, kind: Affinity, cpus: Option<&BTreeSet<u32>>) -> io::Result<()> {
        let bytes = match cpus {
            Some(cpus) => bitmap(cpus),
            None => vec![0xff; (self.physinfo()?.max_cpu_id as usize + 1).div_ceil(8)],
        };
        let buffer = self.privcmd.buffer_of(&bytes)?;
        let request = affinity_request(vcpu, kind, &buffer, bytes.len());
        self.tell(DomctlCmd::SETVCPUAFFINITY, domid, &request)
    }

    fn affinity(&self, domid: DomId, vcpu: u32, kind: Affinity) -> io::Result<Vec<bool>> {
        let cpus = self.physinfo()?.max_cpu_id as usize + 1;
        let len = cpus.div_ceil(8);
        let buffer = self.privcmd.buffer(len)?;
        let request = affinity_request(vcpu, kind, &buffer, len);
        self.tell(DomctlCmd::GETVCPUAFFINITY, domid, &request)?;
        let bytes: Vec<u8> = buffer.get_many(0, len)?;
        Ok((0..cpus).map(|cpu| bytes[cpu / 8] >> (cpu % 8) & 1 != 0).collect())
    }

    fn vcpu(&self, domid: DomId, vcpu: u32) -> io::Result<domctl::Getvcpuinfo> {
        self.ask(
            DomctlCmd::GETVCPUINFO,
            domid,
            &domctl::Getvcpuinfo {
                vcpu,
                ..Default::default()
            },
        )
    }

    fn set_vcpu_context(&self, domid: DomId, vcpu: u32, context: &VcpuGuestContext) -> io::Result<()> {
        self.set_vcpu_part(domid, vcpu, VcpuPart::Basic, context.as_bytes())
    }

    fn sched_credit(&self, domid: DomId) -> io::Result<domctl::SchedCredit> {
        let request = domctl::SchedulerOp {
            sched_id: self.scheduler()?,
            cmd: domctl::SchedulerCmd::GETINFO,
            ..Default::default()
        };
        let answer: domctl::SchedulerOp = self.ask(DomctlCmd::SCHEDULER_OP, domid, &request)?;
        Ok(answer.payload())
    }

    fn set_sched_credit(&self, domid: DomId, credit: &domctl::SchedCredit) -> io::Result<()> {
        let mut request = domctl::SchedulerOp {
            sched_id: self.scheduler()?,
            cmd: domctl::SchedulerCmd::PUTINFO,
            ..Default::default()
        };
        request.set_payload(credit);
        self.tell(DomctlCmd::SCHEDULER_OP, domid, &request)
    }

    fn alloc_unbound_port(&self, domid: DomId) -> io::Result<Port> {
        self.privcmd.alloc_unbound_port(domid.to_abi(), DomId::DOM0.to_abi())
    }

    fn claim_pages(&self, domid: DomId, pages: u64) -> io::Result<()> {
        let mut request = memory::MemoryReservation {
            nr_extents: pages,
            domid: domid.to_abi(),
            ..Default::default()
        };
        self.privcmd.memory_op(MemoryCmd::CLAIM_PAGES.0, &mut request).map(drop)
    }

    fn populate(&self, domid: DomId, pfns: &[u64], order: u32) -> io::Result<Vec<Mfn>> {
        let buffer = self.privcmd.buffer_of(pfns)?;
        let mut request = memory::MemoryReservation {
            extent_start: buffer.handle(),
            nr_extents: pfns.len() as u64,
            extent_order: order,
            domid: domid.to_abi(),
            ..Default::default()
        };
        let done = self.privcmd.memory_op(MemoryCmd::POPULATE_PHYSMAP.0, &mut request)?;
        let done = usize::try_from(done).unwrap_or(0).min(pfns.len());
        buffer.get_many(0, done)
    }

    fn depopulate(&self, domid: DomId, frames: &[Mfn]) -> io::Result<usize> {
        let numbers: Vec<u64> = frames.iter().map(|frame| frame.raw()).collect();
        let buffer = self.privcmd.buffer_of(&numbers)?;
        let mut request = memory::MemoryReservation {
            extent_start: buffer.handle(),
            nr_extents: numbers.len() as u64,
            domid: domid.to_abi(),
            ..Default::default()
        };
        let done = self
            .privcmd
            .memory_op(MemoryCmd::DECREASE_RESERVATION.0, &mut request)?;
        Ok(usize::try_from(done).unwrap_or(0))
    }

    fn set_memory_map(&self, domid: DomId, map: &[memory::E820Entry]) -> io::Result<()> {
        let buffer = self.privcmd.buffer_of(map)?;
        let mut request = memory::ForeignMemoryMap {
            domid: domid.to_abi(),
            map: memory::MemoryMap {
                nr_entries: map.len() as u32,
                pad: 0,
                buffer: buffer.handle(),
            },
            ..Default::default()
        };
        self.privcmd
            .memory_op(MemoryCmd::SET_MEMORY_MAP.0, &mut request)
            .map(drop)
    }

    fn permit_ports(&self, domid: DomId, first_port: u32, nr_ports: u32) -> io::Result<()> {
        let request = domctl::IoportPermission {
            first_port,
            nr_ports,
            allow_access: 1,
            ..Default::default()
        };
        self.tell(DomctlCmd::IOPORT_PERMISSION, domid, &request)
    }

    fn permit_iomem(&self, domid: DomId, first_mfn: u64, nr_mfns: u64) -> io::Result<()> {
        let request = domctl::IomemPermission {
            first_mfn,
            nr_mfns,
            allow_access: 1,
            ..Default::default()
        };
        self.tell(DomctlCmd::IOMEM_PERMISSION, domid, &request)
    }

    fn permit_irq(&self, domid: DomId, irq: u32) -> io::Result<()> {
        let number = i32::try_from(irq).map_err(|_| io::Error::from_raw_os_error(EINVAL))?;
        let mut request = physdev::MapPirq {
            domid: domid.to_abi(),
            kind: physdev::map_pirq_type::GSI,
            index: number,
            pirq: number,
            ..Default::default()
        };
        self.privcmd.physdev_op(MAP_PIRQ, &mut request)?;
        let request = domctl::IrqPermission {
            pirq: irq,
            allow_access: 1,
            ..Default::default()
        };
        self.tell(DomctlCmd::IRQ_PERMISSION, domid, &request)
    }

    fn cpuid_of_host(&self) -> io::Result<Vec<CpuidLeaf>> {
        let host = sysctl::CpuPolicy {
            index: sysctl::CpuPolicyIndex::HOST,
            ..Default::default()
        };
        let room: sysctl::CpuPolicy = self.ask_host(SysctlCmd::GET_CPU_POLICY, &host)?;
        let (leaves, registers) = self.policy_room(room.nr_leaves, room.nr_msrs)?;
        let request = sysctl::CpuPolicy {
            leaves: leaves.handle(),
            msrs: registers.handle(),
            ..room
        };
        let answer: sysctl::CpuPolicy = self.ask_host(SysctlCmd::GET_CPU_POLICY, &request)?;
        leaves.get_many(0, answer.nr_leaves.min(room.nr_leaves) as usize)
    }

    fn physinfo(&self) -> io::Result<sysctl::Physinfo> {
        self.ask_host(SysctlCmd::PHYSINFO, &sysctl::Physinfo::default())
    }

    fn scheduler(&self) -> io::Result<domctl::SchedulerId> {
        let answer: sysctl::SchedId = self.ask_host(SysctlCmd::SCHED_ID, &sysctl::SchedId::default())?;
        Ok(answer.sched_id)
    }

    fn map(&self, domid: DomId, frames: &[Gfn]) -> io::Result<ForeignPages> {
        self.privcmd.map_foreign(domid.to_abi(), frames, Access::ReadWrite)
    }

    fn map_grant_table(&self, domid: DomId) -> io::Result<ForeignPages> {
        let kind = u32::from(ResourceType::GRANT_TABLE.0);
        let resource = self
            .privcmd
            .map_resource(domid.to_abi(), kind, GRANT_TABLE_ID_SHARED, 0, 1, Access::ReadWrite);
        match resource {
            // An older Linux or hypervisor: by the older call.
            Err(error) if matches!(error.raw_os_error(), Some(25 | 38 | 95)) => {}
            other => return other,
        }
        let frames = self.privcmd.buffer(size_of::<u64>())?;
        let mut setup = [SetupTable {
            dom: domid.raw(),
            pad: 0,
            nr_frames: 1,
            status: 0,
            pad2: [0; 3],
            frame_list: frames.handle(),
        }];
        self.privcmd.grant_table_op(SETUP_TABLE, &mut setup)?;
        if setup[0].status != 0 {
            return Err(io::Error::other(format!("setup_table gave status {}", setup[0].status)));
        }
        self.map(domid, &[Gfn::new(frames.get(0)?)])
    }
}

/// Asks about the CPUs in `map`, which has `bytes`.
fn affinity_request(vcpu: u32, kind: Affinity, map: &HypercallBuffer, bytes: usize) -> domctl::Vcpuaffinity {
    let map = XenctlBitmap {
        bitmap: map.handle(),
        nr_bits: bytes as u32 * 8,
        pad: 0,
    };
    let mut request = domctl::Vcpuaffinity {
        vcpu,
        ..Default::default()
    };
    match kind {
        Affinity::Hard => (request.flags, request.cpumap_hard) = (domctl::VCPUAFFINITY_HARD, map),
        Affinity::Soft => (request.flags, request.cpumap_soft) = (domctl::VCPUAFFINITY_SOFT, map),
    }
    request
}

/// One bit per CPU, in whole bytes.
fn bitmap(cpus: &BTreeSet<u32>) -> Vec<u8> {
    let bits = cpus.last().map_or(0, |last| last + 1);
    let mut bytes = vec![0u8; bits.div_ceil(8) as usize];
    for cpu in cpus {
        bytes[*cpu as usize / 8] |= 1 << (cpu % 8);
    }
    bytes
}
