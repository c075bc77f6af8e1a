//! `xl devd`: connects the backends of the domain that it runs in, for guests whose toolstack is elsewhere.
//!
//! A driver domain's kernel makes a device when a backend's nodes come (state 2) and takes it apart when they are to go
//! (state 6, and `online` is 0). In between somebody has to run the device's script, which only this domain can. The script
//! `block`, of plain images and devices, is built in here as it is in Domain 0.
//!
//! Another of us may have connected a device and have ended since; what its nodes say is then taken over.
//!
//! Domain 0's own devices are connected by whoever attaches them, so there is nothing to do there.
//!
//! Upstream: libxl's device event handling, `xl devd`.

use crate::error::{Doing, Error, Result};
use crate::host::{Host, Linux};
use crate::hotplug::{self, Script};
use crate::patience::{Interrupt, Patience};
use crate::{block, image, nodes};
use ferroxen_xenstore::{Changes, Client, Result as StoreResult, Store};
use ferroxen_xlconfig::parse_disk;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `XenbusStateInitWait`: the kernel has made its device.
const MADE: &str = "2";
/// `XenbusStateClosed`
const CLOSED: &str = "6";
const TOKEN: &str = "devd";

/// The daemon.
pub struct Devd<'a> {
    store: &'a Client,
    host: &'a dyn Host,
    /// Our backends' directory.
    backends: String,
    /// What stands behind the devices that are connected.
    connected: BTreeMap<String, Connected>,
}

/// How a device was connected.
enum Connected {
    /// By a script.
    Script(Script),
    /// By us: the loop device behind a disk, if it needed one.
    Disk(Option<PathBuf>),
}

/// Serves the domain that we run in until `interrupt` comes.
pub fn serve(interrupt: &Interrupt, mut log: impl FnMut(String)) -> Result<()> {
    let store = Client::connect().doing(|| "reaching xenstore".to_owned())?;
    let mut devd = Devd::new(&store, &Linux)?;
    devd.watch()?;
    loop {
        if !Patience::until_interrupted(interrupt, None)
            .ready(&store)
            .doing(|| "waiting for devices".to_owned())?
        {
            return Ok(());
        }
        devd.turn(&mut log)?;
    }
}

impl<'a> Devd<'a> {
    pub(crate) fn new(store: &'a Client, host: &'a dyn Host) -> Result<Devd<'a>> {
        let doing = || "asking which domain this is".to_owned();
        // Relative: of the domain that asks.
        let domid = store.read_opt("domid").doing(doing)?.unwrap_or_default();
        if domid == "0" {
            return Err(
                Error::new("starting", "Domain 0's devices are connected by whoever attaches them").way_out(
                    "run it in a driver domain (`driver_domain = 1`, and backend=NAME in a guest's `vif` or `disk`)",
                ),
            );
        }
        Ok(Devd::in_home(store, host, &format!("/local/domain/{domid}")))
    }

    pub(crate) fn in_home(store: &'a Client, host: &'a dyn Host, home: &str) -> Devd<'a> {
        Devd {
            store,
            host,
            backends: format!("{home}/backend"),
            connected: BTreeMap::new(),
        }
    }

    /// From now on, the store tells of all there is, and of what changes.
    pub(crate) fn watch(&self) -> Result<()> {
        self.store
            .watch(&self.backends, TOKEN)
            .doing(|| format!("watching {}", self.backends))
    }

    /// Looks at what the store has told of.
    pub(crate) fn turn(&mut self, log: &mut impl FnMut(String)) -> Result<()> {
        let doing = || "hearing of devices".to_owned();
        while let Some(event) = self.store.try_event().doing(doing)? {
            for back in self.meant(&event.path).doing(doing)? {
                match self.look_at(&back) {
                    Ok(Some(line)) => log(format!("{back}: {line}")),
                    Ok(None) => {}
                    Err(error) => log(format!("{back}: {error}")),
                }
            }
        }
        Ok(())
    }

    /// The devices at, above or below a path: `KIND/DOMAIN/ID` below our directory.
    fn meant(&self, path: &str) -> StoreResult<Vec<String>> {
        let below = path.strip_prefix(&self.backends).unwrap_or_default();
        let parts: Vec<&str> = below.split('/').filter(|part| !part.is_empty()).take(3).collect();
        let mut found = vec![self.backends.clone()];
        for depth in 0..3 {
            let mut next = Vec::new();
            for above in found {
                match parts.get(depth) {
                    Some(part) => next.push(format!("{above}/{part}")),
                    None => {
                        let names = self.store.directory_opt(&above)?;
                        next.extend(names.iter().map(|name| format!("{above}/{name}")));
                    }
                }
            }
            found = next;
        }
        Ok(found)
    }

    /// Does what a device wants by now; gives what is worth a line.
    fn look_at(&mut self, back: &str) -> Result<Option<String>> {
        let read = |node: &str| {
            self.store
                .read_opt(&format!("{back}/{node}"))
                .doing(|| format!("reading {back}"))
        };
        let state = read("state")?;
        match state.as_deref() {
            Some(MADE) if read("hotplug-status")?.is_none() => match read("script")? {
                Some(script) => self.connect_or_tell(back, &script).map(Some),
                None => Ok(None),
            },
            Some(CLOSED) if read("online")?.as_deref() != Some("1") => {
                let said = self.disconnect(back);
                // The kernel is done with it, and so is everybody.
                self.store.rm(back).doing(|| format!("removing {back}"))?;
                said
            }
            None => self.disconnect(back),
            _ => {
                let is_new = !self.connected.contains_key(back);
                if is_new && read("hotplug-status")?.as_deref() == Some("connected") {
                    let node = read("node")?.map(PathBuf::from);
                    let known = match read("script")?.filter(|path| !self.is_built_in(back, path)) {
                        Some(path) => Connected::Script(self.script(back, &path)),
                        None => Connected::Disk(node),
                    };
                    self.connected.insert(back.to_owned(), known);
                }
                Ok(None)
            }
        }
    }

    fn connect_or_tell(&mut self, back: &str, path: &str) -> Result<String> {
        let done = match self.is_built_in(back, path) {
            true => self.connect_disk(back),
            false => self.connect_by_script(back, path),
        };
        match done {
            Ok(known) => {
                self.connected.insert(back.to_owned(), known);
                Ok(format!("connected by {path}"))
            }
            Err(error) => {
                // Whoever waits for it is to hear why.
                let told = self.store.write(&format!("{back}/hotplug-error"), error.to_string());
                told.and_then(|()| self.store.write(&format!("{back}/hotplug-status"), "error"))
                    .doing(|| format!("telling that {back} failed"))?;
                Err(error)
            }
        }
    }

    fn is_built_in(&self, back: &str, path: &str) -> bool {
        self.kind(back) == "vbd" && path == block::SCRIPT
    }

    fn script(&self, back: &str, path: &str) -> Script {
        let mut script = Script::new(path, self.kind(back), back);
        if let ("vif", [domid, id]) = (self.kind(back), &self.numbers(back)[..]) {
            script.variables.push(("vif", format!("vif{domid}.{id}")));
        }
        script
    }

    fn connect_by_script(&self, back: &str, path: &str) -> Result<Connected> {
        let script = self.script(back, path);
        script.connect(self.store, self.host, Patience::stubborn(hotplug::PATIENCE))?;
        Ok(Connected::Script(script))
    }

    /// As Domain 0 does for the disks that it serves itself.
    fn connect_disk(&self, back: &str) -> Result<Connected> {
        let doing = || format!("connecting {back}");
        let read = |node: &str| {
            let value = self.store.read_opt(&format!("{back}/{node}")).doing(doing)?;
            value.ok_or_else(|| Error::new(doing(), format!("its nodes have no `{node}`")))
        };
        let (dev, mode, params) = (read("dev")?, read("mode")?, read("params")?);
        let spec = format!("vdev={dev},access={mode},target={params}");
        let disk = parse_disk(&spec).map_err(|problem| Error::new(doing(), problem.to_string()))?;
        let device = image::open(self.host, &image::find(Path::new(&params)), &disk, back)?;
        let node = device.made.is_some().then(|| device.path.clone());
        let mut changes = Changes::default();
        nodes::write_all(&mut changes, back, &block::connected(&device));
        let told = self.store.transaction(|tx| tx.apply(&changes)).doing(doing);
        if told.is_err()
            && let Some(node) = &node
        {
            // The complaint about the nodes is the one worth reading.
            let _ = image::let_go(self.host, node);
        }
        told?;
        device.keep(self.host).doing(doing)?;
        Ok(Connected::Disk(node))
    }

    fn disconnect(&mut self, back: &str) -> Result<Option<String>> {
        match self.connected.remove(back) {
            Some(Connected::Script(script)) => {
                script.disconnect(self.store, self.host, Patience::stubborn(hotplug::PATIENCE))?;
                Ok(Some(format!("disconnected by {}", script.path())))
            }
            Some(Connected::Disk(node)) => {
                let node = node.map(|node| node.display().to_string());
                block::release(self.host, node.as_deref())?;
                Ok(Some("disconnected".to_owned()))
            }
            None => Ok(None),
        }
    }

    fn kind<'b>(&self, back: &'b str) -> &'b str {
        let below = back.get(self.backends.len()..).unwrap_or_default();
        below.trim_start_matches('/').split('/').next().unwrap_or_default()
    }

    fn numbers(&self, back: &str) -> Vec<u32> {
        let last: Vec<&str> = back.rsplit('/').take(2).collect();
        last.iter().rev().filter_map(|part| part.parse().ok()).collect()
    }
}
