//! Linux' doors to the hypervisor, made safe to use.
//!
//! | Door | Type | What for |
//! |---|---|---|
//! | `/dev/xen/privcmd` | [`Privcmd`] | hypercalls, mapping other domains' frames, device-model ops |
//! | `/dev/xen/evtchn` | [`EventChannels`] | binding, ringing and hearing event channels |
//! | `/dev/xen/gntdev` | [`Grants`] | mapping pages that other domains grant to us |
//! | `/dev/xen/xenbus_backend` | [`XenbusBackend`] | the kernel's own xenstore ring, for a xenstored |
//!
//! And one thing that no safe library does: [`start_copy`], a second process out of this one.
//!
//! Memory that somebody else may write at the same moment is a [`ForeignPages`]: bytes go in and out by
//! copy, ring indices through atomic loads and stores, and no reference into it ever exists.
//! Memory that the hypervisor reads and writes during a call is a [`HypercallBuffer`].
//!
//! Always true:
//! 1. A mapping is undone exactly once, when its [`ForeignPages`] is dropped, and its file outlives it.
//! 2. Every access to shared memory is within the mapping, and touches only pages that were mapped.
//! 3. The structures passed to an ioctl have the sizes of Linux' public headers (asserted in `shapes`).
//!
//! UNSAFETY: system calls that take pointers (`ioctl`, `mmap`), and access to memory shared with other
//! domains. One debt cannot be paid here: a hypercall's argument may hold addresses of this process, and
//! safe code can put any number there, just as it can write to `/proc/self/mem`. Like that file, the
//! hypervisor counts as the outside world. Addresses in arguments should come from
//! [`HypercallBuffer::handle`] only.

mod buffer;
mod evtchn;
mod gntdev;
mod pages;
mod privcmd;
mod process;
mod shapes;
mod sys;
mod xenbus;

pub use buffer::HypercallBuffer;
pub use evtchn::EventChannels;
pub use gntdev::{Grants, UnmapNotify};
pub use pages::{Access, ForeignPages};
pub use privcmd::{Privcmd, nr};
pub use process::start_copy;
pub use xenbus::XenbusBackend;
