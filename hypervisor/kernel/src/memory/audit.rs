//! Counts every frame's references anew, from the tables themselves, and compares.
//!
//! Behind a debug key, and for tests that first make the guests do their worst. It looks at what is live without
//! stopping anybody: call it while no other CPU changes tables, or take single findings with a grain of salt.

use super::{frame, frames};
use crate::domain::{Domain, VcpuRef};
use alloc::sync::Arc;
use alloc::vec::Vec;
use ferroxen_frames::entry::{ENTRIES, Entry, is_own_slot};
use ferroxen_frames::{Frame, Kind};
use ferroxen_grants::Access;
use ferroxen_machine::memory::Page;
use ferroxen_words::Mfn;

/// What an audit found.
#[derive(Clone, Copy, Default, Debug)]
pub struct Findings {
    /// Frames whose accounts are wrong: each is a bug of ours.
    pub wrong: u64,
    /// Tables in use, by level 1 to 4, and frames that guests can write.
    pub tables: [u64; 4],
    /// Frames held for writing.
    pub writable: u64,
    /// References that nothing explains: calls that other CPUs are in the middle of, and what a bug leaks.
    pub unexplained: u64,
}

/// References and type references that were found.
struct Counts {
    references: Vec<u32>,
    types: Vec<u32>,
    /// Writable mappings of other domains' than the owner.
    foreign: Vec<u32>,
}

impl Counts {
    fn new(frames: usize) -> Option<Counts> {
        let zeroes = || {
            let mut all = Vec::new();
            all.try_reserve_exact(frames).ok()?;
            all.resize(frames, 0u32);
            Some(all)
        };
        Some(Counts {
            references: zeroes()?,
            types: zeroes()?,
            foreign: zeroes()?,
        })
    }

    fn add_foreign(&mut self, mfn: u64) {
        let count = usize::try_from(mfn).ok().and_then(|at| self.foreign.get_mut(at));
        count.into_iter().for_each(|count| *count = count.saturating_add(1));
    }

    fn add(&mut self, mfn: u64, typed: bool) {
        let Ok(at) = usize::try_from(mfn) else { return };
        if let (Some(references), Some(types)) = (self.references.get_mut(at), self.types.get_mut(at)) {
            *references = references.saturating_add(1);
            *types = types.saturating_add(u32::from(typed));
        }
    }
}

/// Audits all frames. `None` if there is not enough memory to count in.
pub fn audit(domains: &[Arc<Domain>]) -> Option<Findings> {
    let mut findings = Findings::default();
    let mut counts = Counts::new(frames().len())?;
    for (mfn, table) in (0u64..).zip(frames()) {
        count_table(mfn, table, &mut counts, &mut findings);
    }
    for domain in domains {
        count_vcpus(domain, &mut counts);
        count_holds(domain, &mut counts);
    }
    for (index, of) in frames().iter().enumerate() {
        compare(index, of, &counts, &mut findings);
    }
    Some(findings)
}

fn wrong(findings: &mut Findings, mfn: u64, of: &Frame, what: core::fmt::Arguments<'_>) {
    findings.wrong += 1;
    if findings.wrong <= 20 {
        crate::error!("audit: frame {mfn:#x} of d{}, {:?}: {what}", of.owner(), of.word());
    }
}

fn count_table(mfn: u64, table: &Frame, counts: &mut Counts, findings: &mut Findings) {
    let word = table.word();
    let (Some(level), true) = (word.kind().level(), word.type_count() != 0) else {
        return;
    };
    let Some(page) = Page::new(Mfn::new(mfn)) else {
        return wrong(findings, mfn, table, format_args!("a table where nobody may have one"));
    };
    if let Some(count) = findings.tables.get_mut(usize::from(level) - 1) {
        *count += 1;
    }
    let (cursor, held) = if word.is_validated() {
        (ENTRIES, false)
    } else {
        table.cursor()
    };
    for index in 0..ENTRIES {
        let entry = Entry(page.load_u64(index));
        let is_ours = level == 4 && is_own_slot(index);
        let counted = index < cursor || (held && index == cursor);
        if !counted || !entry.is_present() || is_ours {
            continue;
        }
        let Some(target) = frame(entry.mfn()) else { continue };
        let seen = target.word();
        counts.add(entry.mfn(), level != 1 || entry.is_writable());
        if level == 1 && entry.is_writable() && target.owner() != table.owner() {
            counts.add_foreign(entry.mfn());
        }
        if level == 1 {
            if entry.is_writable() && seen.kind() != Kind::Writable {
                wrong(
                    findings,
                    mfn,
                    table,
                    format_args!("entry {index} lets a guest write {seen:?}"),
                );
            }
        } else if seen.kind().level() != Some(level - 1) || (index < cursor && !seen.is_validated()) {
            wrong(findings, mfn, table, format_args!("entry {index} names {seen:?}"));
        }
    }
}

fn count_vcpus(domain: &Arc<Domain>, counts: &mut Counts) {
    for vcpu in VcpuRef::all(domain) {
        let pv = vcpu.pv.lock();
        let roots = [&pv.kernel_root, &pv.user_root];
        roots
            .into_iter()
            .flatten()
            .for_each(|root| counts.add(root.mfn().raw(), true));
        pv.gdt_frames().iter().for_each(|mfn| counts.add(mfn.raw(), true));
    }
    crate::pv::mm::ldt_frames(domain)
        .iter()
        .for_each(|mfn| counts.add(*mfn, true));
}

/// Counts what is held to be written to, or lent to a device. What is lent to be mapped is counted in the tables.
fn count_holds(domain: &Arc<Domain>, counts: &mut Counts) {
    let infos = VcpuRef::all(domain).filter_map(|vcpu| vcpu.info_frame());
    infos
        .chain(crate::irq::eoi_frame(domain))
        .chain(crate::hypercall::event_fifo::frames(domain))
        .for_each(|mfn| counts.add(mfn.raw(), true));
    let grants = domain.grants.lock();
    let lent = grants.maps.live().filter(|mapping| mapping.uses.device);
    for mapping in lent {
        counts.add(mapping.frame.raw(), mapping.access == Access::ReadWrite);
        if mapping.access == Access::ReadWrite {
            counts.add_foreign(mapping.frame.raw());
        }
    }
}

fn compare(index: usize, of: &Frame, counts: &Counts, findings: &mut Findings) {
    let mfn = index as u64;
    let word = of.word();
    if !word.is_sound() {
        return wrong(findings, mfn, of, format_args!("unsound"));
    }
    findings.writable += u64::from(word.kind() == Kind::Writable && word.type_count() != 0);
    let own_type = u64::from(word.is_pinned()) + u64::from(word.is_orphan());
    let references = u64::from(counts.references[index]) + own_type + u64::from(word.is_allocated());
    let types = u64::from(counts.types[index]) + own_type + u64::from(word.is_special());
    if references > word.references() || types > word.type_count() {
        return wrong(
            findings,
            mfn,
            of,
            format_args!("{references} references and {types} type references found"),
        );
    }
    let writers = u64::from(of.foreign_writers());
    if u64::from(counts.foreign[index]) > writers {
        return wrong(
            findings,
            mfn,
            of,
            format_args!("{} foreign writers found of {writers}", counts.foreign[index]),
        );
    }
    if writers != u8::MAX.into() {
        findings.unexplained += writers - u64::from(counts.foreign[index]);
    }
    // Free frames and the hypervisor's own have none of either.
    let unexplained = word.references() - references;
    findings.unexplained += unexplained;
    if unexplained != 0 && findings.unexplained <= 40 {
        crate::info!(
            "frame {mfn:#x} of d{}, {word:?}: {unexplained} held otherwise",
            of.owner()
        );
    }
}
