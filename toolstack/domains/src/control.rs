//! What is asked of a domain that runs, and what it tells of its end.

use crate::error::{Doing, Error, Result};
use crate::patience::Patience;
use crate::{Toolstack, nodes};
use ferroxen_abi::domctl::{Getdomaininfo, INVALID_MAX_VCPU_ID, dominf};
use ferroxen_words::DomId;
use ferroxen_xenstore::{Changes, Store};
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

/// The path whose events tell of domains that stop or go.
const RELEASE: &str = "@releaseDomain";
/// How long removing a domain's nodes may take.
const REMOVAL: Duration = Duration::from_secs(10);

/// What to ask of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Shut down and stay off.
    PowerOff,
    /// Shut down and start again.
    Reboot,
}

/// Why a domain stopped (`SHUTDOWN_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It shut down.
    PowerOff,
    /// It wants to be started again.
    Reboot,
    /// It was saved or migrated.
    Suspend,
    /// It crashed.
    Crash,
    /// Its watchdog ran out.
    Watchdog,
    /// It wants to be reset in place.
    SoftReset,
    /// Something we have no name for.
    Other(u8),
}

impl Reason {
    /// Of a domain's state, if it has stopped.
    pub fn of(info: &Getdomaininfo) -> Option<Reason> {
        if info.flags & dominf::SHUTDOWN == 0 {
            return None;
        }
        let code = info.flags >> dominf::SHUTDOWNSHIFT & dominf::SHUTDOWNMASK;
        Some(match code {
            0 => Reason::PowerOff,
            1 => Reason::Reboot,
            2 => Reason::Suspend,
            3 => Reason::Crash,
            4 => Reason::Watchdog,
            5 => Reason::SoftReset,
            other => Reason::Other(other as u8),
        })
    }

    /// Its number.
    pub fn code(self) -> u8 {
        match self {
            Reason::PowerOff => 0,
            Reason::Reboot => 1,
            Reason::Suspend => 2,
            Reason::Crash => 3,
            Reason::Watchdog => 4,
            Reason::SoftReset => 5,
            Reason::Other(code) => code,
        }
    }
}

/// How a wait for a domain's end came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// It stopped, and is still there.
    Stopped(Reason),
    /// It is no more.
    Gone,
    /// It still runs, but we were not to wait longer.
    StillThere,
}

impl Toolstack {
    /// Asks a guest to shut down; when it does is its own affair.
    pub fn request(&self, domid: DomId, request: Request) -> Result<()> {
        let word = match request {
            Request::PowerOff => "poweroff",
            Request::Reboot => "reboot",
        };
        let path = format!("{}/control/shutdown", nodes::domain(domid));
        self.store
            .write(&path, word)
            .doing(|| format!("asking domain {} for a {word}", domid.raw()))
    }

    /// Presses a magic key in a guest.
    pub fn sysrq(&self, domid: DomId, letter: char) -> Result<()> {
        let path = format!("{}/control/sysrq", nodes::domain(domid));
        self.store
            .write(&path, letter.to_string())
            .doing(|| format!("sending `{letter}` to domain {}", domid.raw()))
    }

    /// Waits until a domain stops or goes away.
    pub fn wait_end(&self, domid: DomId, patience: Patience<'_>) -> Result<End> {
        let step = format!("waiting for the end of domain {}", domid.raw());
        let end = self.wait_end_that(domid, patience, step, |_| true)?;
        Ok(end.unwrap_or(End::StillThere))
    }

    /// As [`Toolstack::wait_end`], but a domain that has suspended itself may run on.
    pub fn wait_end_for_good(&self, domid: DomId, patience: Patience<'_>) -> Result<End> {
        let step = format!("waiting for the end of domain {}", domid.raw());
        let end = self.wait_end_that(domid, patience, step, |end| end != End::Stopped(Reason::Suspend))?;
        Ok(end.unwrap_or(End::StillThere))
    }

    /// Waits until a domain is no more, whatever it did before, and its name is free. `false`: it is still there.
    pub fn wait_gone(&self, domid: DomId, patience: Patience<'_>) -> Result<bool> {
        let step = || format!("waiting until domain {} is gone", domid.raw());
        let gone = self.wait_end_that(domid, patience, step(), |end| end == End::Gone)?;
        if gone.is_some() {
            // Whoever ended it removes its nodes next, unless that was killed.
            let home = nodes::domain(domid);
            self.wait_for(&home, self.patience(REMOVAL), |node| node.is_none(), step)?;
        }
        Ok(gone.is_some())
    }

    /// Waits for an end that will do. `None`: there was none in time.
    fn wait_end_that(
        &self,
        domid: DomId,
        patience: Patience<'_>,
        step: String,
        will_do: impl Fn(End) -> bool,
    ) -> Result<Option<End>> {
        self.wait_for_domain(domid, patience, || Ok(self.end(domid)?.filter(|end| will_do(*end))))
            .map_err(|error| error.in_step(step))
    }

    /// Waits until `look` finds something, looking again whenever the domain has stopped or gone. `None`: it did not in
    /// time.
    pub(crate) fn wait_for_domain<T>(
        &self,
        domid: DomId,
        patience: Patience<'_>,
        mut look: impl FnMut() -> io::Result<Option<T>>,
    ) -> Result<Option<T>> {
        const TOKEN: &str = "ends";
        let doing = || format!("watching domain {}", domid.raw());
        let release = self.release_of(domid);
        // The event comes at once to begin with, so that nothing that happened before is missed.
        self.store.watch(&release, TOKEN).doing(doing)?;
        let found = loop {
            match look() {
                Ok(None) => {}
                other => break other.doing(doing),
            }
            match self.next_event(patience) {
                Ok(true) => {}
                Ok(false) => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        self.store.unwatch(&release, TOKEN).doing(doing)?;
        found
    }

    /// What to watch for the end of one domain. A xenstored that tells of each has permissions for that event; with
    /// others (those of Xen 4.17), everybody who waits for a domain wakes when any ends.
    fn release_of(&self, domid: DomId) -> String {
        let of_one = format!("{RELEASE}/{}", domid.raw());
        match self.store.permissions(&of_one) {
            Ok(_) => of_one,
            Err(_) => RELEASE.to_owned(),
        }
    }

    fn end(&self, domid: DomId) -> io::Result<Option<End>> {
        Ok(match self.hypervisor.domain(domid)? {
            None => Some(End::Gone),
            Some(info) if info.flags & dominf::DYING != 0 => Some(End::Gone),
            Some(info) => Reason::of(&info).map(End::Stopped),
        })
    }

    /// A domain's name, or what stands for it where there is none.
    pub fn name(&self, domid: DomId) -> String {
        nodes::name(&self.store, domid)
            .ok()
            .flatten()
            .unwrap_or_else(|| "(null)".to_owned())
    }

    /// The names of domains, in their order, or what stands for one where there is none.
    pub fn names(&self, domids: &[DomId]) -> Vec<String> {
        let found: BTreeMap<_, _> = nodes::all_named(&self.store).unwrap_or_default().into_iter().collect();
        let name = |domid| {
            found
                .get(domid)
                .cloned()
                .flatten()
                .unwrap_or_else(|| "(null)".to_owned())
        };
        domids.iter().map(name).collect()
    }

    /// Gives a domain another name.
    pub fn rename(&self, domid: DomId, name: &str) -> Result<()> {
        let doing = || format!("renaming domain {} to \"{name}\"", domid.raw());
        match nodes::rename(&self.store, domid, name).doing(doing)? {
            Some(taken) => Err(Error::new(doing(), format!("domain {} has that name", taken.raw()))),
            None => Ok(()),
        }
    }

    /// Asks a guest to shrink or grow to `kib`.
    pub fn set_memory_target(&self, domid: DomId, kib: u64) -> Result<()> {
        let doing = || format!("setting the memory of domain {} to {} MiB", domid.raw(), kib / 1024);
        let home = nodes::domain(domid);
        let limit = self.store.read_opt(&format!("{home}/memory/static-max")).doing(doing)?;
        if let Some(limit) = limit
            .and_then(|limit| limit.trim().parse::<u64>().ok())
            .filter(|limit| kib > *limit)
        {
            return Err(Error::new(doing(), format!("it may have {} MiB at most", limit / 1024))
                .way_out("start it with a larger `maxmem`"));
        }
        // The guest must be allowed to grow before it is asked to.
        self.hypervisor
            .set_max_memory_kib(domid, kib + crate::create::SLACK_KIB)
            .doing(doing)?;
        self.store
            .write(&format!("{home}/memory/target"), kib.to_string())
            .doing(doing)
    }

    /// Sets the most a domain may have.
    pub fn set_memory_max(&self, domid: DomId, kib: u64) -> Result<()> {
        let doing = || {
            format!(
                "setting the most memory of domain {} to {} MiB",
                domid.raw(),
                kib / 1024
            )
        };
        let path = format!("{}/memory/target", nodes::domain(domid));
        let target = self.store.read_opt(&path).doing(doing)?;
        let target = target.and_then(|target| target.trim().parse::<u64>().ok());
        if let Some(target) = target.filter(|target| kib < *target) {
            return Err(Error::new(doing(), format!("it is to have {} MiB now", target / 1024))
                .way_out("make it smaller first (`xl mem-set`)"));
        }
        self.hypervisor
            .set_max_memory_kib(domid, kib + crate::create::SLACK_KIB)
            .doing(doing)
    }

    /// Asks a guest to use `count` of its vcpus.
    pub fn set_vcpus(&self, domid: DomId, count: u32) -> Result<()> {
        let doing = || format!("setting the vcpus of domain {} to {count}", domid.raw());
        let info = self.hypervisor.domain(domid).doing(doing)?;
        let info = info.ok_or_else(|| Error::new(doing(), "there is no such domain"))?;
        let most = vcpus_of(&info);
        if count == 0 || count > most {
            return Err(
                Error::new(doing(), format!("it can have 1 to {most}")).way_out("start it with a larger `maxvcpus`")
            );
        }
        let home = nodes::domain(domid);
        let mut changes = Changes::default();
        for vcpu in 0..most {
            let word = if vcpu < count { "online" } else { "offline" };
            changes.write(&format!("{home}/cpu/{vcpu}/availability"), word);
        }
        self.store.transaction(|tx| tx.apply(&changes)).doing(doing)
    }

    /// Lists the vcpus that the domain has been told to use.
    pub fn available_vcpus(&self, domid: DomId, info: &Getdomaininfo) -> Vec<u32> {
        let is_online = |vcpu: &u32| {
            let path = format!("{}/cpu/{vcpu}/availability", nodes::domain(domid));
            self.store.read(&path).is_ok_and(|word| word == b"online")
        };
        (0..vcpus_of(info)).filter(is_online).collect()
    }
}

/// How many vcpus a domain can have.
fn vcpus_of(info: &Getdomaininfo) -> u32 {
    match info.max_vcpu_id {
        INVALID_MAX_VCPU_ID => 0,
        highest => highest + 1,
    }
}
