//! A domain's end: its devices, itself, and every trace of it.

use crate::error::{Doing, Result};
use crate::{Toolstack, block, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Result as StoreResult, Store};
use std::time::{Duration, Instant};

/// How long backends may take to let go before we go on without them.
const PATIENCE: Duration = Duration::from_secs(10);
/// `XenbusStateInitialising`: no backend has looked at the device.
const NEW: &str = "1";
/// `XenbusStateClosed`
const CLOSED: &str = "6";

/// A device of a domain, and where its backend is.
struct Device {
    front: String,
    back: String,
    kind: String,
    node: Option<String>,
}

impl Toolstack {
    /// Pulls the plug on a domain and removes all that belongs to it. What fails on the way is remembered, but
    /// the rest is done all the same.
    pub fn destroy(&self, domid: DomId) -> Result<()> {
        let uuid = self
            .store
            .read_opt(&format!("{}/vm", nodes::domain(domid)))
            .ok()
            .flatten();
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
        let forgotten = self
            .forget(domid, uuid.as_deref())
            .doing(|| format!("removing the xenstore nodes of domain {}", domid.raw()));
        crate::keep::forget(domid);
        ended.and(devices).and(forgotten)
    }

    fn take_devices(&self, domid: DomId) -> Result<()> {
        let doing = || format!("taking away the devices of domain {}", domid.raw());
        let devices = self.devices(domid).doing(doing)?;
        let mut served = Vec::new();
        for device in &devices {
            let state = self.store.read_opt(&format!("{}/state", device.back)).doing(doing)?;
            let has_backend = matches!(device.kind.as_str(), "vbd" | "vif") && state.is_some_and(|state| state != NEW);
            if has_backend {
                served.push(&device.back);
            }
            // Told to close and without its frontend, a backend lets go by itself.
            for (name, value) in [("online", "0"), ("state", "5")] {
                self.store
                    .write(&format!("{}/{name}", device.back), value)
                    .doing(doing)?;
            }
            self.store.rm(&device.front).doing(doing)?;
        }
        let deadline = Instant::now() + PATIENCE;
        for device in devices
            .iter()
            .filter(|device| matches!(device.kind.as_str(), "vbd" | "vif"))
        {
            self.wait_closed(&device.back, deadline).doing(doing)?;
        }
        let mut result = Ok(());
        for device in &devices {
            self.store.rm(&device.back).doing(doing)?;
            result = result.and(block::release(device.node.as_deref()));
        }
        result
    }

    /// All devices of a domain whose backend is in Domain 0, also those whose making was cut short.
    fn devices(&self, domid: DomId) -> StoreResult<Vec<Device>> {
        let mut devices = Vec::new();
        for kind in self.store.directory_opt("/local/domain/0/backend")? {
            let root = format!("/local/domain/0/backend/{kind}/{}", domid.raw());
            for id in self.store.directory_opt(&root)? {
                let back = format!("{root}/{id}");
                let node = self.store.read_opt(&format!("{back}/node"))?;
                let front = match kind.as_str() {
                    "console" if id == "0" => format!("{}/console", nodes::domain(domid)),
                    kind => format!("{}/device/{kind}/{id}", nodes::domain(domid)),
                };
                devices.push(Device {
                    front,
                    back,
                    kind: kind.clone(),
                    node,
                });
            }
        }
        Ok(devices)
    }

    fn wait_closed(&self, back: &str, deadline: Instant) -> StoreResult<()> {
        let path = format!("{back}/state");
        let is_closed = |state: Option<String>| state.is_none_or(|state| state == CLOSED);
        self.wait_for(&path, deadline, is_closed).map(drop)
    }

    fn forget(&self, domid: DomId, vm: Option<&str>) -> StoreResult<()> {
        for kind in self.store.directory_opt("/local/domain/0/backend")? {
            self.store
                .rm(&format!("/local/domain/0/backend/{kind}/{}", domid.raw()))?;
        }
        if let Some(vm) = vm.filter(|vm| vm.starts_with("/vm/")) {
            // A domain that was rebooted shares the directory with its successor.
            if self.others_with_vm(domid, vm)?.is_none() {
                self.store.rm(vm)?;
            }
        }
        self.store.rm(&nodes::domain(domid))?;
        self.store.rm(&nodes::libxl(domid))
    }

    fn others_with_vm(&self, domid: DomId, vm: &str) -> StoreResult<Option<DomId>> {
        for id in self.store.directory_opt("/local/domain")? {
            let Some(other) = id.parse().ok().and_then(DomId::new).filter(|other| *other != domid) else {
                continue;
            };
            if self.store.read_opt(&format!("{}/vm", nodes::domain(other)))?.as_deref() == Some(vm) {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    /// Waits until `done` likes the value at `path`; says whether it did in time.
    pub(crate) fn wait_for(
        &self,
        path: &str,
        deadline: Instant,
        done: impl Fn(Option<String>) -> bool,
    ) -> StoreResult<bool> {
        let token = "ferroxen-wait";
        self.store.watch(path, token)?;
        let result = loop {
            match self.store.read_opt(path) {
                Ok(value) => {
                    if done(value) {
                        break Ok(true);
                    }
                }
                Err(error) => break Err(error),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Ok(false);
            }
            if let Err(error) = self.store.next_event(Some(left)) {
                break Err(error);
            }
        };
        self.store.unwatch(path, token)?;
        result
    }

    /// Waits until the kernel's backend has looked at a new device.
    pub(crate) fn wait_backend(&self, domid: DomId, kind: &str, id: u32, module: &str) -> Result<()> {
        let back = nodes::backend(domid, kind, id);
        let what = || format!("waiting for the backend of {kind} {id}");
        let seen = self
            .wait_for(&format!("{back}/state"), Instant::now() + PATIENCE, |state| {
                state.is_some_and(|state| state != "1")
            })
            .doing(what)?;
        let error = self
            .store
            .read_opt(&format!(
                "/local/domain/0/error/backend/{kind}/{}/{id}/error",
                domid.raw()
            ))
            .doing(what)?;
        match (seen, error) {
            (_, Some(error)) => Err(crate::Error::new(what(), format!("it says: {error}"))),
            (true, None) => Ok(()),
            (false, None) => Err(crate::Error::new(
                what(),
                format!("it did not answer within {} s", PATIENCE.as_secs()),
            )
            .way_out(format!("is the module loaded? (`modprobe {module}`)"))),
        }
    }
}
