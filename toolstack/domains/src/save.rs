//! Saving a PV domain: its memory and its vcpus, as libxc's image.
//!
//! The domain has stopped, or its memory is sent in rounds while it runs and the rest when it has ([`Sender`]): first all
//! of it, then what was written meanwhile, as the hypervisor's log has it, until that is little or gets no less. What a
//! running domain changes under our hands (a table that is one no longer, a frame that it gives back) is in the log too,
//! or is looked at again, so it may be left out until a later round.
//!
//! What the guest sees of the machine's frame numbers is its page tables, its vcpus' page-table roots and descriptor
//! tables, and its start_info. All are turned into its own numbers here, and back when it is restored.

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::frames::{FRAME_MASK, Frames, HYPERVISOR_SLOTS, LARGE, PRESENT, Words, frame_type};
use crate::hyper::FRAME_TYPES;
use ferroxen_abi::domctl::{Getdomaininfo, dominf};
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_stream::image::{DomainKind, FrameType, Header, Record, TscInfo, VcpuPart, write_pages};
use ferroxen_words::{DomId, Gfn, PAGE_SIZE};
use ferroxen_xenctl::ForeignPages;
use std::io::Write;
use zerocopy::{FromBytes, IntoBytes};

/// Writes the image of a domain that has suspended itself.
pub fn write_image(tools: &Toolstack, domid: DomId, to: &mut dyn Write) -> Result<()> {
    let mut saver = Saver::open(tools, domid)?;
    saver.head(to)?;
    let all: Vec<u64> = (0..saver.frames.count()).collect();
    saver.memory("saving memory", &all, to)?;
    saver.tail(to)
}

/// At most so many rounds while the domain runs.
const ROUNDS: u32 = 8;
/// So few pages need no further round.
const FEW: usize = 50;

/// Sends a domain that runs.
pub struct Sender<'a> {
    saver: Saver<'a>,
    /// What it writes is logged.
    is_logged: bool,
    /// Frames that are to be sent when it stands still.
    rest: Vec<u64>,
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        if self.is_logged {
            // Of a domain that has gone there is no log either.
            let _ = self.saver.tools.hypervisor.end_log(self.saver.domid);
        }
    }
}

impl<'a> Sender<'a> {
    /// Begins to log what the domain writes, if the hypervisor can.
    pub fn begin(tools: &'a Toolstack, domid: DomId) -> Result<Sender<'a>> {
        let doing = || format!("logging what domain {} writes", domid.raw());
        let is_logged = tools.hypervisor.begin_log(domid).doing(doing)?;
        let mut sender = Sender {
            saver: Saver::open(tools, domid)?,
            is_logged,
            rest: Vec::new(),
        };
        sender.rest = (0..sender.saver.frames.count()).collect();
        Ok(sender)
    }

    /// Writes what can be written while the domain runs.
    pub fn rounds(&mut self, to: &mut dyn Write) -> Result<()> {
        self.saver.head(to)?;
        if !self.is_logged {
            let why = "the hypervisor cannot tell what it writes: it stands still while it is moved";
            self.saver.tools.progress.tell(why);
            return Ok(());
        }
        for round in 1..=ROUNDS {
            let sent = std::mem::take(&mut self.rest);
            self.saver.memory(&format!("round {round}"), &sent, to)?;
            self.rest = self.saver.written()?;
            let (sent, rest) = (sent.len(), self.rest.len());
            let said = format!("round {round}: {sent} pages sent, {rest} written meanwhile");
            self.saver.tools.progress.tell(&said);
            // Where writing is as fast as sending, a further round gains nothing.
            if rest <= FEW || rest * 4 > sent * 3 {
                break;
            }
            self.saver.refresh()?;
        }
        Ok(())
    }

    /// Writes the rest of a domain that has suspended itself. Frames of the last list that are there no more are said
    /// to be so.
    pub fn finish(&mut self, to: &mut dyn Write) -> Result<()> {
        if self.is_logged {
            self.rest.extend(self.saver.written()?);
            self.rest.sort_unstable();
            self.rest.dedup();
        }
        self.saver.is_running = false;
        self.saver.refresh()?;
        let rest = std::mem::take(&mut self.rest);
        self.saver.memory("the rest", &rest, to)?;
        self.saver.tail(to)
    }
}

struct Saver<'a> {
    tools: &'a Toolstack,
    domid: DomId,
    info: Getdomaininfo,
    shared: ForeignPages,
    frames: Frames,
    /// It may change what is looked at.
    is_running: bool,
    /// Frames that could not be sent as they are, or are there no more.
    again: Vec<u64>,
}

impl<'a> Saver<'a> {
    fn open(tools: &'a Toolstack, domid: DomId) -> Result<Saver<'a>> {
        let hypervisor = &*tools.hypervisor;
        let doing = || format!("looking at domain {}", domid.raw());
        let info = hypervisor.domain(domid).doing(doing)?;
        let info = info.ok_or_else(|| Error::new(doing(), "it has gone"))?;
        let shared = hypervisor
            .map_to_read(domid, &[Gfn::new(info.shared_info_frame)])
            .doing(|| "mapping the shared page".to_owned())?;
        let frames = Frames::of(hypervisor, domid, &shared)?;
        Ok(Saver {
            tools,
            domid,
            info,
            shared,
            frames,
            is_running: info.flags & dominf::SHUTDOWN == 0,
            again: Vec::new(),
        })
    }

    /// Writes what stands before the memory.
    fn head(&self, mut to: &mut dyn Write) -> Result<()> {
        let hypervisor = &*self.tools.hypervisor;
        let xen = hypervisor.version().doing(|| "asking for the version".to_owned())?;
        let header = Header {
            kind: DomainKind::Pv,
            xen,
        };
        header.write(&mut to).doing(|| "writing the image".to_owned())?;
        put(to, &Record::PvInfo { width: 8, levels: 4 })?;
        let policy = hypervisor.cpu_policy(self.domid);
        let (leaves, msrs) = policy.doing(|| "reading the CPU policy".to_owned())?;
        if !leaves.is_empty() {
            put(to, &Record::CpuidPolicy(leaves.as_bytes().to_vec()))?;
        }
        if !msrs.is_empty() {
            put(to, &Record::MsrPolicy(msrs.as_bytes().to_vec()))?;
        }
        put(to, &Record::StaticDataEnd)?;
        let last = self.frames.count() - 1;
        let list = Record::P2mFrames {
            first: 0,
            last: u32::try_from(last).map_err(|_| Error::new("writing the image", "too many frames"))?,
            frames: self.frames.list().to_vec(),
        };
        put(to, &list)
    }

    /// Writes what stands behind the memory, of a domain that has stopped.
    fn tail(&self, to: &mut dyn Write) -> Result<()> {
        let hypervisor = &*self.tools.hypervisor;
        let tsc = hypervisor
            .tsc_info(self.domid)
            .doing(|| "reading the clock".to_owned())?;
        put(
            to,
            &Record::TscInfo(TscInfo {
                mode: tsc.tsc_mode,
                khz: tsc.gtsc_khz,
                elapsed_ns: tsc.elapsed_nsec,
                incarnation: tsc.incarnation,
                reserved: 0,
            }),
        )?;
        let mut page = Box::new([0; PAGE_SIZE]);
        self.shared
            .read(0, &mut page[..])
            .doing(|| "reading the shared page".to_owned())?;
        put(to, &Record::SharedInfo(page))?;
        for vcpu in 0..=self.info.max_vcpu_id {
            self.vcpu(vcpu, to)?;
        }
        put(to, &Record::End)
    }

    /// Reads the list of frames again; what has gone is to be said.
    fn refresh(&mut self) -> Result<()> {
        let gone = self.frames.refresh(&*self.tools.hypervisor, self.domid, &self.shared)?;
        self.again.extend(gone);
        Ok(())
    }

    /// The frames that have been written since this was last asked, and those that are to be sent again anyway.
    fn written(&mut self) -> Result<Vec<u64>> {
        let doing = || format!("reading what domain {} has written", self.domid.raw());
        let count = self.frames.count();
        let bits = self.tools.hypervisor.take_log(self.domid, count).doing(doing)?;
        let mut frames = std::mem::take(&mut self.again);
        for (word, first) in bits.into_iter().zip((0..).step_by(64)) {
            let set = (0..64).filter(|bit| word >> bit & 1 != 0);
            frames.extend(set.map(|bit| first + bit).filter(|pfn| *pfn < count));
        }
        frames.sort_unstable();
        frames.dedup();
        Ok(frames)
    }

    /// Writes some frames, and those that were to be sent again.
    fn memory(&mut self, what: &str, pfns: &[u64], to: &mut dyn Write) -> Result<()> {
        let mut again = std::mem::take(&mut self.again);
        again.retain(|pfn| pfns.binary_search(pfn).is_err());
        let count = pfns.len() + again.len();
        self.tools.progress.begin(what, (count * PAGE_SIZE) as u64);
        let mut done = 0;
        for batch in pfns.chunks(FRAME_TYPES).chain(again.chunks(FRAME_TYPES)) {
            self.tools
                .interrupt
                .check()
                .doing(|| format!("{what}, {} MiB of {} MiB done", done / 256, count / 256))?;
            self.batch(batch, to)?;
            done += batch.len();
            self.tools.progress.advance((batch.len() * PAGE_SIZE) as u64);
        }
        self.tools.progress.end();
        Ok(())
    }

    /// Writes a batch of frames.
    fn batch(&mut self, pfns: &[u64], mut to: &mut dyn Write) -> Result<()> {
        let doing = || format!("saving {} frames from {:#x} on", pfns.len(), pfns.first().unwrap_or(&0));
        let (mut frames, mut bytes) = match self.look(pfns) {
            Ok(found) => found,
            Err(_) if self.is_running => {
                // A frame that has just gone, for instance.
                self.again.extend(pfns);
                return Ok(());
            }
            Err(error) => return Err(error).doing(doing),
        };
        let mut kept = Vec::with_capacity(frames.len());
        let mut wrong = Vec::new();
        let mut at = 0;
        for (pfn, kind) in frames.drain(..) {
            let page = match kind.has_data() {
                true => &mut bytes[at..at + PAGE_SIZE],
                false => &mut [],
            };
            let level = kind.level().map_or(Ok(()), |level| self.table(level, page));
            match level {
                Ok(()) => at += page.len(),
                // It was changed between the two looks, or is no table any more; then it is in the log.
                Err(_) if self.is_running => {
                    wrong.push(pfn);
                    bytes.drain(at..at + PAGE_SIZE);
                    continue;
                }
                Err(why) => return Err(Error::new(format!("saving frame {pfn:#x}, a page table"), why)),
            }
            kept.push((pfn, kind));
        }
        self.again.extend(wrong);
        match kept.is_empty() {
            true => Ok(()),
            false => write_pages(&mut to, &kept, &bytes).doing(doing),
        }
    }

    /// What some frames are, and what is in those that have anything in them.
    fn look(&self, pfns: &[u64]) -> std::io::Result<Found> {
        let hypervisor = &*self.tools.hypervisor;
        let there = pfns
            .iter()
            .filter_map(|pfn| self.frames.mfn(*pfn).map(|mfn| (*pfn, mfn)));
        let there: Vec<(u64, u64)> = there.collect();
        let mut types: Vec<u64> = there.iter().map(|(_, mfn)| *mfn).collect();
        hypervisor.frame_types(self.domid, &mut types)?;
        let mut kinds = types.into_iter().map(frame_type);
        let mut known = there.iter().zip(&mut kinds).peekable();
        let (mut frames, mut mapped) = (Vec::new(), Vec::new());
        for pfn in pfns {
            let kind = match known.next_if(|((known, _), _)| known == pfn) {
                Some(((_, mfn), kind)) => {
                    if kind.has_data() {
                        mapped.push(Gfn::new(*mfn));
                    }
                    kind
                }
                None => FrameType::NONE,
            };
            frames.push((*pfn, kind));
        }
        let mut bytes = vec![0; mapped.len() * PAGE_SIZE];
        if !mapped.is_empty() {
            hypervisor.map_to_read(self.domid, &mapped)?.read(0, &mut bytes)?;
        }
        Ok((frames, bytes))
    }

    /// Turns a table's frame numbers into the domain's own.
    fn table(&self, level: u8, page: &mut [u8]) -> std::result::Result<(), String> {
        let table = Words::mut_from_bytes(page).map_err(|_| "it is not a page".to_owned())?;
        for (slot, entry) in table.iter_mut().enumerate() {
            if level == 4 && HYPERVISOR_SLOTS.contains(&slot) {
                *entry = 0;
            }
            if *entry & PRESENT == 0 {
                continue;
            }
            if level > 1 && *entry & LARGE != 0 {
                return Err(format!("entry {slot} maps a large page"));
            }
            let mfn = (*entry & FRAME_MASK) >> 12;
            let pfn = self.frames.pfn(mfn);
            let pfn = pfn.ok_or_else(|| format!("entry {slot} maps frame {mfn:#x}, which is not the domain's"))?;
            *entry = *entry & !FRAME_MASK | pfn << 12;
        }
        Ok(())
    }

    fn vcpu(&self, vcpu: u32, to: &mut dyn Write) -> Result<()> {
        let doing = || format!("saving vcpu {vcpu}");
        let hypervisor = &*self.tools.hypervisor;
        if hypervisor.vcpu(self.domid, vcpu).doing(doing)?.online == 0 {
            return Ok(());
        }
        let mut context = hypervisor.vcpu_context(self.domid, vcpu).doing(doing)?;
        self.context(vcpu, &mut context)
            .map_err(|why| Error::new(doing(), why))?;
        let basic = context.as_bytes().to_vec();
        put(to, &part(VcpuPart::Basic, vcpu, basic))?;
        for which in [VcpuPart::Extended, VcpuPart::Xsave, VcpuPart::Msrs] {
            let bytes = hypervisor.vcpu_part(self.domid, vcpu, which).doing(doing)?;
            if !bytes.is_empty() {
                put(to, &part(which, vcpu, bytes))?;
            }
        }
        Ok(())
    }

    /// Turns a context's frame numbers into the domain's own.
    fn context(&self, vcpu: u32, context: &mut VcpuGuestContext) -> std::result::Result<(), String> {
        let own = |what: &str, mfn: u64| {
            let pfn = self.frames.pfn(mfn);
            pfn.ok_or_else(|| format!("its {what} is frame {mfn:#x}, which is not the domain's"))
        };
        if vcpu == 0 {
            // What `SCHEDOP_shutdown` was told with the reason: start_info's frame.
            context.user_regs.rdx = own("start_info", context.user_regs.rdx)?;
        }
        let used = (context.gdt_ents as usize * 8).div_ceil(PAGE_SIZE);
        for frame in context.gdt_frames.iter_mut().take(used) {
            *frame = own("descriptor table", *frame)?;
        }
        context.ctrlreg[3] = own("page-table root", context.ctrlreg[3] >> 12)? << 12;
        if context.ctrlreg[1] != 0 {
            context.ctrlreg[1] = own("user page-table root", context.ctrlreg[1] >> 12)? << 12 | 1;
        }
        Ok(())
    }
}

/// Frames with what they are, and the bytes of those that have any.
type Found = (Vec<(u64, FrameType)>, Vec<u8>);

fn part(part: VcpuPart, vcpu: u32, bytes: Vec<u8>) -> Record {
    Record::Vcpu { part, vcpu, bytes }
}

fn put(mut to: &mut dyn Write, record: &Record) -> Result<()> {
    record.write(&mut to).doing(|| "writing the image".to_owned())
}
