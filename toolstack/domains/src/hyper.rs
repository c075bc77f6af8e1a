//! The hypervisor's control calls, one method each, in our own words.

use ferroxen_abi::domctl::{self, Domctl, DomctlCmd, Getdomaininfo, XenctlBitmap};
use ferroxen_abi::memory::{self, MemoryCmd};
use ferroxen_abi::sysctl::{self, Sysctl, SysctlCmd};
use ferroxen_abi::version::{CompileInfo, VersionCmd};
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_abi::xen::MmuextOp;
use ferroxen_words::{DomId, Mfn, Port, RawDomId};
use ferroxen_xenctl::Privcmd;
use std::collections::BTreeSet;
use std::io;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `MMUEXT_PIN_L4_TABLE`
const PIN_L4_TABLE: u32 = 3;
/// What Xen returns when a long operation wants to be asked again.
const ERESTART: i32 = 85;
const EAGAIN: i32 = 11;

/// A handle to the hypervisor's control calls.
#[derive(Debug)]
pub struct Hypervisor {
    privcmd: Privcmd,
}

/// Hard or soft: where a vcpu may run, or would rather run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Affinity {
    /// May.
    Hard,
    /// Would rather.
    Soft,
}

/// What `xl info` tells of the hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of `xl info`")]
pub struct VersionInfo {
    pub major: u16,
    pub minor: u16,
    pub extra: String,
    pub compiler: String,
    pub compile_by: String,
    pub compile_domain: String,
    pub compile_date: String,
    pub capabilities: String,
    pub changeset: String,
    pub virt_start: u64,
    pub pagesize: u64,
    pub commandline: String,
    pub build_id: String,
}

impl Hypervisor {
    /// Opens the way to the hypervisor; only Domain 0's administrator may.
    pub fn open() -> io::Result<Hypervisor> {
        Ok(Hypervisor {
            privcmd: Privcmd::open()?,
        })
    }

    /// The device, for mappings and rarer calls.
    pub fn privcmd(&self) -> &Privcmd {
        &self.privcmd
    }

    /// Makes an empty, paused domain without vcpus' contexts or memory.
    pub fn create_domain(&self, request: &domctl::Createdomain) -> io::Result<DomId> {
        let mut op = Domctl::with(DomctlCmd::CREATEDOMAIN, RawDomId(0), request);
        self.privcmd.domctl(&mut op)?;
        DomId::new(op.domain.0).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Ends a domain and gives back all it holds. May take a while: it is asked again until it is done.
    pub fn destroy_domain(&self, domid: DomId) -> io::Result<()> {
        loop {
            match self.plain(DomctlCmd::DESTROYDOMAIN, domid) {
                Err(error) if matches!(error.raw_os_error(), Some(ERESTART | EAGAIN)) => {}
                other => return other,
            }
        }
    }

    /// Stops all vcpus; counts.
    pub fn pause(&self, domid: DomId) -> io::Result<()> {
        self.plain(DomctlCmd::PAUSEDOMAIN, domid)
    }

    /// Lets all vcpus run again.
    pub fn unpause(&self, domid: DomId) -> io::Result<()> {
        self.plain(DomctlCmd::UNPAUSEDOMAIN, domid)
    }

    /// One domain's state; `None` if there is no such domain.
    pub fn domain(&self, domid: DomId) -> io::Result<Option<Getdomaininfo>> {
        let mut op = Domctl::new(DomctlCmd::GETDOMAININFO, domid.to_abi());
        match self.privcmd.domctl(&mut op) {
            // The call may answer for the next domain that exists.
            Ok(_) if op.domain == domid.to_abi() => Ok(Some(op.payload())),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(3) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All domains' states, in order of their ids.
    pub fn domains(&self) -> io::Result<Vec<Getdomaininfo>> {
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

    /// Says how many vcpus the domain will have at most.
    pub fn set_max_vcpus(&self, domid: DomId, max: u32) -> io::Result<()> {
        self.tell(DomctlCmd::MAX_VCPUS, domid, &domctl::MaxVcpus { max })
    }

    /// Says how much memory the domain may have at most.
    pub fn set_max_memory_kib(&self, domid: DomId, max_memkb: u64) -> io::Result<()> {
        self.tell(DomctlCmd::MAX_MEM, domid, &domctl::MaxMem { max_memkb })
    }

    /// Sets the domain's UUID.
    pub fn set_handle(&self, domid: DomId, handle: [u8; 16]) -> io::Result<()> {
        self.tell(DomctlCmd::SETDOMAINHANDLE, domid, &domctl::Setdomainhandle { handle })
    }

    /// Moves the domain's wall clock against the host's.
    pub fn set_time_offset(&self, domid: DomId, time_offset_seconds: i64) -> io::Result<()> {
        self.tell(
            DomctlCmd::SETTIMEOFFSET,
            domid,
            &domctl::Settimeoffset { time_offset_seconds },
        )
    }

    /// Chooses how the time stamp counter behaves (xen-tscmode(7)).
    pub fn set_tsc_mode(&self, domid: DomId, tsc_mode: u32) -> io::Result<()> {
        self.tell(
            DomctlCmd::SETTSCINFO,
            domid,
            &domctl::TscInfo {
                tsc_mode,
                ..Default::default()
            },
        )
    }

    /// Fills a frame with hypercall stubs.
    pub fn init_hypercall_page(&self, domid: DomId, frame: Mfn) -> io::Result<()> {
        self.tell(
            DomctlCmd::HYPERCALL_INIT,
            domid,
            &domctl::HypercallInit { gmfn: frame.raw() },
        )
    }

    /// Where a vcpu may (or would rather) run.
    pub fn set_affinity(&self, domid: DomId, vcpu: u32, kind: Affinity, cpus: &BTreeSet<u32>) -> io::Result<()> {
        let bits = cpus.last().map_or(0, |last| last + 1).next_multiple_of(8);
        let mut bytes = vec![0u8; bits as usize / 8];
        for cpu in cpus {
            bytes[*cpu as usize / 8] |= 1 << (cpu % 8);
        }
        self.set_affinity_bits(domid, vcpu, kind, &bytes)
    }

    /// Lets a vcpu run anywhere.
    pub fn clear_affinity(&self, domid: DomId, vcpu: u32, kind: Affinity) -> io::Result<()> {
        let cpus = self.physinfo()?.max_cpu_id as usize + 1;
        self.set_affinity_bits(domid, vcpu, kind, &vec![0xff; cpus.div_ceil(8)])
    }

    fn set_affinity_bits(&self, domid: DomId, vcpu: u32, kind: Affinity, bytes: &[u8]) -> io::Result<()> {
        let buffer = self.privcmd.buffer_of(bytes)?;
        let map = XenctlBitmap {
            bitmap: buffer.handle(),
            nr_bits: bytes.len() as u32 * 8,
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
        self.tell(DomctlCmd::SETVCPUAFFINITY, domid, &request)
    }

    /// Where a vcpu may (or would rather) run: one bool per CPU.
    pub fn affinity(&self, domid: DomId, vcpu: u32, kind: Affinity) -> io::Result<Vec<bool>> {
        let cpus = self.physinfo()?.max_cpu_id as usize + 1;
        let len = cpus.div_ceil(8);
        let buffer = self.privcmd.buffer(len)?;
        let map = XenctlBitmap {
            bitmap: buffer.handle(),
            nr_bits: len as u32 * 8,
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
        self.tell(DomctlCmd::GETVCPUAFFINITY, domid, &request)?;
        let bytes: Vec<u8> = buffer.get_many(0, len)?;
        Ok((0..cpus).map(|cpu| bytes[cpu / 8] >> (cpu % 8) & 1 != 0).collect())
    }

    /// One vcpu's state.
    pub fn vcpu(&self, domid: DomId, vcpu: u32) -> io::Result<domctl::Getvcpuinfo> {
        self.ask(
            DomctlCmd::GETVCPUINFO,
            domid,
            &domctl::Getvcpuinfo {
                vcpu,
                ..Default::default()
            },
        )
    }

    /// Gives a vcpu its first context.
    pub fn set_vcpu_context(&self, domid: DomId, vcpu: u32, context: &VcpuGuestContext) -> io::Result<()> {
        let buffer = self.privcmd.buffer_of(std::slice::from_ref(context))?;
        let request = domctl::Vcpucontext {
            vcpu,
            pad: 0,
            ctxt: buffer.handle(),
        };
        self.tell(DomctlCmd::SETVCPUCONTEXT, domid, &request)
    }

    /// Weight and cap of a domain under the scheduler in use.
    pub fn sched_credit(&self, domid: DomId) -> io::Result<domctl::SchedCredit> {
        let request = domctl::SchedulerOp {
            sched_id: self.scheduler()?,
            cmd: domctl::SchedulerCmd::GETINFO,
            ..Default::default()
        };
        let answer: domctl::SchedulerOp = self.ask(DomctlCmd::SCHEDULER_OP, domid, &request)?;
        Ok(answer.payload())
    }

    /// Sets weight and cap.
    pub fn set_sched_credit(&self, domid: DomId, credit: &domctl::SchedCredit) -> io::Result<()> {
        let mut request = domctl::SchedulerOp {
            sched_id: self.scheduler()?,
            cmd: domctl::SchedulerCmd::PUTINFO,
            ..Default::default()
        };
        request.set_payload(credit);
        self.tell(DomctlCmd::SCHEDULER_OP, domid, &request)
    }

    /// Makes a port of the domain to which Domain 0 may bind.
    pub fn alloc_unbound_port(&self, domid: DomId) -> io::Result<Port> {
        self.privcmd.alloc_unbound_port(domid.to_abi(), DomId::DOM0.to_abi())
    }

    /// Pins a top-level page table, which makes all below it page tables too.
    pub fn pin_l4(&self, domid: DomId, table: Mfn) -> io::Result<()> {
        let mut ops = [MmuextOp {
            cmd: PIN_L4_TABLE,
            pad: 0,
            arg1: table.raw(),
            arg2: 0,
        }];
        self.privcmd.mmuext_op(&mut ops, domid.to_abi()).map(drop)
    }

    /// Sets pages aside for a domain before they are allocated one by one. 0 ends the claim.
    pub fn claim_pages(&self, domid: DomId, pages: u64) -> io::Result<()> {
        let mut request = memory::MemoryReservation {
            nr_extents: pages,
            domid: domid.to_abi(),
            ..Default::default()
        };
        self.privcmd.memory_op(MemoryCmd::CLAIM_PAGES.0, &mut request).map(drop)
    }

    /// Allocates extents of 2^`order` pages at the pfns given; gives the mfns of those that succeeded.
    pub fn populate(&self, domid: DomId, pfns: &[u64], order: u32) -> io::Result<Vec<Mfn>> {
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

    /// Tells the domain's memory map, for one that asks.
    pub fn set_memory_map(&self, domid: DomId, map: &[memory::E820Entry]) -> io::Result<()> {
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

    /// The host in figures.
    pub fn physinfo(&self) -> io::Result<sysctl::Physinfo> {
        self.ask_host(SysctlCmd::PHYSINFO, &sysctl::Physinfo::default())
    }

    /// The scheduler in use.
    pub fn scheduler(&self) -> io::Result<domctl::SchedulerId> {
        let answer: sysctl::SchedId = self.ask_host(SysctlCmd::SCHED_ID, &sysctl::SchedId::default())?;
        Ok(answer.sched_id)
    }

    /// CPUs that belong to no pool.
    pub fn free_cpus(&self) -> io::Result<u32> {
        let len = (self.physinfo()?.max_cpu_id as usize + 1).div_ceil(8);
        let buffer = self.privcmd.buffer(len)?;
        let request = sysctl::CpupoolOp {
            op: sysctl::CpupoolCmd::FREEINFO,
            cpumap: XenctlBitmap {
                bitmap: buffer.handle(),
                nr_bits: len as u32 * 8,
                pad: 0,
            },
            ..Default::default()
        };
        let _: sysctl::CpupoolOp = self.ask_host(SysctlCmd::CPUPOOL_OP, &request)?;
        let bytes: Vec<u8> = buffer.get_many(0, len)?;
        Ok(bytes.iter().map(|byte| byte.count_ones()).sum())
    }

    /// How long the credit2 scheduler lets a vcpu run at least, in microseconds.
    pub fn ratelimit_us(&self) -> io::Result<u32> {
        let request = sysctl::SchedulerOp {
            sched_id: self.scheduler()?,
            cmd: 1,
            ..Default::default()
        };
        let answer: sysctl::SchedulerOp = self.ask_host(SysctlCmd::SCHEDULER_OP, &request)?;
        match answer.sched_id {
            domctl::SchedulerId::CREDIT => Ok(answer.payload::<sysctl::CreditSchedule>().ratelimit_us),
            _ => Ok(answer.payload::<sysctl::Credit2Schedule>().ratelimit_us),
        }
    }

    /// Pages that memory sharing has freed, and pages that are shared.
    pub fn sharing(&self) -> (u64, u64) {
        let count = |command: MemoryCmd| {
            self.privcmd
                .memory_op_bare(command.0)
                .ok()
                .and_then(|count| u64::try_from(count).ok())
                .unwrap_or(0)
        };
        (
            count(MemoryCmd::GET_SHARING_FREED_PAGES),
            count(MemoryCmd::GET_SHARING_SHARED_PAGES),
        )
    }

    /// The hypervisor's console ring; `clear` empties it.
    pub fn console(&self, clear: bool) -> io::Result<Vec<u8>> {
        const PIECE: usize = 64 << 10;
        let buffer = self.privcmd.buffer(PIECE)?;
        let mut text = Vec::new();
        let mut index = 0;
        loop {
            let request = sysctl::Readconsole {
                clear: 0,
                incremental: 1,
                index,
                buffer: buffer.handle(),
                count: PIECE as u32,
                ..Default::default()
            };
            let answer: sysctl::Readconsole = self.ask_host(SysctlCmd::READCONSOLE, &request)?;
            let piece: Vec<u8> = buffer.get_many(0, (answer.count as usize).min(PIECE))?;
            index = answer.index;
            if piece.is_empty() {
                break;
            }
            text.extend(piece);
        }
        if clear {
            let request = sysctl::Readconsole {
                clear: 1,
                buffer: buffer.handle(),
                count: 0,
                ..Default::default()
            };
            let _: sysctl::Readconsole = self.ask_host(SysctlCmd::READCONSOLE, &request)?;
        }
        Ok(text)
    }

    /// Sends debug keys.
    pub fn debug_keys(&self, keys: &str) -> io::Result<()> {
        let buffer = self.privcmd.buffer_of(keys.as_bytes())?;
        let request = sysctl::DebugKeys {
            keys: buffer.handle(),
            nr_keys: keys.len() as u32,
            pad: 0,
        };
        let _: sysctl::DebugKeys = self.ask_host(SysctlCmd::DEBUG_KEYS, &request)?;
        Ok(())
    }

    /// All that the hypervisor says of itself.
    pub fn version(&self) -> io::Result<VersionInfo> {
        let (major, minor) = self.privcmd.version()?;
        let mut compile = CompileInfo::default();
        self.privcmd.xen_version(VersionCmd::COMPILE_INFO.0, &mut compile)?;
        let mut parameters = 0u64;
        self.privcmd
            .xen_version(VersionCmd::PLATFORM_PARAMETERS.0, &mut parameters)?;
        let pagesize = self.privcmd.hypercall(
            ferroxen_xenctl::nr::XEN_VERSION,
            [VersionCmd::PAGESIZE.0.into(), 0, 0, 0, 0],
        )?;
        Ok(VersionInfo {
            major,
            minor,
            extra: self.version_text::<16>(VersionCmd::EXTRAVERSION)?,
            compiler: text(&compile.compiler),
            compile_by: text(&compile.compile_by),
            compile_domain: text(&compile.compile_domain),
            compile_date: text(&compile.compile_date),
            capabilities: self.version_text::<1024>(VersionCmd::CAPABILITIES)?,
            changeset: self.version_text::<64>(VersionCmd::CHANGESET)?,
            virt_start: parameters,
            pagesize: u64::try_from(pagesize).unwrap_or(0),
            commandline: self.version_text::<1024>(VersionCmd::COMMANDLINE)?,
            build_id: self.build_id(),
        })
    }

    fn version_text<const N: usize>(&self, command: VersionCmd) -> io::Result<String> {
        let mut bytes = [0u8; N];
        self.privcmd.xen_version(command.0, &mut bytes)?;
        Ok(text(&bytes))
    }

    /// Empty if the hypervisor has none.
    fn build_id(&self) -> String {
        #[derive(FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        struct BuildId {
            len: u32,
            bytes: [u8; 252],
        }
        let mut answer = BuildId {
            len: 252,
            bytes: [0; 252],
        };
        match self.privcmd.xen_version(VersionCmd::BUILD_ID.0, &mut answer) {
            Ok(len) => {
                let len = usize::try_from(len).unwrap_or(0).min(answer.bytes.len());
                answer.bytes[..len].iter().map(|byte| format!("{byte:02x}")).collect()
            }
            Err(_) => String::new(),
        }
    }

    fn plain(&self, cmd: DomctlCmd, domid: DomId) -> io::Result<()> {
        self.privcmd.domctl(&mut Domctl::new(cmd, domid.to_abi())).map(drop)
    }

    fn tell<T: IntoBytes + Immutable>(&self, cmd: DomctlCmd, domid: DomId, payload: &T) -> io::Result<()> {
        self.privcmd
            .domctl(&mut Domctl::with(cmd, domid.to_abi(), payload))
            .map(drop)
    }

    fn ask<T: FromBytes + IntoBytes + Immutable>(&self, cmd: DomctlCmd, domid: DomId, payload: &T) -> io::Result<T> {
        let mut op = Domctl::with(cmd, domid.to_abi(), payload);
        self.privcmd.domctl(&mut op)?;
        Ok(op.payload())
    }

    fn ask_host<T: FromBytes + IntoBytes + Immutable>(&self, cmd: SysctlCmd, payload: &T) -> io::Result<T> {
        let mut op = Sysctl::with(cmd, payload);
        self.privcmd.sysctl(&mut op)?;
        Ok(op.payload())
    }
}

/// A C string's text.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
