//! Building a PV domain: memory, kernel, page tables, start_info, the first vcpu.

use crate::Toolstack;
use crate::error::{Doing, Error, Result};
use crate::hyper::Hypervisor;
use crate::layout::{Layout, NoPlace, PAGE, Wishes};
use crate::patience::Interrupt;
use crate::progress::Progress;
use ferroxen_abi::x86::{VcpuGuestContext, selector, vgcf};
use ferroxen_abi::xen::{StartInfo, shared_info, vcpu_info};
use ferroxen_loader::image::{Refused, inspect, unpack_to_vec};
use ferroxen_loader::kernel::PvImage;
use ferroxen_words::{DomId, Gfn, Mfn, PAGE_SIZE, Port};
use std::ops::Range;
use std::path::Path;
use zerocopy::{FromZeros, IntoBytes};

/// The largest kernel or initrd anyone may name.
const FILE_LIMIT: u64 = 2 << 30;
/// Frames mapped at a time.
const WINDOW: u64 = 2048;
/// Extents asked for in one call.
const EXTENTS: usize = 512;
/// Pages of a superpage: 2^9.
const SUPERPAGE_ORDER: u32 = 9;
const SUPERPAGE: u64 = 1 << SUPERPAGE_ORDER;

/// A kernel and all it is started with, read and looked at; no domain is needed for that.
pub struct Payload {
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

/// What the rest of the toolstack must know of a built domain.
#[derive(Clone, Copy, Debug)]
pub struct Built {
    /// The xenstore ring.
    pub store: Mfn,
    /// The console ring.
    pub console: Mfn,
}

/// The two event channels every PV domain starts with.
#[derive(Clone, Copy, Debug)]
pub struct Channels {
    /// With xenstored.
    pub store: Port,
    /// With the console daemon.
    pub console: Port,
}

impl Payload {
    /// Reads kernel and initrd, and unpacks the kernel.
    pub fn read(kernel: &Path, initrd: Option<&Path>) -> Result<Payload> {
        let packed = read_file(kernel, "kernel")?;
        let initrd = initrd.map_or(Ok(Vec::new()), |path| read_file(path, "ramdisk"))?;
        Payload::of(kernel, packed, initrd)
    }

    /// The same of what has been read; the kernel's path is for messages.
    pub fn of(kernel: &Path, packed: Vec<u8>, initrd: Vec<u8>) -> Result<Payload> {
        let refused = |error: Refused| unusable(kernel, &error.to_string());
        // A kernel that is not packed is large: one copy is enough.
        let unpacked = match inspect(&packed).map_err(refused)?.plain().is_some() {
            true => packed,
            false => unpack_to_vec(&packed, usize::try_from(FILE_LIMIT).unwrap_or(usize::MAX)).map_err(refused)?,
        };
        PvImage::parse(&unpacked).map_err(|error| {
            unusable(kernel, &error.to_string())
                .way_out("a PV domain needs a 64-bit kernel with Xen PV support, such as Debian's own vmlinuz")
        })?;
        Ok(Payload {
            kernel: unpacked,
            initrd,
        })
    }

    fn image(&self) -> Result<PvImage<'_>> {
        PvImage::parse(&self.kernel).map_err(|error| Error::new("reading the kernel", error.to_string()))
    }

    /// Finds a place for everything in `memory_mib`.
    pub fn plan(&self, memory_mib: u64) -> Result<Layout> {
        let wishes = Wishes::of(&self.image()?);
        let what = "laying out the memory";
        Layout::plan(&wishes, memory_mib * 256, self.initrd.len() as u64).map_err(|error| match error {
            NoPlace::TooSmall { needed } => Error::new(
                what,
                format!("{memory_mib} MiB are too little for this kernel and ramdisk"),
            )
            .way_out(format!("set memory = {} or more", needed.div_ceil(256))),
            NoPlace::AddressesEnd => Error::new(what, "the kernel's addresses leave no room behind it"),
        })
    }
}

fn read_file(path: &Path, what: &str) -> Result<Vec<u8>> {
    let doing = || format!("reading the {what} {}", path.display());
    let size = std::fs::metadata(path).doing(doing)?.len();
    if size > FILE_LIMIT {
        return Err(Error::new(
            doing(),
            format!("{size} bytes are more than any {what} has"),
        ));
    }
    std::fs::read(path).doing(doing)
}

fn unusable(path: &Path, why: &str) -> Error {
    Error::new(format!("looking at the kernel {}", path.display()), why)
}

/// A domain's memory while it is being filled.
struct Memory<'a> {
    hypervisor: &'a dyn Hypervisor,
    interrupt: &'a Interrupt,
    progress: &'a dyn Progress,
    domid: DomId,
    /// The machine frame of each of the domain's frames.
    p2m: Vec<u64>,
}

/// Fills the domain `domid`, which has vcpus and a memory limit but nothing else.
pub fn build(
    tools: &Toolstack,
    domid: DomId,
    payload: &Payload,
    layout: &Layout,
    cmdline: &str,
    channels: Channels,
) -> Result<Built> {
    let image = payload.image()?;
    let hypervisor = &*tools.hypervisor;
    let mut memory = Memory {
        hypervisor,
        interrupt: &tools.interrupt,
        progress: &*tools.progress,
        domid,
        p2m: Vec::new(),
    };
    memory.populate(layout.frames)?;
    let segments = image.segments().map(|segment| segment.size).sum();
    tools.progress.begin("loading the kernel", segments);
    memory.load_kernel(&image)?;
    if let Some(initrd) = &layout.initrd {
        tools.progress.begin("loading the ramdisk", payload.initrd.len() as u64);
        memory
            .write(initrd.start * PAGE, &payload.initrd)
            .doing(|| "loading the ramdisk".to_owned())?;
    }
    // The rest is written by the same hands, and is short.
    tools.progress.end();
    let p2m_bytes = memory.p2m.as_bytes().to_vec();
    memory
        .write(layout.p2m.start * PAGE, &p2m_bytes)
        .doing(|| "writing the P2M list".to_owned())?;
    for pfn in [layout.store, layout.console, layout.stack] {
        memory
            .write(pfn * PAGE, &[0; PAGE_SIZE])
            .doing(|| "clearing the rings".to_owned())?;
    }
    for table in layout.fill_tables(&memory.p2m) {
        memory
            .write(table.pfn * PAGE, table.entries.as_bytes())
            .doing(|| "writing the page tables".to_owned())?;
    }
    let shared_frame = memory.shared_info()?;
    let start_info = memory.start_info(layout, payload.initrd.len() as u64, shared_frame, cmdline, channels)?;
    memory
        .write(layout.start_info * PAGE, start_info.as_bytes())
        .doing(|| "writing start_info".to_owned())?;
    if let Some(address) = image.hypercall_page {
        let pfn = address.wrapping_sub(layout.virt_base) / PAGE;
        hypervisor
            .init_hypercall_page(domid, memory.mfn(pfn)?)
            .doing(|| format!("filling the hypercall page at {address:#x}"))?;
    }
    let top = memory.mfn(layout.tables.start)?;
    hypervisor
        .pin(domid, &[(4, top)])
        .doing(|| "pinning the page tables".to_owned())?;
    hypervisor
        .set_vcpu_context(domid, 0, &first_context(layout, image.entry, top))
        .doing(|| "setting the first vcpu's context".to_owned())?;
    Ok(Built {
        store: memory.mfn(layout.store)?,
        console: memory.mfn(layout.console)?,
    })
}

impl Memory<'_> {
    fn mfn(&self, pfn: u64) -> Result<Mfn> {
        let found = usize::try_from(pfn).ok().and_then(|pfn| self.p2m.get(pfn));
        found.map(|mfn| Mfn::new(*mfn)).ok_or_else(|| {
            Error::new(
                format!("finding frame {pfn:#x}"),
                "the kernel's addresses lie outside of the domain's memory",
            )
        })
    }

    /// Gets the frames: in pieces of 2 MiB as long as there are any, else one by one.
    fn populate(&mut self, frames: u64) -> Result<()> {
        self.p2m = vec![0; usize::try_from(frames).map_err(|_| Error::new("sizing the domain", "too much memory"))?];
        let mut next = 0;
        let mut order = SUPERPAGE_ORDER;
        self.progress.begin("allocating memory", frames * PAGE);
        while next < frames {
            let size = 1 << order;
            if order > 0 && (frames - next < size || !next.is_multiple_of(SUPERPAGE)) {
                order = 0;
                continue;
            }
            self.interrupt
                .check()
                .doing(|| format!("allocating memory, {} MiB of {} MiB done", next / 256, frames / 256))?;
            let wanted: Vec<u64> = (0..EXTENTS as u64)
                .map(|at| next + at * size)
                .take_while(|at| at + size <= frames)
                .collect();
            let got = self
                .hypervisor
                .populate(self.domid, &wanted, order)
                .doing(|| format!("allocating memory, {} MiB of {} MiB done", next / 256, frames / 256))?;
            if got.is_empty() && order == 0 {
                return Err(out_of_memory(self.hypervisor, next, frames));
            }
            for (pfn, mfn) in wanted.iter().zip(&got) {
                for at in 0..size {
                    self.p2m[(pfn + at) as usize] = mfn.raw() + at;
                }
            }
            next += got.len() as u64 * size;
            self.progress.advance(got.len() as u64 * size * PAGE);
            if got.len() < wanted.len() {
                order = 0;
            }
        }
        Ok(())
    }

    fn load_kernel(&self, image: &PvImage<'_>) -> Result<()> {
        for segment in image.segments() {
            let doing = || format!("loading the kernel's segment at {:#x}", segment.paddr);
            self.write(segment.paddr, segment.bytes).doing(doing)?;
            let cleared = segment.size.saturating_sub(segment.bytes.len() as u64);
            self.clear(segment.paddr + segment.bytes.len() as u64, cleared)
                .doing(doing)?;
        }
        Ok(())
    }

    /// Writes bytes at a pseudo-physical address.
    fn write(&self, address: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.windows(address, bytes.len() as u64, |pages, offset, done| {
            pages.write(offset, &bytes[done.start as usize..done.end as usize])
        })
    }

    /// Writes zeroes at a pseudo-physical address: the hypervisor does it, page by page, but for the ends.
    fn clear(&self, address: u64, len: u64) -> std::io::Result<()> {
        let outside = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "outside of the domain's memory");
        let end = address.checked_add(len).ok_or_else(outside)?;
        let (first, last) = (address.div_ceil(PAGE), end / PAGE);
        if first >= last {
            return self.clear_bytes(address, len);
        }
        let whole = usize::try_from(first).ok().zip(usize::try_from(last).ok());
        let frames = whole
            .and_then(|(first, last)| self.p2m.get(first..last))
            .ok_or_else(outside)?;
        self.clear_bytes(address, first * PAGE - address)?;
        for some in frames.chunks(WINDOW as usize) {
            self.interrupt.check()?;
            self.hypervisor.clear(self.domid, some)?;
            self.progress.advance(some.len() as u64 * PAGE);
        }
        self.clear_bytes(last * PAGE, end - last * PAGE)
    }

    fn clear_bytes(&self, address: u64, len: u64) -> std::io::Result<()> {
        self.windows(address, len, |pages, offset, done| {
            pages.zero(offset, (done.end - done.start) as usize)
        })
    }

    /// Maps a stretch of memory piece by piece: (pages, where in them, which bytes of the stretch).
    fn windows(
        &self,
        address: u64,
        len: u64,
        mut each: impl FnMut(&ferroxen_xenctl::ForeignPages, usize, Range<u64>) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let outside = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "outside of the domain's memory");
        let mut done = 0;
        while done < len {
            let at = address.checked_add(done).ok_or_else(outside)?;
            let offset = at % PAGE;
            let piece = (WINDOW * PAGE - offset).min(len - done);
            let first = usize::try_from(at / PAGE).map_err(|_| outside())?;
            let count = (offset + piece).div_ceil(PAGE) as usize;
            let frames = self.p2m.get(first..first + count).ok_or_else(outside)?;
            let frames: Vec<Gfn> = frames.iter().map(|mfn| Gfn::new(*mfn)).collect();
            self.interrupt.check()?;
            let pages = self.hypervisor.map(self.domid, &frames)?;
            each(&pages, offset as usize, done..done + piece)?;
            self.progress.advance(piece);
            done += piece;
        }
        Ok(())
    }

    /// Clears the shared page and keeps events away from vcpus until they ask; gives its frame.
    fn shared_info(&self) -> Result<u64> {
        let doing = || "preparing the shared page".to_owned();
        let info = self.hypervisor.domain(self.domid).doing(doing)?;
        let info = info.ok_or_else(|| Error::new(doing(), "the domain has gone"))?;
        let frame = Gfn::new(info.shared_info_frame);
        let page = self.hypervisor.map(self.domid, &[frame]).doing(doing)?;
        page.zero(0, PAGE_SIZE).doing(doing)?;
        for vcpu in 0..ferroxen_abi::xen::LEGACY_MAX_VCPUS {
            let at = shared_info::VCPU_INFO + vcpu * vcpu_info::SIZE + vcpu_info::UPCALL_MASK;
            page.write(at, &[1]).doing(doing)?;
        }
        Ok(frame.raw())
    }

    fn start_info(
        &self,
        layout: &Layout,
        initrd_bytes: u64,
        shared_frame: u64,
        cmdline: &str,
        channels: Channels,
    ) -> Result<StartInfo> {
        let mut info = StartInfo::new_zeroed();
        let magic = b"xen-3.0-x86_64";
        info.magic[..magic.len()].copy_from_slice(magic);
        // One byte stays zero, so that the text ends.
        let room = info.cmd_line.len() - 1;
        let text = cmdline.as_bytes();
        if text.len() > room {
            return Err(Error::new(
                "passing the kernel's command line",
                format!(
                    "{} bytes are more than the {room} that a PV kernel can be given",
                    text.len()
                ),
            )
            .way_out("shorten `extra`, `root` or `cmdline`"));
        }
        info.cmd_line[..text.len()].copy_from_slice(text);
        info.nr_pages = layout.frames;
        info.shared_info = shared_frame * PAGE;
        info.flags = StartInfo::VIRT_P2M_4TOOLS;
        info.store_mfn = self.mfn(layout.store)?.raw();
        info.store_evtchn = channels.store.raw();
        info.console = self.mfn(layout.console)?.raw();
        info.console_evtchn = channels.console.raw();
        info.pt_base = layout.address_of(layout.tables.start);
        info.nr_pt_frames = layout.tables.end - layout.tables.start;
        info.mfn_list = layout.p2m_vaddr;
        if layout.p2m_is_apart {
            info.first_p2m_pfn = layout.p2m.start;
            info.nr_p2m_frames = layout.p2m.end - layout.p2m.start;
        }
        if let Some(initrd) = &layout.initrd {
            info.mod_len = initrd_bytes;
            info.mod_start = if layout.initrd_is_unmapped {
                info.flags |= StartInfo::MOD_START_PFN;
                initrd.start
            } else {
                layout.address_of(initrd.start)
            };
        }
        Ok(info)
    }
}

fn out_of_memory(hypervisor: &dyn Hypervisor, next: u64, frames: u64) -> Error {
    let free = hypervisor.physinfo().map_or(0, |info| info.free_pages);
    Error::new(
        "allocating memory",
        format!(
            "{} MiB of {} MiB done, {} MiB are left on the host",
            next / 256,
            frames / 256,
            free / 256
        ),
    )
    .way_out("shut a domain down, or give Domain 0 less (`xl mem-set 0 MIB`)")
}

/// How the kernel finds its first vcpu.
fn first_context(layout: &Layout, entry: u64, top: Mfn) -> VcpuGuestContext {
    let mut context = VcpuGuestContext::new_zeroed();
    context.flags = vgcf::IN_KERNEL | vgcf::ONLINE;
    let regs = &mut context.user_regs;
    regs.rip = entry;
    regs.cs = selector::FLAT_RING3_CS64;
    regs.ss = selector::FLAT_RING3_DS;
    regs.rsp = layout.address_of(layout.stack + 1);
    regs.rsi = layout.address_of(layout.start_info);
    // Interrupts on; what a PV kernel sees of that is the mask in its shared page.
    regs.rflags = 1 << 9;
    context.kernel_ss = selector::FLAT_RING3_DS.into();
    context.kernel_sp = context.user_regs.rsp;
    context.ctrlreg[3] = top.raw() * PAGE;
    // The values after reset (SDM 3B "Debug Registers").
    context.debugreg[6] = 0xffff_0ff0;
    context.debugreg[7] = 0x400;
    context
}
