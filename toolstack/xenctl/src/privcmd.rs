//! Hypercalls and other domains' frames: `/dev/xen/privcmd`.
//!
//! The doors are generic over the argument's type: `abi/xen` says what a structure looks like, this says
//! how it travels. Arguments are bounced through resident pages, which are kept for the next call.
//! A refusal comes back as the `io::Error` of its errno (Xen's numbers are Linux's on x86).

use crate::buffer::HypercallBuffer;
use crate::pages::{Access, ForeignPages};
use crate::sys::Mapping;
use crate::{shapes, sys};
use ferroxen_words::{DomId, Gfn, PAGE_SIZE, Port, RawDomId};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Hypercall numbers. Upstream: `xen/include/public/xen.h`.
pub mod nr {
    #![expect(missing_docs, reason = "each is upstream's `__HYPERVISOR_` name")]
    pub const MMU_UPDATE: u64 = 1;
    pub const PLATFORM_OP: u64 = 7;
    pub const MEMORY_OP: u64 = 12;
    pub const XEN_VERSION: u64 = 17;
    pub const CONSOLE_IO: u64 = 18;
    pub const GRANT_TABLE_OP: u64 = 20;
    pub const MMUEXT_OP: u64 = 26;
    pub const XSM_OP: u64 = 27;
    pub const SCHED_OP: u64 = 29;
    pub const EVENT_CHANNEL_OP: u64 = 32;
    pub const PHYSDEV_OP: u64 = 33;
    pub const HVM_OP: u64 = 34;
    pub const SYSCTL: u64 = 35;
    pub const DOMCTL: u64 = 36;
    pub const KEXEC_OP: u64 = 37;
    pub const HYPFS_OP: u64 = 42;
}

/// Bounce pages kept for the next call, at most.
const POOL_PAGES: usize = 8;

/// The privileged-command device. May be shared between threads.
#[derive(Debug)]
pub struct Privcmd {
    file: File,
    /// `/dev/xen/hypercall`, where the kernel has it.
    buffers: Option<File>,
    pool: Mutex<Vec<HypercallBuffer>>,
}

impl Privcmd {
    /// Opens the device (or `/proc/xen/privcmd`).
    pub fn open() -> io::Result<Privcmd> {
        let file = sys::open_device("/dev/xen/privcmd", 0)
            .or_else(|_| sys::open_device("/proc/xen/privcmd", 0))
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("cannot open /dev/xen/privcmd ({error}): is this Domain 0?"),
                )
            })?;
        Ok(Privcmd {
            file,
            buffers: sys::open_device("/dev/xen/hypercall", 0).ok(),
            pool: Mutex::default(),
        })
    }

    /// Memory for `len` bytes that a hypercall may name.
    pub fn buffer(&self, len: usize) -> io::Result<HypercallBuffer> {
        HypercallBuffer::new(self.buffers.as_ref().map(|file| file.as_fd()), len)
    }

    /// Memory holding a copy of `values`, for a structure's guest handle.
    pub fn buffer_of<T: IntoBytes + Immutable>(&self, values: &[T]) -> io::Result<HypercallBuffer> {
        let buffer = self.buffer(size_of_val(values))?;
        buffer.write(0, values.as_bytes())?;
        Ok(buffer)
    }

    /// Makes hypercall `number` with bare arguments. Addresses among them come from
    /// [`HypercallBuffer::handle`]; see the crate's UNSAFETY note.
    pub fn hypercall(&self, number: u64, args: [u64; 5]) -> io::Result<i64> {
        let call = shapes::Hypercall { op: number, arg: args };
        // SAFETY: the request's structure, which lives across the call and is only read. What the hypervisor
        // does with the arguments is the outside world's doing (UNSAFETY note).
        unsafe { sys::ioctl(self.file.as_fd(), shapes::PRIVCMD_HYPERCALL, &raw const call as usize) }
    }

    /// `domctl`: `op` is a whole `xen_domctl`, or its head and the one member of its union that is used.
    pub fn domctl<T: FromBytes + IntoBytes + Immutable>(&self, op: &mut T) -> io::Result<i64> {
        self.bounce(op, |address| self.hypercall(nr::DOMCTL, [address, 0, 0, 0, 0]))
    }

    /// `sysctl`: `op` is a whole `xen_sysctl`, or its head and the one member of its union that is used.
    pub fn sysctl<T: FromBytes + IntoBytes + Immutable>(&self, op: &mut T) -> io::Result<i64> {
        self.bounce(op, |address| self.hypercall(nr::SYSCTL, [address, 0, 0, 0, 0]))
    }

    /// `platform_op`
    pub fn platform_op<T: FromBytes + IntoBytes + Immutable>(&self, op: &mut T) -> io::Result<i64> {
        self.bounce(op, |address| self.hypercall(nr::PLATFORM_OP, [address, 0, 0, 0, 0]))
    }

    /// `memory_op(command, arg)`
    pub fn memory_op<T: FromBytes + IntoBytes + Immutable>(&self, command: u32, arg: &mut T) -> io::Result<i64> {
        self.bounce(arg, |address| {
            self.hypercall(nr::MEMORY_OP, [u64::from(command), address, 0, 0, 0])
        })
    }

    /// `memory_op` for the commands that take no argument (such as `XENMEM_maximum_ram_page`).
    pub fn memory_op_bare(&self, command: u32) -> io::Result<i64> {
        self.hypercall(nr::MEMORY_OP, [u64::from(command), 0, 0, 0, 0])
    }

    /// `xen_version(command, arg)`
    pub fn xen_version<T: FromBytes + IntoBytes + Immutable>(&self, command: u32, arg: &mut T) -> io::Result<i64> {
        self.bounce(arg, |address| {
            self.hypercall(nr::XEN_VERSION, [u64::from(command), address, 0, 0, 0])
        })
    }

    /// The hypervisor's version as (major, minor).
    pub fn version(&self) -> io::Result<(u16, u16)> {
        let packed = self.hypercall(nr::XEN_VERSION, [0; 5])? as u32;
        Ok(((packed >> 16) as u16, packed as u16))
    }

    /// `event_channel_op(command, arg)`
    pub fn event_channel_op<T: FromBytes + IntoBytes + Immutable>(&self, command: u32, arg: &mut T) -> io::Result<i64> {
        self.bounce(arg, |address| {
            self.hypercall(nr::EVENT_CHANNEL_OP, [u64::from(command), address, 0, 0, 0])
        })
    }

    /// Makes a port of `domid` that `remote` may bind to (`EVTCHNOP_alloc_unbound`).
    pub fn alloc_unbound_port(&self, domid: RawDomId, remote: RawDomId) -> io::Result<Port> {
        #[derive(FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        struct AllocUnbound {
            dom: u16,
            remote_dom: u16,
            port: u32,
        }
        let mut op = AllocUnbound {
            dom: domid.0,
            remote_dom: remote.0,
            port: 0,
        };
        self.event_channel_op(6, &mut op)?;
        Ok(Port::new(op.port))
    }

    /// `physdev_op(command, arg)`
    pub fn physdev_op<T: FromBytes + IntoBytes + Immutable>(&self, command: u32, arg: &mut T) -> io::Result<i64> {
        self.bounce(arg, |address| {
            self.hypercall(nr::PHYSDEV_OP, [u64::from(command), address, 0, 0, 0])
        })
    }

    /// `sched_op(command, arg)`
    pub fn sched_op<T: FromBytes + IntoBytes + Immutable>(&self, command: u32, arg: &mut T) -> io::Result<i64> {
        self.bounce(arg, |address| {
            self.hypercall(nr::SCHED_OP, [u64::from(command), address, 0, 0, 0])
        })
    }

    /// `hypfs_op(command, path, its length, contents, their length)`; both texts with their zero byte.
    pub fn hypfs_op(&self, command: u32, path: &CStr, contents: &CStr) -> io::Result<i64> {
        let (path, contents) = (path.to_bytes_with_nul(), contents.to_bytes_with_nul());
        let (at, from) = (self.buffer_of(path)?, self.buffer_of(contents)?);
        let lengths = [path, contents].map(|text| text.len() as u64);
        self.hypercall(
            nr::HYPFS_OP,
            [u64::from(command), at.handle(), lengths[0], from.handle(), lengths[1]],
        )
    }

    /// `hvm_op(command, arg)`
    pub fn hvm_op<T: FromBytes + IntoBytes + Immutable>(&self, command: u32, arg: &mut T) -> io::Result<i64> {
        self.bounce(arg, |address| {
            self.hypercall(nr::HVM_OP, [u64::from(command), address, 0, 0, 0])
        })
    }

    /// `grant_table_op(command, ops, count)`
    pub fn grant_table_op<T: FromBytes + IntoBytes + Immutable>(&self, command: u32, ops: &mut [T]) -> io::Result<i64> {
        let count = count_of(ops)?;
        self.bounce(ops, |address| {
            self.hypercall(nr::GRANT_TABLE_OP, [u64::from(command), address, count, 0, 0])
        })
    }

    /// `mmuext_op(ops, count, done, foreigndom)`; gives how many were done.
    pub fn mmuext_op<T: FromBytes + IntoBytes + Immutable>(
        &self,
        ops: &mut [T],
        foreigndom: RawDomId,
    ) -> io::Result<u32> {
        self.counted(nr::MMUEXT_OP, ops, foreigndom)
    }

    /// `mmu_update(requests, count, done, foreigndom)`; gives how many were done.
    pub fn mmu_update<T: FromBytes + IntoBytes + Immutable>(
        &self,
        requests: &mut [T],
        foreigndom: RawDomId,
    ) -> io::Result<u32> {
        self.counted(nr::MMU_UPDATE, requests, foreigndom)
    }

    /// Maps frames of another domain as one run; all of them, or an error that names the first that failed.
    pub fn map_foreign(&self, domid: RawDomId, gfns: &[Gfn], access: Access) -> io::Result<ForeignPages> {
        let (mapping, errors) = self.map_batch(domid, gfns, access)?;
        match errors.iter().zip(gfns).find(|(error, _)| **error != 0) {
            None => Ok(ForeignPages::new(mapping, access, None)),
            Some((error, gfn)) => {
                let cause = io::Error::from_raw_os_error(error.wrapping_neg());
                Err(io::Error::new(
                    cause.kind(),
                    format!("cannot map {gfn} of domain {}: {cause}", domid.0),
                ))
            }
        }
    }

    /// Maps what can be mapped, and says for each frame why not (0, or a negative errno).
    pub fn map_foreign_partly(
        &self,
        domid: RawDomId,
        gfns: &[Gfn],
        access: Access,
    ) -> io::Result<(ForeignPages, Vec<i32>)> {
        let (mapping, errors) = self.map_batch(domid, gfns, access)?;
        let present = errors.iter().map(|error| *error == 0).collect();
        Ok((ForeignPages::with_holes(mapping, access, present), errors))
    }

    /// Maps a resource of another domain (`XENMEM_resource_*`), such as its grant table's frames.
    pub fn map_resource(
        &self,
        domid: RawDomId,
        kind: u32,
        id: u32,
        first_frame: u32,
        frames: usize,
        access: Access,
    ) -> io::Result<ForeignPages> {
        let mapping = self.reserve(frames, access)?;
        let request = shapes::MmapResource {
            dom: domid.0,
            kind,
            id,
            idx: first_frame,
            num: frames as u64,
            addr: mapping.start().as_ptr() as u64,
        };
        // SAFETY: the request's structure; the kernel fills the address range, which is a fresh mapping of
        // this device, exactly `frames` pages, to which nothing refers yet.
        unsafe {
            sys::ioctl(
                self.file.as_fd(),
                shapes::PRIVCMD_MMAP_RESOURCE,
                &raw const request as usize,
            )
        }?;
        Ok(ForeignPages::new(mapping, access, None))
    }

    /// A device-model operation on `domid`. Each buffer may be read and written.
    pub fn dm_op(&self, domid: DomId, buffers: &mut [&mut [u8]]) -> io::Result<i64> {
        let parts: Vec<shapes::DmOpBuf> = buffers
            .iter_mut()
            .map(|part| shapes::DmOpBuf {
                uptr: part.as_mut_ptr(),
                size: part.len(),
            })
            .collect();
        let num = u16::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let request = shapes::DmOp {
            dom: domid.raw(),
            num,
            ubufs: parts.as_ptr(),
        };
        // SAFETY: `num` descriptors, each of memory that is borrowed mutably until the call has returned.
        unsafe { sys::ioctl(self.file.as_fd(), shapes::PRIVCMD_DM_OP, &raw const request as usize) }
    }

    /// Gives up all but operations on `domid`, for good.
    pub fn restrict(&self, domid: DomId) -> io::Result<()> {
        let domid = domid.raw();
        // SAFETY: takes the address of a domid, which lives across the call.
        unsafe { sys::ioctl(self.file.as_fd(), shapes::PRIVCMD_RESTRICT, &raw const domid as usize) }.map(drop)
    }

    fn map_batch(&self, domid: RawDomId, gfns: &[Gfn], access: Access) -> io::Result<(Mapping, Vec<i32>)> {
        let mapping = self.reserve(gfns.len(), access)?;
        let mut errors = vec![0i32; gfns.len()];
        let request = shapes::MmapBatchV2 {
            num: u32::try_from(gfns.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            dom: domid.0,
            addr: mapping.start().as_ptr() as u64,
            // `Gfn` is `repr(transparent)` over the `xen_pfn_t` that is wanted.
            arr: gfns.as_ptr().cast(),
            err: errors.as_mut_ptr(),
        };
        // SAFETY: `num` frame numbers to read and `num` error words to write; the address range is a fresh
        // mapping of this device, exactly `num` pages, to which nothing refers yet.
        match unsafe {
            sys::ioctl(
                self.file.as_fd(),
                shapes::PRIVCMD_MMAPBATCH_V2,
                &raw const request as usize,
            )
        } {
            Ok(_) => Ok((mapping, errors)),
            // "Some frame is paged out": the error words say which.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((mapping, errors)),
            Err(error) => Err(error),
        }
    }

    fn reserve(&self, pages: usize, access: Access) -> io::Result<Mapping> {
        let len = pages.checked_mul(PAGE_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
        Mapping::new(Some(self.file.as_fd()), 0, len, access.prot(), libc::MAP_SHARED)
    }

    /// `f(ops, count, &done, domid)`, the shape of the two page-table calls.
    fn counted<T: FromBytes + IntoBytes + Immutable>(
        &self,
        number: u64,
        ops: &mut [T],
        foreigndom: RawDomId,
    ) -> io::Result<u32> {
        let count = count_of(ops)?;
        let done = self.take_page(4)?;
        let result = self.bounce(ops, |address| {
            self.hypercall(number, [address, count, done.handle(), u64::from(foreigndom.0), 0])
        });
        let done_count = done.get(0);
        self.give_back(done);
        result?;
        done_count
    }

    /// Copies `value` into resident memory, makes the call with its address, and copies it back.
    fn bounce<T: FromBytes + IntoBytes + Immutable + ?Sized>(
        &self,
        value: &mut T,
        call: impl FnOnce(u64) -> io::Result<i64>,
    ) -> io::Result<i64> {
        // A whole page at least: the hypervisor copies whole unions, also when the value is only a part.
        let buffer = self.take_page(value.as_bytes().len())?;
        buffer.write(0, value.as_bytes())?;
        let result = call(buffer.handle());
        // Also after a refusal: some calls tell more in the structure.
        buffer.read(0, value.as_mut_bytes())?;
        self.give_back(buffer);
        result
    }

    fn take_page(&self, len: usize) -> io::Result<HypercallBuffer> {
        let pooled = if len <= PAGE_SIZE {
            self.pool.lock().ok().and_then(|mut pool| pool.pop())
        } else {
            None
        };
        match pooled {
            Some(buffer) => {
                buffer.clear();
                Ok(buffer)
            }
            None => self.buffer(len),
        }
    }

    fn give_back(&self, buffer: HypercallBuffer) {
        if buffer.len() == PAGE_SIZE
            && let Ok(mut pool) = self.pool.lock()
            && pool.len() < POOL_PAGES
        {
            pool.push(buffer);
        }
    }
}

impl AsFd for Privcmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn count_of<T>(ops: &[T]) -> io::Result<u64> {
    u32::try_from(ops.len())
        .map(u64::from)
        .map_err(|_| io::ErrorKind::InvalidInput.into())
}
