//! LDT pages, mapped when the processor looks into them.
//!
//! A guest says only at which virtual address its LDT lies. When the processor touches a page of this CPU's window
//! that is not mapped, we find the guest's page, take it as a descriptor page, and map it. It stays taken until the
//! LDT changes or the guest unmaps any of its descriptor pages.

use super::{Hands, TableState, Tables, walk};
use crate::domain::{Domain, VcpuRef};
use alloc::vec::Vec;
use ferroxen_frames::Space;
use ferroxen_machine::memory::Page;
use ferroxen_machine::segments;
use ferroxen_machine::smp::{self, Request};
use ferroxen_words::{Mfn, PAGE_SIZE, Vaddr, VcpuId};

const DROP_SLOT: u8 = 14;
/// Pages of an LDT.
const PAGES: usize = 16;

/// Registers what other CPUs are asked for.
pub(super) fn init() {
    smp::register_call(DROP_SLOT, empty_window);
}

/// Takes all LDT pages out of this CPU's window; the processor asks again for what it needs.
fn empty_window() {
    (0..PAGES).for_each(|index| segments::map_ldt_page(index, None));
}

/// The processor looked at byte `offset` of the running vcpu's LDT. `false`: the guest has nothing valid there.
pub fn map_ldt_page(vcpu: &VcpuRef, offset: usize) -> bool {
    let index = offset / PAGE_SIZE;
    let (root, base, entries) = {
        let pv = vcpu.pv.lock();
        (pv.kernel_root, pv.ldt_base, pv.ldt_entries as usize)
    };
    let Some(root) = root else { return false };
    let Ok(number) = u8::try_from(index) else { return false };
    if index >= PAGES || index * (PAGE_SIZE / 8) >= entries {
        return false;
    }
    let mut tables = Tables::lock_unsettled(vcpu.domain());
    let at = Vaddr::new(base.wrapping_add((index * PAGE_SIZE) as u64));
    let Some(walked) = walk(root.mfn(), at) else {
        return false;
    };
    let mfn = walked.entry.mfn();
    let Some(page) = Page::new(Mfn::new(mfn)).filter(|_| walked.entry.is_present()) else {
        return false;
    };
    let slot = |held: &&(VcpuId, u8, u64)| held.0 == vcpu.id && held.1 == number;
    match tables.state.ldt.iter().find(slot) {
        // A switch of vcpus emptied the window in between.
        Some(held) if held.2 == mfn => {}
        Some(_) => {
            drop_pages(vcpu.domain(), &mut tables.state, Some(vcpu.id));
            return map_ldt_page_again(vcpu, tables, number, page);
        }
        None => return map_ldt_page_again(vcpu, tables, number, page),
    }
    segments::map_ldt_page(index, Some(page));
    true
}

fn map_ldt_page_again(vcpu: &VcpuRef, mut tables: Tables<'_>, number: u8, page: Page) -> bool {
    let mfn = page.mfn().raw();
    if tables.state.ldt.try_reserve(1).is_err() || tables.space().take_descriptors(mfn).is_err() {
        return false;
    }
    tables.state.ldt.push((vcpu.id, number, mfn));
    segments::map_ldt_page(number.into(), Some(page));
    true
}

/// Takes LDT pages out of all CPUs' windows and gives them back: one vcpu's, or all of the domain's.
#[inline]
pub(super) fn drop_pages(domain: &Domain, state: &mut TableState, of: Option<VcpuId>) {
    if !state.ldt.is_empty() {
        drop_held(domain, state, of);
    }
}

#[cold]
fn drop_held(domain: &Domain, state: &mut TableState, of: Option<VcpuId>) {
    smp::request(domain.dirty_cpus.snapshot(), Request::CallSlot(DROP_SLOT));
    let all = core::mem::take(&mut state.ldt);
    let (gone, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|held| of.is_none_or(|vcpu| held.0 == vcpu));
    state.ldt = kept;
    let hands = Hands::of(domain);
    for (_, _, mfn) in gone {
        Space::new(&hands, domain.id.raw()).drop_descriptors(mfn);
    }
}

/// Frames that are held as pages of the LDTs of a domain's vcpus.
pub fn ldt_frames(domain: &Domain) -> Vec<u64> {
    domain.page_tables.lock().ldt.iter().map(|held| held.2).collect()
}
