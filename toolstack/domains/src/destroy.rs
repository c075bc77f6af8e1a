//! A domain's end: its devices, itself, and every trace of it.

use crate::error::{Doing, Result};
use crate::patience::Patience;
use crate::{Toolstack, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Result as StoreResult, Store};
use std::time::Duration;

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
            self.forget(domid)
                .doing(|| format!("removing the xenstore nodes of domain {}", domid.raw()))
        });
        if forgotten.is_ok() {
            self.keep.forget(domid);
        }
        ended.and(forgotten)
    }

    fn forget(&self, domid: DomId) -> StoreResult<()> {
        let vm = self.store.read_opt(&format!("{}/vm", nodes::domain(domid)))?;
        let mut changes = Changes::default();
        for kind in self.store.directory_opt(nodes::BACKENDS)? {
            changes.rm(&format!("{}/{kind}/{}", nodes::BACKENDS, domid.raw()));
        }
        if let Some(vm) = vm.filter(|vm| vm.starts_with("/vm/")) {
            // A domain that was rebooted shares the directory with its successor.
            if self.others_with_vm(domid, &vm)?.is_none() {
                changes.rm(&vm);
            }
        }
        changes.rm(&nodes::libxl(domid));
        self.store.apply(&changes)?;
        // Last, so that a domain with remains can be named.
        self.store.rm(&nodes::domain(domid))
    }

    fn others_with_vm(&self, domid: DomId, vm: &str) -> StoreResult<Option<DomId>> {
        let others: Vec<_> = nodes::all(&self.store)?
            .into_iter()
            .filter(|other| *other != domid)
            .collect();
        let paths: Vec<_> = others
            .iter()
            .map(|other| format!("{}/vm", nodes::domain(*other)))
            .collect();
        let found = self.store.read_each(&paths)?;
        let at = found.iter().position(|other| other.as_deref() == Some(vm));
        Ok(at.and_then(|at| others.get(at).copied()))
    }
}
