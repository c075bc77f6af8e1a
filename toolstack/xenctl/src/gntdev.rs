//! Pages that other domains grant to us: `/dev/xen/gntdev`.

use crate::pages::{Access, ForeignPages};
use crate::sys::Mapping;
use crate::{shapes, sys};
use ferroxen_words::{DomId, Gref, PAGE_SIZE, Port};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The grant device. Mappings keep it open on their own.
#[derive(Clone, Debug)]
pub struct Grants {
    file: Arc<File>,
}

/// What the kernel does when a grant mapping goes away, also when this process dies.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnmapNotify {
    /// Clear the byte at this offset of the mapping.
    pub clear_byte: Option<u32>,
    /// Ring this port.
    pub ring: Option<Port>,
}

impl Grants {
    /// Opens the device.
    pub fn open() -> io::Result<Grants> {
        Ok(Grants {
            file: Arc::new(sys::open_device("/dev/xen/gntdev", 0)?),
        })
    }

    /// Maps one page that `domid` offers as `gref`.
    pub fn map(&self, domid: DomId, gref: Gref, access: Access) -> io::Result<ForeignPages> {
        self.map_many(&[(domid, gref)], access, UnmapNotify::default())
    }

    /// Maps several granted pages as one run, and leaves word of what to do when they are unmapped.
    pub fn map_many(&self, grants: &[(DomId, Gref)], access: Access, notify: UnmapNotify) -> io::Result<ForeignPages> {
        let slot = self.reserve(grants)?;
        let mapping = Mapping::new(
            Some(self.file.as_fd()),
            slot.index,
            grants.len().checked_mul(PAGE_SIZE).ok_or(io::ErrorKind::InvalidInput)?,
            access.prot(),
            libc::MAP_SHARED,
        )?;
        if notify.clear_byte.is_some() || notify.ring.is_some() {
            slot.set_notify(notify)?;
        }
        Ok(ForeignPages::new(mapping, access, Some(slot)))
    }

    fn reserve(&self, grants: &[(DomId, Gref)]) -> io::Result<GrantSlot> {
        let count = u32::try_from(grants.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Two words of head, then one per grant: all fields are 32-bit pairs or one u64, so u64s hold them.
        let mut words = vec![u64::from(count), 0];
        words.extend(grants.iter().map(|(domid, gref)| {
            let entry = shapes::GrantRef {
                domid: u32::from(domid.raw()),
                gref: gref.raw(),
            };
            u64::from(entry.domid) | u64::from(entry.gref) << 32
        }));
        // SAFETY: `words` is a `MapGrantRefHead` followed by `count` `GrantRef`s (little-endian pairs), as
        // the ioctl takes it; it may write the head's `index`, and does so before returning.
        unsafe {
            sys::ioctl(
                self.file.as_fd(),
                shapes::GNTDEV_MAP_GRANT_REF,
                words.as_mut_ptr() as usize,
            )
        }?;
        Ok(GrantSlot {
            file: self.file.clone(),
            index: words[1],
            count,
        })
    }
}

/// A place in the device's mapping table; given back when dropped, after the memory is unmapped.
#[derive(Debug)]
pub(crate) struct GrantSlot {
    file: Arc<File>,
    index: u64,
    count: u32,
}

impl GrantSlot {
    fn set_notify(&self, notify: UnmapNotify) -> io::Result<()> {
        let mut request = shapes::GntdevUnmapNotify {
            index: self.index + u64::from(notify.clear_byte.unwrap_or(0)),
            action: 0,
            event_channel_port: 0,
        };
        if notify.clear_byte.is_some() {
            request.action |= shapes::UNMAP_NOTIFY_CLEAR_BYTE;
        }
        if let Some(port) = notify.ring {
            request.action |= shapes::UNMAP_NOTIFY_SEND_EVENT;
            request.event_channel_port = port.raw();
        }
        // SAFETY: the request's structure, which lives across the call and is only read. The byte it names
        // is in our own mapping or refused by the kernel, and is accessed atomically only.
        unsafe {
            sys::ioctl(
                self.file.as_fd(),
                shapes::GNTDEV_SET_UNMAP_NOTIFY,
                &raw const request as usize,
            )
        }
        .map(drop)
    }
}

impl Drop for GrantSlot {
    fn drop(&mut self) {
        let request = shapes::UnmapGrantRef {
            index: self.index,
            count: self.count,
            pad: 0,
        };
        // SAFETY: the request's structure, only read. A refusal leaves the slot to the closing of the file.
        let _ = unsafe {
            sys::ioctl(
                self.file.as_fd(),
                shapes::GNTDEV_UNMAP_GRANT_REF,
                &raw const request as usize,
            )
        };
    }
}
