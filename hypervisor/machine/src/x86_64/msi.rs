//! Message signalled interrupts: the write that a device makes to interrupt a CPU, and the tables of MSI-X devices.

use ferroxen_words::Maddr;

use super::memory;
use super::paging::{self, Mmio};
pub use crate::interrupts::Message;
use crate::interrupts::{ApicId, Vector};

/// Bytes of one table entry: address, upper address, data, control.
const ENTRY: usize = 16;
const CONTROL: usize = 12;
const CONTROL_MASKED: u32 = 1;

/// Composes the message for one vector on one CPU; `None` for a CPU that eight bits cannot address.
pub const fn compose(vector: Vector, to: ApicId) -> Option<Message> {
    Message::compose(vector, to)
}

/// One page of a device's MSI-X table, mapped for good.
#[derive(Clone, Copy)]
pub struct TablePage(Mmio);

/// Entries that fit into a page.
pub const ENTRIES_PER_PAGE: usize = 4096 / ENTRY;

impl TablePage {
    /// Maps the page; `None` if it is RAM. Each call takes a place that is never given back, so the caller counts.
    pub fn map(page: Maddr) -> Option<TablePage> {
        let page = page.mfn();
        (!memory::is_ram(page)).then(|| TablePage(paging::map_mmio(page.maddr(), 1)))
    }

    /// Writes an entry's message. The entry is masked while it changes, and stays so.
    ///
    /// # Panics
    /// If there is no such entry in a page.
    pub fn set(&self, index: usize, message: Message) {
        let entry = index * ENTRY;
        self.mask(index, true);
        let [low, high] = [message.address & 0xffff_ffff, message.address >> 32].map(|half| half as u32);
        self.0.write32(entry, low);
        self.0.write32(entry + 4, high);
        self.0.write32(entry + 8, message.data);
    }

    /// Masks or unmasks an entry, and waits until the device has taken that in.
    ///
    /// # Panics
    /// If there is no such entry in a page.
    pub fn mask(&self, index: usize, masked: bool) {
        let control = index * ENTRY + CONTROL;
        let old = self.0.read32(control);
        let new = if masked {
            old | CONTROL_MASKED
        } else {
            old & !CONTROL_MASKED
        };
        self.0.write32(control, new);
        let _posted = self.0.read32(control);
    }
}
