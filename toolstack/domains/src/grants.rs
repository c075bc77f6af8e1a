//! The two grants that a domain has before it runs: its console's and its xenstore ring's pages.

use crate::error::{Doing, Error, Result};
use crate::hyper::Hypervisor;
use crate::pv::Built;
use ferroxen_words::{DomId, Mfn};
use zerocopy::{Immutable, IntoBytes};

/// `GNTTAB_RESERVED_CONSOLE`
const CONSOLE: usize = 0;
/// `GNTTAB_RESERVED_XENSTORE`
const XENSTORE: usize = 1;
/// `GTF_permit_access`
const PERMIT_ACCESS: u16 = 1;
/// `grant_entry_v1`
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Entry {
    flags: u16,
    domid: u16,
    frame: u32,
}

/// Lets Domain 0 map both rings.
pub fn seed(hypervisor: &dyn Hypervisor, domid: DomId, built: &Built) -> Result<()> {
    let doing = || format!("granting Domain 0 the rings of domain {}", domid.raw());
    let table = hypervisor.map_grant_table(domid).doing(doing)?;
    for (at, frame) in [(CONSOLE, built.console), (XENSTORE, built.store)] {
        let entry = Entry {
            flags: PERMIT_ACCESS,
            domid: DomId::DOM0.raw(),
            frame: narrow(frame)?,
        };
        // One aligned 8-byte store: nobody sees half an entry.
        table.write(at * size_of::<Entry>(), entry.as_bytes()).doing(doing)?;
    }
    Ok(())
}

fn narrow(frame: Mfn) -> Result<u32> {
    u32::try_from(frame.raw())
        .map_err(|_| Error::new("granting a ring", format!("{frame} is beyond what version 1 can name")))
}
