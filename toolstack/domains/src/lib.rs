//! Domains from cradle to grave: libxl's role.
//!
//! - [`create`]: making a domain, in libxl's order; every failing step takes back all before it
//! - `boot`: the kernel that it is started with
//! - `rights`: what of the host it may use
//! - [`layout`], [`pv`]: a PV domain's memory and how it is filled; [`nodes`]: its xenstore nodes
//! - [`device`], `block`, `image`, `mounts`, `network`, `hotplug`, `backend`: its devices; `device_model`, [`qemu`]: those
//!   that QEMU serves; `servers`: programs that outlive us
//! - [`control`]: what is asked of a running domain; [`monitor`]: what happens when it stops
//! - [`devd`]: other domains' devices, in a driver domain
//! - [`dump`]: its memory in a file, for whoever wants to know what happened; [`draft`]: such a file in the making
//! - `destroy`: the end; [`keep`]: its configuration, as long as it lives; [`describe`]: that as JSON
//! - [`progress`]: how far long work is
//! - [`cpupools`]: which CPUs run which domains
//! - [`hyper`], [`host`]: what all this needs of the hypervisor and of Linux; [`xen`], [`inquiry`]: the real ones
//!
//! Always true: when a call that makes something fails, nothing of it is left: no domain, no node, no loop
//! device.
#![forbid(unsafe_code)]

mod backend;
mod block;
mod boot;
pub mod control;
pub mod cpupools;
pub mod create;
pub mod describe;
mod destroy;
pub mod devd;
pub mod device;
mod device_model;
pub mod draft;
pub mod dump;
mod error;
mod frames;
mod grants;
pub mod host;
mod hotplug;
pub mod hyper;
mod image;
pub mod inquiry;
pub mod keep;
pub mod layout;
pub mod monitor;
mod mounts;
mod nbd;
mod netlink;
pub mod network;
pub mod nodes;
pub mod patience;
pub mod progress;
pub mod pv;
pub mod qemu;
pub mod recall;
#[cfg(test)]
mod rehearsal;
pub mod restore;
mod rights;
pub mod save;
mod servers;
mod suspend;
pub mod xen;

pub use error::{Error, Result};

/// Who on this host has an image: a mount, or a loop device, which is what a guest's disk is too.
pub fn image_user(image: &std::path::Path) -> Option<String> {
    mounts::user_of(image)
}

use error::Doing;
use ferroxen_words::DomId;
use ferroxen_xenstore::Client;
use ferroxen_xlconfig::{Notice, XlConf};
use patience::{Interrupt, Patience};
use progress::{Progress, Silent};
use std::path::Path;
use std::time::Duration;

const XL_CONF: &str = "/etc/xen/xl.conf";

/// All that tools need.
#[derive(Debug)]
pub struct Toolstack {
    /// The hypervisor's control calls.
    pub hypervisor: Box<dyn hyper::Hypervisor>,
    /// The connection to xenstore.
    pub store: Client,
    /// The configurations of running domains.
    pub keep: keep::Keep,
    /// What the host's `xl.conf` sets for every domain.
    pub conf: XlConf,
    /// And what there is to say of that file.
    pub conf_notices: Vec<Notice>,
    host: Box<dyn host::Host>,
    interrupt: Interrupt,
    progress: Box<dyn Progress>,
}

impl Toolstack {
    /// Connects to the hypervisor and to xenstore.
    pub fn open() -> Result<Toolstack> {
        let store = Client::connect().doing(|| "reaching xenstore".to_owned())?;
        nodes::ensure_dom0(&store)?;
        Toolstack::over(store)
    }

    /// The same for whoever stays: through the kernel, whose ring outlives a xenstored that is replaced.
    pub fn open_to_stay() -> Result<Toolstack> {
        match Client::connect_kernel() {
            Ok(store) => Toolstack::over(store),
            Err(_) => Toolstack::open(),
        }
    }

    fn over(store: Client) -> Result<Toolstack> {
        let hypervisor = xen::Xen::open()?;
        let conf = ferroxen_xlconfig::load_xl_conf(Path::new(XL_CONF));
        let (conf, conf_notices) =
            conf.map_err(|problem| Error::new(format!("reading {XL_CONF}"), problem.to_string()))?;
        Ok(Toolstack {
            hypervisor: Box::new(hypervisor),
            store,
            keep: keep::Keep::default(),
            conf,
            conf_notices,
            host: Box::new(host::Linux),
            interrupt: Interrupt::never(),
            progress: Box::new(Silent),
        })
    }

    /// From now on, whatever is being made when `interrupt` comes is taken back, and waits end.
    pub fn until(mut self, interrupt: Interrupt) -> Toolstack {
        self.interrupt = interrupt;
        self
    }

    /// From now on, long work is shown.
    pub fn showing(mut self, progress: Box<dyn Progress>) -> Toolstack {
        self.progress = progress;
        self
    }

    /// Patience without end, but for an interrupt.
    pub fn until_interrupted(&self) -> Patience<'_> {
        Patience::until_interrupted(&self.interrupt, None)
    }

    /// Whether an interrupt has come.
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.check().is_err()
    }

    fn patience(&self, limit: Duration) -> Patience<'_> {
        Patience::until_interrupted(&self.interrupt, Some(limit))
    }

    /// Stops all vcpus of a domain.
    pub fn pause(&self, domid: DomId) -> Result<()> {
        self.hypervisor
            .pause(domid)
            .doing(|| format!("pausing domain {}", domid.raw()))
    }

    /// Lets all vcpus of a domain run again.
    pub fn unpause(&self, domid: DomId) -> Result<()> {
        self.hypervisor
            .unpause(domid)
            .doing(|| format!("unpausing domain {}", domid.raw()))
    }

    /// The domain that a name or a number means. A number is always a domid; it need not exist.
    pub fn find(&self, word: &str) -> Result<Option<DomId>> {
        if let Ok(number) = word.parse() {
            return Ok(DomId::new(number));
        }
        let all = nodes::all_named(&self.store).doing(|| format!("looking for domain \"{word}\""))?;
        let found = all.into_iter().find(|(_, name)| name.as_deref() == Some(word));
        Ok(found.map(|(domid, _)| domid))
    }
}
