//! Memory that somebody else may write at any moment: another domain, or the kernel.
//!
//! Always true: no Rust reference points into it, every access is atomic (so that a scribbling guest makes
//! wrong values, never undefined behaviour), and pages that could not be mapped are never touched.

use crate::gntdev::GrantSlot;
use crate::sys::Mapping;
use ferroxen_words::PAGE_SIZE;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// What a mapping may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

impl Access {
    pub(crate) fn prot(self) -> i32 {
        match self {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A run of mapped pages that others may see and change. Dropping it unmaps them.
#[derive(Debug)]
pub struct ForeignPages {
    // Declared before `_grants`: the memory is unmapped first, then the grants are given back.
    mapping: Mapping,
    _grants: Option<GrantSlot>,
    access: Access,
    /// `Some` if at least one page failed: whether each is there.
    present: Option<Box<[bool]>>,
}

impl ForeignPages {
    pub(crate) fn new(mapping: Mapping, access: Access, grants: Option<GrantSlot>) -> ForeignPages {
        ForeignPages {
            mapping,
            _grants: grants,
            access,
            present: None,
        }
    }

    pub(crate) fn with_holes(mapping: Mapping, access: Access, present: Box<[bool]>) -> ForeignPages {
        ForeignPages {
            mapping,
            _grants: None,
            access,
            present: Some(present),
        }
    }

    /// Pages of our own that behave like somebody else's: for trying out, without a hypervisor, what works on
    /// shared memory. A child process shares them.
    pub fn anonymous(pages: usize, access: Access) -> io::Result<ForeignPages> {
        let len = pages.checked_mul(PAGE_SIZE).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        Ok(ForeignPages::new(
            Mapping::new(None, 0, len, access.prot(), flags)?,
            access,
            None,
        ))
    }

    /// Bytes in the run.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Pages in the run.
    pub fn page_count(&self) -> usize {
        self.len() / PAGE_SIZE
    }

    /// Copies bytes out from `offset`, as many as `data` takes.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> io::Result<()> {
        let source = self.range(offset, data.len())?;
        let (head, words, tail) = parts(source, data.len());
        let word = |at: usize| {
            // SAFETY: `range` checked `data.len()` bytes from `source`, of which `parts` makes aligned words at `words`;
            // shared memory is only ever accessed atomically from this process.
            unsafe { AtomicU64::from_ptr(source.add(at).cast().as_ptr()) }.load(Ordering::Relaxed)
        };
        let mut at = words.start;
        for eight in data[words].as_chunks_mut::<8>().0 {
            *eight = word(at).to_ne_bytes();
            at += 8;
        }
        for at in head.chain(tail) {
            // SAFETY: one byte within the checked range, accessed atomically.
            data[at] = unsafe { AtomicU8::from_ptr(source.add(at).as_ptr()) }.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies `data` in at `offset`.
    pub fn write(&self, offset: usize, data: &[u8]) -> io::Result<()> {
        self.may_write()?;
        let target = self.range(offset, data.len())?;
        let (head, words, tail) = parts(target, data.len());
        let put = |at: usize, word: [u8; 8]| {
            // SAFETY: as in `read`, and mapped for writing.
            unsafe { AtomicU64::from_ptr(target.add(at).cast().as_ptr()) }
                .store(u64::from_ne_bytes(word), Ordering::Relaxed);
        };
        let mut at = words.start;
        // A guest's kernel and ramdisk come through here: eight words to a round, which the compiler writes out.
        let (lines, rest) = data[words].as_chunks::<64>();
        for line in lines {
            for (nth, word) in line.as_chunks::<8>().0.iter().enumerate() {
                put(at + nth * 8, *word);
            }
            at += 64;
        }
        for word in rest.as_chunks::<8>().0 {
            put(at, *word);
            at += 8;
        }
        for at in head.chain(tail) {
            // SAFETY: one byte within the checked range, mapped for writing, accessed atomically.
            unsafe { AtomicU8::from_ptr(target.add(at).as_ptr()) }.store(data[at], Ordering::Relaxed);
        }
        Ok(())
    }

    /// Fills `len` bytes from `offset` with zeroes.
    pub fn zero(&self, offset: usize, len: usize) -> io::Result<()> {
        const ZEROES: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        self.range(offset, len)?;
        let mut done = 0;
        while done < len {
            let step = (len - done).min(PAGE_SIZE);
            self.write(offset + done, &ZEROES[..step])?;
            done += step;
        }
        Ok(())
    }

    /// Loads the 32-bit word at `offset`, which must be a multiple of 4.
    pub fn load_u32(&self, offset: usize, order: Ordering) -> io::Result<u32> {
        Ok(self.word(offset)?.load(order))
    }

    /// Stores the 32-bit word at `offset`, which must be a multiple of 4.
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) -> io::Result<()> {
        self.may_write()?;
        self.word(offset)?.store(value, order);
        Ok(())
    }

    /// Replaces the 32-bit word at `offset` if it is `old`; says whether it was.
    pub fn replace_u32(&self, offset: usize, old: u32, new: u32) -> io::Result<bool> {
        self.may_write()?;
        Ok(self
            .word(offset)?
            .compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
            .is_ok())
    }

    /// Loads the 64-bit word at `offset`, which must be a multiple of 8.
    pub fn load_u64(&self, offset: usize, order: Ordering) -> io::Result<u64> {
        let at = self.aligned(offset, 8)?;
        // SAFETY: in range and aligned; accessed atomically only, and the borrow of `self` keeps it mapped.
        Ok(unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) }.load(order))
    }

    /// Stores the 64-bit word at `offset`, which must be a multiple of 8.
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) -> io::Result<()> {
        self.may_write()?;
        let at = self.aligned(offset, 8)?;
        // SAFETY: as in `load_u64`, and mapped for writing.
        unsafe { AtomicU64::from_ptr(at.cast().as_ptr()) }.store(value, order);
        Ok(())
    }

    fn word(&self, offset: usize) -> io::Result<&AtomicU32> {
        let at = self.aligned(offset, 4)?;
        // SAFETY: in range and aligned; an atomic may be shared with whoever else writes it, and the
        // borrow of `self` keeps it mapped. A store happens only after `may_write`.
        Ok(unsafe { AtomicU32::from_ptr(at.cast().as_ptr()) })
    }

    fn aligned(&self, offset: usize, size: usize) -> io::Result<NonNull<u8>> {
        if !offset.is_multiple_of(size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a word in shared memory must be aligned",
            ));
        }
        self.range(offset, size)
    }

    fn may_write(&self) -> io::Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the pages are mapped read-only",
            )),
        }
    }

    fn range(&self, offset: usize, len: usize) -> io::Result<NonNull<u8>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len());
        let Some(end) = end else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "outside the mapped pages"));
        };
        if let Some(present) = &self.present {
            let pages = offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE);
            if !present.get(pages).is_some_and(|pages| pages.iter().all(|there| *there)) {
                return Err(io::Error::new(io::ErrorKind::NotFound, "that page could not be mapped"));
            }
        }
        // SAFETY: `offset` is within the mapping (or one past its end, for no bytes).
        Ok(unsafe { self.mapping.start().add(offset) })
    }
}

/// Cuts `len` bytes from `start` into those before the first aligned word, whole words, and those after the last one.
fn parts(start: NonNull<u8>, len: usize) -> (Range<usize>, Range<usize>, Range<usize>) {
    let head = (start.addr().get().wrapping_neg() % 8).min(len);
    let words = (len - head) / 8 * 8;
    (0..head, head..head + words, head + words..len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_offsets_and_lengths_copy_exactly() {
        let pages = ForeignPages::anonymous(2, Access::ReadWrite).unwrap();
        let data: Vec<u8> = (0..=255).cycle().take(777).collect();
        for offset in 4085..4101 {
            pages.zero(0, 2 * PAGE_SIZE).unwrap();
            pages.write(offset, &data).unwrap();
            let mut back = vec![1; 779];
            pages.read(offset - 1, &mut back).unwrap();
            assert_eq!((back[0], back[778]), (0, 0));
            assert_eq!(back[1..778], data);
        }
    }

    #[test]
    fn the_edges_are_refusals() {
        let pages = ForeignPages::anonymous(1, Access::ReadWrite).unwrap();
        assert!(pages.write(PAGE_SIZE - 1, &[1, 2]).is_err());
        assert!(pages.read(usize::MAX, &mut [0; 2]).is_err());
        assert!(pages.load_u32(PAGE_SIZE, Ordering::Relaxed).is_err());
        assert!(pages.load_u32(2, Ordering::Relaxed).is_err());
        assert!(pages.store_u64(4, 0, Ordering::Relaxed).is_err());
    }

    #[test]
    fn read_only_pages_refuse_writes() {
        let pages = ForeignPages::anonymous(1, Access::ReadOnly).unwrap();
        assert!(pages.write(0, &[1]).is_err());
        assert!(pages.store_u32(0, 1, Ordering::Relaxed).is_err());
        assert_eq!(pages.load_u32(0, Ordering::Relaxed).unwrap(), 0);
    }

    #[test]
    fn a_hole_is_never_touched() {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let mapping = Mapping::new(None, 0, 3 * PAGE_SIZE, Access::ReadWrite.prot(), flags).unwrap();
        let pages = ForeignPages::with_holes(mapping, Access::ReadWrite, [true, false, true].into());
        assert!(pages.write(0, &[7; PAGE_SIZE]).is_ok());
        assert!(pages.write(1, &[7; PAGE_SIZE]).is_err());
        assert!(pages.write(PAGE_SIZE, &[7]).is_err());
        assert!(pages.write(2 * PAGE_SIZE, &[7]).is_ok());
    }
}
