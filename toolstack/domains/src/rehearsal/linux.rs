//! A Linux whose devices are names in a list.

use super::Stage;
use crate::host::Host;
use crate::netlink::LinkChange;
use crate::patience::Patience;
use ferroxen_loopdev::Access;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug)]
pub struct Rehearsed(pub Arc<Stage>);

impl Host for Rehearsed {
    fn attach_loop(&self, _image: &Path, _access: Access) -> io::Result<PathBuf> {
        let mut state = self.0.call("attach_loop")?;
        // A path with a device number behind it, which the toolstack looks up.
        let path = PathBuf::from(format!("/dev/loop-rehearsal-{}", state.loops.len()));
        state.loops.insert(path.clone());
        Ok(path)
    }

    fn device_number(&self, _device: &Path) -> io::Result<(u32, u32)> {
        self.0.call("device_number").map(|_| (7, 1))
    }

    fn detach_loop(&self, device: &Path) -> io::Result<()> {
        self.0.call("detach_loop")?.loops.remove(device);
        Ok(())
    }

    fn grow(&self, _image: &Path, _size: Option<u64>, _device: &Path) -> io::Result<()> {
        self.0.call("grow").map(drop)
    }

    fn link(&self, name: &str) -> io::Result<Option<u32>> {
        Ok(self.0.call("link")?.links.get(name).copied())
    }

    fn is_bridge(&self, _name: &str) -> bool {
        true
    }

    fn add_bridge(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.call("add_bridge")?;
        let index = state.links.len() as u32 + 1;
        state.links.insert(name.to_owned(), index);
        Ok(())
    }

    fn change_link(&self, index: u32, change: LinkChange<'_>) -> io::Result<()> {
        let mut state = self.0.call("change_link")?;
        if let LinkChange::Name(name) = change {
            state.links.retain(|_, known| *known != index);
            state.links.insert(name.to_owned(), index);
        }
        Ok(())
    }

    fn wait_link(&self, name: &str, _patience: Patience<'_>) -> io::Result<Option<u32>> {
        let mut state = self.0.call("wait_link")?;
        let index = state.links.len() as u32 + 1;
        Ok(Some(*state.links.entry(name.to_owned()).or_insert(index)))
    }

    fn wait_backends_gone(&self, _names: &[String], _patience: Patience<'_>) -> io::Result<bool> {
        self.0.call("wait_backends_gone").map(|_| true)
    }
}
