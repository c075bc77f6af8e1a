//! A Linux whose devices are names in a list.

use super::Stage;
use crate::host::Host;
use crate::nbd::Served;
use crate::netlink::LinkChange;
use crate::patience::Patience;
use crate::qemu::Viewed;
use ferroxen_loopdev::Access;
use ferroxen_words::DomId;
use ferroxen_xenstore::{Client, Store as _};
use ferroxen_xlconfig::{Channel, Screen};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

#[derive(Debug)]
pub struct Rehearsed {
    pub stage: Arc<Stage>,
    /// By which scripts say how it went; it never fails.
    pub store: Client,
    /// The domain that it runs in.
    pub home: &'static str,
}

impl Host for Rehearsed {
    fn run_script(&self, script: Command, _patience: Patience<'_>) -> io::Result<ExitStatus> {
        drop(self.stage.call("run_script")?);
        let verb = script.get_args().next().unwrap_or_default();
        let mut state = self.stage.state();
        let path = script.get_envs().find(|(name, _)| *name == "XENBUS_PATH");
        let path = path.and_then(|(_, path)| path?.to_str()).unwrap_or_default().to_owned();
        if matches!(verb.to_str(), Some("add" | "online")) {
            state.connected_by_script.insert(path.clone());
            drop(state);
            let node = format!("{}/{path}/hotplug-status", self.home);
            self.store.write(&node, "connected").map_err(io::Error::other)?;
        } else {
            state.connected_by_script.remove(&path);
        }
        Ok(ExitStatus::default())
    }

    fn attach_loop(&self, _image: &Path, _access: Access) -> io::Result<(PathBuf, File)> {
        let mut state = self.stage.call("attach_loop")?;
        // A path with a device number behind it, which the toolstack looks up.
        let path = PathBuf::from(format!("/dev/loop-rehearsal-{}", state.loops.len()));
        state.loops.insert(path.clone());
        Ok((path, File::open("/dev/null")?))
    }

    fn keep_loop(&self, _device: &File) -> io::Result<()> {
        self.stage.call("keep_loop").map(drop)
    }

    fn device_number(&self, _device: &Path) -> io::Result<(u32, u32)> {
        self.stage.call("device_number").map(|_| (7, 1))
    }

    fn detach_loop(&self, device: &Path) -> io::Result<()> {
        self.stage.call("detach_loop")?.loops.remove(device);
        Ok(())
    }

    fn attach_nbd(&self, _served: Served<'_>, owner: &str) -> io::Result<PathBuf> {
        let mut state = self.stage.call("attach_nbd")?;
        let path = PathBuf::from(format!("/dev/nbd-rehearsal-{}", state.servers.len()));
        state.servers.insert(path.clone(), owner.to_owned());
        Ok(path)
    }

    fn detach_nbd(&self, device: &Path) -> io::Result<()> {
        self.stage.call("detach_nbd")?.servers.remove(device);
        Ok(())
    }

    fn end_nbds_of(&self, domid: DomId) -> io::Result<()> {
        let of_domain = format!("{}/", domid.raw());
        let mut state = self.stage.call("end_nbds_of")?;
        state.servers.retain(|_, owner| !owner.starts_with(&of_domain));
        Ok(())
    }

    fn has_device_model(&self) -> bool {
        true
    }

    fn start_device_model(
        &self,
        domid: DomId,
        _name: &str,
        screen: Option<&Screen>,
        channels: &[Channel],
        _patience: Patience<'_>,
    ) -> io::Result<Option<Viewed>> {
        // Failing, it may have come so far that it has to be ended.
        self.stage.state().device_models.insert(domid.raw());
        drop(self.stage.call("start_device_model")?);
        let devices = format!("{}/backend", self.home);
        for kind in self.store.directory_opt(&devices).map_err(io::Error::other)? {
            if matches!(kind.as_str(), "9pfs" | "vfb" | "vkbd") {
                let state = format!("{devices}/{kind}/{}/0/state", domid.raw());
                self.store.write(&state, "2").map_err(io::Error::other)?;
            }
        }
        for (id, _) in (1..).zip(channels) {
            let state = format!("{devices}/console/{}/{id}/state", domid.raw());
            self.store.write(&state, "2").map_err(io::Error::other)?;
        }
        Ok(screen.map(|_| Viewed {
            listen: "127.0.0.1".to_owned(),
            port: 5900,
        }))
    }

    fn end_device_model(&self, domid: DomId) -> io::Result<()> {
        self.stage.call("end_device_model")?.device_models.remove(&domid.raw());
        Ok(())
    }

    fn grow(&self, _image: &Path, _size: Option<u64>, _device: &Path) -> io::Result<()> {
        self.stage.call("grow").map(drop)
    }

    fn link(&self, name: &str) -> io::Result<Option<u32>> {
        Ok(self.stage.call("link")?.links.get(name).copied())
    }

    fn is_bridge(&self, _name: &str) -> bool {
        true
    }

    fn add_bridge(&self, name: &str) -> io::Result<()> {
        let mut state = self.stage.call("add_bridge")?;
        let index = state.links.len() as u32 + 1;
        state.links.insert(name.to_owned(), index);
        Ok(())
    }

    fn change_link(&self, index: u32, change: LinkChange<'_>) -> io::Result<()> {
        let mut state = self.stage.call("change_link")?;
        if let LinkChange::Name(name) = change {
            state.links.retain(|_, known| *known != index);
            state.links.insert(name.to_owned(), index);
        }
        Ok(())
    }

    fn wait_link(&self, name: &str, _patience: Patience<'_>) -> io::Result<Option<u32>> {
        let mut state = self.stage.call("wait_link")?;
        let index = state.links.len() as u32 + 1;
        Ok(Some(*state.links.entry(name.to_owned()).or_insert(index)))
    }

    fn wait_backends_gone(&self, _names: &[String], _patience: Patience<'_>) -> io::Result<bool> {
        self.stage.call("wait_backends_gone").map(|_| true)
    }
}
