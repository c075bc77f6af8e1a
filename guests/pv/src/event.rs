//! Event channels, and the page that is shared with the hypervisor.
//!
//! The upcall only counts: a port stays pending until the guest looks and clears it, so that what the
//! hypervisor did can be seen.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ferroxen_abi::event_channel::{
    AllocUnbound, BindInterdomain, BindIpi, BindVirq, Close, Send, Status, Unmask, evtchnop,
};
use ferroxen_abi::sched::schedop;
use ferroxen_abi::xen::{shared_info, vcpu_info as info};
use zerocopy::{FromZeros, IntoBytes};

use crate::hypercall::{self, Answer, address, number};
use crate::memory::{self, Page};
use crate::start;
use crate::time;
use crate::vcpu;

/// `DOMID_SELF`
pub const SELF: u16 = 0x7ff0;

pub(crate) static SHARED: AtomicU64 = AtomicU64::new(0);
static UPCALLS: [AtomicU64; vcpu::COUNT] = [const { AtomicU64::new(0) }; vcpu::COUNT];
static LAST_UPCALL: [AtomicU64; vcpu::COUNT] = [const { AtomicU64::new(0) }; vcpu::COUNT];
/// Where a vcpu's `vcpu_info` is, if it moved.
static MOVED: [AtomicUsize; vcpu::COUNT] = [const { AtomicUsize::new(0) }; vcpu::COUNT];

pub(crate) fn map_shared_info() {
    let page = Page::new();
    memory::set_entry(page.address(), start::info().shared_info | memory::ORDINARY);
    SHARED.store(page.address(), Ordering::SeqCst);
    for word in 0..64 {
        page.set_word(shared_info::EVTCHN_MASK / 8 + word, !0);
    }
    // A domU's console and store may have rung already; from here on nothing tells unless it is asked to.
    (0..vcpu::COUNT).for_each(acknowledge);
}

/// Returns the shared page.
pub fn shared() -> Page {
    Page::at(SHARED.load(Ordering::SeqCst))
}

/// Returns where `vcpu_info` of a vcpu lies.
pub(crate) fn vcpu_info(vcpu: usize) -> *mut u8 {
    let moved = MOVED[vcpu].load(Ordering::SeqCst);
    let place = if moved != 0 {
        moved
    } else {
        shared().address() as usize + vcpu * info::SIZE
    };
    core::ptr::with_exposed_provenance_mut(place)
}

/// Notes that a vcpu's `vcpu_info` was moved (`VCPUOP_register_vcpu_info`) to where `address` is mapped.
pub fn vcpu_info_moved(vcpu: usize, address: u64) {
    MOVED[vcpu].store(address as usize, Ordering::SeqCst);
}

/// Returns the page and the offset of a field of `vcpu_info`.
fn field(vcpu: usize, offset: usize) -> (Page, usize) {
    let place = vcpu_info(vcpu).addr() + offset;
    (Page::at(place as u64), place % memory::SIZE as usize)
}

pub(crate) fn upcall(vcpu: usize) {
    LAST_UPCALL[vcpu].store(time::now_by(vcpu), Ordering::SeqCst);
    UPCALLS[vcpu].fetch_add(1, Ordering::SeqCst);
    acknowledge(vcpu);
}

/// Does what an upcall does, by hand: forgets that there is something pending.
pub fn acknowledge(vcpu: usize) {
    let (page, offset) = field(vcpu, info::UPCALL_PENDING);
    page.atomic8(offset).store(0, Ordering::SeqCst);
    let (page, offset) = field(vcpu, info::PENDING_SEL);
    page.atomic(offset).store(0, Ordering::SeqCst);
}

/// Returns the number of upcalls that `vcpu` has had.
pub fn upcalls(vcpu: usize) -> u64 {
    UPCALLS[vcpu].load(Ordering::SeqCst)
}

/// Returns when `vcpu` had its last upcall, by its own clock.
pub fn last_upcall(vcpu: usize) -> u64 {
    LAST_UPCALL[vcpu].load(Ordering::SeqCst)
}

/// Returns (`evtchn_upcall_pending`, `evtchn_pending_sel`) of a vcpu.
pub fn pending_state(vcpu: usize) -> (u8, u64) {
    let (page, offset) = field(vcpu, info::UPCALL_PENDING);
    let pending = page.atomic8(offset).load(Ordering::SeqCst);
    let (page, offset) = field(vcpu, info::PENDING_SEL);
    (pending, page.atomic(offset).load(Ordering::SeqCst))
}

/// Returns the address of the last page fault, as the hypervisor noted it.
pub fn faulting_address(vcpu: usize) -> u64 {
    let (page, offset) = field(vcpu, info::CR2);
    page.atomic(offset).load(Ordering::SeqCst)
}

/// Masks or unmasks upcalls of the current vcpu. What came meanwhile is not delivered by this alone.
pub fn set_upcall_mask(masked: bool) {
    let (page, offset) = field(vcpu::current(), info::UPCALL_MASK);
    page.atomic8(offset).store(masked.into(), Ordering::SeqCst);
}

/// Tells whether upcalls of `vcpu` are masked.
pub fn upcall_mask(vcpu: usize) -> u8 {
    let (page, offset) = field(vcpu, info::UPCALL_MASK);
    page.atomic8(offset).load(Ordering::SeqCst)
}

/// Lets upcalls in, and asks the hypervisor for one that is due.
pub fn enable() {
    set_upcall_mask(false);
    if pending_state(vcpu::current()).0 != 0 {
        // Any hypercall will do: pending events are looked at on the way back.
        hypercall::call(number::XEN_VERSION, [0]);
    }
}

fn bit(base: usize, port: u32) -> (&'static AtomicU64, u64) {
    let word = shared().atomic(base + (port / 64) as usize * 8);
    (word, 1 << (port % 64))
}

fn is_set(base: usize, port: u32) -> bool {
    let (word, bit) = bit(base, port);
    word.load(Ordering::SeqCst) & bit != 0
}

/// Tells whether `port` is pending.
pub fn is_pending(port: u32) -> bool {
    is_set(shared_info::EVTCHN_PENDING, port)
}

/// Tells whether `port` is masked.
pub fn is_masked(port: u32) -> bool {
    is_set(shared_info::EVTCHN_MASK, port)
}

/// Forgets that `port` was pending, and tells whether it was.
pub fn take(port: u32) -> bool {
    let (word, bit) = bit(shared_info::EVTCHN_PENDING, port);
    word.fetch_and(!bit, Ordering::SeqCst) & bit != 0
}

/// Makes `port` look pending, by hand.
pub(crate) fn set_pending(port: u32) {
    let (word, bit) = bit(shared_info::EVTCHN_PENDING, port);
    word.fetch_or(bit, Ordering::SeqCst);
}

/// Masks `port`, or unmasks it in the shared page alone.
pub fn set_mask(port: u32, masked: bool) {
    let (word, bit) = bit(shared_info::EVTCHN_MASK, port);
    if masked {
        word.fetch_or(bit, Ordering::SeqCst);
    } else {
        word.fetch_and(!bit, Ordering::SeqCst);
    }
}

/// Asks `EVTCHNOP_*`.
#[inline(always)]
pub fn op<T: IntoBytes + ?Sized>(command: u64, argument: &mut T) -> Answer {
    hypercall::call(number::EVENT_CHANNEL_OP, [command, address(argument)])
}

/// Opens a port of `dom` for `remote`; either may be [`SELF`].
pub fn alloc_unbound(dom: u16, remote: u16) -> Result<u32, Answer> {
    let mut request = AllocUnbound::new_zeroed();
    request.dom.0 = dom;
    request.remote_dom.0 = remote;
    op(evtchnop::ALLOC_UNBOUND, &mut request).ok()?;
    Ok(request.port)
}

/// Connects a new port of ours to `port` of `remote`.
pub fn bind_interdomain(remote: u16, port: u32) -> Result<u32, Answer> {
    let mut request = BindInterdomain::new_zeroed();
    request.remote_dom.0 = remote;
    request.remote_port = port;
    op(evtchnop::BIND_INTERDOMAIN, &mut request).ok()?;
    Ok(request.local_port)
}

/// Opens a port for a virtual interrupt.
pub fn bind_virq(virq: u32, vcpu: u32) -> Result<u32, Answer> {
    let mut request = BindVirq { virq, vcpu, port: 0 };
    op(evtchnop::BIND_VIRQ, &mut request).ok()?;
    Ok(request.port)
}

/// Opens a port on which our own vcpus ring `vcpu`.
pub fn bind_ipi(vcpu: u32) -> Result<u32, Answer> {
    let mut request = BindIpi { vcpu, port: 0 };
    op(evtchnop::BIND_IPI, &mut request).ok()?;
    Ok(request.port)
}

/// Closes `port`.
pub fn close(port: u32) -> Answer {
    op(evtchnop::CLOSE, &mut Close { port })
}

/// Rings `port`.
#[inline(always)]
pub fn send(port: u32) -> Answer {
    op(evtchnop::SEND, &mut Send { port })
}

/// Unmasks `port`, and delivers what was pending.
pub fn unmask(port: u32) -> Answer {
    op(evtchnop::UNMASK, &mut Unmask { port })
}

/// Asks what `port` of `dom` is.
pub fn status(dom: u16, port: u32) -> Result<Status, Answer> {
    let mut request = Status::new_zeroed();
    request.dom.0 = dom;
    request.port = port;
    op(evtchnop::STATUS, &mut request).ok()?;
    Ok(request)
}

/// Sleeps until `port` is pending, and takes that. The port must be unmasked.
pub fn wait(port: u32) {
    loop {
        set_upcall_mask(true);
        if take(port) {
            acknowledge(vcpu::current());
            set_upcall_mask(false);
            return;
        }
        hypercall::call(number::SCHED_OP, [schedop::BLOCK]);
    }
}
