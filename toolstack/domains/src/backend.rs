//! The backends of a guest's devices, while they come: the kernel's, and those of driver domains.

use crate::error::{Doing, Error, Result};
use crate::patience::Patience;
use crate::{Toolstack, hotplug, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store;
use std::time::Duration;

/// How long a backend may take to look at a new device.
const PATIENCE: Duration = Duration::from_secs(10);
/// `XenbusStateInitialising`: no backend has looked at the device.
pub(crate) const NEW: &str = "1";

impl Toolstack {
    /// The domain that serves a device: Domain 0, unless the device names another.
    pub(crate) fn server(&self, word: Option<&str>) -> Result<DomId> {
        let Some(word) = word.filter(|word| *word != "Domain-0") else {
            return Ok(DomId::DOM0);
        };
        let doing = || format!("looking for the backend's domain \"{word}\"");
        let found = self.find(word)?;
        let exists = |domid: &DomId| self.store.exists(&nodes::domain(*domid));
        match found.as_ref().map(exists).transpose().doing(doing)? {
            Some(true) => Ok(found.unwrap_or(DomId::DOM0)),
            _ => Err(Error::new(doing(), "there is no such domain").way_out("start the driver domain first")),
        }
    }

    /// Waits until a driver domain has connected its end of a device, or says why it has not.
    pub(crate) fn wait_connected(&self, server: DomId, back: &str, module: &str) -> Result<()> {
        let doing = || format!("waiting for domain {} to connect it", server.raw());
        let status = format!("{back}/hotplug-status");
        let is_done = self.wait_for(
            &status,
            self.patience(hotplug::PATIENCE),
            |status| status.is_some(),
            doing,
        )?;
        let read = |node: &str| self.store.read_opt(&format!("{back}/{node}")).doing(doing);
        match (is_done, read("hotplug-status")?.as_deref()) {
            (_, Some("connected")) => Ok(()),
            (true, _) => Err(Error::new(
                doing(),
                read("hotplug-error")?.unwrap_or_else(|| "it failed".to_owned()),
            )),
            (false, _) => Err(Error::new(doing(), "it did not")
                .way_out(format!("does `xl devd` run in there, with {module} loaded?"))),
        }
    }

    /// Waits until the kernel's backend has looked at a new device.
    pub(crate) fn wait_backend(&self, domid: DomId, kind: &str, id: u32, module: &str) -> Result<()> {
        let back = nodes::backend(domid, kind, id);
        let what = || format!("waiting for the backend of {kind} {id}");
        let seen = self.wait_seen(&back, self.patience(PATIENCE), what)?;
        let error = self
            .store
            .read_opt(&format!(
                "/local/domain/0/error/backend/{kind}/{}/{id}/error",
                domid.raw()
            ))
            .doing(what)?;
        match (seen, error) {
            (_, Some(error)) => Err(Error::new(what(), format!("it says: {error}"))),
            (true, None) => Ok(()),
            (false, None) => Err(Error::new(what(), format!("it did not answer within {PATIENCE:?}"))
                .way_out(format!("is the module loaded? (`modprobe {module}`)"))),
        }
    }

    /// Waits until a backend has looked at a new device; says whether it did in time.
    pub(crate) fn wait_seen(&self, back: &str, patience: Patience<'_>, doing: impl Fn() -> String) -> Result<bool> {
        let is_seen = |state: Option<&str>| state.is_some_and(|state| state != NEW);
        self.wait_for(&format!("{back}/state"), patience, is_seen, doing)
    }

    /// Waits until `done` likes the value at `path`; says whether it did in time.
    pub(crate) fn wait_for(
        &self,
        path: &str,
        patience: Patience<'_>,
        done: impl Fn(Option<&str>) -> bool,
        doing: impl Fn() -> String,
    ) -> Result<bool> {
        const TOKEN: &str = "state";
        self.store.watch(path, TOKEN).doing(&doing)?;
        let result = loop {
            match self.store.read_opt(path).doing(&doing) {
                Ok(value) if done(value.as_deref()) => break Ok(true),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
            match self.next_event(patience) {
                Ok(true) => {}
                Ok(false) => break Ok(false),
                Err(error) => break Err(error.in_step(doing())),
            }
        };
        self.store.unwatch(path, TOKEN).doing(&doing)?;
        result
    }

    /// Takes the store's next event, waiting for it. `false`: none came in time.
    pub(crate) fn next_event(&self, patience: Patience<'_>) -> Result<bool> {
        let doing = || "waiting for xenstore".to_owned();
        loop {
            if self.store.try_event().doing(doing)?.is_some() {
                return Ok(true);
            }
            if !patience.ready(&self.store).doing(doing)? {
                return Ok(false);
            }
        }
    }
}
