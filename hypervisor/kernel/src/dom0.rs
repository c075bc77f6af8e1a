//! Domain 0: from the bytes of a Linux kernel to a vcpu that is about to run its first instruction.
//!
//! `logic/loader` says what the image is and where everything goes; this puts it there. Memory is filled
//! before the page tables are validated, so what the guest ends up with passed the same checks as if it had
//! built the tables itself.

use crate::domain::{self, Domain, Limits, VcpuRef, context};
use crate::memory;
use crate::pv::{hypercall_page, mm};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::x86::{CpuUserRegs, VcpuGuestContext, selector, vgcf};
use ferroxen_abi::xen::{EVTCHN_2L_PORTS, StartInfo, VgaTextConsole, vm_assist};
use ferroxen_loader::image::{self, Packed};
use ferroxen_loader::kernel::{NotBootable, PaeMode, PvImage};
use ferroxen_loader::options::{self, Options};
use ferroxen_loader::pv_layout::{DoesNotFit, Layout, Request};
use ferroxen_machine::handoff::{Boot, Module};
use ferroxen_machine::m2p;
use ferroxen_machine::memory::Page;
use ferroxen_machine::smp::CpuSet;
use ferroxen_words::{CpuId, DomId, Mfn, PAGE_SIZE, VcpuId};
use zerocopy::{FromZeros, IntoBytes};

/// Why there is no Domain 0.
pub enum NoDom0 {
    /// The loader gave us nothing to start.
    NoKernel,
    /// The kernel's file cannot be unpacked.
    Packed(image::Refused),
    /// It cannot be run.
    Kernel(NotBootable),
    /// It does not fit into Domain 0's memory.
    Layout(DoesNotFit),
    /// A step was refused.
    Step(&'static str, Errno),
    /// Unpacking needs more memory than there is in one piece.
    NoScratch(usize),
}

impl fmt::Display for NoDom0 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoDom0::NoKernel => write!(
                f,
                "no kernel for Domain 0: give it as the first module (qemu: -initrd \"vmlinuz args,initrd\"; \
                 GRUB: a `module` line after the hypervisor's)"
            ),
            NoDom0::Packed(why) => write!(f, "Domain 0's kernel (first module) cannot be unpacked: {why}"),
            NoDom0::Kernel(why) => write!(f, "Domain 0's kernel (first module) {why}"),
            NoDom0::Layout(why) => write!(f, "Domain 0's kernel {why}: give more with dom0_mem="),
            NoDom0::Step(step, why) => write!(f, "Domain 0 cannot be built: {step}: {why:?}"),
            NoDom0::NoScratch(bytes) => write!(f, "no {} MiB in one piece to unpack Domain 0's kernel", bytes >> 20),
        }
    }
}

/// The kernel's ELF file, unpacked; its memory is given back when Domain 0 stands.
pub struct Unpacked {
    /// Where it lies.
    pub elf: Module,
    /// Its command line, as the loader gave it.
    pub arguments: String,
    /// The initrd, if there is one.
    pub initrd: Option<Module>,
}

/// Unpacks the kernel. Done while memory is still to be had in one piece.
pub fn unpack(boot: &mut Boot, modules: Vec<Module>, loader_name: &str) -> Result<Unpacked, NoDom0> {
    let mut modules = modules.into_iter();
    let kernel = modules.next().ok_or(NoDom0::NoKernel)?;
    let initrd = modules.next();
    for extra in modules {
        crate::warn!(
            "module \"{}\" is not used",
            String::from_utf8_lossy(&extra.command_line)
        );
        boot.give_back(extra);
    }
    let command_line = String::from_utf8_lossy(&kernel.command_line);
    let arguments = options::arguments(&command_line, loader_name).to_string();
    let mut current = kernel;
    // A gzipped bzImage is two layers.
    for _ in 0..3 {
        let packed = image::inspect(current.bytes()).map_err(NoDom0::Packed)?;
        if packed.plain().is_some_and(|plain| plain.len() == current.bytes().len()) {
            return Ok(Unpacked {
                elf: current,
                arguments,
                initrd,
            });
        }
        let size = packed.unpacked_size();
        crate::info!(
            "unpacking Domain 0's kernel ({:?}, {} KiB)",
            packed.packing(),
            size >> 10
        );
        let mut scratch = boot.take_scratch(size).ok_or(NoDom0::NoScratch(size))?;
        unpack_on_loan(boot, &packed, scratch.bytes_mut())?;
        boot.give_back(core::mem::replace(&mut current, scratch));
    }
    Err(NoDom0::Packed(image::Refused::UnknownFormat))
}

/// Unpacks on a heap that is larger meanwhile: a decoder's window may be many times what the heap has otherwise.
fn unpack_on_loan(boot: &mut Boot, packed: &Packed<'_>, into: &mut [u8]) -> Result<(), NoDom0> {
    let needed = packed.heap_needed();
    let loan = boot.lend_to_heap(needed).ok_or(NoDom0::NoScratch(needed))?;
    let unpacked = packed.unpack_into(into);
    if let Err(bytes) = boot.take_back(loan) {
        crate::warn!(
            "{} KiB lent to the heap stay there: something still lies in them",
            bytes >> 10
        );
    }
    unpacked.map_err(NoDom0::Packed)
}

/// Builds Domain 0; its first vcpu is ready to run, and the domain is paused once.
pub fn build(unpacked: Unpacked, options: &Options<'_>) -> Result<Arc<Domain>, NoDom0> {
    let Unpacked { elf, arguments, initrd } = unpacked;
    let image = PvImage::parse(elf.bytes()).map_err(NoDom0::Kernel)?;
    image.check_dom0().map_err(NoDom0::Kernel)?;

    let cpus = ferroxen_machine::cpu::cpus_online();
    let (least, most) = options.dom0_max_vcpus;
    let vcpus = cpus.clamp(least.max(1), most.max(1)).max(1);
    let limits = Limits {
        vcpus,
        evtchn_port: EVTCHN_2L_PORTS - 1,
        ..Limits::default().with_options(options)
    };
    let domain = domain::create(Some(DomId::DOM0), true, limits, [0; 16]).map_err(|e| NoDom0::Step("create", e))?;
    domain.set_max_vcpus(vcpus).map_err(|e| NoDom0::Step("vcpus", e))?;

    let (pages, max_pages) = options.dom0_mem.pages(memory::free_pages());
    memory::set_max_pages(&domain, max_pages.max(pages));
    let initrd_bytes = initrd.as_ref().map_or(0, |initrd| initrd.bytes().len() as u64);
    let layout = Layout::plan(&Request::of(&image, initrd_bytes, pages, 0)).map_err(NoDom0::Layout)?;
    crate::info!(
        "Domain 0: kernel {:#x}..{:#x}, entry {:#x}, {} MiB, {} vcpus",
        image.kernel_start,
        image.kernel_end,
        image.entry,
        pages >> 8,
        vcpus
    );

    if options.dom0_verbose {
        crate::info!("Domain 0: {layout:x?}");
    }

    let map = PhysMap::fill(&domain, pages)?;
    load_kernel(&image, &map)?;
    if let Some(initrd) = &initrd {
        map.write(layout.initrd.pfn * PAGE_SIZE as u64, initrd.bytes());
    }
    map.write_p2m(layout.p2m.pfn, layout.p2m.pages);
    let start_info = start_info(&domain, &layout, pages, initrd_bytes, &arguments, options);
    map.write(layout.start_info.pfn * PAGE_SIZE as u64, start_info.as_bytes());
    write_vga(&map, &layout, options.vga_keep);
    if let Some(at) = image.hypercall_page {
        let pfn = at.wrapping_sub(image.virt_base) / PAGE_SIZE as u64;
        hypercall_page::write(&map.page(pfn).ok_or(NoDom0::Step("hypercall page", Errno::EINVAL))?);
    }
    write_tables(&layout, &map);

    if image.pae == PaeMode::ExtendedCr3 {
        let assist = 1 << vm_assist::PAE_EXTENDED_CR3;
        domain.vm_assist.fetch_or(assist, Ordering::Relaxed);
    }
    let entry = image.entry;
    release(elf, initrd);
    let vcpu = VcpuRef::of(&domain, VcpuId(0)).ok_or(NoDom0::Step("vcpu 0", Errno::ESRCH))?;
    let root = map
        .mfn(layout.root())
        .ok_or(NoDom0::Step("root table", Errno::EINVAL))?;
    start_context(&vcpu, entry, &layout, root)?;
    mm::pin_root(&domain, root).map_err(|e| NoDom0::Step("pinning the page tables", e))?;
    crate::time::update_wallclock(&domain);
    vcpu.set_online(true);
    if options.dom0_vcpus_pin {
        for (vcpu, cpu) in VcpuRef::all(&domain).zip(0..) {
            crate::sched::set_affinity(&vcpu, Some(CpuSet::of(CpuId(cpu % cpus))), None)
                .map_err(|e| NoDom0::Step("dom0_vcpus_pin", e))?;
        }
    }
    Ok(domain)
}

/// Gives the memory of the image and of the initrd back.
fn release(elf: Module, initrd: Option<Module>) {
    for range in [Some(elf), initrd].into_iter().flatten().map(Module::release) {
        memory::add_free(range);
    }
}

/// Domain 0's pages in order of pfn, as runs of frames.
struct PhysMap {
    runs: Vec<Run>,
}

struct Run {
    pfn: u64,
    mfn: Mfn,
    pages: u64,
}

/// The largest piece that is asked for at once: 4 MiB, so that devices find contiguous memory.
const MAX_ORDER: u32 = 10;

impl PhysMap {
    /// Gives the domain its pages.
    fn fill(domain: &Arc<Domain>, pages: u64) -> Result<PhysMap, NoDom0> {
        let mut runs: Vec<Run> = Vec::new();
        let mut pfn = 0;
        let mut order = MAX_ORDER;
        while pfn < pages {
            while 1 << order > pages - pfn {
                order -= 1;
            }
            let mfn = match memory::allocate(domain, order) {
                Ok(mfn) => mfn,
                Err(_) if order > 0 => {
                    order -= 1;
                    continue;
                }
                Err(why) => return Err(NoDom0::Step("its memory", why)),
            };
            let count = 1u64 << order;
            for index in 0..count {
                m2p::set(Mfn::new(mfn.raw() + index), pfn + index);
            }
            match runs.last_mut() {
                Some(last) if last.mfn.raw() + last.pages == mfn.raw() => last.pages += count,
                _ => runs.push(Run { pfn, mfn, pages: count }),
            }
            pfn += count;
        }
        Ok(PhysMap { runs })
    }

    fn mfn(&self, pfn: u64) -> Option<Mfn> {
        let at = self.runs.partition_point(|run| run.pfn <= pfn).checked_sub(1)?;
        let run = self.runs.get(at)?;
        let offset = pfn - run.pfn;
        (offset < run.pages).then(|| Mfn::new(run.mfn.raw() + offset))
    }

    fn page(&self, pfn: u64) -> Option<Page> {
        Page::new(self.mfn(pfn)?)
    }

    /// Copies bytes to a pseudo-physical address; whoever planned the layout made room.
    fn write(&self, at: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let offset = (at % PAGE_SIZE as u64) as usize;
            let count = rest.len().min(PAGE_SIZE - offset);
            let (piece, more) = rest.split_at(count);
            match self.page(at / PAGE_SIZE as u64) {
                Some(page) => page.write_bytes(offset, piece),
                None => panic!(
                    "Domain 0's layout names page {:#x}, which it does not have",
                    at / PAGE_SIZE as u64
                ),
            }
            at += count as u64;
            rest = more;
        }
    }

    /// Writes the P2M list: which frame each pfn is; `~0` behind the last.
    fn write_p2m(&self, first: u64, pages: u64) {
        for index in 0..pages {
            let Some(page) = self.page(first + index) else { continue };
            for slot in 0..512u64 {
                let mfn = self.mfn(index * 512 + slot).map_or(!0, Mfn::raw);
                page.store_u64(slot as usize, mfn);
            }
        }
    }
}

fn load_kernel(image: &PvImage<'_>, map: &PhysMap) -> Result<(), NoDom0> {
    for segment in image.segments() {
        let last = segment.paddr.saturating_add(segment.size).saturating_sub(1) / PAGE_SIZE as u64;
        if segment.size != 0 && map.mfn(last).is_none() {
            return Err(NoDom0::Step("loading the kernel", Errno::ENOMEM));
        }
        // Pages are clean when they are handed out, so what is behind the bytes is zero already.
        map.write(segment.paddr, segment.bytes);
    }
    Ok(())
}

fn write_tables(layout: &Layout, map: &PhysMap) {
    for entry in layout.entries() {
        if let (Some(table), Some(target)) = (map.page(entry.table), map.mfn(entry.target)) {
            table.store_u64(usize::from(entry.slot), target.maddr().raw() | entry.flags());
        }
    }
}

fn start_info(
    domain: &Domain,
    layout: &Layout,
    pages: u64,
    initrd_bytes: u64,
    arguments: &str,
    options: &Options<'_>,
) -> StartInfo {
    let mut info = StartInfo::new_zeroed();
    let magic = b"xen-3.0-x86_64";
    info.magic[..magic.len()].copy_from_slice(magic);
    info.nr_pages = pages;
    info.shared_info = domain.shared_info_mfn().maddr().raw();
    info.flags = StartInfo::PRIVILEGED | StartInfo::INITDOMAIN;
    info.console = CONSOLE_INFO_OFFSET as u64 | (size_of::<VgaTextConsole>() as u64) << 32;
    info.pt_base = layout.page_tables.vaddr.unwrap_or(0);
    info.nr_pt_frames = layout.page_tables.pages;
    info.mfn_list = layout.p2m.vaddr.unwrap_or(0);
    (info.first_p2m_pfn, info.nr_p2m_frames) = layout.p2m_frames();
    if initrd_bytes != 0 {
        info.mod_len = initrd_bytes;
        info.mod_start = layout.initrd.vaddr.unwrap_or(layout.initrd.pfn);
        if layout.initrd.vaddr.is_none() {
            info.flags |= StartInfo::MOD_START_PFN;
        }
    }
    let mut line = arguments.to_string();
    if !options.kernel_extra.is_empty() {
        line.push(' ');
        line.push_str(options.kernel_extra);
    }
    let room = info.cmd_line.len() - 1;
    let count = line.len().min(room);
    if count < line.len() {
        crate::warn!("Domain 0's command line is cut at {room} bytes");
    }
    info.cmd_line[..count].copy_from_slice(&line.as_bytes()[..count]);
    info
}

/// Where in the start-info page the console's description lies.
const CONSOLE_INFO_OFFSET: usize = 2048;

fn write_vga(map: &PhysMap, layout: &Layout, keeps_screen: bool) {
    const TEXT_MODE_3: u8 = 3;
    let cursor = if keeps_screen {
        None
    } else {
        crate::console::screen_cursor()
    };
    let (row, column) = cursor.unwrap_or((0, 0));
    let screen = VgaTextConsole {
        video_type: TEXT_MODE_3,
        pad: 0,
        font_height: 16,
        cursor_x: column.into(),
        cursor_y: row.into(),
        rows: 25,
        columns: 80,
    };
    map.write(
        layout.start_info.pfn * PAGE_SIZE as u64 + CONSOLE_INFO_OFFSET as u64,
        screen.as_bytes(),
    );
}

fn start_context(vcpu: &VcpuRef, entry: u64, layout: &Layout, root: Mfn) -> Result<(), NoDom0> {
    let mut start =
        VcpuGuestContext::new_box_zeroed().map_err(|_| NoDom0::Step("a context for vcpu 0", Errno::ENOMEM))?;
    start.flags = vgcf::IN_KERNEL | vgcf::ONLINE;
    start.user_regs = CpuUserRegs {
        rip: entry,
        rsp: layout.stack_top(),
        rsi: layout.start_info.vaddr.unwrap_or(0),
        cs: selector::FLAT_RING3_CS64,
        ss: selector::FLAT_RING3_DS,
        rflags: crate::pv::bounce::rflags::IF,
        ..CpuUserRegs::default()
    };
    start.kernel_ss = selector::FLAT_RING3_DS.into();
    start.kernel_sp = layout.stack_top();
    start.ctrlreg[3] = root.maddr().raw();
    context::set(vcpu, &start).map_err(|why| NoDom0::Step("its page tables and registers", why))
}
