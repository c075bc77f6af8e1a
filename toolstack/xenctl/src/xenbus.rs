//! The kernel's side of xenstore in the domain that runs xenstored: a ring page and a port.

use crate::pages::{Access, ForeignPages};
use crate::sys::Mapping;
use crate::{shapes, sys};
use ferroxen_words::{DomId, PAGE_SIZE, Port};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

/// Where this domain's own kernel waits for a xenstored.
#[derive(Debug)]
pub struct XenbusBackend {
    /// The kernel's ring with xenstored.
    pub ring: ForeignPages,
    /// The kernel's end of the event channel, unbound until xenstored binds to it.
    pub port: Port,
}

impl XenbusBackend {
    /// Takes the ring from `/dev/xen/xenbus_backend`, or from `/proc/xen` on kernels without it.
    pub fn open() -> io::Result<XenbusBackend> {
        Self::from_device().or_else(|error| Self::from_proc().map_err(|_| error))
    }

    /// Makes the kernel offer its ring to a xenstored in another domain; gives the unbound port.
    pub fn setup_for(xenstore_domain: DomId) -> io::Result<Port> {
        let file = sys::open_device("/dev/xen/xenbus_backend", 0)?;
        // SAFETY: takes a number.
        let port = unsafe {
            sys::ioctl(
                file.as_fd(),
                shapes::XENBUS_BACKEND_SETUP,
                usize::from(xenstore_domain.raw()),
            )
        }?;
        port_from(port)
    }

    fn from_device() -> io::Result<XenbusBackend> {
        let file = sys::open_device("/dev/xen/xenbus_backend", 0)?;
        // SAFETY: takes no argument.
        let port = unsafe { sys::ioctl(file.as_fd(), shapes::XENBUS_BACKEND_EVTCHN, 0) }?;
        Ok(XenbusBackend {
            ring: map_ring(&file)?,
            port: port_from(port)?,
        })
    }

    fn from_proc() -> io::Result<XenbusBackend> {
        let mut text = String::new();
        File::open("/proc/xen/xsd_port")?.read_to_string(&mut text)?;
        let port = text.trim().parse::<u32>().map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(XenbusBackend {
            ring: map_ring(&sys::open_device("/proc/xen/xsd_kva", 0)?)?,
            port: Port::new(port),
        })
    }
}

fn map_ring(file: &File) -> io::Result<ForeignPages> {
    let access = Access::ReadWrite;
    let mapping = Mapping::new(Some(file.as_fd()), 0, PAGE_SIZE, access.prot(), libc::MAP_SHARED)?;
    Ok(ForeignPages::new(mapping, access, None))
}

fn port_from(raw: i64) -> io::Result<Port> {
    u32::try_from(raw)
        .map(Port::new)
        .map_err(|_| io::ErrorKind::InvalidData.into())
}
