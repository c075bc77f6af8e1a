//! A guest writes to a page table as if it were memory.
//!
//! It has the table mapped read-only, so the write faults; the instruction is carried out here and its effect goes
//! through the same checks as `mmu_update`. A guest has to ask for it (`VMASST_TYPE_writable_pagetables`), as Linux
//! does; Domain 0 has it anyway, as upstream.

use super::update::Updated;
use super::{Tables, walk};
use crate::domain::VcpuRef;
use crate::memory;
use crate::pv::{emulate as instructions, trap};
use ferroxen_abi::xen::vm_assist;
use ferroxen_frames::{Flavour, Kind};
use ferroxen_machine::GuestFrame;
use ferroxen_machine::memory::Page;
use ferroxen_words::{Mfn, Vaddr};
use ferroxen_x86emu::store::{Door, Rejected};
use ferroxen_x86emu::{self as x86emu, Exception, Outcome, Segment, Space};

/// Carries out the running vcpu's write to `at`, if that is a level-1 table of its own. `false`: it is something else.
pub fn emulate_table_write(vcpu: &VcpuRef, frame: &mut GuestFrame, at: Vaddr) -> bool {
    let domain = vcpu.domain();
    if !domain.is_privileged && !domain.assists(vm_assist::WRITABLE_PAGETABLES) {
        return false;
    }
    let Some(table) = table_at(vcpu, at) else { return false };
    let mut registers = instructions::registers_of(frame);
    let mut door = TableDoor {
        cpu: instructions::Cpu::new(vcpu, frame.cs),
        vcpu,
        table,
        page: at.page(),
    };
    match x86emu::store(&mut registers, &mut door, at.raw()) {
        Outcome::NotOurs => return false,
        Outcome::Exception(exception) => trap::inject(vcpu, frame, instructions::fault_of(exception)),
        Outcome::Again => instructions::put_registers(frame, &registers),
        Outcome::Done { single_step } => {
            instructions::put_registers(frame, &registers);
            instructions::after(vcpu, frame, single_step, 0);
        }
    }
    true
}

/// The vcpu's own level-1 table that is mapped read-only at an address.
fn table_at(vcpu: &VcpuRef, at: Vaddr) -> Option<u64> {
    let root = vcpu.pv.lock().kernel_root?;
    let _tables = vcpu.domain().page_tables.lock();
    let entry = walk(root.mfn(), at)?.entry;
    if !entry.is_present() || entry.is_writable() {
        return None;
    }
    let frame = memory::frame(entry.mfn())?;
    let word = frame.word();
    let is_own_table = word.is_live_table() && word.kind() == Kind::L1 && frame.owner() == vcpu.domain().id.raw();
    is_own_table.then_some(entry.mfn())
}

struct TableDoor<'v> {
    cpu: instructions::Cpu<'v>,
    vcpu: &'v VcpuRef,
    table: u64,
    page: Vaddr,
}

impl TableDoor<'_> {
    fn index(&self, at: u64) -> Result<usize, Rejected> {
        let at = Vaddr::new(at);
        if at.page() == self.page {
            Ok(at.offset() / 8)
        } else {
            Err(Rejected::NotOurs)
        }
    }

    fn word(&self, index: usize) -> Result<u64, Rejected> {
        Page::new(Mfn::new(self.table))
            .map(|page| page.load_u64(index))
            .ok_or(Rejected::NotOurs)
    }

    /// Puts `bytes` bytes of `value` into a word, at the place that the address says.
    fn merged(at: u64, bytes: usize, word: u64, value: u64) -> u64 {
        if bytes >= 8 {
            return value;
        }
        let shift = (at % 8) * 8;
        let mask = ((1u64 << (bytes * 8)) - 1) << shift;
        word & !mask | value << shift & mask
    }

    fn write(&mut self, index: usize, new: u64) -> Result<(), Rejected> {
        let mut tables = Tables::lock(self.vcpu.domain()).map_err(|_| Rejected::Again)?;
        let owner = self.vcpu.domain().id.raw();
        match tables.update_word(self.table, index, new, Flavour::Plain, owner) {
            Ok(Updated::Done) => Ok(()),
            Ok(Updated::Again) => Err(Rejected::Again),
            Err(_) => Err(Rejected::NotOurs),
        }
    }
}

impl Space for TableDoor<'_> {
    fn fetch(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        self.cpu.fetch(at, bytes)
    }
    fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        self.cpu.read(at, bytes)
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), Exception> {
        self.cpu.write(at, bytes)
    }
    fn segment_base(&self, segment: Segment) -> Option<u64> {
        self.cpu.segment_base(segment)
    }
    fn is_64_bit(&self) -> bool {
        self.cpu.is_64_bit()
    }
}

impl Door for TableDoor<'_> {
    fn load(&mut self, at: u64, bytes: usize) -> Result<u64, Rejected> {
        let word = self.word(self.index(at)?)?;
        let value = word >> ((at % 8) * 8);
        Ok(if bytes >= 8 {
            value
        } else {
            value & ((1u64 << (bytes * 8)) - 1)
        })
    }

    fn store(&mut self, at: u64, bytes: usize, value: u64) -> Result<(), Rejected> {
        let index = self.index(at)?;
        let new = Self::merged(at, bytes, self.word(index)?, value);
        TableDoor::write(self, index, new)
    }

    fn compare_exchange(&mut self, at: u64, bytes: usize, old: u64, new: u64) -> Result<Result<(), u64>, Rejected> {
        let found = self.load(at, bytes)?;
        if found != old {
            return Ok(Err(found));
        }
        self.store(at, bytes, new).map(Ok)
    }
}
