//! A PV domain's frames as seen from outside: which of the machine's frames is which of its own, and back.
//!
//! The guest keeps the list of its frames (P2M) itself, and says in the shared page where: at a virtual address under
//! a page table (`p2m_cr3`), or as a tree of frames (`pfn_to_mfn_frame_list_list`). The hypervisor keeps the table of
//! the opposite direction (M2P). Only what both say counts.
//!
//! Upstream: xen/include/public/arch-x86/xen.h, `struct arch_shared_info`.

use crate::error::{Doing, Error, Result};
use crate::hyper::{FRAME_TYPES, Hypervisor};
use ferroxen_abi::domctl::pfinfo;
use ferroxen_abi::xen::shared_info;
use ferroxen_stream::image::FrameType;
use ferroxen_words::{DomId, Gfn, PAGE_SIZE};
use ferroxen_xenctl::ForeignPages;
use std::sync::atomic::Ordering;
use zerocopy::{FromZeros, IntoBytes};

/// Entries of a page of frame numbers, or of a page table.
pub(crate) const ENTRIES: usize = PAGE_SIZE / 8;
/// What stands in the list for a frame that is not there.
pub(crate) const NO_FRAME: u64 = !0;
/// A page table's entry: it maps something.
pub(crate) const PRESENT: u64 = 1;
/// It maps a large page, which PV guests cannot have.
pub(crate) const LARGE: u64 = 1 << 7;
/// Its frame number, shifted.
pub(crate) const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;
/// Slots of a top-level table that are the hypervisor's.
pub(crate) const HYPERVISOR_SLOTS: std::ops::Range<usize> = 256..272;
/// More frames than any PV guest has: of 16 TiB.
const MOST_FRAMES: u64 = 1 << 32;

/// A page of 64-bit words.
pub(crate) type Words = [u64; ENTRIES];

/// A domain's frames as they were when its list was read: what a domain that runs does to its list later is seen when it
/// is read again.
pub(crate) struct Frames {
    m2p: ForeignPages,
    m2p_len: u64,
    /// The machine's frame of each frame.
    p2m: Vec<u64>,
    /// The domain's frames that hold the list.
    list: Vec<u64>,
}

impl Frames {
    /// Reads the lists of a domain whose shared page is `shared`.
    pub(crate) fn of(hypervisor: &dyn Hypervisor, domid: DomId, shared: &ForeignPages) -> Result<Frames> {
        let (m2p, m2p_len) = hypervisor
            .machine_to_phys()
            .doing(|| "mapping the machine-to-physical table".to_owned())?;
        let mut frames = Frames {
            m2p,
            m2p_len,
            p2m: Vec::new(),
            list: Vec::new(),
        };
        frames.read(hypervisor, domid, shared)?;
        Ok(frames)
    }

    /// Reads the list again. The domain's frames that are there no more come back.
    pub(crate) fn refresh(
        &mut self,
        hypervisor: &dyn Hypervisor,
        domid: DomId,
        shared: &ForeignPages,
    ) -> Result<Vec<u64>> {
        let before = std::mem::take(&mut self.p2m);
        let (count, list) = (before.len(), std::mem::take(&mut self.list));
        self.read(hypervisor, domid, shared)?;
        if self.p2m.len() != count || self.list != list {
            let doing = format!("reading the list of frames of domain {} again", domid.raw());
            return Err(Error::new(doing, "the domain has moved it meanwhile").way_out("try again"));
        }
        let gone = |(pfn, mfn): &(u64, u64)| *mfn != NO_FRAME && self.mfn(*pfn).is_none();
        Ok((0..).zip(before).filter(gone).map(|(pfn, _)| pfn).collect())
    }

    fn read(&mut self, hypervisor: &dyn Hypervisor, domid: DomId, shared: &ForeignPages) -> Result<()> {
        let doing = || format!("reading the list of frames of domain {}", domid.raw());
        let word = |offset| shared.load_u64(offset, Ordering::Acquire).doing(doing);
        let count = word(shared_info::MAX_PFN)?;
        if !(1..=MOST_FRAMES).contains(&count) {
            return Err(Error::new(
                doing(),
                format!("the domain says that it has {count} frames"),
            ));
        }
        let pages = usize::try_from(count).unwrap_or(usize::MAX).div_ceil(ENTRIES);
        let reader = Reader { hypervisor, domid };
        let cr3 = word(shared_info::P2M_CR3)?;
        let machine_frames = match cr3 {
            0 => reader.tree(word(shared_info::P2M_FRAME_LIST_LIST)?, pages),
            cr3 => reader.linear(cr3 >> 12, word(shared_info::P2M_VADDR)?, pages),
        }
        .doing(doing)?;
        let mut p2m = vec![0u64; pages * ENTRIES];
        for (part, frames) in p2m.chunks_mut(ENTRIES * BATCH).zip(machine_frames.chunks(BATCH)) {
            reader.copy(frames, part).doing(doing)?;
        }
        p2m.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        self.p2m = p2m;
        let list = machine_frames.iter().map(|mfn| self.pfn(*mfn));
        self.list = list
            .collect::<Option<_>>()
            .ok_or_else(|| Error::new(doing(), "the list is in frames that are not its own"))?;
        Ok(())
    }

    /// All that are there: the domain's number of each, in order, and the machine's.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u64, u64)> {
        (0..self.count()).filter_map(|pfn| Some((pfn, self.mfn(pfn)?)))
    }

    /// How many there are, with those that are not there.
    pub(crate) fn count(&self) -> u64 {
        self.p2m.len() as u64
    }

    /// The domain's frames that hold the list.
    pub(crate) fn list(&self) -> &[u64] {
        &self.list
    }

    /// The machine's frame, if the domain has that one.
    pub(crate) fn mfn(&self, pfn: u64) -> Option<u64> {
        let mfn = *self.p2m.get(usize::try_from(pfn).ok()?)?;
        (self.pfn(mfn) == Some(pfn)).then_some(mfn)
    }

    /// The domain's number of a machine frame, if both lists agree on it.
    pub(crate) fn pfn(&self, mfn: u64) -> Option<u64> {
        if mfn >= self.m2p_len {
            return None;
        }
        let offset = usize::try_from(mfn).ok()?.checked_mul(8)?;
        let pfn = self.m2p.load_u64(offset, Ordering::Relaxed).ok()?;
        let back = self.p2m.get(usize::try_from(pfn).ok()?)?;
        (*back == mfn).then_some(pfn)
    }
}

/// A domain's frames as the hypervisor alone knows them, whatever the domain says: its own number of each, in order, and
/// the machine's. Every frame of the machine is asked about.
pub(crate) fn owned_by(hypervisor: &dyn Hypervisor, domid: DomId) -> std::io::Result<Vec<(u64, u64)>> {
    let (m2p, len) = hypervisor.machine_to_phys()?;
    let mut found = Vec::new();
    let mut first = 0;
    while first < len {
        let mut types: Vec<u64> = (first..len.min(first + FRAME_TYPES as u64)).collect();
        let count = types.len() as u64;
        hypervisor.frame_types(domid, &mut types)?;
        for (mfn, _) in (first..).zip(types).filter(|(_, word)| frame_type(*word).has_data()) {
            let pfn = m2p.load_u64(mfn as usize * 8, Ordering::Relaxed).unwrap_or(NO_FRAME);
            if pfn < MOST_FRAMES {
                found.push((pfn, mfn));
            }
        }
        first += count;
    }
    found.sort_unstable();
    Ok(found)
}

/// What a frame is to its domain, from the control call's word; what it cannot tell of is not there.
pub(crate) fn frame_type(word: u64) -> FrameType {
    let bits = (word & pfinfo::LTAB_MASK) >> pfinfo::LTAB_SHIFT;
    FrameType::from_bits(bits as u8).unwrap_or(FrameType::NONE)
}

/// Frames of a guest that are mapped at a time.
const BATCH: usize = 256;

/// Reads a domain's frames.
struct Reader<'a> {
    hypervisor: &'a dyn Hypervisor,
    domid: DomId,
}

impl Reader<'_> {
    fn copy(&self, frames: &[u64], into: &mut [u64]) -> std::io::Result<()> {
        let frames: Vec<Gfn> = frames.iter().map(|mfn| Gfn::new(*mfn)).collect();
        let pages = self.hypervisor.map_to_read(self.domid, &frames)?;
        pages.read(0, into.as_mut_bytes())
    }

    fn page(&self, mfn: u64) -> std::io::Result<Words> {
        let mut words = Words::new_zeroed();
        self.copy(&[mfn], &mut words)?;
        Ok(words)
    }

    /// The machine's frames of a list at a virtual address.
    fn linear(&self, root: u64, address: u64, pages: usize) -> std::io::Result<Vec<u64>> {
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "a part of the list is not mapped");
        // The table in use on each level, from the top, and its frame.
        let mut path: [Option<(u64, Words)>; 4] = [const { None }; 4];
        let mut found = Vec::new();
        for page in 0..pages as u64 {
            let at = address.checked_add(page * PAGE_SIZE as u64).ok_or_else(missing)?;
            let mut frame = root;
            for (level, place) in path.iter_mut().enumerate() {
                let table = match place {
                    Some((mfn, table)) if *mfn == frame => table,
                    _ => &mut place.insert((frame, self.page(frame)?)).1,
                };
                let entry = table[(at >> (39 - 9 * level)) as usize % ENTRIES];
                if entry & PRESENT == 0 || (level < 3 && entry & LARGE != 0) {
                    return Err(missing());
                }
                frame = (entry & FRAME_MASK) >> 12;
            }
            found.push(frame);
        }
        Ok(found)
    }

    /// The machine's frames of a list that hangs on a tree of two levels.
    fn tree(&self, root: u64, pages: usize) -> std::io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for middle in self.page(root)?.into_iter().take(pages.div_ceil(ENTRIES)) {
            found.extend(self.page(middle)?);
        }
        found.truncate(pages);
        match found.len() == pages {
            true => Ok(found),
            false => Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "the list is too short",
            )),
        }
    }
}
