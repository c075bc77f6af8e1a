//! A domain's end: its devices, itself, and every trace of it.

use crate::error::{Doing, Result};
use crate::patience::Patience;
use crate::{Toolstack, nodes};
use ferroxen_abi::domctl::{Getdomaininfo, dominf};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Result as StoreResult, Store};
use std::time::Duration;
use uuid::Uuid;

/// How long others (xenstored, xenconsoled) may take to let go of a dead domain's pages.
const LAST_PAGES: Duration = Duration::from_secs(2);

impl Toolstack {
    /// Pulls the plug on a domain and removes all that belongs to it. What fails on the way is remembered, but
    /// the rest is done all the same.
    pub fn destroy(&self, domid: DomId) -> Result<()> {
        // Stopped, it cannot fight back while its devices go away; it may be gone already.
        let _ = self.hypervisor.pause(domid);
        let devices = self.take_devices(domid);
        let ended = match self.hypervisor.destroy_domain(domid) {
            // No such domain: only its traces are left to remove.
            Err(error) if error.raw_os_error() == Some(3) => Ok(()),
            other => other.doing(|| format!("destroying domain {}", domid.raw())),
        };
        // xenstored forgets the domain by itself when it dies; asking twice does no harm.
        let _ = self.store.release(domid.raw());
        if ended.is_ok() {
            // A page that is mapped somewhere keeps the husk of a domain; there is no more to be done about it.
            let is_gone = || Ok(self.hypervisor.domain(domid)?.is_none().then_some(()));
            let _ = self.wait_for_domain(domid, Patience::stubborn(LAST_PAGES), is_gone);
        }
        // What could not be let go of stays noted, for another try.
        let forgotten = devices.and_then(|()| {
            let doing = || format!("removing the xenstore nodes of domain {}", domid.raw());
            let infos = self.hypervisor.domains().doing(doing)?;
            self.forget(domid, &infos).doing(doing)
        });
        if forgotten.is_ok() {
            self.keep.forget(domid);
        }
        ended.and(forgotten)
    }

    /// `infos` are all domains that there are.
    fn forget(&self, domid: DomId, infos: &[Getdomaininfo]) -> StoreResult<()> {
        let vm = self.store.read_opt(&format!("{}/vm", nodes::domain(domid)))?;
        let mut changes = Changes::default();
        for kind in self.store.directory_opt(nodes::BACKENDS)? {
            changes.rm(&format!("{}/{kind}/{}", nodes::BACKENDS, domid.raw()));
        }
        if let Some(vm) = vm.filter(|vm| vm.starts_with("/vm/")) {
            // A domain that was rebooted shares the directory with its successor.
            if !others_have_vm(domid, &vm, infos) {
                changes.rm(&vm);
            }
        }
        changes.rm(&nodes::libxl(domid));
        self.store.apply(&changes)?;
        // Last, so that a domain with remains can be named.
        self.store.rm(&nodes::domain(domid))
    }
}

/// Whether another domain that lives has the UUID of `/vm/UUID`.
fn others_have_vm(domid: DomId, vm: &str, infos: &[Getdomaininfo]) -> bool {
    let Some(uuid) = vm.strip_prefix("/vm/").and_then(|uuid| Uuid::parse_str(uuid).ok()) else {
        return false;
    };
    let has_it = |info: &Getdomaininfo| {
        info.domain != domid.to_abi() && info.handle == *uuid.as_bytes() && info.flags & dominf::DYING == 0
    };
    infos.iter().any(has_it)
}
