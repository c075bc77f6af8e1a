//! A domain's devices while it lives: giving it one more, taking one away.

use crate::backend::NEW;
use crate::error::{Doing, Error, Result};
use crate::hotplug::Script;
use crate::patience::Patience;
use crate::{Toolstack, block, device_model, nbd, network, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Result as StoreResult, Store};
use ferroxen_xlconfig::{Disk, Vif};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// How long a guest and its backend may take to let go of a device.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// `XenbusStateClosing`
const CLOSING: &str = "5";
/// `XenbusStateClosed`
const CLOSED: &str = "6";

/// Whether a guest is asked before its device goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// It has to let go first.
    Asking,
    /// It is not.
    ByForce,
}

/// A device of a domain, and where its backend is.
pub(crate) struct Device {
    pub kind: String,
    pub id: String,
    pub front: String,
    pub back: String,
    /// The backend's name among Linux' devices, if it has begun.
    pub served: Option<String>,
    /// Another domain serves it.
    is_elsewhere: bool,
    /// The loop or nbd device behind a disk.
    node: Option<String>,
    /// The script that connected it.
    script: Option<Script>,
}

impl Toolstack {
    /// Gives a running domain a disk.
    pub fn attach_disk(&self, domid: DomId, disk: &Disk) -> Result<()> {
        let id = disk.vdev.number;
        let doing = || format!("attaching disk {}", disk.vdev.name);
        self.is_free(domid, "vbd", id).map_err(|error| error.in_step(doing()))?;
        let attached = block::attach(self, domid, disk);
        self.or_undone(domid, "vbd", id, attached)
    }

    /// Gives a running domain a network card; its number is the first that is free, unless it asks for one.
    pub fn attach_vif(&self, domid: DomId, vif: &Vif) -> Result<u32> {
        let doing = || format!("attaching a network card to domain {}", domid.raw());
        let taken = self.store.directory_opt(&nodes::notes(domid, "vif")).doing(doing)?;
        let is_free = |id: &u32| !taken.contains(&id.to_string());
        let id = vif.devid.or_else(|| (0..=u32::MAX).find(is_free)).unwrap_or(0);
        self.is_free(domid, "vif", id).map_err(|error| error.in_step(doing()))?;
        let info = self.hypervisor.domain(domid).doing(doing)?;
        let uuid = info.map_or(Uuid::nil(), |info| Uuid::from_bytes(info.handle));
        let mut vif = vif.clone();
        self.conf.complete_vif(&mut vif);
        let attached = network::attach(self, domid, &uuid, &vif, id);
        self.or_undone(domid, "vif", id, attached).map(|()| id)
    }

    fn is_free(&self, domid: DomId, kind: &str, id: u32) -> Result<()> {
        let doing = || "looking at its devices".to_owned();
        let back = nodes::serving(&self.store, domid, kind, id).doing(doing)?;
        let taken = back.map_or(Ok(false), |back| self.store.exists(&back)).doing(doing)?;
        match taken {
            true => Err(Error::new(
                "finding a place for it",
                format!("the domain has a {kind} {id} already"),
            )),
            false => Ok(()),
        }
    }

    /// Removes what there is of a device that could not be attached.
    fn or_undone(&self, domid: DomId, kind: &str, id: u32, attached: Result<()>) -> Result<()> {
        if attached.is_err() {
            // The complaint that led here is the one worth reading.
            let _ = self.detach(domid, kind, id, Manner::ByForce);
        }
        attached
    }

    /// Takes a device away.
    pub fn detach(&self, domid: DomId, kind: &str, id: u32, manner: Manner) -> Result<()> {
        let doing = || format!("taking {kind} {id} from domain {}", domid.raw());
        let id = id.to_string();
        let devices = self.devices(domid).doing(doing)?;
        let Some(device) = devices
            .into_iter()
            .find(|device| device.kind == kind && device.id == id)
        else {
            return Err(Error::new(doing(), "it has no such device"));
        };
        let devices = std::slice::from_ref(&device);
        if manner == Manner::Asking && (device.served.is_some() || device.is_elsewhere) {
            self.ask_to_close(&device).map_err(|error| error.in_step(doing()))?;
        }
        self.begin_end_elsewhere(devices);
        self.remove_fronts(devices).doing(doing)?;
        self.wait_end_elsewhere(devices);
        self.wait_backends_gone(devices)
            .and_then(|()| self.let_go(&device))
            .map_err(|error| error.in_step(doing()))?;
        self.store.rm(&nodes::note(domid, kind, &id)).doing(doing)
    }

    /// Lets a disk grow while its guest uses it: to `size` bytes, or to what stands behind it by now. The backend
    /// sees the new size at the guest's next request, and tells the guest.
    pub fn grow_disk(&self, domid: DomId, id: u32, size: Option<u64>) -> Result<()> {
        let doing = || format!("growing vbd {id} of domain {}", domid.raw());
        let back = nodes::serving(&self.store, domid, "vbd", id).doing(doing)?;
        let back = back.ok_or_else(|| Error::new(doing(), "it has no such disk"))?;
        if !back.starts_with(nodes::BACKENDS) {
            return Err(Error::new(doing(), "a driver domain serves it")
                .way_out("detach it, let the image grow in there, and attach it again"));
        }
        let read = |name: &str| self.store.read_opt(&format!("{back}/{name}")).doing(doing);
        let Some(params) = read("params")? else {
            return Err(Error::new(doing(), "it has no such disk"));
        };
        let image = Path::new(&params);
        let Some(node) = read("node")? else {
            return match size {
                // A device's backend asks it for its size by itself.
                None => Ok(()),
                Some(_) => Err(Error::new(doing(), format!("{params} is a device, not an image"))
                    .way_out(format!("grow the device itself (`lvextend -L SIZE {params}`)"))),
            };
        };
        if node.starts_with(nbd::PREFIX) {
            return Err(Error::new(
                doing(),
                format!("{params} is no plain image, and QEMU's server keeps its size"),
            )
            .way_out(format!("let the guest go, then `qemu-img resize {params} SIZE`")));
        }
        let now = std::fs::metadata(image).doing(doing)?.len();
        if let Some(size) = size.filter(|size| *size < now) {
            return Err(
                Error::new(doing(), format!("{params} has {now} bytes, and {size} are less"))
                    .way_out("a disk that is in use can only grow"),
            );
        }
        self.host.grow(image, size, Path::new(&node)).doing(doing)
    }

    /// Lets the guest say goodbye: its backend closes once it has.
    fn ask_to_close(&self, device: &Device) -> Result<()> {
        let doing = || "asking the guest to let go".to_owned();
        self.begin_close(device).doing(doing)?;
        match self.wait_closed(device, self.patience(PATIENCE))? {
            true => Ok(()),
            false => Err(Error::new(doing(), format!("it did not within {PATIENCE:?}"))
                .way_out("is it in use there (mounted)? `--force` takes it away all the same")),
        }
    }

    /// Tells both ends that the device is to go, unless it has.
    fn begin_close(&self, device: &Device) -> StoreResult<()> {
        let state = format!("{}/state", device.back);
        self.store.transaction(|tx| match tx.read_opt(&state)?.as_deref() {
            None | Some(CLOSED) => Ok(()),
            Some(_) => {
                tx.write(&format!("{}/online", device.back), "0")?;
                tx.write(&state, CLOSING)
            }
        })
    }

    /// Waits until the backend has closed. `false`: it has not in time.
    fn wait_closed(&self, device: &Device, patience: Patience<'_>) -> Result<bool> {
        let is_closed = |state: Option<&str>| state.is_none_or(|state| state == CLOSED);
        let doing = || "waiting for the backend to close".to_owned();
        self.wait_for(&format!("{}/state", device.back), patience, is_closed, doing)
    }

    /// Takes all devices of a dying domain away.
    pub(crate) fn take_devices(&self, domid: DomId) -> Result<()> {
        let doing = || format!("taking away the devices of domain {}", domid.raw());
        let devices = self.devices(domid).doing(doing)?;
        device_model::end(self, domid, &devices).map_err(|error| error.in_step(doing()))?;
        self.begin_end_elsewhere(&devices);
        self.remove_fronts(&devices).doing(doing)?;
        self.wait_end_elsewhere(&devices);
        let mut result = self.wait_backends_gone(&devices);
        for device in &devices {
            result = result.and(self.let_go(device));
        }
        // Of a disk whose making was cut short there may be no node.
        let ended = self.host.end_nbds_of(domid);
        let result = result.and(ended.doing(|| "ending servers of its images".to_owned()));
        result.map_err(|error| error.in_step(doing()))
    }

    /// Has other domains close their ends once the frontends are gone. What they do then is theirs: a driver domain in
    /// trouble is no reason to keep this one.
    fn begin_end_elsewhere(&self, devices: &[Device]) {
        for device in devices.iter().filter(|device| device.is_elsewhere) {
            let _ = self.begin_close(device);
        }
    }

    /// Lets other domains run their scripts while the backends' nodes are there. The nodes go in any case.
    fn wait_end_elsewhere(&self, devices: &[Device]) {
        for device in devices.iter().filter(|device| device.is_elsewhere) {
            let _ = self.wait_closed(device, Patience::stubborn(PATIENCE));
        }
    }

    /// A backend without a frontend takes itself apart; one that never began goes with its nodes. The others' nodes
    /// say what else there is to do.
    fn remove_fronts(&self, devices: &[Device]) -> StoreResult<()> {
        self.store.transaction(|tx| {
            devices.iter().try_for_each(|device| {
                tx.rm(&device.front)?;
                match device.served.is_some() || device.is_elsewhere {
                    true => Ok(()),
                    false => tx.rm(&device.back),
                }
            })
        })
    }

    fn wait_backends_gone(&self, devices: &[Device]) -> Result<()> {
        let doing = || "waiting for the backends".to_owned();
        let served: Vec<String> = devices.iter().filter_map(|device| device.served.clone()).collect();
        if served.is_empty() {
            return Ok(());
        }
        match self.host.wait_backends_gone(&served, Patience::stubborn(PATIENCE)) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::new(
                doing(),
                format!("{} did not let go within {PATIENCE:?}", served.join(", ")),
            )),
            Err(error) => Err(error).doing(doing),
        }
    }

    /// Lets go of what stood behind a device that is gone, and forgets it then.
    fn let_go(&self, device: &Device) -> Result<()> {
        if let Some(script) = &device.script {
            script.disconnect(&self.store, &*self.host, Patience::stubborn(PATIENCE))?;
        }
        block::release(&*self.host, device.node.as_deref())?;
        self.store
            .rm(&device.back)
            .doing(|| format!("removing {}", device.back))
    }

    /// All devices of a domain whose backend is in Domain 0, also those whose making was cut short.
    pub(crate) fn devices(&self, domid: DomId) -> StoreResult<Vec<Device>> {
        let mut devices = Vec::new();
        for kind in self.store.directory_opt(nodes::BACKENDS)? {
            let root = format!("{}/{kind}/{}", nodes::BACKENDS, domid.raw());
            for id in self.store.directory_opt(&root)? {
                let back = format!("{root}/{id}");
                let node = self.store.read_opt(&format!("{back}/node"))?;
                let front = match kind.as_str() {
                    "console" if id == "0" => format!("{}/console", nodes::domain(domid)),
                    kind => format!("{}/device/{kind}/{id}", nodes::domain(domid)),
                };
                let state = self.store.read_opt(&format!("{back}/state"))?;
                let is_served = matches!(kind.as_str(), "vbd" | "vif") && state.is_some_and(|state| state != NEW);
                let served = is_served.then(|| format!("{kind}-{}-{id}", domid.raw()));
                let script = Script::noted(&self.store, domid, &kind, &id, &back)?;
                devices.push(Device {
                    kind: kind.clone(),
                    id,
                    front,
                    back,
                    served,
                    is_elsewhere: false,
                    node,
                    script,
                });
            }
        }
        devices.extend(self.devices_elsewhere(domid)?);
        Ok(devices)
    }

    /// Those that driver domains serve: only the notes know them all.
    fn devices_elsewhere(&self, domid: DomId) -> StoreResult<Vec<Device>> {
        let mut devices = Vec::new();
        for kind in ["vbd", "vif"] {
            let notes = nodes::notes(domid, kind);
            for id in self.store.directory_opt(&notes)? {
                let back = self.store.read_opt(&format!("{notes}/{id}/backend"))?;
                let Some(back) = back.filter(|back| !back.starts_with(nodes::BACKENDS)) else {
                    continue;
                };
                devices.push(Device {
                    kind: kind.to_owned(),
                    front: format!("{}/device/{kind}/{id}", nodes::domain(domid)),
                    id,
                    back,
                    served: None,
                    is_elsewhere: true,
                    node: None,
                    script: None,
                });
            }
        }
        Ok(devices)
    }
}
