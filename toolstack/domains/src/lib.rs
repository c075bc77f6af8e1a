//! Domains from cradle to grave: libxl's role.
//!
//! - [`hyper`]: the hypervisor's control calls
//! - [`layout`], [`pv`]: a PV domain's memory and how it is filled
//! - [`nodes`]: a domain's xenstore nodes, in libxl's layout
//! - [`create`]: making a domain, in libxl's order; every failing step takes back all before it
//! - `block`, `network`: disks on loop devices or block devices, cards on bridges
//! - [`control`]: what is asked of a running domain; [`monitor`]: what happens when it stops
//! - `destroy`: the end; [`keep`]: its configuration, as long as it lives; [`describe`]: that as JSON
//!
//! Always true: when a call that makes something fails, nothing of it is left: no domain, no node, no loop
//! device.
#![forbid(unsafe_code)]

mod block;
pub mod control;
pub mod create;
pub mod describe;
mod destroy;
mod error;
mod grants;
pub mod hyper;
pub mod keep;
pub mod layout;
pub mod monitor;
mod netlink;
pub mod network;
pub mod nodes;
pub mod pv;

pub use error::{Error, Result};

use error::Doing;
use ferroxen_words::DomId;
use ferroxen_xenstore::Client;

/// All that tools need: the hypervisor and xenstore.
#[derive(Debug)]
pub struct Toolstack {
    /// The hypervisor's control calls.
    pub hypervisor: hyper::Hypervisor,
    /// The connection to xenstore.
    pub store: Client,
}

impl Toolstack {
    /// Connects to both.
    pub fn open() -> Result<Toolstack> {
        let hypervisor = hyper::Hypervisor::open().doing(|| "reaching the hypervisor".to_owned())?;
        let store = Client::connect().doing(|| "reaching xenstore".to_owned())?;
        nodes::ensure_dom0(&store)?;
        Ok(Toolstack { hypervisor, store })
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
        nodes::find(&self.store, word).doing(|| format!("looking for domain \"{word}\""))
    }
}
