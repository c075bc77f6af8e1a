//! Event channels as a process has them: `/dev/xen/evtchn`.
//!
//! The kernel hands a port to us once and keeps it silent until [`EventChannels::unmask`].

use crate::{shapes, sys};
use ferroxen_words::{DomId, Port};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

/// This process's event channels. The descriptor polls readable while a port is pending.
///
/// Dropping it unbinds every port that was bound through it.
#[derive(Debug)]
pub struct EventChannels {
    file: File,
}

impl EventChannels {
    /// Opens the device, not blocking on reads.
    pub fn open() -> io::Result<EventChannels> {
        Ok(EventChannels {
            file: sys::open_device("/dev/xen/evtchn", libc::O_NONBLOCK)?,
        })
    }

    /// Binds a port of ours to one that `remote` left unbound for us.
    pub fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> io::Result<Port> {
        self.bind(
            shapes::EVTCHN_BIND_INTERDOMAIN,
            &[u32::from(remote.raw()), remote_port.raw()],
        )
    }

    /// Makes a port of ours that `remote` may bind to.
    pub fn bind_unbound(&self, remote: DomId) -> io::Result<Port> {
        self.bind(shapes::EVTCHN_BIND_UNBOUND_PORT, &[u32::from(remote.raw())])
    }

    /// Binds a port to a virtual interrupt (`VIRQ_*`).
    pub fn bind_virq(&self, virq: u32) -> io::Result<Port> {
        self.bind(shapes::EVTCHN_BIND_VIRQ, &[virq])
    }

    /// Closes a port.
    pub fn unbind(&self, port: Port) -> io::Result<()> {
        self.bind(shapes::EVTCHN_UNBIND, &[port.raw()]).map(drop)
    }

    /// Rings a port.
    pub fn notify(&self, port: Port) -> io::Result<()> {
        self.bind(shapes::EVTCHN_NOTIFY, &[port.raw()]).map(drop)
    }

    /// Takes a port that has rung, if one has. It stays silent until [`unmask`](Self::unmask).
    pub fn next_pending(&self) -> io::Result<Option<Port>> {
        let mut port = [0; 4];
        match (&self.file).read(&mut port) {
            Ok(4) => Ok(Some(Port::new(u32::from_ne_bytes(port)))),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => match error.raw_os_error() {
                // More ports rang than the buffer holds: which ones is lost, that some did is not.
                Some(libc::EFBIG) => self.reset().and(Err(error)),
                _ => Err(error),
            },
        }
    }

    /// Lets a port ring again.
    pub fn unmask(&self, port: Port) -> io::Result<()> {
        (&self.file).write_all(&port.raw().to_ne_bytes())
    }

    /// Clears the list of pending ports after an overflow.
    pub fn reset(&self) -> io::Result<()> {
        // SAFETY: takes no argument.
        unsafe { sys::ioctl(self.file.as_fd(), shapes::EVTCHN_RESET, 0) }.map(drop)
    }

    /// Gives up binding to any domain but `domid`, for good.
    pub fn restrict(&self, domid: DomId) -> io::Result<()> {
        let domid = domid.raw();
        // SAFETY: takes the address of a domid, which lives across the call.
        unsafe {
            sys::ioctl(
                self.file.as_fd(),
                shapes::EVTCHN_RESTRICT_DOMID,
                &raw const domid as usize,
            )
        }
        .map(drop)
    }

    fn bind(&self, request: u64, words: &[u32]) -> io::Result<Port> {
        // SAFETY: each of these requests takes a structure of as many words as its caller above passes, only
        // reads it, and it lives across the call.
        let port = unsafe { sys::ioctl(self.file.as_fd(), request, words.as_ptr() as usize) }?;
        u32::try_from(port)
            .map(Port::new)
            .map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl AsFd for EventChannels {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
