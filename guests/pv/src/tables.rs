//! Page tables: finding entries, changing them, pinning.

use ferroxen_abi::xen::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, MmuUpdate, MmuextOp, vm_assist};

use crate::hypercall::{self, Answer, address, number};
use crate::memory::{self, ORDINARY, Page, pte};
use crate::start;

/// `DOMID_SELF`, as `mmu_update` and `mmuext_op` want it.
pub const SELF: u64 = 0x7ff0;

/// `MMUEXT_*`
#[expect(missing_docs, reason = "each is the header's name")]
pub mod ext {
    pub const PIN_L1_TABLE: u32 = 0;
    pub const PIN_L2_TABLE: u32 = 1;
    pub const PIN_L3_TABLE: u32 = 2;
    pub const PIN_L4_TABLE: u32 = 3;
    pub const UNPIN_TABLE: u32 = 4;
    pub const NEW_BASEPTR: u32 = 5;
    pub const TLB_FLUSH_LOCAL: u32 = 6;
    pub const INVLPG_LOCAL: u32 = 7;
    pub const TLB_FLUSH_MULTI: u32 = 8;
    pub const INVLPG_MULTI: u32 = 9;
    pub const TLB_FLUSH_ALL: u32 = 10;
    pub const INVLPG_ALL: u32 = 11;
    pub const FLUSH_CACHE: u32 = 12;
    pub const SET_LDT: u32 = 13;
    pub const NEW_USER_BASEPTR: u32 = 15;
    pub const CLEAR_PAGE: u32 = 16;
    pub const COPY_PAGE: u32 = 17;
    pub const FLUSH_CACHE_GLOBAL: u32 = 18;
    pub const MARK_SUPER: u32 = 19;
    pub const UNMARK_SUPER: u32 = 20;
}

/// Returns the root table that the builder made.
pub fn root() -> Page {
    Page::at(start::info().pt_base)
}

/// Returns its frame.
pub fn root_mfn() -> u64 {
    root().mfn()
}

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The table, as we have it mapped.
    pub table: Page,
    /// Which of its entries.
    pub index: usize,
}

impl Slot {
    /// Finds the entry of `level` (1 to 4) on the way to `address`.
    ///
    /// `None` when the way ends earlier, or at a table that we have not mapped where the builder does.
    pub fn of(address: u64, level: u32) -> Option<Self> {
        let index = |level: u32| (address >> (3 + 9 * level)) as usize & 511;
        let mut slot = Self {
            table: root(),
            index: index(4),
        };
        for below in (level..4).rev() {
            let entry = slot.get();
            if entry & pte::PRESENT == 0 || entry & pte::LARGE != 0 {
                return None;
            }
            let pfn = memory::m2p((entry & pte::FRAME) >> 12)?;
            slot = Self {
                table: Page::at(pfn << 12),
                index: index(below),
            };
        }
        Some(slot)
    }

    /// Returns the entry.
    pub fn get(self) -> u64 {
        self.table.word(self.index)
    }

    /// Returns its machine address, as `mmu_update` wants it.
    pub fn maddr(self) -> u64 {
        (self.table.mfn() << 12) + self.index as u64 * 8
    }
}

/// Changes one entry (`MMU_NORMAL_PT_UPDATE`).
#[inline(always)]
pub fn set(maddr: u64, value: u64) -> Answer {
    update(&mut [MmuUpdate { ptr: maddr, val: value }])
}

/// Does a batch of updates.
#[inline(always)]
pub fn update(batch: &mut [MmuUpdate]) -> Answer {
    let count = batch.len() as u64;
    hypercall::call(number::MMU_UPDATE, [address(batch), count, 0, SELF])
}

/// Asks one `MMUEXT_*`.
#[inline(always)]
pub fn extended(command: u32, first: u64, second: u64) -> Answer {
    extended_batch(&mut [MmuextOp {
        cmd: command,
        pad: 0,
        arg1: first,
        arg2: second,
    }])
}

/// Asks a batch of `MMUEXT_*`.
#[inline(always)]
pub fn extended_batch(batch: &mut [MmuextOp]) -> Answer {
    let count = batch.len() as u64;
    hypercall::call(number::MMUEXT_OP, [address(batch), count, 0, SELF])
}

/// Pins a frame as a table of `level`.
pub fn pin(level: u32, mfn: u64) -> Answer {
    extended(ext::PIN_L1_TABLE + level - 1, mfn, 0)
}

/// Takes the pin away.
pub fn unpin(mfn: u64) -> Answer {
    extended(ext::UNPIN_TABLE, mfn, 0)
}

/// Switches this vcpu's kernel to another root.
pub fn set_root(mfn: u64) -> Answer {
    extended(ext::NEW_BASEPTR, mfn, 0)
}

/// Gives this vcpu's user mode a root (0: none).
pub fn set_user_root(mfn: u64) -> Answer {
    extended(ext::NEW_USER_BASEPTR, mfn, 0)
}

/// Asks that stores to tables be carried out (`VMASST_TYPE_writable_pagetables`), which Domain 0 has without asking.
pub fn assist_stores() -> Answer {
    const ENABLE: u64 = 0;
    hypercall::call(number::VM_ASSIST, [ENABLE, vm_assist::WRITABLE_PAGETABLES.into()])
}

/// Copies what the guest may have in a root, so that the copy maps the same.
pub fn copy_of_root() -> Page {
    let copy = Page::new();
    let hypervisors = slot_of(HYPERVISOR_VIRT_START)..=slot_of(HYPERVISOR_VIRT_END - 1);
    for index in (0..512).filter(|index| !hypervisors.contains(index)) {
        copy.set_word(index, root().word(index));
    }
    copy
}

/// Makes a sealed level-1 table, every entry of which maps `data` for writing, and hangs it into `directory`, which is
/// not sealed yet.
pub fn hang_leaf(directory: Page, index: usize, data: Page) -> Result<Page, Answer> {
    let leaf = Page::new();
    leaf.fill(data.mfn() << 12 | ORDINARY);
    leaf.seal()?;
    directory.set_word(index, leaf.mfn() << 12 | ORDINARY);
    Ok(leaf)
}

fn slot_of(address: u64) -> usize {
    (address >> 39) as usize & 511
}
