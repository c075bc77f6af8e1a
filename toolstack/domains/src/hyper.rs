//! What making, running and ending domains needs of a hypervisor, in our own words.
//!
//! [`Xen`](crate::xen::Xen) is the real one. Tests have one of their own, in which any call can be made to fail.

use crate::inquiry::VersionInfo;
use ferroxen_abi::domctl::{self, CpuidLeaf, Getdomaininfo, MsrEntry};
use ferroxen_abi::memory::E820Entry;
use ferroxen_abi::sysctl;
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_stream::image::VcpuPart;
use ferroxen_words::{DomId, Gfn, Mfn, Port};
use ferroxen_xenctl::ForeignPages;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io;

/// Hard or soft: where a vcpu may run, or would rather run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Affinity {
    /// May.
    Hard,
    /// Would rather.
    Soft,
}

/// What a domain holds, for whoever saves it or brings it back. Frames are the machine's here.
pub trait Contents {
    /// The hypervisor's major and minor version.
    fn version(&self) -> io::Result<(u32, u32)>;

    /// All that the hypervisor says of itself.
    fn about_itself(&self) -> io::Result<VersionInfo>;

    /// Lets a domain that has suspended itself run on.
    fn resume(&self, domid: DomId) -> io::Result<()>;

    /// The machine-to-physical table, to read, and how many frames it tells of.
    fn machine_to_phys(&self) -> io::Result<(ForeignPages, u64)>;

    /// Maps frames of a domain to read them, whatever they are to it.
    fn map_to_read(&self, domid: DomId, frames: &[Gfn]) -> io::Result<ForeignPages>;

    /// What each frame is to the domain (`XEN_DOMCTL_PFINFO_*`), in place; at most [`FRAME_TYPES`] at a time.
    fn frame_types(&self, domid: DomId, frames: &mut [u64]) -> io::Result<()>;

    /// Begins to log what a domain writes, with nothing in the log. `false`: the hypervisor cannot.
    fn begin_log(&self, domid: DomId) -> io::Result<bool>;

    /// Gives the log, a bit for each of the domain's first `frames` frames, and empties it.
    fn take_log(&self, domid: DomId, frames: u64) -> io::Result<Vec<u64>>;

    /// Ends the log, if one is kept.
    fn end_log(&self, domid: DomId) -> io::Result<()>;

    /// A vcpu's context.
    fn vcpu_context(&self, domid: DomId, vcpu: u32) -> io::Result<Box<VcpuGuestContext>>;

    /// A part of a vcpu that is in no context; empty if there is nothing to tell.
    fn vcpu_part(&self, domid: DomId, vcpu: u32, part: VcpuPart) -> io::Result<Vec<u8>>;

    /// Sets a part as [`Contents::vcpu_part`] gave it.
    fn set_vcpu_part(&self, domid: DomId, vcpu: u32, part: VcpuPart, bytes: &[u8]) -> io::Result<()>;

    /// How time passes for the domain.
    fn tsc_info(&self, domid: DomId) -> io::Result<domctl::TscInfo>;

    /// Sets that.
    fn set_tsc_info(&self, domid: DomId, info: &domctl::TscInfo) -> io::Result<()>;

    /// CPUID leaves and MSRs that the domain sees.
    fn cpu_policy(&self, domid: DomId) -> io::Result<(Vec<CpuidLeaf>, Vec<MsrEntry>)>;

    /// Has a domain that has not run see these; gives the leaf and subleaf that the host cannot give, if there is one.
    fn set_cpu_policy(&self, domid: DomId, leaves: &[CpuidLeaf], msrs: &[MsrEntry]) -> io::Result<Option<(u32, u32)>>;

    /// Pins page tables: of each its level, 1 to 4, and its frame.
    fn pin(&self, domid: DomId, tables: &[(u8, Mfn)]) -> io::Result<()>;

    /// Fills frames with zeroes, without mapping them here.
    fn clear(&self, domid: DomId, frames: &[u64]) -> io::Result<()>;
}

/// Frames that [`Contents::frame_types`] takes.
pub const FRAME_TYPES: usize = 1024;

/// The control calls.
pub trait Hypervisor: Contents + Debug {
    /// Makes an empty, paused domain without vcpus' contexts or memory.
    fn create_domain(&self, request: &domctl::Createdomain, wanted: Option<DomId>) -> io::Result<DomId>;

    /// Ends a domain and gives back all it holds. May take a while: it is asked again until it is done.
    fn destroy_domain(&self, domid: DomId) -> io::Result<()>;

    /// Stops all vcpus; counts.
    fn pause(&self, domid: DomId) -> io::Result<()>;

    /// Lets all vcpus run again.
    fn unpause(&self, domid: DomId) -> io::Result<()>;

    /// One domain's state; `None` if there is no such domain.
    fn domain(&self, domid: DomId) -> io::Result<Option<Getdomaininfo>>;

    /// All domains' states, in order of their ids.
    fn domains(&self) -> io::Result<Vec<Getdomaininfo>>;

    /// Says how many vcpus the domain will have at most.
    fn set_max_vcpus(&self, domid: DomId, max: u32) -> io::Result<()>;

    /// Says how much memory the domain may have at most.
    fn set_max_memory_kib(&self, domid: DomId, max_memkb: u64) -> io::Result<()>;

    /// Moves the domain's wall clock against the host's.
    fn set_time_offset(&self, domid: DomId, time_offset_seconds: i64) -> io::Result<()>;

    /// Chooses how the time stamp counter behaves (xen-tscmode(7)).
    fn set_tsc_mode(&self, domid: DomId, tsc_mode: u32) -> io::Result<()>;

    /// Fills a frame with hypercall stubs.
    fn init_hypercall_page(&self, domid: DomId, frame: Mfn) -> io::Result<()>;

    /// Says where a vcpu may (or would rather) run; without CPUs, anywhere.
    fn set_affinity(&self, domid: DomId, vcpu: u32, kind: Affinity, cpus: Option<&BTreeSet<u32>>) -> io::Result<()>;

    /// Where a vcpu may (or would rather) run: one bool per CPU.
    fn affinity(&self, domid: DomId, vcpu: u32, kind: Affinity) -> io::Result<Vec<bool>>;

    /// One vcpu's state.
    fn vcpu(&self, domid: DomId, vcpu: u32) -> io::Result<domctl::Getvcpuinfo>;

    /// Gives a vcpu its first context.
    fn set_vcpu_context(&self, domid: DomId, vcpu: u32, context: &VcpuGuestContext) -> io::Result<()>;

    /// Weight and cap of a domain under the scheduler in use.
    fn sched_credit(&self, domid: DomId) -> io::Result<domctl::SchedCredit>;

    /// Sets weight and cap.
    fn set_sched_credit(&self, domid: DomId, credit: &domctl::SchedCredit) -> io::Result<()>;

    /// Makes a port of the domain to which Domain 0 may bind.
    fn alloc_unbound_port(&self, domid: DomId) -> io::Result<Port>;

    /// Sets pages aside for a domain before they are allocated one by one. 0 ends the claim.
    fn claim_pages(&self, domid: DomId, pages: u64) -> io::Result<()>;

    /// Allocates extents of 2^`order` pages at the pfns given; gives the mfns of those that succeeded.
    fn populate(&self, domid: DomId, pfns: &[u64], order: u32) -> io::Result<Vec<Mfn>>;

    /// Takes frames away from a domain; gives how many went.
    fn depopulate(&self, domid: DomId, frames: &[Mfn]) -> io::Result<usize>;

    /// Tells the domain's memory map, for one that asks.
    fn set_memory_map(&self, domid: DomId, map: &[E820Entry]) -> io::Result<()>;

    /// Lets the domain use I/O ports.
    fn permit_ports(&self, domid: DomId, first: u32, count: u32) -> io::Result<()>;

    /// Lets the domain map pages of the host's devices.
    fn permit_iomem(&self, domid: DomId, first: u64, pages: u64) -> io::Result<()>;

    /// Gives the domain one of the host's interrupts, under the same number if that is free.
    fn permit_irq(&self, domid: DomId, irq: u32) -> io::Result<()>;

    /// What the host's CPUID says.
    fn cpuid_of_host(&self) -> io::Result<Vec<CpuidLeaf>>;

    /// The host in figures.
    fn physinfo(&self) -> io::Result<sysctl::Physinfo>;

    /// The scheduler in use.
    fn scheduler(&self) -> io::Result<domctl::SchedulerId>;

    /// Maps frames of a domain to write into them.
    fn map(&self, domid: DomId, frames: &[Gfn]) -> io::Result<ForeignPages>;

    /// Maps the first page of a domain's grant table.
    fn map_grant_table(&self, domid: DomId) -> io::Result<ForeignPages>;
}
