//! A hypervisor that counts frames and hands out pages of our own.

use super::{Stage, State};
use crate::hyper::{Affinity, Contents, Hypervisor};
use crate::inquiry::VersionInfo;
use ferroxen_abi::domctl::{self, CpuidLeaf, Getdomaininfo, MsrEntry, dominf};
use ferroxen_abi::memory::E820Entry;
use ferroxen_abi::sysctl::{self, physcap};
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_stream::image::VcpuPart;
use ferroxen_words::{DomId, Gfn, Mfn, Port, RawDomId};
use ferroxen_xenctl::{Access, ForeignPages};
use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, MutexGuard};
use zerocopy::FromZeros;

#[derive(Debug)]
pub struct Rehearsed(pub Arc<Stage>);

/// The host's memory in frames.
const FRAMES: u64 = 1 << 16;
const ESRCH: i32 = 3;

impl Rehearsed {
    /// A call about a domain that has to exist.
    fn about(&self, what: &str, domid: DomId) -> io::Result<MutexGuard<'_, State>> {
        let state = self.0.call(what)?;
        match state.domains.contains_key(&domid.raw()) {
            true => Ok(state),
            false => Err(io::Error::from_raw_os_error(ESRCH)),
        }
    }

    fn done(&self, what: &str, domid: DomId) -> io::Result<()> {
        self.about(what, domid).map(drop)
    }
}

fn info(domid: u16, frames: u64, flags: u32) -> Getdomaininfo {
    Getdomaininfo {
        domain: RawDomId(domid),
        flags,
        tot_pages: frames,
        max_vcpu_id: 1,
        nr_online_vcpus: 2,
        ..Default::default()
    }
}

impl Hypervisor for Rehearsed {
    fn create_domain(&self, _request: &domctl::Createdomain, wanted: Option<DomId>) -> io::Result<DomId> {
        let mut state = self.0.call("create_domain")?;
        state.next_domid += 1;
        let domid = wanted.map_or(state.next_domid, DomId::raw);
        if state.domains.contains_key(&domid) {
            return Err(io::Error::from_raw_os_error(17));
        }
        state.domains.insert(domid, 0);
        Ok(DomId::new(domid).expect("few domains"))
    }

    fn destroy_domain(&self, domid: DomId) -> io::Result<()> {
        let mut state = self.about("destroy_domain", domid)?;
        state.domains.remove(&domid.raw());
        state.claims.remove(&domid.raw());
        Ok(())
    }

    fn pause(&self, domid: DomId) -> io::Result<()> {
        self.about("pause", domid)?.pauses += 1;
        Ok(())
    }

    fn unpause(&self, domid: DomId) -> io::Result<()> {
        self.about("unpause", domid)?.pauses -= 1;
        Ok(())
    }

    fn domain(&self, domid: DomId) -> io::Result<Option<Getdomaininfo>> {
        let state = self.0.call("domain")?;
        let husk = state.husks.contains(&domid.raw());
        Ok(match state.domains.get(&domid.raw()) {
            Some(frames) => Some(info(domid.raw(), *frames, dominf::PAUSED)),
            None => husk.then(|| info(domid.raw(), 1, dominf::DYING)),
        })
    }

    fn domains(&self) -> io::Result<Vec<Getdomaininfo>> {
        let state = self.0.call("domains")?;
        let domains = state.domains.iter();
        Ok(domains
            .map(|(domid, frames)| info(*domid, *frames, dominf::PAUSED))
            .collect())
    }

    fn set_max_vcpus(&self, domid: DomId, _max: u32) -> io::Result<()> {
        self.done("set_max_vcpus", domid)
    }

    fn set_max_memory_kib(&self, domid: DomId, _max_memkb: u64) -> io::Result<()> {
        self.done("set_max_memory_kib", domid)
    }

    fn set_time_offset(&self, domid: DomId, _seconds: i64) -> io::Result<()> {
        self.done("set_time_offset", domid)
    }

    fn set_tsc_mode(&self, domid: DomId, _tsc_mode: u32) -> io::Result<()> {
        self.done("set_tsc_mode", domid)
    }

    fn init_hypercall_page(&self, domid: DomId, _frame: Mfn) -> io::Result<()> {
        self.done("init_hypercall_page", domid)
    }

    fn set_affinity(&self, domid: DomId, _: u32, _: Affinity, _: Option<&BTreeSet<u32>>) -> io::Result<()> {
        self.done("set_affinity", domid)
    }

    fn affinity(&self, domid: DomId, _vcpu: u32, _kind: Affinity) -> io::Result<Vec<bool>> {
        self.done("affinity", domid).map(|()| vec![true])
    }

    fn vcpu(&self, domid: DomId, _vcpu: u32) -> io::Result<domctl::Getvcpuinfo> {
        self.done("vcpu", domid).map(|()| domctl::Getvcpuinfo::default())
    }

    fn set_vcpu_context(&self, domid: DomId, _vcpu: u32, _context: &VcpuGuestContext) -> io::Result<()> {
        self.done("set_vcpu_context", domid)
    }

    fn sched_credit(&self, domid: DomId) -> io::Result<domctl::SchedCredit> {
        self.done("sched_credit", domid)
            .map(|()| domctl::SchedCredit { weight: 256, cap: 0 })
    }

    fn set_sched_credit(&self, domid: DomId, _credit: &domctl::SchedCredit) -> io::Result<()> {
        self.done("set_sched_credit", domid)
    }

    fn alloc_unbound_port(&self, domid: DomId) -> io::Result<Port> {
        self.done("alloc_unbound_port", domid).map(|()| Port::new(1))
    }

    fn claim_pages(&self, domid: DomId, pages: u64) -> io::Result<()> {
        let mut state = self.about("claim_pages", domid)?;
        match pages {
            0 => drop(state.claims.remove(&domid.raw())),
            pages => drop(state.claims.insert(domid.raw(), pages)),
        }
        Ok(())
    }

    fn populate(&self, domid: DomId, pfns: &[u64], order: u32) -> io::Result<Vec<Mfn>> {
        let mut state = self.about("populate", domid)?;
        // As on a host whose memory is in small pieces.
        let few = if order > 0 { 1 } else { pfns.len() };
        *state.domains.entry(domid.raw()).or_default() += (few as u64) << order;
        Ok(pfns.iter().take(few).map(|pfn| Mfn::new(*pfn)).collect())
    }

    fn depopulate(&self, domid: DomId, frames: &[Mfn]) -> io::Result<usize> {
        let mut state = self.about("depopulate", domid)?;
        *state.domains.entry(domid.raw()).or_default() -= frames.len() as u64;
        Ok(frames.len())
    }

    fn set_memory_map(&self, domid: DomId, _map: &[E820Entry]) -> io::Result<()> {
        self.done("set_memory_map", domid)
    }

    fn permit_ports(&self, domid: DomId, _first: u32, _count: u32) -> io::Result<()> {
        self.done("permit_ports", domid)
    }

    fn permit_iomem(&self, domid: DomId, _first: u64, _pages: u64) -> io::Result<()> {
        self.done("permit_iomem", domid)
    }

    fn permit_irq(&self, domid: DomId, _irq: u32) -> io::Result<()> {
        self.done("permit_irq", domid)
    }

    fn cpuid_of_host(&self) -> io::Result<Vec<CpuidLeaf>> {
        self.0.call("cpuid_of_host").map(|_| Vec::new())
    }

    fn physinfo(&self) -> io::Result<sysctl::Physinfo> {
        let used: u64 = self.0.call("physinfo")?.domains.values().sum();
        Ok(sysctl::Physinfo {
            capabilities: physcap::PV | physcap::GNTTAB_V1,
            total_pages: FRAMES,
            free_pages: FRAMES.saturating_sub(used),
            ..Default::default()
        })
    }

    fn scheduler(&self) -> io::Result<domctl::SchedulerId> {
        self.0.call("scheduler").map(|_| domctl::SchedulerId::CREDIT2)
    }

    fn map(&self, domid: DomId, frames: &[Gfn]) -> io::Result<ForeignPages> {
        self.done("map", domid)?;
        ForeignPages::anonymous(frames.len(), Access::ReadWrite)
    }

    fn map_grant_table(&self, domid: DomId) -> io::Result<ForeignPages> {
        self.done("map_grant_table", domid)?;
        ForeignPages::anonymous(1, Access::ReadWrite)
    }
}

impl Contents for Rehearsed {
    fn version(&self) -> io::Result<(u32, u32)> {
        self.0.call("version").map(|_| (4, 17))
    }

    fn about_itself(&self) -> io::Result<VersionInfo> {
        self.0.call("about_itself").map(|_| VersionInfo::default())
    }

    fn resume(&self, domid: DomId) -> io::Result<()> {
        self.done("resume", domid)
    }

    fn machine_to_phys(&self) -> io::Result<(ForeignPages, u64)> {
        drop(self.0.call("machine_to_phys")?);
        Ok((ForeignPages::anonymous(1, Access::ReadOnly)?, 0))
    }

    fn map_to_read(&self, domid: DomId, frames: &[Gfn]) -> io::Result<ForeignPages> {
        self.done("map_to_read", domid)?;
        ForeignPages::anonymous(frames.len(), Access::ReadOnly)
    }

    fn frame_types(&self, domid: DomId, frames: &mut [u64]) -> io::Result<()> {
        frames.fill(0);
        self.done("frame_types", domid)
    }

    fn begin_log(&self, domid: DomId) -> io::Result<bool> {
        self.done("begin_log", domid).map(|()| true)
    }

    fn take_log(&self, domid: DomId, frames: u64) -> io::Result<Vec<u64>> {
        let words = usize::try_from(frames.div_ceil(64)).unwrap_or(0);
        self.done("take_log", domid).map(|()| vec![0; words])
    }

    fn end_log(&self, domid: DomId) -> io::Result<()> {
        self.done("end_log", domid)
    }

    fn vcpu_context(&self, domid: DomId, _vcpu: u32) -> io::Result<Box<VcpuGuestContext>> {
        self.done("vcpu_context", domid)?;
        Ok(Box::new(VcpuGuestContext::new_zeroed()))
    }

    fn vcpu_part(&self, domid: DomId, _vcpu: u32, _part: VcpuPart) -> io::Result<Vec<u8>> {
        self.done("vcpu_part", domid).map(|()| Vec::new())
    }

    fn set_vcpu_part(&self, domid: DomId, _vcpu: u32, _part: VcpuPart, _bytes: &[u8]) -> io::Result<()> {
        self.done("set_vcpu_part", domid)
    }

    fn tsc_info(&self, domid: DomId) -> io::Result<domctl::TscInfo> {
        self.done("tsc_info", domid).map(|()| domctl::TscInfo::default())
    }

    fn set_tsc_info(&self, domid: DomId, _info: &domctl::TscInfo) -> io::Result<()> {
        self.done("set_tsc_info", domid)
    }

    fn cpu_policy(&self, domid: DomId) -> io::Result<(Vec<CpuidLeaf>, Vec<MsrEntry>)> {
        self.done("cpu_policy", domid).map(|()| (Vec::new(), Vec::new()))
    }

    fn set_cpu_policy(&self, domid: DomId, _: &[CpuidLeaf], _: &[MsrEntry]) -> io::Result<Option<(u32, u32)>> {
        self.done("set_cpu_policy", domid).map(|()| None)
    }

    fn pin(&self, domid: DomId, _tables: &[(u8, Mfn)]) -> io::Result<()> {
        self.done("pin", domid)
    }

    fn clear(&self, domid: DomId, _frames: &[u64]) -> io::Result<()> {
        self.done("clear", domid)
    }
}
