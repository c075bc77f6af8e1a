//! Linux' loop devices: an image file as a block device.
//!
//! [`attach`] finds a free device and binds a file to it, for as long as somebody has the device open; who wants it to stay
//! says so with [`keep`], when it is noted somewhere who is to let it go. Whoever is killed in between leaves nothing.
//! [`detach`] lets it go, at the latest when the last user closes the device; [`resize`] takes notice of a file that has
//! grown. Nothing here has heard of Xen.
//!
//! UNSAFETY: six `ioctl`s that take a number or a pointer to one structure. (The published crates for
//! loop devices generate their bindings at build time, which needs libclang.)

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);
const _: () = assert!(offset_of!(LoopInfo64, file_name) == 56 && offset_of!(LoopConfig, info) == 8);

const LOOP_CLR_FD: u64 = 0x4c01;
const LOOP_SET_STATUS64: u64 = 0x4c04;
const LOOP_GET_STATUS64: u64 = 0x4c05;
const LOOP_SET_CAPACITY: u64 = 0x4c07;
const LOOP_CONFIGURE: u64 = 0x4c0a;
const LOOP_CTL_GET_FREE: u64 = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Whether the device may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// How often a free device may be snatched by somebody else before that is an error.
const ATTEMPTS: u32 = 64;

/// Binds `image` to a free loop device and gives that device, with its path. The last who closes it lets the image go.
pub fn attach(image: &Path, access: Access) -> io::Result<(PathBuf, File)> {
    let backing = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .open(image)?;
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/loop-control")?;
    let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
    for _ in 0..ATTEMPTS {
        // SAFETY: the request takes no argument.
        let number = unsafe { ioctl(&control, LOOP_CTL_GET_FREE, 0) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = open_device(&path, access)?;
        match configure(&device, &backing, image, access) {
            Ok(()) => return Ok((path, device)),
            // Somebody else took it in between.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// From now on the image stays bound until [`detach`], whether anybody has the device open or not.
pub fn keep(device: &File) -> io::Result<()> {
    let mut info = blank_info();
    // SAFETY: the request's structure, which is ours alone and lives across the call.
    unsafe { ioctl(device, LOOP_GET_STATUS64, &raw mut info as usize) }?;
    info.flags &= !LO_FLAGS_AUTOCLEAR;
    // SAFETY: the request's structure, which lives across the call and is only read.
    unsafe { ioctl(device, LOOP_SET_STATUS64, &raw const info as usize) }.map(drop)
}

/// Lets go of the file behind a loop device. While somebody has the device open, the kernel puts it off until
/// that one closes it.
pub fn detach(device: &Path) -> io::Result<()> {
    let device = open_device(device, Access::ReadOnly)?;
    // SAFETY: the request takes no argument.
    match unsafe { ioctl(&device, LOOP_CLR_FD, 0) } {
        Ok(_) => Ok(()),
        // Nothing is bound: what was wanted.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes notice of the size that the file behind a loop device has now.
pub fn resize(device: &Path) -> io::Result<()> {
    let device = open_device(device, Access::ReadOnly)?;
    // SAFETY: the request takes no argument.
    unsafe { ioctl(&device, LOOP_SET_CAPACITY, 0) }.map(drop)
}

fn open_device(path: &Path, access: Access) -> io::Result<File> {
    let write = access == Access::ReadWrite;
    let device = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)?;
    if device.metadata()?.file_type().is_block_device() {
        Ok(device)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is no block device", path.display()),
        ))
    }
}

fn configure(device: &File, backing: &File, image: &Path, access: Access) -> io::Result<()> {
    let mut file_name = [0; 64];
    // For show only; the last byte stays zero.
    let name = image.as_os_str().as_encoded_bytes();
    let len = name.len().min(file_name.len() - 1);
    file_name[..len].copy_from_slice(&name[..len]);
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?,
        block_size: 0,
        info: LoopInfo64 {
            flags: LO_FLAGS_AUTOCLEAR
                | match access {
                    Access::ReadOnly => LO_FLAGS_READ_ONLY,
                    Access::ReadWrite => 0,
                },
            file_name,
            ..blank_info()
        },
        reserved: [0; 8],
    };
    // SAFETY: the request's structure, which lives across the call and is only read; its descriptor is open.
    unsafe { ioctl(device, LOOP_CONFIGURE, &raw const config as usize) }.map(drop)
}

fn blank_info() -> LoopInfo64 {
    LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    }
}

/// # Safety
/// `arg` is what `request` takes: a number, or the address of its structure.
unsafe fn ioctl(device: &File, request: u64, arg: usize) -> io::Result<i32> {
    // SAFETY: the caller vouches for the argument; the descriptor is open, since it is borrowed.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request as _, arg) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
