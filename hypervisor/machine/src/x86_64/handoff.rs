//! What boot hands to the kernel: the loader's words, and memory that nobody uses yet.

use super::layout::DIRECT_MAP;
use super::memory::{self, RamRange};
use super::{heap, paging};
use crate::ranges::Ranges;
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::slice;
use ferroxen_words::{Maddr, Mfn, PAGE_SIZE};
use zerocopy::FromZeros;

/// Everything that the kernel learns at its start.
pub struct Handoff {
    /// Memory to be shared out.
    pub boot: Boot,
    /// The modules that the loader brought, in its order.
    pub modules: Vec<Module>,
    /// The hypervisor's own command line, as the loader gave it (without a final NUL).
    pub command_line: Vec<u8>,
    /// The loader's name for itself; empty if it gave none.
    pub loader_name: Vec<u8>,
    /// The firmware's memory map, as it stands.
    pub memory_map: Vec<MemoryRange>,
    /// A copy of the ACPI root pointer, if the loader gave one (Multiboot 2).
    pub acpi_root: Option<Vec<u8>>,
}

/// One entry of the firmware's memory map (an "e820" entry).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRange {
    /// Where it begins.
    pub base: Maddr,
    /// Its bytes.
    pub bytes: u64,
    /// What it is: 1 RAM, 2 reserved, 3 ACPI tables, 4 ACPI non-volatile, 5 bad; others are reserved.
    pub kind: u32,
}

/// Memory that is not shared out yet.
pub struct Boot {
    free: Box<Ranges>,
    taken: Vec<(&'static str, u64)>,
}

impl Boot {
    /// All of `free` is in the direct map and nobody's; only boot makes it.
    pub(super) fn new(free: Ranges) -> Boot {
        Boot {
            free: Box::new(free),
            taken: Vec::new(),
        }
    }

    /// Takes zeroed memory for the hypervisor's own use, for ever.
    ///
    /// `None` if no free range is large enough. `name` is for [`Boot::taken`].
    #[expect(
        clippy::mut_from_ref,
        reason = "the slice is new memory, not part of what `name` refers to"
    )]
    pub fn take_slice<T: FromZeros>(&mut self, count: usize, name: &'static str) -> Option<&'static mut [T]> {
        let bytes = count.checked_mul(size_of::<T>())?.checked_next_multiple_of(PAGE_SIZE)?;
        let align = align_of::<T>().max(PAGE_SIZE);
        let at = self.free.take(bytes as u64, align as u64, u64::MAX)?;
        self.taken.push((name, bytes as u64));
        let start = (DIRECT_MAP + at) as *mut T;
        // SAFETY: taken out of free memory for ever, so nothing else refers to it; in the direct map, aligned,
        // large enough; zeroes are a valid `T`.
        unsafe {
            start.cast::<u8>().write_bytes(0, bytes);
            Some(slice::from_raw_parts_mut(start, count))
        }
    }

    /// Takes contiguous memory that can be given back: to unpack a kernel into, say.
    pub fn take_scratch(&mut self, bytes: usize) -> Option<Module> {
        let whole = bytes.checked_next_multiple_of(PAGE_SIZE)? as u64;
        let start = self.free.take(whole, PAGE_SIZE as u64, u64::MAX)?;
        // SAFETY: taken out of free memory, in the direct map.
        unsafe { ((DIRECT_MAP + start) as *mut u8).write_bytes(0, whole as usize) };
        Some(Module::new(start, start + bytes as u64, Vec::new()))
    }

    /// Gives a module's or a scratch's memory back: whoever takes some next may get it.
    pub fn give_back(&mut self, module: Module) {
        let range = module.frames();
        let start = range.first.maddr().raw();
        // Without room for another range, it is lost.
        self.free.add(start, start + range.count * PAGE_SIZE as u64);
    }

    /// Lends the heap memory, for work that wants much of it for a short time.
    ///
    /// `None` if there is not as much in one piece.
    pub fn lend_to_heap(&mut self, bytes: usize) -> Option<Loan> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE_SIZE)?;
        let start = self.free.take(bytes as u64, PAGE_SIZE as u64, u64::MAX)?;
        // SAFETY: taken out of free memory and in the direct map; back in free memory only when `take_back` has
        // found nothing in it.
        let span = unsafe { heap::lend((DIRECT_MAP + start) as *mut u8, bytes) }?;
        Some(Loan { span, start, bytes })
    }

    /// Takes a loan back. Where something still lies in it, the answer is its size, and it is the heap's for ever.
    pub fn take_back(&mut self, loan: Loan) -> Result<(), usize> {
        if !heap::take_back(loan.span, loan.bytes) {
            self.taken.push(("heap", loan.bytes as u64));
            return Err(loan.bytes);
        }
        self.free.add(loan.start, loan.start + loan.bytes as u64);
        Ok(())
    }

    /// What has been taken for ever: names and bytes, for the boot log.
    pub fn taken(&self) -> &[(&'static str, u64)] {
        &self.taken
    }

    /// One past the highest frame of RAM: how many entries a frame table needs.
    pub fn max_mfn(&self) -> u64 {
        memory::max_mfn()
    }

    /// The RAM that is left, in order of address.
    pub fn ram(&self) -> Vec<RamRange> {
        let range = |&(start, end): &(u64, u64)| RamRange {
            first: Maddr::new(start).mfn(),
            count: (end - start) / PAGE_SIZE as u64,
        };
        self.free.as_slice().iter().map(range).collect()
    }

    /// Ends the sharing-out: the frames that are left can be named as pages from now on.
    pub fn finish(self) -> Vec<RamRange> {
        let ram = self.ram();
        for &range in &ram {
            // SAFETY: free RAM, in the direct map, which nothing of the hypervisor's was put into.
            unsafe { memory::make_nameable(range) };
        }
        ram
    }
}

/// Memory that is the heap's until [`Boot::take_back`].
#[must_use = "what is not taken back is the heap's for ever"]
pub struct Loan {
    span: talc::Span,
    start: u64,
    bytes: usize,
}

/// Memory that a loader filled, or scratch; its frames can be named as pages once it is released.
pub struct Module {
    start: u64,
    bytes: usize,
    /// The words that the loader gave with it (without a final NUL).
    pub command_line: Vec<u8>,
}

impl Module {
    /// `start` to `end` is RAM in the direct map that is nobody else's; only boot makes it.
    pub(super) fn new(start: u64, end: u64, command_line: Vec<u8>) -> Module {
        Module {
            start,
            bytes: (end - start) as usize,
            command_line,
        }
    }

    /// Where it lies.
    pub fn start(&self) -> Maddr {
        Maddr::new(self.start)
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: in the direct map, and this value's alone until it is released, which consumes it.
        unsafe { slice::from_raw_parts((DIRECT_MAP + self.start) as *const u8, self.bytes) }
    }

    /// Its contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        unsafe { slice::from_raw_parts_mut((DIRECT_MAP + self.start) as *mut u8, self.bytes) }
    }

    /// All frames that it touches: a loader puts each module on pages of its own.
    fn frames(&self) -> RamRange {
        let page = PAGE_SIZE as u64;
        let first = self.start / page;
        let end = (self.start + self.bytes as u64).div_ceil(page);
        RamRange {
            first: Mfn::new(first),
            count: end - first,
        }
    }

    /// Gives its frames up for use as pages, with their contents.
    pub fn release(self) -> RamRange {
        let range = self.frames();
        // SAFETY: these frames were kept out of free memory for this module, which ends here.
        unsafe { memory::make_nameable(range) };
        range
    }
}

/// Copies what firmware left in memory (ACPI tables, say).
///
/// `false` if any byte of it is RAM that firmware gave up, or lies out of reach; `into` may then be part filled.
pub fn read_firmware(from: Maddr, into: &mut [u8]) -> bool {
    let mut done = 0;
    while done < into.len() {
        let Some(at) = from.checked_add(done as u64) else {
            return false;
        };
        let some = (PAGE_SIZE - at.offset()).min(into.len() - done);
        let target = &mut into[done..done + some];
        let seen = paging::with_firmware_page(at.mfn(), |page| {
            // SAFETY: a whole page of memory that is firmware's; the bytes lie within it.
            unsafe { memory::copy_bytes(target.as_mut_ptr(), page.add(at.offset()), some) };
        });
        if !seen {
            return false;
        }
        done += some;
    }
    true
}

/// Copies bytes of the loader's.
pub(super) fn copy_physical(at: u64, len: usize) -> Vec<u8> {
    let mut copy = vec![0; len];
    // SAFETY: the loader's words lie in RAM below 4 GiB, which is in the direct map, and were kept out of free
    // memory so far.
    unsafe { memory::copy_bytes(copy.as_mut_ptr(), (DIRECT_MAP + at) as *const u8, len) };
    copy
}
