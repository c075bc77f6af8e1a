//! Virtual CPUs.

use super::Domain;
use crate::lock::{Lock, Rank};
use crate::memory::Held;
use crate::pv::policy;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::mem::offset_of;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::x86::TrapInfo;
use ferroxen_abi::xen::{VcpuTimeInfo, vcpu_info};
use ferroxen_machine::GuestFrame;
use ferroxen_machine::area::{Area, AtomicArea};
use ferroxen_machine::fpu::FpuState;
use ferroxen_machine::memory::Page;
use ferroxen_machine::paging::RootTable;
use ferroxen_machine::segments::Selectors;
use ferroxen_words::{Mfn, VcpuId};
use zerocopy::IntoBytes;

/// One virtual CPU.
pub struct Vcpu {
    /// Its number within the domain.
    pub id: VcpuId,
    /// Registers and tables; the live registers while it runs are the CPU's.
    pub pv: Lock<PvState>,
    /// Scheduling.
    pub sched: crate::sched::VcpuSched,
    /// Clocks and timers.
    pub time: crate::time::VcpuTime,
    /// Whether it is in its kernel (`TF_kernel_mode`). Changed only by the CPU that runs it, or while none does.
    in_kernel: AtomicBool,
    /// Where the guest and we meet (`vcpu_info`).
    info: AtomicArea<{ vcpu_info::SIZE }>,
    /// Keeps the page of a registered `vcpu_info` from being freed or becoming a table.
    info_hold: Lock<Option<Held>>,
    /// Set by `VCPUOP_up` or at creation, cleared by `VCPUOP_down`.
    online: AtomicBool,
    /// Has a context (`setvcpucontext`, `VCPUOP_initialise`).
    initialised: AtomicBool,
    pause_count: AtomicU32,
    /// A non-maskable interrupt waits to be delivered.
    nmi: AtomicBool,
    /// One was, and its handler has not returned: the next one waits.
    handles_nmi: AtomicBool,
}

/// A vcpu's `vcpu_info`, wherever it lies: in a page that the domain holds a reference to.
#[derive(Clone, Copy)]
pub struct InfoArea(Area<{ vcpu_info::SIZE }>);

// Both flags of an upcall are looked at in one access.
const _: () = assert!(vcpu_info::UPCALL_PENDING == 0 && vcpu_info::UPCALL_MASK == 1);

impl InfoArea {
    /// At an offset of a page, unless that is no place for it: it must not straddle, nor its words.
    pub fn new(page: Page, offset: usize) -> Option<InfoArea> {
        Area::new(page, offset).map(InfoArea)
    }

    /// Whether an upcall waits and may be made.
    #[inline(always)]
    pub fn wants_upcall(self) -> bool {
        // Pending in the low byte, and nothing in the high one, which masks.
        (1..=0xff).contains(&self.0.load_u16::<{ vcpu_info::UPCALL_PENDING }>())
    }

    /// Whether any upcall waits, masked or not.
    #[inline]
    pub fn is_pending(self) -> bool {
        self.0.load_u8::<{ vcpu_info::UPCALL_PENDING }>() != 0
    }

    /// Says that one of the ports of word `word` is pending. Whether nothing was
    /// pending before, so that the vcpu is to be told.
    #[inline]
    pub fn select(self, word: u32) -> bool {
        let bit = 1 << (word % 64);
        self.0.fetch_or_u64::<{ vcpu_info::PENDING_SEL }>(bit) & bit == 0 && self.raise()
    }

    /// Says that something is pending, wherever. Whether nothing was before.
    #[inline]
    pub fn raise(self) -> bool {
        self.0.swap_u8::<{ vcpu_info::UPCALL_PENDING }>(1) == 0
    }

    /// Says that any port may be pending.
    pub fn select_all(self) {
        self.0.store_u64::<{ vcpu_info::PENDING_SEL }>(!0);
        self.0.store_u8::<{ vcpu_info::UPCALL_PENDING }>(1);
    }

    /// `evtchn_upcall_mask`.
    #[inline]
    pub fn is_masked(self) -> bool {
        self.0.load_u8::<{ vcpu_info::UPCALL_MASK }>() != 0
    }

    /// Sets `evtchn_upcall_mask`.
    #[inline]
    pub fn set_masked(self, masked: bool) {
        self.0.store_u8::<{ vcpu_info::UPCALL_MASK }>(u8::from(masked));
    }

    /// `arch.cr2`.
    pub fn cr2(self) -> u64 {
        self.0.load_u64::<{ vcpu_info::CR2 }>()
    }

    /// Sets `arch.cr2`.
    #[inline]
    pub fn set_cr2(self, cr2: u64) {
        self.0.store_u64::<{ vcpu_info::CR2 }>(cr2);
    }

    /// Becomes what another says, or what a vcpu without a place had: masked, and nothing else.
    pub fn take_over(self, old: Option<InfoArea>) {
        let (page, offset) = (self.0.page(), self.0.offset());
        match old {
            Some(InfoArea(old)) => page.copy_range(offset, old.page(), old.offset(), vcpu_info::SIZE),
            None => {
                page.write_bytes(offset, &[0; vcpu_info::SIZE]);
                self.set_masked(true);
            }
        }
    }

    /// Replaces the clock's parameters. `parameters` answers them for a version.
    pub fn set_time(self, parameters: impl FnOnce(u32) -> VcpuTimeInfo) {
        // The version is odd while they change.
        let version = self.0.load_u32::<TIME_VERSION>() | 1;
        self.0.store_u32::<TIME_VERSION>(version);
        let at = self.0.offset() + vcpu_info::TIME;
        self.0.page().write_bytes(at, parameters(version).as_bytes());
        self.0.store_u32::<TIME_VERSION>(version.wrapping_add(1));
    }
}

const TIME_VERSION: usize = vcpu_info::TIME + offset_of!(VcpuTimeInfo, version);

/// A handler that the guest registered (`callback_op`).
#[derive(Clone, Copy, Default)]
pub struct Callback {
    /// Code selector (only compat callbacks choose one).
    pub cs: u16,
    /// Entry point; 0: none.
    pub address: u64,
    /// Whether events are masked on entry.
    pub masks_events: bool,
}

/// Everything that makes a PV vcpu what it is.
pub struct PvState {
    /// Registers while it does not run.
    pub frame: GuestFrame,
    /// Data selectors while it does not run.
    pub selectors: Selectors,
    /// FS base while it does not run.
    pub fs_base: u64,
    /// Base of GS in the guest kernel; stale while it runs in kernel mode.
    pub gs_base_kernel: u64,
    /// Base of GS in the guest's user mode; stale while it runs in user mode.
    pub gs_base_user: u64,
    /// Virtual IDT.
    pub traps: Box<[TrapInfo; 256]>,
    /// Event upcall.
    pub event: Callback,
    /// Bad return to user mode.
    pub failsafe: Callback,
    /// `syscall` from 64-bit user mode.
    pub syscall: Callback,
    /// `syscall` from 32-bit user mode.
    pub syscall32: Callback,
    /// `sysenter`.
    pub sysenter: Callback,
    /// Stack for entries from user mode.
    pub kernel_sp: u64,
    /// Its selector.
    pub kernel_ss: u64,
    /// CR0 as the guest sees it: only TS can change.
    pub ts: bool,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// XCR0: the states that its XSAVE handles.
    pub xcr0: u64,
    /// What RDTSCP gives beside the time.
    pub tsc_aux: u32,
    /// Debug registers.
    pub debug: [u64; 8],
    /// I/O privilege level that the guest asked for (0-3).
    pub iopl: u8,
    /// I/O bitmap: address in the guest and number of ports.
    pub io_bitmap: (u64, u32),
    /// Root of the guest kernel's tables.
    pub kernel_root: Option<RootTable>,
    /// Root of the guest user's tables.
    pub user_root: Option<RootTable>,
    /// What a CPU loads for its kernel: that root, or its mirror while the domain is logged.
    pub kernel_loads: Option<RootTable>,
    /// What a CPU loads for its user mode.
    pub user_loads: Option<RootTable>,
    /// GDT frames.
    pub gdt: [Mfn; 14],
    /// Descriptors in them.
    pub gdt_entries: u32,
    /// LDT.
    pub ldt_base: u64,
    /// Descriptors in it.
    pub ldt_entries: u32,
    /// Floating point.
    pub fpu: FpuState,
}

impl PvState {
    fn new(domain: &Domain) -> Result<PvState, Errno> {
        Ok(PvState {
            frame: GuestFrame::default(),
            selectors: Selectors::default(),
            fs_base: 0,
            gs_base_kernel: 0,
            gs_base_user: 0,
            traps: Box::new([TrapInfo::default(); 256]),
            event: Callback::default(),
            failsafe: Callback::default(),
            syscall: Callback::default(),
            syscall32: Callback::default(),
            sysenter: Callback::default(),
            kernel_sp: 0,
            kernel_ss: 0,
            ts: false,
            cr4: policy::fit_cr4(domain, 0),
            xcr0: policy::XCR0_INITIAL,
            tsc_aux: 0,
            debug: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            iopl: 0,
            io_bitmap: (0, 0),
            kernel_root: None,
            user_root: None,
            kernel_loads: None,
            user_loads: None,
            gdt: [Mfn::INVALID; 14],
            gdt_entries: 0,
            ldt_base: 0,
            ldt_entries: 0,
            fpu: FpuState::new(),
        })
    }

    /// Frames of the GDT that are in use.
    pub fn gdt_frames(&self) -> &[Mfn] {
        let count = (self.gdt_entries as usize).div_ceil(512).min(self.gdt.len());
        &self.gdt[..count]
    }
}

impl Vcpu {
    pub(in crate::domain) fn new(domain: &Domain, id: VcpuId) -> Result<Vcpu, Errno> {
        Ok(Vcpu {
            id,
            pv: Lock::new(Rank::Vcpu, PvState::new(domain)?),
            sched: crate::sched::VcpuSched::new(domain.id, id),
            time: crate::time::VcpuTime::new(),
            in_kernel: AtomicBool::new(true),
            info: AtomicArea::new(domain.legacy_info(id).map(|info| info.0)),
            info_hold: Lock::new(Rank::Vcpu, None),
            online: AtomicBool::new(false),
            initialised: AtomicBool::new(false),
            pause_count: AtomicU32::new(0),
            nmi: AtomicBool::new(false),
            handles_nmi: AtomicBool::new(false),
        })
    }

    /// Where its `vcpu_info` lies, if it has a place.
    #[inline]
    pub fn info(&self) -> Option<InfoArea> {
        self.info.load().map(InfoArea)
    }

    /// Whether it is in its kernel. (64-bit PV kernels and their users both run at CPL 3.)
    #[inline(always)]
    pub fn is_in_kernel(&self) -> bool {
        self.in_kernel.load(Ordering::Relaxed)
    }

    /// Records whether it is in its kernel; the tables and bases that belong to it are the caller's.
    #[inline]
    pub(crate) fn set_in_kernel(&self, in_kernel: bool) {
        self.in_kernel.store(in_kernel, Ordering::Relaxed);
    }

    /// Whether its `vcpu_info` was moved to a page of the guest's.
    pub fn has_registered_info(&self) -> bool {
        self.info_hold.lock().is_some()
    }

    /// The page of the guest's that holds its `vcpu_info`, if it was moved there.
    pub fn info_frame(&self) -> Option<Mfn> {
        self.info_hold.lock().as_ref().map(|held| held.page().mfn())
    }

    /// Moves its `vcpu_info` to a page that is held; false if it was moved before.
    pub fn register_info(&self, area: InfoArea, held: Held) -> bool {
        let mut hold = self.info_hold.lock();
        if hold.is_some() {
            return false;
        }
        *hold = Some(held);
        self.info.store(Some(area.0));
        true
    }

    /// Lets the page of a registered `vcpu_info` go: the vcpu never runs again.
    pub fn release_info(&self) {
        self.info.store(None);
        let held = self.info_hold.lock().take();
        drop(held);
    }

    /// Its `vcpu_info` is where it was before the guest moved it.
    pub fn reset_info(&self, domain: &Domain) {
        self.release_info();
        self.info.store(domain.legacy_info(self.id).map(|info| info.0));
    }

    /// Whether the guest has it switched on.
    #[inline]
    pub fn is_online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }

    /// Switches it on or off.
    pub fn set_online(&self, online: bool) {
        self.online.store(online, Ordering::Release);
    }

    /// Whether it was given a context.
    pub fn is_initialised(&self) -> bool {
        self.initialised.load(Ordering::Acquire)
    }

    /// Records that it was given a context, or that it lost it.
    pub fn set_initialised(&self, initialised: bool) {
        self.initialised.store(initialised, Ordering::Release);
    }

    /// Leaves a non-maskable interrupt to be delivered when it next runs.
    pub fn raise_nmi(&self) {
        self.nmi.store(true, Ordering::Release);
    }

    /// Whether a non-maskable interrupt waits.
    #[inline]
    pub fn has_nmi(&self) -> bool {
        self.nmi.load(Ordering::Acquire)
    }

    /// Takes a waiting non-maskable interrupt, unless the last one's handler has not returned yet.
    pub fn take_nmi(&self) -> bool {
        !self.handles_nmi.load(Ordering::Relaxed) && self.nmi.swap(false, Ordering::AcqRel)
    }

    /// Notes that the handler of a non-maskable interrupt begins.
    pub fn begin_nmi(&self) {
        self.handles_nmi.store(true, Ordering::Relaxed);
    }

    /// Notes a return of the kernel's, by which such a handler ends. True if another one waits.
    #[inline]
    pub fn end_nmi(&self) -> bool {
        self.handles_nmi.load(Ordering::Relaxed) && {
            self.handles_nmi.store(false, Ordering::Relaxed);
            self.has_nmi()
        }
    }

    /// Forgets whatever there was of non-maskable interrupts.
    pub fn clear_nmi(&self) {
        self.handles_nmi.store(false, Ordering::Relaxed);
        self.nmi.store(false, Ordering::Release);
    }

    /// Whether it alone was told not to run.
    #[inline]
    pub fn is_paused(&self) -> bool {
        self.pause_count.load(Ordering::Acquire) != 0
    }
}

/// A vcpu together with the domain that owns it.
#[derive(Clone)]
pub struct VcpuRef {
    vcpu: Arc<Vcpu>,
    domain: Arc<Domain>,
}

impl VcpuRef {
    /// The domain's vcpu of that number, if it has one.
    pub fn of(domain: &Arc<Domain>, id: VcpuId) -> Option<VcpuRef> {
        Some(VcpuRef {
            vcpu: domain.vcpus().get(id.0 as usize)?.clone(),
            domain: domain.clone(),
        })
    }

    /// All of a domain's vcpus.
    pub fn all(domain: &Arc<Domain>) -> impl Iterator<Item = VcpuRef> + use<> {
        let domain = domain.clone();
        (0..domain.vcpus().len() as u32).filter_map(move |id| VcpuRef::of(&domain, VcpuId(id)))
    }

    /// The owner.
    #[inline]
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Whether it could run if a CPU were free, as far as pauses and life go (not blocking).
    #[inline]
    pub fn may_run(&self) -> bool {
        self.is_online() && !self.is_paused() && !self.domain.is_paused() && self.domain.life() == super::Life::Alive
    }

    /// Keeps it from running, and waits until it does not.
    pub fn pause(&self) {
        self.pause_count.fetch_add(1, Ordering::AcqRel);
        crate::sched::stop_and_wait(self);
    }

    /// Takes one pause back.
    pub fn unpause(&self) {
        if self.pause_count.fetch_sub(1, Ordering::AcqRel) == 1 {
            crate::sched::wake(self);
        }
    }

    /// Whether the two are the same vcpu.
    #[inline]
    pub fn is(&self, other: &VcpuRef) -> bool {
        Arc::ptr_eq(&self.vcpu, &other.vcpu)
    }
}

impl Deref for VcpuRef {
    type Target = Vcpu;
    #[inline]
    fn deref(&self) -> &Vcpu {
        &self.vcpu
    }
}

impl core::fmt::Display for VcpuRef {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}{}", self.domain.id, self.vcpu.id)
    }
}
