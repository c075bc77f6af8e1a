//! Grants: our own table, version 1, and the operations on anybody's (public/grant_table.h).

use core::sync::atomic::{AtomicU64, Ordering};

pub use ferroxen_abi::grant_table::gntmap;
use ferroxen_abi::grant_table::{GrantStatus, MapGrantRef, SetupTable, UnmapGrantRef, gnttabop};
use zerocopy::{FromZeros, IntoBytes};

use crate::hypercall::{self, Answer, address, number};
use crate::memory::{self, Page};

/// `GTF_*`
#[expect(missing_docs, reason = "each is the header's name")]
pub mod gtf {
    pub const PERMIT_ACCESS: u16 = 1;
    pub const ACCEPT_TRANSFER: u16 = 2;
    pub const READ_ONLY: u16 = 1 << 2;
    pub const READING: u16 = 1 << 3;
    pub const WRITING: u16 = 1 << 4;
}

/// Asks `GNTTABOP_*` with a batch.
#[inline(always)]
pub fn op<T: IntoBytes>(command: u64, batch: &mut [T]) -> Answer {
    let count = batch.len() as u64;
    hypercall::call(number::GRANT_TABLE_OP, [command, address(batch), count])
}

/// The first page of our grant table: 512 offers.
#[derive(Clone, Copy, Debug)]
pub struct Table(Page);

impl Table {
    /// Asks for the table and maps it.
    pub fn setup() -> Result<Self, Answer> {
        let mut frame = [0_u64];
        let mut request = SetupTable::new_zeroed();
        request.dom.0 = crate::event::SELF;
        request.nr_frames = 1;
        request.frame_list = address(&mut frame);
        op(gnttabop::SETUP_TABLE, core::slice::from_mut(&mut request)).ok()?;
        if request.status != GrantStatus::OKAY {
            return Err(Answer(request.status.0.into()));
        }
        let page = Page::new();
        memory::map(page.address(), frame[0], memory::ORDINARY).ok()?;
        Ok(Self(page))
    }

    /// Returns where it is mapped.
    pub fn address(self) -> u64 {
        self.0.address()
    }

    fn entry(self, gref: u32) -> &'static AtomicU64 {
        self.0.atomic(gref as usize * 8)
    }

    /// Offers `mfn` to `dom`; all of the entry at once.
    pub fn offer(self, gref: u32, dom: u16, mfn: u64, flags: u16) {
        let entry = u64::from(flags) | u64::from(dom) << 16 | mfn << 32;
        self.entry(gref).store(entry, Ordering::SeqCst);
    }

    /// Takes an offer back, if nobody uses it.
    pub fn revoke(self, gref: u32) -> bool {
        let entry = self.entry(gref);
        let now = entry.load(Ordering::SeqCst);
        let in_use = now as u16 & (gtf::READING | gtf::WRITING) != 0;
        !in_use
            && entry
                .compare_exchange(now, 0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
    }

    /// Returns the flags of an offer, with those that say how it is used.
    pub fn flags(self, gref: u32) -> u16 {
        self.entry(gref).load(Ordering::SeqCst) as u16
    }
}

/// Maps what `dom` offers as `gref` at `host_addr`.
pub fn map(dom: u16, gref: u32, host_addr: u64, flags: u32) -> Result<u32, GrantStatus> {
    let mut request = MapGrantRef::new_zeroed();
    request.dom.0 = dom;
    request.gref = gref;
    request.host_addr = host_addr;
    request.flags = flags;
    match op(gnttabop::MAP_GRANT_REF, core::slice::from_mut(&mut request)) {
        Answer::OK if request.status == GrantStatus::OKAY => Ok(request.handle),
        Answer::OK => Err(request.status),
        _ => Err(GrantStatus::GENERAL_ERROR),
    }
}

/// Unmaps what `handle` stands for.
pub fn unmap(handle: u32, host_addr: u64) -> GrantStatus {
    let mut request = UnmapGrantRef::new_zeroed();
    request.handle = handle;
    request.host_addr = host_addr;
    match op(gnttabop::UNMAP_GRANT_REF, core::slice::from_mut(&mut request)) {
        Answer::OK => request.status,
        _ => GrantStatus::GENERAL_ERROR,
    }
}
