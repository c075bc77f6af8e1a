//! Saving a PV domain that has stopped: its memory and its vcpus, as libxc's image.
//!
//! What the guest sees of the machine's frame numbers is its page tables, its vcpus' page-table roots and descriptor
//! tables, and its start_info. All are turned into its own numbers here, and back when it is restored.

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::frames::{FRAME_MASK, Frames, HYPERVISOR_SLOTS, LARGE, PRESENT, Words};
use crate::hyper::FRAME_TYPES;
use ferroxen_abi::domctl::{Getdomaininfo, pfinfo};
use ferroxen_abi::x86::VcpuGuestContext;
use ferroxen_stream::image::{DomainKind, FrameType, Header, Record, TscInfo, VcpuPart, write_pages};
use ferroxen_words::{DomId, Gfn, PAGE_SIZE};
use ferroxen_xenctl::ForeignPages;
use std::io::Write;
use zerocopy::{FromBytes, IntoBytes};

/// Writes the image of a domain that has suspended itself.
pub fn write_image(tools: &Toolstack, domid: DomId, to: &mut dyn Write) -> Result<()> {
    Saver::open(tools, domid)?.write(to)
}

struct Saver<'a> {
    tools: &'a Toolstack,
    domid: DomId,
    info: Getdomaininfo,
    shared: ForeignPages,
    frames: Frames,
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
        })
    }

    fn write(&self, mut to: &mut dyn Write) -> Result<()> {
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
        put(to, &list)?;
        self.memory(to)?;
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

    fn memory(&self, to: &mut dyn Write) -> Result<()> {
        let count = self.frames.count();
        self.tools.progress.begin("saving memory", count * PAGE_SIZE as u64);
        let mut next = 0;
        while next < count {
            let end = count.min(next + FRAME_TYPES as u64);
            self.tools
                .interrupt
                .check()
                .doing(|| format!("saving memory, {} MiB of {} MiB done", next / 256, count / 256))?;
            self.batch(next..end, to)?;
            self.tools.progress.advance((end - next) * PAGE_SIZE as u64);
            next = end;
        }
        self.tools.progress.end();
        Ok(())
    }

    /// Writes some frames.
    fn batch(&self, pfns: std::ops::Range<u64>, mut to: &mut dyn Write) -> Result<()> {
        let doing = || format!("saving frames {:#x} to {:#x}", pfns.start, pfns.end);
        let hypervisor = &*self.tools.hypervisor;
        let there: Vec<(u64, u64)> = pfns
            .clone()
            .filter_map(|pfn| self.frames.mfn(pfn).map(|mfn| (pfn, mfn)))
            .collect();
        let mut types: Vec<u64> = there.iter().map(|(_, mfn)| *mfn).collect();
        hypervisor.frame_types(self.domid, &mut types).doing(doing)?;
        let mut kinds = types.into_iter().map(frame_type);
        let mut known = there.iter().zip(&mut kinds).peekable();
        let (mut frames, mut mapped) = (Vec::new(), Vec::new());
        for pfn in pfns.clone() {
            let kind = match known.next_if(|((known, _), _)| *known == pfn) {
                Some(((_, mfn), kind)) => {
                    if kind.has_data() {
                        mapped.push(Gfn::new(*mfn));
                    }
                    kind
                }
                None => FrameType::NONE,
            };
            frames.push((pfn, kind));
        }
        let mut bytes = vec![0; mapped.len() * PAGE_SIZE];
        if !mapped.is_empty() {
            let pages = hypervisor.map_to_read(self.domid, &mapped).doing(doing)?;
            pages.read(0, &mut bytes).doing(doing)?;
        }
        let with_data = frames.iter().filter(|(_, kind)| kind.has_data());
        for ((pfn, kind), page) in with_data.zip(bytes.chunks_exact_mut(PAGE_SIZE)) {
            if let Some(level) = kind.level() {
                self.table(level, page)
                    .map_err(|why| Error::new(format!("saving frame {pfn:#x}, a page table of level {level}"), why))?;
            }
        }
        write_pages(&mut to, &frames, &bytes).doing(doing)
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

fn part(part: VcpuPart, vcpu: u32, bytes: Vec<u8>) -> Record {
    Record::Vcpu { part, vcpu, bytes }
}

fn put(mut to: &mut dyn Write, record: &Record) -> Result<()> {
    record.write(&mut to).doing(|| "writing the image".to_owned())
}

/// From the control call's word; what it cannot tell of is not there.
fn frame_type(word: u64) -> FrameType {
    let bits = (word & pfinfo::LTAB_MASK) >> pfinfo::LTAB_SHIFT;
    FrameType::from_bits(bits as u8).unwrap_or(FrameType::NONE)
}
