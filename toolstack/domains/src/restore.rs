//! Building a PV domain from an image: what [`save`](crate::save) wrote, or stock Xen.
//!
//! Memory comes in pieces, in no particular order. A page table may name frames that have not come yet: they are
//! allocated then, so that the table can be written with the machine's numbers at once. Nothing is pinned before all is
//! there.
//!
//! The image is not trusted: every frame number is looked up in the list of what was allocated, and a domain that makes
//! no sense is refused by the hypervisor's own checks when its tables are pinned.

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::frames::{ENTRIES, FRAME_MASK, HYPERVISOR_SLOTS, NO_FRAME, PRESENT, Words};
use crate::hyper::Hypervisor;
use crate::pv::{Built, Channels};
use ferroxen_abi::domctl::{self, CpuidLeaf, MsrEntry};
use ferroxen_abi::x86::{VcpuGuestContext, vgcf};
use ferroxen_abi::xen::{StartInfo, shared_info, vcpu_info};
use ferroxen_stream::image::{DomainKind, FrameType, Header, PageData, Record, VcpuPart};
use ferroxen_words::{DomId, Gfn, Mfn, PAGE_SIZE};
use std::collections::BTreeMap;
use std::io::Read;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Frames that a domain may have beyond its memory's.
const SPARE: u64 = 4096;

/// Fills a new domain, which has vcpus and a memory limit but nothing else, from an image.
pub fn read_image(
    tools: &Toolstack,
    domid: DomId,
    most_mib: u64,
    channels: Channels,
    mut from: &mut dyn Read,
) -> Result<Built> {
    let doing = || "reading the image".to_owned();
    let header = Header::read(&mut from).doing(doing)?;
    if header.kind == DomainKind::Hvm {
        return Err(Error::new(
            doing(),
            "it is of an HVM domain, which is not available yet",
        ));
    }
    let mut restorer = Restorer {
        tools,
        domid,
        most: most_mib * 256 + SPARE,
        p2m: Vec::new(),
        types: Vec::new(),
        list: Vec::new(),
        leaves: Vec::new(),
        msrs: Vec::new(),
        shared: None,
        vcpus: BTreeMap::new(),
    };
    loop {
        tools.interrupt.check().doing(doing)?;
        let record = Record::read(&mut from).doing(doing)?;
        if record == Record::End {
            return restorer.finish(channels);
        }
        restorer.take(record)?;
    }
}

type Parts = BTreeMap<u32, Vec<(VcpuPart, Vec<u8>)>>;

struct Restorer<'a> {
    tools: &'a Toolstack,
    domid: DomId,
    /// More frames than this it cannot have.
    most: u64,
    /// The machine's frame of each of its frames, or [`NO_FRAME`].
    p2m: Vec<u64>,
    /// What each frame is to be.
    types: Vec<FrameType>,
    /// Its frames that hold the list.
    list: Vec<u64>,
    leaves: Vec<CpuidLeaf>,
    msrs: Vec<MsrEntry>,
    shared: Option<Box<[u8; PAGE_SIZE]>>,
    vcpus: Parts,
}

fn wrong(why: impl Into<String>) -> Error {
    Error::new("reading the image", why)
}

impl Restorer<'_> {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &*self.tools.hypervisor
    }

    fn take(&mut self, record: Record) -> Result<()> {
        match record {
            Record::PvInfo { width: 8, levels: 4 } => {}
            Record::PvInfo { .. } => return Err(wrong("it is of a 32-bit PV domain, which the hypervisor has not")),
            Record::CpuidPolicy(bytes) => self.leaves = several("X86_CPUID_POLICY", &bytes)?,
            Record::MsrPolicy(bytes) => self.msrs = several("X86_MSR_POLICY", &bytes)?,
            Record::StaticDataEnd => self.policy()?,
            Record::P2mFrames { first, last, frames } => self.list(first, last, frames)?,
            Record::PageData(pages) => self.pages(&pages)?,
            Record::TscInfo(info) => {
                let info = domctl::TscInfo {
                    tsc_mode: info.mode,
                    gtsc_khz: info.khz,
                    incarnation: info.incarnation,
                    pad: 0,
                    elapsed_nsec: info.elapsed_ns,
                };
                self.hypervisor()
                    .set_tsc_info(self.domid, &info)
                    .doing(|| "setting the clock".to_owned())?;
            }
            Record::SharedInfo(page) => self.shared = Some(page),
            Record::Vcpu { part, vcpu, bytes } => self.vcpus.entry(vcpu).or_default().push((part, bytes)),
            Record::Verify | Record::Checkpoint => {
                return Err(wrong(
                    "it is of a checkpointed or verified stream, which is not supported",
                ));
            }
            Record::End => {}
        }
        Ok(())
    }

    fn policy(&self) -> Result<()> {
        if self.leaves.is_empty() && self.msrs.is_empty() {
            return Ok(());
        }
        let doing = || "giving the domain the CPU features that it had".to_owned();
        let set = self.hypervisor().set_cpu_policy(self.domid, &self.leaves, &self.msrs);
        match set.doing(doing)? {
            None => Ok(()),
            Some((leaf, subleaf)) => Err(Error::new(
                doing(),
                format!("this host cannot give CPUID leaf {leaf:#x}, subleaf {subleaf:#x}, as it was"),
            )
            .way_out("restore it on a host with the features of the one that it was saved on")),
        }
    }

    fn list(&mut self, first: u32, last: u32, frames: Vec<u64>) -> Result<()> {
        let count = u64::from(last) + 1;
        if count > self.most {
            return Err(wrong(format!(
                "its domain has {count} frames, and may have {}",
                self.most
            )));
        }
        if first != 0 || !self.list.is_empty() {
            return Err(wrong("its list of frames comes in pieces, which is not supported"));
        }
        if frames.len() as u64 != count.div_ceil(ENTRIES as u64) {
            return Err(wrong("its list of frames has not the length that it says"));
        }
        self.tools.progress.begin("restoring memory", count * PAGE_SIZE as u64);
        self.p2m = vec![NO_FRAME; count as usize];
        self.types = vec![FrameType::PLAIN; count as usize];
        self.list = frames;
        Ok(())
    }

    fn slot(&self, pfn: u64) -> Result<usize> {
        let slot = usize::try_from(pfn).ok().filter(|slot| *slot < self.p2m.len());
        slot.ok_or_else(|| wrong(format!("frame {pfn:#x} is beyond the domain's last")))
    }

    /// The machine's frame of one of the domain's that is there.
    fn mfn(&self, what: &str, pfn: u64) -> Result<u64> {
        let mfn = self.p2m[self.slot(pfn)?];
        match mfn {
            NO_FRAME => Err(wrong(format!("{what} is frame {pfn:#x}, which did not come"))),
            mfn => Ok(mfn),
        }
    }

    /// Gets memory for those frames that have none yet.
    fn allocate(&mut self, pfns: impl Iterator<Item = u64>) -> Result<()> {
        let mut wanted = Vec::new();
        for pfn in pfns {
            if self.p2m[self.slot(pfn)?] == NO_FRAME {
                wanted.push(pfn);
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        for batch in wanted.chunks(FRAMES_AT_ONCE) {
            let doing = || format!("allocating {} frames", batch.len());
            let got = self.hypervisor().populate(self.domid, batch, 0).doing(doing)?;
            if got.len() != batch.len() {
                let free = self.hypervisor().physinfo().map_or(0, |info| info.free_pages);
                return Err(
                    Error::new("allocating memory", format!("{} MiB are left on the host", free / 256))
                        .way_out("shut a domain down, or give Domain 0 less (`xl mem-set 0 MIB`)"),
                );
            }
            for (pfn, mfn) in batch.iter().zip(got) {
                self.p2m[*pfn as usize] = mfn.raw();
            }
        }
        Ok(())
    }

    fn pages(&mut self, data: &PageData) -> Result<()> {
        if self.list.is_empty() {
            return Err(wrong("memory comes before the list of frames"));
        }
        self.tools.progress.advance((data.frames.len() * PAGE_SIZE) as u64);
        for (pfn, kind) in &data.frames {
            let slot = self.slot(*pfn)?;
            self.types[slot] = *kind;
        }
        let there = data
            .frames
            .iter()
            .filter(|(_, kind)| kind.has_data() || *kind == FrameType::ALLOCATE);
        self.allocate(there.map(|(pfn, _)| *pfn))?;
        let named = data
            .pages()
            .filter_map(|(_, kind, page)| page.filter(|_| kind.level().is_some()));
        self.allocate(named.flat_map(entries).map(|entry| (entry & FRAME_MASK) >> 12))?;
        let (mut frames, mut bytes) = (Vec::new(), Vec::with_capacity(data.bytes.len()));
        for (pfn, kind, page) in data.pages() {
            let Some(page) = page else { continue };
            frames.push(Gfn::new(self.mfn("a page", pfn)?));
            match kind.level() {
                Some(level) => bytes.extend_from_slice(self.table(pfn, level, page)?.as_bytes()),
                None => bytes.extend_from_slice(page),
            }
        }
        if frames.is_empty() {
            return Ok(());
        }
        let doing = || "writing the domain's memory".to_owned();
        let mapped = self.hypervisor().map(self.domid, &frames).doing(doing)?;
        mapped.write(0, &bytes).doing(doing)
    }

    /// A page table with the machine's frame numbers.
    fn table(&self, pfn: u64, level: u8, page: &[u8]) -> Result<Words> {
        let mut table = Words::new_zeroed();
        table.as_mut_bytes().copy_from_slice(page);
        for (slot, entry) in table.iter_mut().enumerate() {
            if *entry & PRESENT == 0 {
                continue;
            }
            if level == 4 && HYPERVISOR_SLOTS.contains(&slot) {
                return Err(wrong(format!("table {pfn:#x} maps something where the hypervisor is")));
            }
            let frame = self.mfn("what a page table maps", (*entry & FRAME_MASK) >> 12)?;
            *entry = *entry & !FRAME_MASK | frame << 12;
        }
        Ok(table)
    }

    fn finish(mut self, channels: Channels) -> Result<Built> {
        self.release_what_went()?;
        let vcpus = std::mem::take(&mut self.vcpus);
        let shared = self.shared.take().ok_or_else(|| wrong("it has no shared page"))?;
        let shared_frame = self.share(&shared)?;
        let first = vcpus.get(&0).ok_or_else(|| wrong("it has no vcpu 0"))?;
        let start_info = context_of(first)?.user_regs.rdx;
        let built = self.start_info(start_info, shared_frame, channels)?;
        self.write_list()?;
        self.pin()?;
        for (vcpu, parts) in &vcpus {
            self.vcpu(*vcpu, parts)?;
        }
        Ok(built)
    }

    /// Takes back the memory of frames that were there when they were first sent, or when a table that maps them was, and
    /// are not in the end: the guest has given them away, and counts on nothing being there.
    fn release_what_went(&mut self) -> Result<()> {
        let mut gone = Vec::new();
        for (mfn, kind) in self.p2m.iter_mut().zip(&self.types) {
            if *kind == FrameType::NONE && *mfn != NO_FRAME {
                gone.push(Mfn::new(std::mem::replace(mfn, NO_FRAME)));
            }
        }
        for batch in gone.chunks(FRAMES_AT_ONCE) {
            let doing = || format!("taking {} frames back", batch.len());
            let went = self.hypervisor().depopulate(self.domid, batch).doing(doing)?;
            if went != batch.len() {
                return Err(Error::new(doing(), format!("the hypervisor took {went}")));
            }
        }
        Ok(())
    }

    /// Fills the shared page, without the events of another host; gives its frame.
    fn share(&self, saved: &[u8; PAGE_SIZE]) -> Result<u64> {
        let doing = || "filling the shared page".to_owned();
        let info = self.hypervisor().domain(self.domid).doing(doing)?;
        let info = info.ok_or_else(|| Error::new(doing(), "the domain has gone"))?;
        let page = self
            .hypervisor()
            .map(self.domid, &[Gfn::new(info.shared_info_frame)])
            .doing(doing)?;
        let mut bytes = *saved;
        for vcpu in 0..ferroxen_abi::xen::LEGACY_MAX_VCPUS {
            let at = shared_info::VCPU_INFO + vcpu * vcpu_info::SIZE + vcpu_info::PENDING_SEL;
            bytes[at..at + 8].fill(0);
        }
        bytes[shared_info::EVTCHN_PENDING..shared_info::EVTCHN_MASK].fill(0);
        bytes[shared_info::EVTCHN_MASK..shared_info::WC_VERSION].fill(0xff);
        // The guest tells anew where its list is.
        for at in [shared_info::P2M_FRAME_LIST_LIST, shared_info::P2M_CR3] {
            bytes[at..at + 8].fill(0);
        }
        // The hypervisor keeps the clock itself.
        let copied = [
            shared_info::VCPU_INFO..shared_info::WC_VERSION,
            shared_info::MAX_PFN..shared_info::P2M_GENERATION + 8,
        ];
        for range in copied {
            page.write(range.start, &bytes[range]).doing(doing)?;
        }
        Ok(info.shared_info_frame)
    }

    /// Writes the machine's numbers into start_info, from which the guest takes them.
    fn start_info(&self, pfn: u64, shared_frame: u64, channels: Channels) -> Result<Built> {
        let doing = || "writing start_info".to_owned();
        let mfn = self.mfn("start_info", pfn)?;
        let page = self.hypervisor().map(self.domid, &[Gfn::new(mfn)]).doing(doing)?;
        let mut info = StartInfo::new_zeroed();
        page.read(0, info.as_mut_bytes()).doing(doing)?;
        let store = self.mfn("the xenstore ring", info.store_mfn)?;
        let console = self.mfn("the console ring", info.console)?;
        info.nr_pages = self.p2m.len() as u64;
        info.shared_info = shared_frame << 12;
        info.flags = 0;
        info.store_mfn = store;
        info.store_evtchn = channels.store.raw();
        info.console = console;
        info.console_evtchn = channels.console.raw();
        page.write(0, info.as_bytes()).doing(doing)?;
        Ok(Built {
            store: Mfn::new(store),
            console: Mfn::new(console),
        })
    }

    /// Writes the machine's numbers into the guest's own list of its frames.
    fn write_list(&self) -> Result<()> {
        let doing = || "writing the P2M list".to_owned();
        for (pages, numbers) in self.list.chunks(LIST_PAGES).zip(self.p2m.chunks(LIST_PAGES * ENTRIES)) {
            let frames = pages.iter().map(|pfn| self.mfn("the P2M list", *pfn).map(Gfn::new));
            let frames: Vec<Gfn> = frames.collect::<Result<_>>()?;
            let mapped = self.hypervisor().map(self.domid, &frames).doing(doing)?;
            mapped.write(0, numbers.as_bytes()).doing(doing)?;
        }
        Ok(())
    }

    fn pin(&self) -> Result<()> {
        let pinned = self.types.iter().zip(&self.p2m).filter(|(kind, _)| kind.is_pinned());
        let tables: Vec<(u8, Mfn)> = pinned
            .filter_map(|(kind, mfn)| Some((kind.level()?, Mfn::new(*mfn))))
            .collect();
        self.hypervisor()
            .pin(self.domid, &tables)
            .doing(|| format!("pinning {} page tables", tables.len()))
    }

    fn vcpu(&self, vcpu: u32, parts: &[(VcpuPart, Vec<u8>)]) -> Result<()> {
        let doing = || format!("restoring vcpu {vcpu}");
        let mut context = context_of(parts)?;
        if vcpu == 0 {
            context.user_regs.rdx = self.mfn("start_info", context.user_regs.rdx)?;
        }
        let used = usize::try_from(context.gdt_ents)
            .ok()
            .filter(|count| *count <= 16 * ENTRIES);
        let used = used.ok_or_else(|| wrong(format!("vcpu {vcpu} has {} descriptors", context.gdt_ents)))?;
        for frame in context.gdt_frames.iter_mut().take((used * 8).div_ceil(PAGE_SIZE)) {
            *frame = self.mfn("a descriptor table", *frame)?;
        }
        context.ctrlreg[3] = self.mfn("a page-table root", context.ctrlreg[3] >> 12)? << 12;
        if context.ctrlreg[1] & 1 != 0 {
            context.ctrlreg[1] = self.mfn("a user page-table root", context.ctrlreg[1] >> 12)? << 12;
        }
        context.flags |= vgcf::ONLINE;
        let set = self.hypervisor().set_vcpu_context(self.domid, vcpu, &context);
        set.doing(doing)?;
        for (part, bytes) in parts {
            if *part != VcpuPart::Basic && !bytes.is_empty() {
                let set = self.hypervisor().set_vcpu_part(self.domid, vcpu, *part, bytes);
                set.doing(|| format!("restoring vcpu {vcpu} ({part:?})"))?;
            }
        }
        Ok(())
    }
}

/// Frames allocated in one call.
const FRAMES_AT_ONCE: usize = 1024;
/// Pages of the list that are mapped at a time.
const LIST_PAGES: usize = 256;

/// An array of structures.
fn several<T: FromBytes + Immutable + Copy>(what: &str, bytes: &[u8]) -> Result<Vec<T>> {
    match bytes.len() % size_of::<T>() {
        0 => Ok(bytes
            .chunks_exact(size_of::<T>())
            .filter_map(|one| T::read_from_bytes(one).ok())
            .collect()),
        _ => Err(wrong(format!("{what} has not the length of an array"))),
    }
}

/// What a table maps.
fn entries(page: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = page.as_chunks::<8>();
    words
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .filter(|entry| entry & PRESENT != 0)
}

fn context_of(parts: &[(VcpuPart, Vec<u8>)]) -> Result<Box<VcpuGuestContext>> {
    let basic = parts.iter().find(|(part, _)| *part == VcpuPart::Basic);
    let (_, bytes) = basic.ok_or_else(|| wrong("a vcpu has no context"))?;
    let context = VcpuGuestContext::read_from_bytes(bytes.as_slice());
    context
        .map(Box::new)
        .map_err(|_| wrong(format!("a vcpu's context has {} bytes", bytes.len())))
}
