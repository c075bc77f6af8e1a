//! What xenstored needs of the hypervisor.

use super::ring::Ring;
use crate::core::DomainState;
use anyhow::{Context, Result};
use ferroxen_abi::domctl::{Domctl, DomctlCmd, Getdomaininfo, dominf};
use ferroxen_abi::sysctl::{Getdomaininfolist, Sysctl, SysctlCmd};
use ferroxen_abi::xen::virq;
use ferroxen_words::{DomId, Gfn, Gref, Port, RawDomId};
use ferroxen_xenctl::{Access, EventChannels, Grants, HypercallBuffer, Privcmd, XenbusBackend};
use ferroxen_xenstore_wire::ring;
use std::collections::BTreeMap;
use std::io;

/// Domains that are asked about at a time.
const BATCH: usize = 128;

/// The devices through which we reach it.
#[derive(Debug)]
pub struct Hypervisor {
    privcmd: Privcmd,
    grants: Option<Grants>,
    /// Where it tells of domains.
    infos: HypercallBuffer,
    /// Our event channels.
    pub events: EventChannels,
    /// Rings when some domain's state has changed.
    pub domain_exception: Port,
}

impl Hypervisor {
    /// Opens the devices and asks to hear of domains' ends.
    pub fn open() -> Result<Hypervisor> {
        let privcmd = Privcmd::open()?;
        let events = EventChannels::open().context("cannot open /dev/xen/evtchn (is the module xen-evtchn there?)")?;
        let domain_exception = events
            .bind_virq(virq::DOM_EXC)
            .context("cannot bind VIRQ_DOM_EXC (does another xenstored have it?)")?;
        let infos = privcmd.buffer(BATCH * size_of::<Getdomaininfo>());
        Ok(Hypervisor {
            infos: infos.context("cannot get memory for the hypervisor's answers")?,
            privcmd,
            grants: Grants::open().ok(),
            events,
            domain_exception,
        })
    }

    /// Takes our own kernel's ring.
    pub fn own_ring(&self) -> Result<Ring> {
        let backend = XenbusBackend::open().context("cannot take the kernel's ring from /dev/xen/xenbus_backend")?;
        let port = self
            .events
            .bind_interdomain(DomId::DOM0, backend.port)
            .with_context(|| format!("cannot bind to the kernel's xenstore {}", backend.port))?;
        Ring::new(backend.ring, port).context("cannot use the kernel's ring")
    }

    /// Maps a domain's ring, by the grant under which every domain offers it, else by its frame.
    pub fn domain_ring(&self, domid: DomId, gfn: Gfn, remote_port: Port) -> io::Result<Ring> {
        let by_grant = self
            .grants
            .as_ref()
            .map(|grants| grants.map(domid, Gref::new(ring::GRANT_REF), Access::ReadWrite));
        let page = match by_grant {
            Some(Ok(page)) => page,
            _ => self.privcmd.map_foreign(domid.to_abi(), &[gfn], Access::ReadWrite)?,
        };
        let port = self.events.bind_interdomain(domid, remote_port)?;
        Ring::new(page, port)
    }

    /// How a domain is doing.
    pub fn state_of(&self, domid: u16) -> DomainState {
        let mut request = Domctl::new(DomctlCmd::GETDOMAININFO, RawDomId(domid));
        if self.privcmd.domctl(&mut request).is_err() {
            return DomainState::Gone;
        }
        let info: Getdomaininfo = request.payload();
        // Asked for a domain that is not there, the hypervisor tells of the next one that is.
        if info.domain.0 != domid {
            DomainState::Gone
        } else {
            state(&info)
        }
    }

    /// How all domains are doing: those that are missing are gone.
    pub fn states(&self) -> io::Result<BTreeMap<u16, DomainState>> {
        let mut states = BTreeMap::new();
        let mut first = 0;
        loop {
            let request = Getdomaininfolist {
                first_domain: RawDomId(first),
                max_domains: BATCH as u32,
                buffer: self.infos.handle(),
                ..Default::default()
            };
            let mut op = Sysctl::with(SysctlCmd::GETDOMAININFOLIST, &request);
            self.privcmd.sysctl(&mut op)?;
            let answer: Getdomaininfolist = op.payload();
            let infos: Vec<Getdomaininfo> = self.infos.get_many(0, (answer.num_domains as usize).min(BATCH))?;
            states.extend(infos.iter().map(|info| (info.domain.0, state(info))));
            match infos.last().and_then(|last| last.domain.0.checked_add(1)) {
                Some(next) if infos.len() == BATCH => first = next,
                _ => return Ok(states),
            }
        }
    }
}

fn state(info: &Getdomaininfo) -> DomainState {
    if info.flags & dominf::DYING != 0 {
        DomainState::Dying
    } else if info.flags & dominf::SHUTDOWN != 0 {
        DomainState::ShutDown
    } else {
        DomainState::Alive
    }
}
