//! Domains: who owns what, and how they live and die.
//!
//! A [`Domain`] owns its vcpus outright; whoever needs one from outside holds a [`VcpuRef`], which keeps the
//! domain alive and names one of them. Life goes one way: alive, dying (its resources are being taken back,
//! in preemptible steps), zombie (only pages that others still hold are left), gone from the list.
//!
//! Always true:
//! 1. A domain in the list has a domid that no other has.
//! 2. `vcpus` is set at most once, by `max_vcpus`, and never changes its length.
//! 3. A dying domain runs no vcpu again.

pub mod context;
pub mod death;
pub mod list;
pub mod vcpu;

use crate::cpu::AtomicCpuSet;
use crate::hypercall::event_channel;
use crate::hypercall::event_fifo::{self, Fifo};
use crate::lock::{Lock, Rank};
use crate::memory::DomainMemory;
use crate::pv::levelling::DomainMasks;
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::{shared_info, vcpu_info};
use ferroxen_evtchn::PortTable;
use ferroxen_grants::GrantTable;
use ferroxen_loader::options::Options;
use ferroxen_machine::memory::Page;
use ferroxen_words::{DomId, Mfn, Port, VcpuId};

pub use list::{by_id, create, resolve};
pub use vcpu::{Callback, InfoArea, PvState, Vcpu, VcpuRef};

/// What `createdomain` fixes for a domain's whole life.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most vcpus that `max_vcpus` may ask for.
    pub vcpus: u32,
    /// Highest event-channel port, inclusive.
    pub evtchn_port: u32,
    /// Frames of the grant table.
    pub grant_frames: u32,
    /// Frames' worth of grant mappings.
    pub maptrack_frames: u32,
    /// It serves xenstore, and may look at other domains.
    pub is_xenstore: bool,
    /// Registers that it does not have read as 0 where the host has them, and forget what is written.
    pub relaxed_registers: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            vcpus: 1,
            evtchn_port: 1023,
            grant_frames: 64,
            maptrack_frames: 1024,
            is_xenstore: false,
            relaxed_registers: false,
        }
    }
}

impl Limits {
    /// As the host's command line has them.
    pub fn with_options(self, options: &Options<'_>) -> Limits {
        Limits {
            grant_frames: options.gnttab_max_frames.unwrap_or(self.grant_frames).clamp(1, 1024),
            maptrack_frames: options
                .gnttab_max_maptrack_frames
                .unwrap_or(self.maptrack_frames)
                .clamp(1, 4096),
            ..self
        }
    }
}

/// Where a domain stands between creation and oblivion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Life {
    /// Created; may run.
    Alive = 0,
    /// Being destroyed: never runs again, resources are being taken back.
    Dying = 1,
    /// Only pages that others hold remain.
    Zombie = 2,
}

/// No shutdown asked for.
const NOT_SHUT_DOWN: u8 = 0xff;

/// One virtual machine.
pub struct Domain {
    /// Its number.
    pub id: DomId,
    /// Whether it may use the control interfaces (Domain 0).
    pub is_privileged: bool,
    /// Limits fixed at creation.
    pub limits: Limits,
    /// The toolstack's name for it, 16 opaque bytes.
    pub handle: Lock<[u8; 16]>,
    /// The shared page.
    pub shared_info: Page,
    /// Its vcpus, once `max_vcpus` was called.
    pub vcpus: spin::Once<Box<[Arc<Vcpu>]>>,
    /// Event channels.
    pub ports: Lock<PortTable>,
    /// Their queues, if it has any.
    pub fifo: Fifo,
    /// Grant table and maps.
    pub grants: Lock<GrantTable<Arc<Domain>>>,
    /// Physical interrupts.
    pub pirqs: Lock<crate::irq::DomainPirqs>,
    /// Pages.
    pub memory: Lock<DomainMemory>,
    /// Serialises page-table updates.
    pub page_tables: Lock<crate::pv::mm::TableState>,
    /// What its vcpus run on instead of its tables while it is logged.
    pub mirrors: Lock<crate::pv::mm::Mirrors>,
    /// Which ports, frames and interrupts it may use.
    pub io: Lock<crate::irq::IoPermissions>,
    /// One control operation at a time.
    pub control: Lock<()>,
    /// CPUs whose TLB may hold its translations.
    pub dirty_cpus: AtomicCpuSet,
    /// `VMASST_TYPE_*` bits.
    pub vm_assist: AtomicU64,
    /// Seconds added to wall-clock time.
    pub time_offset: AtomicU64,
    /// `TSC_MODE_*` as its toolstack set it.
    pub tsc_mode: AtomicU32,
    /// How often it has been made, by migrations too.
    pub incarnation: AtomicU32,
    /// The NUMA nodes that its toolstack wants it on; 0: no wish.
    pub nodes: AtomicU64,
    /// Its port that is rung when it suspends, in place of the host's virtual interrupt; 0: none.
    pub suspend_port: AtomicU32,
    /// CPUID and MSR policy.
    pub policy: Lock<crate::pv::policy::DomainPolicy>,
    /// What CPUID answers to who does not ask us.
    pub cpuid_masks: DomainMasks,
    /// Scheduling.
    pub sched: crate::sched::DomainSched,
    life: AtomicU8,
    shutdown: AtomicU8,
    pause_count: AtomicU32,
    /// Paused by a domctl (counts once, however often it is asked).
    controller_pauses: AtomicU32,
    /// It has been let run: what only its builder may change stays.
    has_run: AtomicBool,
    /// What it writes is logged. Changed under the lock of its page tables, while it does not run.
    is_logged: AtomicBool,
}

impl Domain {
    /// A domain without vcpus or memory, paused once by its creator.
    pub(in crate::domain) fn new(
        id: DomId,
        is_privileged: bool,
        limits: Limits,
        handle: [u8; 16],
        shared_page: Page,
        memory: DomainMemory,
    ) -> Result<Domain, Errno> {
        // Until it says otherwise, no vcpu of it takes events.
        for vcpu in 0..ferroxen_abi::xen::LEGACY_MAX_VCPUS {
            shared_page.store_u8_at(
                shared_info::VCPU_INFO + vcpu * vcpu_info::SIZE + vcpu_info::UPCALL_MASK,
                1,
            );
        }
        let policy = crate::pv::policy::DomainPolicy::new(is_privileged);
        Ok(Domain {
            id,
            is_privileged,
            limits,
            handle: Lock::new(Rank::Control, handle),
            shared_info: shared_page,
            vcpus: spin::Once::new(),
            ports: Lock::new(
                Rank::Events,
                PortTable::new(port_limits(limits)).map_err(|_| Errno::ENOMEM)?,
            ),
            fifo: Fifo::new(),
            grants: Lock::new(
                Rank::Grants,
                GrantTable::new(limits.grant_frames, limits.maptrack_frames).map_err(|_| Errno::ENOMEM)?,
            ),
            pirqs: Lock::new(Rank::Irqs, crate::irq::DomainPirqs::new()),
            memory: Lock::new(Rank::Pages, memory),
            page_tables: Lock::new(Rank::PageTables, crate::pv::mm::TableState::new()),
            mirrors: Lock::new(Rank::Mirrors, crate::pv::mm::Mirrors::new()),
            io: Lock::new(Rank::IoPermissions, crate::irq::IoPermissions::new(is_privileged)),
            control: Lock::new(Rank::Control, ()),
            dirty_cpus: AtomicCpuSet::new(),
            vm_assist: AtomicU64::new(0),
            time_offset: AtomicU64::new(0),
            tsc_mode: AtomicU32::new(0),
            incarnation: AtomicU32::new(1),
            nodes: AtomicU64::new(0),
            suspend_port: AtomicU32::new(0),
            cpuid_masks: DomainMasks::of(policy.get()),
            policy: Lock::new(Rank::Vcpu, policy),
            sched: crate::sched::DomainSched::new(),
            life: AtomicU8::new(Life::Alive as u8),
            shutdown: AtomicU8::new(NOT_SHUT_DOWN),
            pause_count: AtomicU32::new(1),
            controller_pauses: AtomicU32::new(1),
            has_run: AtomicBool::new(false),
            is_logged: AtomicBool::new(false),
        })
    }

    /// Gives it its vcpus, once (`max_vcpus`): `EINVAL` for another number than it was made for.
    pub fn set_max_vcpus(self: &Arc<Self>, count: u32) -> Result<(), Errno> {
        if count != self.limits.vcpus {
            return Err(Errno::EINVAL);
        }
        if self.vcpus.is_completed() {
            return Ok(());
        }
        let mut vcpus = alloc::vec::Vec::new();
        vcpus.try_reserve_exact(count as usize).map_err(|_| Errno::ENOMEM)?;
        if ferroxen_machine::heap::free_bytes() < list::HEAP_RESERVE + count as usize * HEAP_PER_VCPU {
            return Err(Errno::ENOMEM);
        }
        for id in 0..count {
            vcpus.push(Arc::new(Vcpu::new(self, VcpuId(id))?));
        }
        self.vcpus.call_once(|| vcpus.into_boxed_slice());
        event_fifo::offer_to_all(self)?;
        for vcpu in VcpuRef::all(self) {
            crate::sched::admit(&vcpu);
        }
        Ok(())
    }

    /// Its vcpus; none before `max_vcpus`.
    #[inline]
    pub fn vcpus(&self) -> &[Arc<Vcpu>] {
        self.vcpus.get().map_or(&[], |vcpus| vcpus)
    }

    /// One of its vcpus.
    #[inline]
    pub fn vcpu(&self, id: VcpuId) -> Option<&Vcpu> {
        self.vcpus().get(id.0 as usize).map(|vcpu| &**vcpu)
    }

    /// Frame of the shared page.
    pub fn shared_info_mfn(&self) -> Mfn {
        self.shared_info.mfn()
    }

    /// Where in the shared page a vcpu's info lies before the guest moves it.
    pub fn legacy_info(&self, id: VcpuId) -> Option<InfoArea> {
        let index = id.0 as usize;
        let offset = shared_info::VCPU_INFO + index * vcpu_info::SIZE;
        InfoArea::new(self.shared_info, offset).filter(|_| index < ferroxen_abi::xen::LEGACY_MAX_VCPUS)
    }

    /// Where the domain stands.
    pub fn life(&self) -> Life {
        match self.life.load(Ordering::Acquire) {
            0 => Life::Alive,
            1 => Life::Dying,
            _ => Life::Zombie,
        }
    }

    /// Moves from alive to dying; false if somebody did that before.
    pub(crate) fn start_dying(&self) -> bool {
        self.life
            .compare_exchange(
                Life::Alive as u8,
                Life::Dying as u8,
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .is_ok()
    }

    /// Nothing is left but pages that others hold.
    pub(crate) fn become_zombie(&self) {
        self.life.store(Life::Zombie as u8, Ordering::Release);
    }

    /// Why the domain stopped (`SHUTDOWN_*`), if it did.
    pub fn shutdown_code(&self) -> Option<u8> {
        match self.shutdown.load(Ordering::Acquire) {
            NOT_SHUT_DOWN => None,
            code => Some(code),
        }
    }

    /// Records why the domain stopped; false if it had stopped before.
    pub(crate) fn set_shutdown(&self, code: u8) -> bool {
        self.shutdown
            .compare_exchange(NOT_SHUT_DOWN, code, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Takes a shutdown back (resume).
    pub(crate) fn clear_shutdown(&self) {
        self.shutdown.store(NOT_SHUT_DOWN, Ordering::Release);
    }

    /// Whether no vcpu of the domain may run just now.
    #[inline]
    pub fn is_paused(&self) -> bool {
        self.pause_count.load(Ordering::Acquire) != 0
    }

    /// Whether a control operation paused it.
    pub fn is_paused_by_controller(&self) -> bool {
        self.controller_pauses.load(Ordering::Acquire) != 0
    }

    /// Whether its builder has let it run.
    pub fn has_run(&self) -> bool {
        self.has_run.load(Ordering::Acquire)
    }

    /// Whether what it writes is logged, so that its vcpus run on mirrors.
    #[inline(always)]
    pub fn is_logged(&self) -> bool {
        self.is_logged.load(Ordering::Relaxed)
    }

    pub(crate) fn set_logged(&self, is_logged: bool) {
        self.is_logged.store(is_logged, Ordering::Release);
    }

    /// Whether a vcpu of this domain asked for an assist (`VMASST_TYPE_*`).
    #[inline]
    pub fn assists(&self, kind: u32) -> bool {
        self.vm_assist.load(Ordering::Relaxed) & (1 << kind) != 0
    }

    /// Keeps every vcpu from running, and waits until none does.
    pub fn pause(self: &Arc<Self>) {
        self.pause_count.fetch_add(1, Ordering::AcqRel);
        for vcpu in VcpuRef::all(self) {
            crate::sched::stop_and_wait(&vcpu);
        }
    }

    /// As [`Self::pause`], but does not wait: for the running vcpu's own domain.
    pub fn pause_nosync(self: &Arc<Self>) {
        self.pause_count.fetch_add(1, Ordering::AcqRel);
        for vcpu in VcpuRef::all(self) {
            crate::sched::stop(&vcpu);
        }
    }

    /// Takes one pause back.
    pub fn unpause(self: &Arc<Self>) {
        if self.pause_count.fetch_sub(1, Ordering::AcqRel) == 1 {
            for vcpu in VcpuRef::all(self) {
                crate::sched::wake(&vcpu);
            }
        }
    }

    /// Pause as a control operation: counted once.
    pub fn pause_by_controller(self: &Arc<Self>) {
        self.controller_pauses.fetch_add(1, Ordering::AcqRel);
        self.pause();
    }

    /// Takes a controller's pause back; `EINVAL` if there is none.
    pub fn unpause_by_controller(self: &Arc<Self>) -> Result<(), Errno> {
        self.controller_pauses
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| count.checked_sub(1))
            .map_err(|_| Errno::EINVAL)?;
        if !self.is_paused_by_controller() {
            self.has_run.store(true, Ordering::Release);
        }
        self.unpause();
        Ok(())
    }

    /// Stops the domain for a reason (`SHUTDOWN_*`) and tells Domain 0, or who subscribed if it suspends.
    pub fn shut_down(self: &Arc<Self>, code: u8) {
        if self.set_shutdown(code) {
            self.pause_nosync();
            if crate::trace::is_on() {
                // As upstream: no vcpu in particular.
                let id = self.id.raw().into();
                crate::trace::note(ferroxen_abi::trace::sched::SHUTDOWN, &[id, u32::MAX, code.into()]);
            }
            if self.id == DomId::DOM0 {
                crate::boot::dom0_shut_down(code);
            }
            match self.suspend_port.load(Ordering::Relaxed) {
                port if code == SHUTDOWN_SUSPEND && port != 0 => event_channel::send_if_open(self, Port::new(port)),
                _ => event_channel::send_global_virq(ferroxen_abi::xen::virq::DOM_EXC),
            }
        }
    }

    /// Ends a domain that broke a rule no guest may break.
    pub fn crash(self: &Arc<Self>, why: core::fmt::Arguments<'_>) {
        crate::guest!(Error, "{}: crashed: {}", self.id, why);
        self.shut_down(SHUTDOWN_CRASH);
    }
}

/// A bound on what one vcpu takes from the heap beside its place in the list: trap table, FPU state.
const HEAP_PER_VCPU: usize = 16 * 1024;

/// Pirqs that a domain can bind to ports: those of the lines and messages of one machine.
const PIRQS: u32 = crate::irq::MAX_PIRQS;

fn port_limits(limits: Limits) -> ferroxen_evtchn::Limits {
    ferroxen_evtchn::Limits {
        max_port: limits.evtchn_port,
        vcpus: limits.vcpus,
        pirqs: PIRQS,
    }
}

/// `SHUTDOWN_poweroff`
pub const SHUTDOWN_POWEROFF: u8 = 0;
/// `SHUTDOWN_reboot`
pub const SHUTDOWN_REBOOT: u8 = 1;
/// `SHUTDOWN_suspend`
pub const SHUTDOWN_SUSPEND: u8 = 2;
/// `SHUTDOWN_crash`
pub const SHUTDOWN_CRASH: u8 = 3;
/// `SHUTDOWN_watchdog`
pub const SHUTDOWN_WATCHDOG: u8 = 4;
