//! What the hypervisor tells of itself and of the host: for people, not for making domains.

use crate::hyper::Hypervisor;
use crate::xen::Xen;
use ferroxen_abi::domctl::{self, DomctlCmd, Trigger, XenctlBitmap};
use ferroxen_abi::hypfs::HypfsCmd;
use ferroxen_abi::memory::MemoryCmd;
use ferroxen_abi::sysctl::{self, SysctlCmd};
use ferroxen_abi::version::{CompileInfo, VersionCmd};
use ferroxen_words::DomId;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What `xl info` tells of the hypervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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

/// Where a CPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of `xl info -n`")]
pub struct Topology {
    pub core: u32,
    pub socket: u32,
    pub node: u32,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its memory in bytes.
    pub size: u64,
    /// How much of that is free.
    pub free: u64,
    /// How far the nodes are from it.
    pub distances: Vec<u32>,
}

/// CPUs that one scheduler shares out among some domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its number.
    pub id: u32,
    /// Its scheduler.
    pub scheduler: domctl::SchedulerId,
    /// How many domains it has.
    pub domains: u32,
    /// Its CPUs.
    pub cpus: BTreeSet<u32>,
}

/// "No such thing" among the answers about topology.
const INVALID: u32 = u32::MAX;

impl Xen {
    /// Where each CPU is; nothing for one that is offline.
    pub fn topology(&self) -> io::Result<Vec<Option<Topology>>> {
        let count: sysctl::Cputopoinfo = self.ask_host(SysctlCmd::CPUTOPOINFO, &sysctl::Cputopoinfo::default())?;
        let len = count.num_cpus as usize;
        let buffer = self.privcmd.buffer(len.max(1) * size_of::<sysctl::Cputopo>())?;
        let request = sysctl::Cputopoinfo {
            num_cpus: count.num_cpus,
            cputopo: buffer.handle(),
            ..Default::default()
        };
        let answer: sysctl::Cputopoinfo = self.ask_host(SysctlCmd::CPUTOPOINFO, &request)?;
        let places: Vec<sysctl::Cputopo> = buffer.get_many(0, len.min(answer.num_cpus as usize))?;
        let known = |place: sysctl::Cputopo| {
            let sysctl::Cputopo { core, socket, node } = place;
            (core != INVALID).then_some(Topology { core, socket, node })
        };
        Ok(places.into_iter().map(known).collect())
    }

    /// The NUMA nodes.
    pub fn nodes(&self) -> io::Result<Vec<Node>> {
        let count: sysctl::Numainfo = self.ask_host(SysctlCmd::NUMAINFO, &sysctl::Numainfo::default())?;
        let len = count.num_nodes as usize;
        let memory = self.privcmd.buffer(len.max(1) * size_of::<sysctl::Meminfo>())?;
        let distances = self.privcmd.buffer(len.max(1) * len.max(1) * size_of::<u32>())?;
        let request = sysctl::Numainfo {
            num_nodes: count.num_nodes,
            pad: 0,
            meminfo: memory.handle(),
            distance: distances.handle(),
        };
        let answer: sysctl::Numainfo = self.ask_host(SysctlCmd::NUMAINFO, &request)?;
        let len = len.min(answer.num_nodes as usize);
        let memory: Vec<sysctl::Meminfo> = memory.get_many(0, len)?;
        let distances: Vec<u32> = distances.get_many(0, len * len)?;
        let nodes = memory.iter().zip(distances.chunks(len.max(1)));
        Ok(nodes
            .map(|(memory, distances)| Node {
                size: memory.memsize,
                free: memory.memfree,
                distances: distances.to_vec(),
            })
            .collect())
    }

    /// The CPU pools, in order.
    pub fn pools(&self) -> io::Result<Vec<Pool>> {
        let mut pools = Vec::new();
        let mut next = 0;
        loop {
            // The answer is about the first pool from that number on.
            let (answer, cpus) = match self.ask_pool(sysctl::CpupoolCmd::INFO, next) {
                Ok(answer) => answer,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pools),
                Err(error) => return Err(error),
            };
            pools.push(Pool {
                id: answer.cpupool_id,
                scheduler: answer.sched_id,
                domains: answer.n_dom,
                cpus,
            });
            let Some(after) = answer.cpupool_id.checked_add(1) else {
                return Ok(pools);
            };
            next = after;
        }
    }

    /// Sets how long the credit2 scheduler lets a vcpu run at least.
    pub fn set_ratelimit_us(&self, ratelimit_us: u32) -> io::Result<()> {
        let mut request = sysctl::SchedulerOp {
            sched_id: self.scheduler()?,
            cmd: 0,
            ..Default::default()
        };
        request.set_payload(&sysctl::Credit2Schedule { ratelimit_us });
        let _: sysctl::SchedulerOp = self.ask_host(SysctlCmd::SCHEDULER_OP, &request)?;
        Ok(())
    }

    /// CPUs that belong to no pool.
    pub fn free_cpus(&self) -> io::Result<BTreeSet<u32>> {
        let (_, cpus) = self.ask_pool(sysctl::CpupoolCmd::FREEINFO, 0)?;
        Ok(cpus)
    }

    /// An answer about a pool, and the CPUs in it.
    fn ask_pool(&self, op: sysctl::CpupoolCmd, id: u32) -> io::Result<(sysctl::CpupoolOp, BTreeSet<u32>)> {
        let len = (self.physinfo()?.max_cpu_id as usize + 1).div_ceil(8);
        let buffer = self.privcmd.buffer(len)?;
        let request = sysctl::CpupoolOp {
            op,
            cpupool_id: id,
            cpumap: XenctlBitmap {
                bitmap: buffer.handle(),
                nr_bits: len as u32 * 8,
                pad: 0,
            },
            ..Default::default()
        };
        let answer = self.ask_host(SysctlCmd::CPUPOOL_OP, &request)?;
        let bytes: Vec<u8> = buffer.get_many(0, len)?;
        let is_in = |cpu: &u32| bytes[*cpu as usize / 8] >> (cpu % 8) & 1 != 0;
        Ok((answer, (0..len as u32 * 8).filter(is_in).collect()))
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

    /// Gives a parameter of the hypervisor's command line another value.
    pub fn set_parameter(&self, name: &str, value: &str) -> io::Result<()> {
        let path = CString::new(format!("/params/{name}"))?;
        let value = CString::new(value)?;
        self.privcmd
            .hypfs_op(HypfsCmd::WRITE_CONTENTS.0, &path, &value)
            .map(drop)
    }

    /// Sends a vcpu an NMI, as a button on the machine would.
    pub fn send_nmi(&self, domid: DomId, vcpu: u32) -> io::Result<()> {
        let trigger = domctl::Sendtrigger {
            trigger: Trigger::NMI,
            vcpu,
        };
        self.tell(DomctlCmd::SENDTRIGGER, domid, &trigger)
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
}

/// A C string's text.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
