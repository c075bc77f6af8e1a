//! The two grants that a domain has before it runs: its console's and its xenstore ring's pages.

use crate::error::{Doing, Error, Result};
use crate::hyper::Hypervisor;
use crate::pv::Built;
use ferroxen_abi::memory::{GRANT_TABLE_ID_SHARED, ResourceType};
use ferroxen_words::{DomId, Gfn, Mfn};
use ferroxen_xenctl::{Access, ForeignPages};
use std::io;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `GNTTAB_RESERVED_CONSOLE`
const CONSOLE: usize = 0;
/// `GNTTAB_RESERVED_XENSTORE`
const XENSTORE: usize = 1;
/// `GTF_permit_access`
const PERMIT_ACCESS: u16 = 1;
/// `GNTTABOP_setup_table`
const SETUP_TABLE: u32 = 2;

/// `grant_entry_v1`
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Entry {
    flags: u16,
    domid: u16,
    frame: u32,
}

/// `gnttab_setup_table`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct SetupTable {
    dom: u16,
    pad: u16,
    nr_frames: u32,
    status: i16,
    pad2: [u16; 3],
    frame_list: u64,
}

/// Lets Domain 0 map both rings.
pub fn seed(hypervisor: &Hypervisor, domid: DomId, built: &Built) -> Result<()> {
    let doing = || format!("granting Domain 0 the rings of domain {}", domid.raw());
    let table = map(hypervisor, domid).doing(doing)?;
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

/// The first page of the domain's grant table; through the older call where the newer is missing.
fn map(hypervisor: &Hypervisor, domid: DomId) -> io::Result<ForeignPages> {
    let privcmd = hypervisor.privcmd();
    let kind = u32::from(ResourceType::GRANT_TABLE.0);
    match privcmd.map_resource(domid.to_abi(), kind, GRANT_TABLE_ID_SHARED, 0, 1, Access::ReadWrite) {
        Err(error) if matches!(error.raw_os_error(), Some(25 | 38 | 95)) => {}
        other => return other,
    }
    let frames = privcmd.buffer(size_of::<u64>())?;
    let mut setup = [SetupTable {
        dom: domid.raw(),
        pad: 0,
        nr_frames: 1,
        status: 0,
        pad2: [0; 3],
        frame_list: frames.handle(),
    }];
    privcmd.grant_table_op(SETUP_TABLE, &mut setup)?;
    if setup[0].status != 0 {
        return Err(io::Error::other(format!("setup_table gave status {}", setup[0].status)));
    }
    privcmd.map_foreign(domid.to_abi(), &[Gfn::new(frames.get(0)?)], Access::ReadWrite)
}
