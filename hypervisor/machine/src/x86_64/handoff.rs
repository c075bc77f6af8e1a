//! What boot hands to the kernel: the loader's words, and memory that nobody uses yet.

use super::memory::RamRange;
use alloc::vec::Vec;
use core::marker::PhantomData;
use ferroxen_words::{Maddr, Mfn};
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
    _private: (),
}

impl Boot {
    /// Takes zeroed memory for the hypervisor's own use, for ever.
    ///
    /// `None` if no free range is large enough. `name` is for the boot log.
    pub fn take_slice<T: FromZeros>(&mut self, count: usize, name: &str) -> Option<&'static mut [T]> {
        let _ = (count, name, PhantomData::<T>);
        todo!()
    }

    /// Takes contiguous memory that can be given back: to unpack a kernel into, say.
    pub fn take_scratch(&mut self, bytes: usize) -> Option<Module> {
        let _ = bytes;
        todo!()
    }

    /// One past the highest frame of RAM: how many entries a frame table needs.
    pub fn max_mfn(&self) -> u64 {
        super::memory::max_mfn()
    }

    /// The RAM that is left, in order of address.
    pub fn ram(&self) -> Vec<RamRange> {
        todo!()
    }

    /// Ends the sharing-out: the frames that are left can be named as pages from now on.
    pub fn finish(self) -> Vec<RamRange> {
        todo!()
    }
}

/// Memory that a loader filled, or scratch; its frames can be named as pages once it is released.
pub struct Module {
    first: Mfn,
    bytes: usize,
    /// The words that the loader gave with it (without a final NUL).
    pub command_line: Vec<u8>,
}

impl Module {
    /// Where it lies.
    pub fn start(&self) -> Mfn {
        self.first
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        let _ = self.bytes;
        todo!()
    }

    /// Its contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        todo!()
    }

    /// Gives its frames (whole ones; the last may hold fewer bytes) up for use as pages.
    ///
    /// Their contents stay as they are.
    pub fn release(self) -> RamRange {
        todo!()
    }
}

/// Copies what firmware left in memory (ACPI tables, say): outside of the hypervisor's own memory.
///
/// `false`, with nothing copied, if any byte of it is the hypervisor's or out of reach.
pub fn read_firmware(from: Maddr, into: &mut [u8]) -> bool {
    let _ = (from, into);
    todo!()
}
