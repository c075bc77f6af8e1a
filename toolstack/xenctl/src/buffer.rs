//! Memory that the hypervisor may read and write during a call.
//!
//! A hypercall names user addresses, which the hypervisor walks itself: a page that is not resident then
//! is `EFAULT`, not a page fault. `/dev/xen/hypercall` gives memory that stays; where it is missing
//! (Linux before 4.18), locked anonymous memory comes close.

use crate::sys::Mapping;
use ferroxen_words::PAGE_SIZE;
use std::io;
use std::os::fd::BorrowedFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Resident, page-aligned memory for a hypercall's arguments, zeroed at first.
///
/// Only copies go in and out: another thread might be in a hypercall that writes it.
#[derive(Debug)]
pub struct HypercallBuffer {
    mapping: Mapping,
}

impl HypercallBuffer {
    pub(crate) fn new(device: Option<BorrowedFd<'_>>, len: usize) -> io::Result<HypercallBuffer> {
        let len = len
            .max(1)
            .checked_next_multiple_of(PAGE_SIZE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = match device {
            Some(device) => Mapping::new(Some(device), 0, len, prot, libc::MAP_SHARED)?,
            None => {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE;
                let mapping = Mapping::new(None, 0, len, prot, flags)?;
                mapping.dont_fork()?;
                mapping
            }
        };
        Ok(HypercallBuffer { mapping })
    }

    /// The number to put where a structure has a guest handle.
    pub fn handle(&self) -> u64 {
        self.mapping.start().as_ptr() as u64
    }

    /// Bytes it holds: what was asked for, rounded up to whole pages.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Copies `data` in at `offset`.
    pub fn write(&self, offset: usize, data: &[u8]) -> io::Result<()> {
        let target = self.range(offset, data.len())?;
        // SAFETY: `range` checked that the bytes are ours; `data` is a borrow of something else, since
        // no reference into the buffer is ever made.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, data.len()) };
        Ok(())
    }

    /// Copies bytes out from `offset`, as many as `data` takes.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> io::Result<()> {
        let source = self.range(offset, data.len())?;
        // SAFETY: as in `write`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(source, data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    /// Copies a value in at `offset`.
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&self, offset: usize, value: &T) -> io::Result<()> {
        self.write(offset, value.as_bytes())
    }

    /// Copies a value out from `offset`.
    pub fn get<T: FromBytes + IntoBytes>(&self, offset: usize) -> io::Result<T> {
        let mut value = T::new_zeroed();
        self.read(offset, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies `count` values out from `offset`.
    pub fn get_many<T: FromBytes + IntoBytes>(&self, offset: usize, count: usize) -> io::Result<Vec<T>> {
        // Asks first, so that a silly count allocates nothing.
        self.range(offset, count.checked_mul(size_of::<T>()).ok_or_else(out_of_range)?)?;
        (0..count).map(|i| self.get(offset + i * size_of::<T>())).collect()
    }

    /// Fills the buffer with zeroes.
    pub fn clear(&self) {
        // SAFETY: exactly our bytes, to which no reference exists.
        unsafe { std::ptr::write_bytes(self.mapping.start().as_ptr(), 0, self.mapping.len()) };
    }

    fn range(&self, offset: usize, len: usize) -> io::Result<*mut u8> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(out_of_range());
        }
        // SAFETY: `offset` is within the mapping (or one past its end, for no bytes).
        Ok(unsafe { self.mapping.start().as_ptr().add(offset) })
    }
}

fn out_of_range() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "outside the hypercall buffer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_the_rest_is_zero() {
        let buffer = HypercallBuffer::new(None, 100).unwrap();
        assert_eq!(buffer.len(), PAGE_SIZE);
        buffer.put(8, &0x1122_3344_u32).unwrap();
        assert_eq!(buffer.get_many::<u32>(4, 3).unwrap(), [0, 0x1122_3344, 0]);
        buffer.clear();
        assert_eq!(buffer.get::<u32>(8).unwrap(), 0);
    }

    #[test]
    fn the_end_is_a_refusal() {
        let buffer = HypercallBuffer::new(None, PAGE_SIZE).unwrap();
        assert!(buffer.put(PAGE_SIZE - 4, &0u32).is_ok());
        assert!(buffer.put(PAGE_SIZE - 3, &0u32).is_err());
        assert!(buffer.get::<u8>(usize::MAX).is_err());
        assert!(buffer.get_many::<u64>(0, usize::MAX).is_err());
    }
}
