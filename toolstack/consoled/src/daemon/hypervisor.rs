//! What xenconsoled needs of the hypervisor.

use super::ring::Ring;
use anyhow::{Context, Result};
use ferroxen_abi::domctl::{Domctl, DomctlCmd, Getdomaininfo, dominf};
use ferroxen_words::{DomId, Gfn, Gref, Port, RawDomId};
use ferroxen_xenctl::{Access, EventChannels, Grants, Privcmd};
use std::io;

/// The grant under which every domain offers its console (`GNTTAB_RESERVED_CONSOLE`).
const CONSOLE_GRANT: Gref = Gref::new(0);

/// The devices through which we reach it.
#[derive(Debug)]
pub struct Hypervisor {
    /// For hypercalls.
    pub privcmd: Privcmd,
    /// Our event channels.
    pub events: EventChannels,
    grants: Option<Grants>,
}

impl Hypervisor {
    /// Opens the devices.
    pub fn open() -> Result<Hypervisor> {
        let events = EventChannels::open().context("cannot open /dev/xen/evtchn (is the module xen-evtchn there?)")?;
        Ok(Hypervisor {
            privcmd: Privcmd::open()?,
            events,
            grants: Grants::open().ok(),
        })
    }

    /// Maps a console ring, by the grant under which every domain offers it, else by its frame.
    pub fn map_ring(&self, domid: DomId, frame: u64, remote_port: u32) -> io::Result<Ring> {
        let by_grant = self
            .grants
            .as_ref()
            .map(|grants| grants.map(domid, CONSOLE_GRANT, Access::ReadWrite));
        let page = match by_grant {
            Some(Ok(page)) => page,
            _ => self
                .privcmd
                .map_foreign(domid.to_abi(), &[Gfn::new(frame)], Access::ReadWrite)?,
        };
        let port = self.events.bind_interdomain(domid, Port::new(remote_port))?;
        Ok(Ring::new(page, port, (frame, remote_port)))
    }

    /// Whether there is such a domain, and it is not being destroyed.
    pub fn exists(&self, domid: DomId) -> bool {
        let mut request = Domctl::new(DomctlCmd::GETDOMAININFO, RawDomId(domid.raw()));
        if self.privcmd.domctl(&mut request).is_err() {
            return false;
        }
        let info: Getdomaininfo = request.payload();
        info.domain.0 == domid.raw() && info.flags & dominf::DYING == 0
    }
}
