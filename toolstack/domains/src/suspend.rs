//! Having a guest stop so that it can be saved, and having it run on where it was.

use crate::control::{End, Reason};
use crate::error::{Doing, Error, Result};
use crate::patience::Patience;
use crate::{Toolstack, nodes};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store;
use std::time::Duration;

/// How long a guest may take to stop, as libxl has it.
const PATIENCE: Duration = Duration::from_secs(60);
const SUSPEND: &str = "suspend";

impl Toolstack {
    /// Asks a guest to suspend itself, and waits until it has. When this fails the guest runs on.
    pub fn suspend(&self, domid: DomId) -> Result<()> {
        let doing = || format!("suspending domain {}", domid.raw());
        let node = format!("{}/control/shutdown", nodes::domain(domid));
        self.store.write(&node, SUSPEND).doing(doing)?;
        let end = self.wait_end(domid, self.patience(PATIENCE));
        match end {
            Ok(End::Stopped(Reason::Suspend)) => Ok(()),
            Ok(End::Stopped(reason)) => Err(Error::new(doing(), format!("it ended instead ({reason:?})"))),
            Ok(End::Gone) => Err(Error::new(doing(), "it has gone")),
            Ok(End::StillThere) => {
                self.withdraw(&node).doing(doing)?;
                let why = format!("it did not stop within {} s", PATIENCE.as_secs());
                Err(Error::new(doing(), why).way_out("its kernel must have Xen's drivers, and must not be paused"))
            }
            Err(error) => {
                self.withdraw(&node).doing(doing)?;
                // It may have stopped just now.
                if let Ok(End::Stopped(Reason::Suspend)) = self.wait_end(domid, Patience::stubborn(Duration::ZERO)) {
                    self.resume(domid)?;
                }
                Err(error)
            }
        }
    }

    /// Takes the request back, unless the guest has taken it already.
    fn withdraw(&self, node: &str) -> ferroxen_xenstore::Result<()> {
        self.store.transaction(|tx| match tx.read_opt(node)?.as_deref() {
            Some(SUSPEND) => tx.write(node, ""),
            _ => Ok(()),
        })
    }

    /// Lets a guest that has suspended itself run on as if it had not: what it asked for was called off.
    pub fn resume(&self, domid: DomId) -> Result<()> {
        let doing = || format!("resuming domain {}", domid.raw());
        let mut context = self.hypervisor.vcpu_context(domid, 0).doing(doing)?;
        // What the hypercall answers: 0 would mean that it runs somewhere else now.
        context.user_regs.rax = 1;
        self.hypervisor.set_vcpu_context(domid, 0, &context).doing(doing)?;
        self.hypervisor.resume(domid).doing(doing)?;
        // Its next end is worth an event again.
        self.store.resume(domid.raw()).doing(doing)
    }
}
