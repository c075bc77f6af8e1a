//! A page that is kept from being freed, and from becoming a table, while the hypervisor uses it.

use super::{Errno, Page, frame, free_frame};
use crate::domain::Domain;
use ferroxen_frames::{Put, Refused, Space};
use ferroxen_machine::tlb;
use ferroxen_words::Mfn;

/// A reference to a domain's page, and a writable type reference if it was asked for; given back when dropped.
#[derive(Debug)]
pub struct Held {
    page: Page,
    is_writable: bool,
}

impl Held {
    /// The page.
    #[inline]
    pub fn page(&self) -> Page {
        self.page
    }
}

impl Drop for Held {
    #[inline(always)]
    fn drop(&mut self) {
        release(self.page.mfn(), self.is_writable);
    }
}

/// Gives back what a [`Held`] that was forgotten on purpose had held.
#[inline(always)]
pub fn release(mfn: Mfn, is_writable: bool) {
    let mfn = mfn.raw();
    let Some(frame) = frame(mfn) else { return };
    let put = if is_writable {
        frame.mark_dirty();
        frame.put_writable(tlb::now())
    } else {
        frame.put()
    };
    if put == Put::Last {
        free_frame(mfn);
    }
}

/// Holds a page of a domain's, to read it.
#[inline(always)]
pub fn hold(owner: &Domain, mfn: Mfn) -> Result<Held, Refused> {
    let hands = crate::pv::mm::Hands::of(owner);
    let space = Space::new(&hands, owner.id.raw());
    let frame = space.get(mfn.raw(), owner.id.raw())?;
    match Page::new(mfn) {
        Some(page) => Ok(Held {
            page,
            is_writable: false,
        }),
        None => {
            space.put(mfn.raw(), frame);
            Err(Refused::NoSuchFrame)
        }
    }
}

/// Holds a page of a domain's, to write it: it is no table and no descriptor page meanwhile.
#[inline(always)]
pub fn hold_writable(owner: &Domain, mfn: Mfn) -> Result<Held, Refused> {
    let hands = crate::pv::mm::Hands::of(owner);
    let space = Space::new(&hands, owner.id.raw());
    let frame = space.get_writable(mfn.raw(), owner.id.raw())?;
    match Page::new(mfn) {
        Some(page) => Ok(Held {
            page,
            is_writable: true,
        }),
        None => {
            space.put_writable(mfn.raw(), frame);
            Err(Refused::NoSuchFrame)
        }
    }
}

/// Lets `fill` write one of a domain's ordinary pages: `EINVAL` if it is not the domain's, `EACCES` if it is in use
/// as something that may not be written.
pub fn with_writable_page(domain: &Domain, mfn: Mfn, fill: impl FnOnce(&Page)) -> Result<(), Errno> {
    let held = hold_writable(domain, mfn).map_err(|why| match why {
        Refused::InUseAs(_) => Errno::EACCES,
        why => super::errno(why),
    })?;
    fill(&held.page());
    Ok(())
}
