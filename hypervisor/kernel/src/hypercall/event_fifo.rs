//! Event channels by FIFO queues, for guests that come with them.
//!
//! A Linux that was saved on Debian's Xen uses queues, and asks for them when it resumes: without, it dies. A kernel that
//! boots here asks too, is refused, and uses the two-level interface, which is all that it needs. So queues are offered to
//! whom a control operation brings back with the state of its vcpus, and to everybody by the option `fifo-events`.
//!
//! Always true:
//! 1. Memory for queues is taken when they are offered, none when a guest asks or rings.
//! 2. A shared page is held, to be written, until the domain's ports are reset or the domain dies.
//! 3. All changes are made under the lock of the domain's ports; the lock of the queues only says so to the compiler.
//!
//! A ring of a port whose word the guest has yet to bring stays in the shared page's two-level bit until then.

use super::Answer;
use super::event_channel::Bits;
use crate::domain::{Domain, Vcpu};
use crate::guest::GuestPtr;
use crate::lock::{Lock, Rank};
use crate::memory::{Held, hold_writable};
use crate::sched;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::event_channel as abi;
use ferroxen_evtchn::fifo::{LINK_BITS, MASKED, PENDING, Queues, SharedWords};
use ferroxen_evtchn::{NoMemory, PortTable, Rung, SharedBits};
use ferroxen_machine::memory::Page;
use ferroxen_words::{Mfn, PAGE_SIZE, Port, VcpuId};

/// Words in a page.
const WORDS: u32 = (PAGE_SIZE / 4) as u32;

/// Whether everybody may have queues (`fifo-events`).
static FOR_ALL: AtomicBool = AtomicBool::new(false);

/// Takes the host's policy from its command line.
pub fn configure(for_all: bool) {
    FOR_ALL.store(for_all, Ordering::Relaxed);
}

/// A domain's queues, if it may have any.
pub struct Fifo {
    /// The guest has asked for them.
    is_on: AtomicBool,
    offered: Lock<Option<Box<Offered>>>,
}

/// What there is of a domain's queues.
struct Offered {
    queues: Queues,
    shared: Shared,
}

/// The pages that the guest shares with us.
struct Shared {
    /// One per [`WORDS`] ports.
    array: Vec<Held>,
    /// Per vcpu.
    controls: Vec<Option<Control>>,
    /// How many pages of words the domain's ports need.
    most: usize,
}

/// A vcpu's control block (`evtchn_fifo_control_block`).
struct Control {
    held: Held,
    offset: usize,
}

impl Control {
    const SIZE: usize = 8 + 4 * ferroxen_evtchn::fifo::QUEUES;
    const READY: usize = 0;
    const HEADS: usize = 8;
}

impl Fifo {
    /// None.
    pub(crate) fn new() -> Self {
        Fifo {
            is_on: AtomicBool::new(false),
            offered: Lock::new(Rank::EventQueues, None),
        }
    }

    /// Whether the domain's events go by queues.
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }
}

/// Lets a domain that has its vcpus have queues, too.
pub fn offer(domain: &Domain) -> Result<(), Errno> {
    let (vcpus, ports) = (domain.vcpus().len(), domain.ports.lock().count());
    let mut offered = domain.fifo.offered.lock();
    if offered.is_none() {
        let made = Offered::new(vcpus, ports).map_err(|NoMemory| Errno::ENOMEM)?;
        *offered = Some(Box::new(made));
    }
    Ok(())
}

/// [`offer`], if everybody may have them.
pub fn offer_to_all(domain: &Domain) -> Result<(), Errno> {
    if FOR_ALL.load(Ordering::Relaxed) {
        offer(domain)?;
    }
    Ok(())
}

impl Offered {
    fn new(vcpus: usize, ports: u32) -> Result<Self, NoMemory> {
        let most = ports.div_ceil(WORDS) as usize;
        let mut shared = Shared {
            array: Vec::new(),
            controls: Vec::new(),
            most,
        };
        shared.array.try_reserve_exact(most).map_err(|_| NoMemory)?;
        shared.controls.try_reserve_exact(vcpus).map_err(|_| NoMemory)?;
        shared.controls.resize_with(vcpus, || None);
        Ok(Offered {
            queues: Queues::new(vcpus as u32, ports)?,
            shared,
        })
    }
}

/// `EVTCHNOP_init_control`: `ENOSYS` for who may have no queues.
pub(super) fn init_control(domain: &Arc<Domain>, at: u64) -> Answer {
    let at = GuestPtr::<abi::InitControl>::new(at);
    let request = at.read()?;
    let vcpu = VcpuId(request.vcpu);
    if domain.fifo.offered.lock().is_none() {
        return Err(Errno::ENOSYS);
    }
    domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    let offset = request.offset as usize;
    if !offset.is_multiple_of(8) || offset > PAGE_SIZE - Control::SIZE {
        return Err(Errno::EINVAL);
    }
    let control = Control {
        held: held_page(domain, request.control_gfn)?,
        offset,
    };
    let ports = domain.ports.lock();
    let mut offered = domain.fifo.offered.lock();
    let slot = offered
        .as_mut()
        .and_then(|offered| offered.shared.controls.get_mut(vcpu.0 as usize))
        .ok_or(Errno::ENOSYS)?;
    if slot.is_some() {
        return Err(Errno::EINVAL);
    }
    *slot = Some(control);
    domain.fifo.is_on.store(true, Ordering::Release);
    drop(offered);
    drop(ports);
    at.write(&abi::InitControl {
        link_bits: LINK_BITS,
        ..request
    })?;
    Ok(0)
}

/// `EVTCHNOP_expand_array`: `ENOSPC` beyond what the domain's ports need.
pub(super) fn expand_array(domain: &Arc<Domain>, at: u64) -> Answer {
    let request = GuestPtr::<abi::ExpandArray>::new(at).read()?;
    if !domain.fifo.is_on() {
        return Err(refusal(domain, Errno::EOPNOTSUPP));
    }
    let page = held_page(domain, request.array_gfn)?;
    let ports = domain.ports.lock();
    let first = {
        let mut offered = domain.fifo.offered.lock();
        let shared = &mut offered.as_mut().ok_or(Errno::EOPNOTSUPP)?.shared;
        if shared.array.len() >= shared.most {
            return Err(Errno::ENOSPC);
        }
        shared.array.push(page);
        (shared.array.len() as u32 - 1) * WORDS
    };
    ring_what_waited(domain, &ports, first);
    Ok(0)
}

/// Rings the ports of a page of words that is new, as far as they were rung before.
fn ring_what_waited(domain: &Arc<Domain>, ports: &PortTable, first: u32) {
    let bits = Bits::of(domain);
    for port in (first..ports.count().min(first + WORDS)).map(Port::new) {
        if bits.is_pending(port)
            && let Some(channel) = ports.get(port)
        {
            bits.clear_pending(port);
            ring(domain, port, channel.vcpu);
        }
    }
}

/// `EVTCHNOP_set_priority`
pub(super) fn set_priority(domain: &Arc<Domain>, at: u64) -> Answer {
    let request = GuestPtr::<abi::SetPriority>::new(at).read()?;
    if !domain.fifo.is_on() {
        return Err(Errno::ENOSYS);
    }
    let ports = domain.ports.lock();
    let port = Port::new(request.port);
    ports.used(port).map_err(|_| Errno::EINVAL)?;
    let mut offered = domain.fifo.offered.lock();
    let queues = &mut offered.as_mut().ok_or(Errno::ENOSYS)?.queues;
    if queues.set_priority(port, request.priority) {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// What somebody hears who may have queues and has not asked for them; who may have none hears that there are none.
fn refusal(domain: &Domain, errno: Errno) -> Errno {
    if domain.fifo.offered.lock().is_some() {
        errno
    } else {
        Errno::ENOSYS
    }
}

fn held_page(domain: &Domain, gfn: u64) -> Result<Held, Errno> {
    hold_writable(domain, Mfn::new(gfn)).map_err(|_| Errno::EINVAL)
}

/// Back to two levels: the ports are reset, or the domain dies. The caller has closed all ports.
pub(super) fn release(domain: &Domain) {
    let ports = domain.ports.lock();
    domain.fifo.is_on.store(false, Ordering::Release);
    if let Some(offered) = domain.fifo.offered.lock().as_mut() {
        offered.queues.reset();
        offered.shared.array.clear();
        offered.shared.controls.fill_with(|| None);
    }
    drop(ports);
}

/// The frames that it holds, for who counts references.
pub fn frames(domain: &Domain) -> Vec<Mfn> {
    let offered = domain.fifo.offered.lock();
    let Some(Shared { array, controls, .. }) = offered.as_ref().map(|offered| &offered.shared) else {
        return Vec::new();
    };
    let blocks = controls.iter().flatten().map(|control| &control.held);
    array.iter().chain(blocks).map(|held| held.page().mfn()).collect()
}

/// Rings a port. The caller holds the lock of its table.
#[cold]
#[inline(never)]
pub(super) fn ring(domain: &Arc<Domain>, port: Port, vcpu: VcpuId) {
    let rung = with(domain, |queues, words| queues.ring(words, port, vcpu));
    match rung.flatten() {
        Some(rung) => carry_out(domain, port, rung),
        None => {
            // Until the guest brings its word.
            let _ = Bits::of(domain).test_and_set_pending(port);
            sched::port_pending(domain, port);
        }
    }
}

/// Unmasks a port. The caller holds the lock of its table.
#[cold]
pub(super) fn unmask(domain: &Arc<Domain>, port: Port, vcpu: VcpuId) {
    if let Some(rung) = with(domain, |queues, words| queues.unmask(words, port, vcpu)) {
        carry_out(domain, port, rung);
    }
}

/// Clears what a port's last owner left pending.
#[cold]
pub(super) fn clear_pending(domain: &Arc<Domain>, port: Port) {
    Bits::of(domain).clear_pending(port);
    let _ = with(domain, |_, words| words.clear(port, PENDING));
}

/// Whether a port is pending, and whether it is masked.
#[cold]
pub(super) fn look(domain: &Arc<Domain>, port: Port) -> (bool, bool) {
    // Setting nothing is reading.
    match with(domain, |_, words| words.set(port, 0)).flatten() {
        Some(word) => (word & PENDING != 0, word & MASKED != 0),
        None => (Bits::of(domain).is_pending(port), false),
    }
}

fn with<T>(domain: &Domain, act: impl FnOnce(&mut Queues, &Words<'_>) -> T) -> Option<T> {
    let mut offered = domain.fifo.offered.lock();
    let Offered { queues, shared } = &mut **offered.as_mut()?;
    Some(act(queues, &Words { domain, shared }))
}

fn carry_out(domain: &Arc<Domain>, port: Port, rung: Rung) {
    if let Rung::Upcall(vcpu) = rung
        && let Some(vcpu) = domain.vcpu(vcpu)
    {
        sched::kick_in(domain, vcpu);
    }
    if rung != Rung::Already {
        sched::port_pending(domain, port);
    }
}

/// The words and blocks of one domain.
struct Words<'a> {
    domain: &'a Domain,
    shared: &'a Shared,
}

impl Words<'_> {
    /// The page that has a port's word, and where.
    fn place(&self, port: Port) -> Option<(Page, usize)> {
        let held = self.shared.array.get((port.raw() / WORDS) as usize)?;
        Some((held.page(), (port.raw() % WORDS) as usize * 4))
    }

    fn control(&self, vcpu: VcpuId) -> Option<(Page, usize)> {
        let control = self.shared.controls.get(vcpu.0 as usize)?.as_ref()?;
        Some((control.held.page(), control.offset))
    }
}

impl SharedWords for Words<'_> {
    fn set(&self, port: Port, bits: u32) -> Option<u32> {
        self.place(port).map(|(page, at)| page.fetch_or_u32_at(at, bits))
    }

    fn clear(&self, port: Port, bits: u32) -> Option<u32> {
        self.place(port).map(|(page, at)| page.fetch_and_u32_at(at, !bits))
    }

    fn replace(&self, port: Port, old: u32, new: u32) -> Result<(), u32> {
        let (page, at) = self.place(port).ok_or(0_u32)?;
        page.cas_u32_at(at, old, new).map(drop)
    }

    fn has_control(&self, vcpu: VcpuId) -> bool {
        self.control(vcpu).is_some()
    }

    fn set_head(&self, vcpu: VcpuId, priority: u8, port: Port) {
        if let Some((page, at)) = self.control(vcpu) {
            page.store_u32_at(at + Control::HEADS + usize::from(priority) * 4, port.raw());
        }
    }

    fn make_ready(&self, vcpu: VcpuId, priority: u8) -> bool {
        let Some((page, at)) = self.control(vcpu) else {
            return false;
        };
        let bit = 1 << priority;
        if page.fetch_or_u32_at(at + Control::READY, bit) & bit != 0 {
            return false;
        }
        let info = self.domain.vcpu(vcpu).and_then(Vcpu::info);
        info.is_some_and(|info| info.raise())
    }
}
