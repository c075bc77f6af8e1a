//! `grant_table_op`: domains lend each other pages.
//!
//! A mapping is made in three steps under one lock at a time: the mapper's table hands out a handle, the owner's
//! table pins the entry, and the mapper's table says what the handle stands for. In between, nobody else finds
//! the handle. Taken back, a mapping's pin goes only after no CPU can use the translation any more, since the
//! owner may then use the page for something else.

use super::{Answer, Call};
use crate::domain::death::Progress;
use crate::domain::list::HEAP_RESERVE;
use crate::domain::{self, Domain, Life, VcpuRef};
use crate::guest::GuestPtr;
use crate::memory::{self, Held};
use crate::pv::mm::{GrantPlace, NotMapped, flush_after_unmap, map_grant, unmap_grant};
use alloc::sync::Arc;
use core::ops::Deref;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::grant_table::{self as abi, GrantStatus, gntcopy, gntmap, gnttabop};
use ferroxen_frames::Frame;
use ferroxen_grants::{Access, Facts, Mapping, Refused, SharedEntries, Use};
use ferroxen_machine::guest::{Array, GuestFault};
use ferroxen_machine::memory::Page;
use ferroxen_machine::{heap, time};
use ferroxen_words::{DomId, Gref, Handle, Mfn, PAGE_SIZE, RawDomId, Vaddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

fn status(refused: Refused) -> GrantStatus {
    match refused {
        Refused::NoSuchGrant => GrantStatus::BAD_GNTREF,
        Refused::NotOffered | Refused::NotForYou | Refused::ReadOnly | Refused::Unstable | Refused::TooOften => {
            GrantStatus::GENERAL_ERROR
        }
        Refused::NoHandleLeft | Refused::NoMemory => GrantStatus::NO_SPACE,
        Refused::NoSuchHandle => GrantStatus::BAD_HANDLE,
    }
}

/// Why one operation of a batch was not carried out.
enum Stop {
    /// The guest is told so, and the batch goes on.
    Refused(GrantStatus),
    /// The time is up; nothing was done.
    NotYet,
}

impl From<GrantStatus> for Stop {
    fn from(refused: GrantStatus) -> Self {
        Stop::Refused(refused)
    }
}

impl From<NotMapped> for Stop {
    fn from(why: NotMapped) -> Self {
        match why {
            NotMapped::NotYet => Stop::NotYet,
            NotMapped::NoEntry | NotMapped::Mismatch => GrantStatus::GENERAL_ERROR.into(),
            NotMapped::Refused(why) => page_status(why).into(),
        }
    }
}

/// What the guest is told about one operation, unless it is to be tried again.
fn told(result: Result<(), Stop>) -> Result<GrantStatus, Again> {
    match result {
        Ok(()) => Ok(GrantStatus::OKAY),
        Err(Stop::Refused(refused)) => Ok(refused),
        Err(Stop::NotYet) => Err(Again),
    }
}

/// An operation of a batch is to be tried again later.
struct Again;

/// The hypercall: a command, and an array of operands with its length.
#[inline(always)]
pub fn grant_table_op(call: &mut Call<'_>) -> Answer {
    let [command, at, count, ..] = call.args();
    let count = u32::try_from(count as i32).map_err(|_| Errno::EINVAL)?;
    match command {
        gnttabop::MAP_GRANT_REF => map_all(call, at, count),
        gnttabop::UNMAP_GRANT_REF => unmap_all(call, at, count),
        gnttabop::COPY => copy_all(call, at, count),
        command => manage(&mut call.apart(), command, at, count),
    }
}

/// Commands about tables as such.
#[inline(never)]
fn manage(call: &mut Call<'_>, command: u64, at: u64, count: u32) -> Answer {
    match command {
        gnttabop::SETUP_TABLE => one(call, at, count, |caller, request: &mut abi::SetupTable| {
            request.status = setup_table(caller, request).err().unwrap_or(GrantStatus::OKAY);
            Ok(())
        }),
        gnttabop::QUERY_SIZE => one(call, at, count, |caller, request: &mut abi::QuerySize| {
            request.status = query_size(caller, request).err().unwrap_or(GrantStatus::OKAY);
            Ok(())
        }),
        gnttabop::SET_VERSION => one(call, at, 1, |_, request: &mut abi::SetVersion| {
            match request.version {
                1 => Ok(()),
                // Left out, as if it had never been invented.
                2 => Err(Errno::ENOSYS),
                _ => Err(Errno::EINVAL),
            }
        }),
        gnttabop::GET_VERSION => one(call, at, 1, |caller, request: &mut abi::GetVersion| {
            let subject = domain::resolve(caller.domain(), request.dom)?;
            if !may_ask(caller, &subject) {
                return Err(Errno::EPERM);
            }
            request.version = 1;
            Ok(())
        }),
        gnttabop::GET_STATUS_FRAMES => one(call, at, count, |_, request: &mut abi::GetStatusFrames| {
            // Version 1 has none.
            request.status = GrantStatus::GENERAL_ERROR;
            Ok(())
        }),
        gnttabop::SWAP_GRANT_REF => each(call, at, count, |caller, request: &mut abi::SwapGrantRef| {
            let mut grants = caller.domain().grants.lock();
            let swapped = grants.swap(&SharedPages, Gref::new(request.ref_a), Gref::new(request.ref_b));
            request.status = match swapped {
                Ok(()) => GrantStatus::OKAY,
                Err(Refused::NoSuchGrant) => GrantStatus::BAD_GNTREF,
                Err(_) => GrantStatus::EAGAIN,
            };
            Ok(())
        }),
        // Page transfer and unmap-and-replace are left out; cache maintenance is Arm's.
        _ => Err(Errno::ENOSYS),
    }
}

#[inline(always)]
fn map_all(call: &mut Call<'_>, at: u64, count: u32) -> Answer {
    let mut last = None;
    each(call, at, count, |caller, request: &mut abi::MapGrantRef| {
        request.status = told(map(caller, &mut last, request).map(|(handle, frame)| {
            request.handle = handle.raw();
            request.dev_bus_addr = frame.maddr().raw();
        }))?;
        Ok(())
    })
}

#[inline(always)]
fn copy_all(call: &mut Call<'_>, at: u64, count: u32) -> Answer {
    let mut last = None;
    each(call, at, count, |caller, request: &mut abi::Copy| {
        request.status = copy(caller, &mut last, request).err().unwrap_or(GrantStatus::OKAY);
        Ok(())
    })
}

/// How many elements of an array are done between looks at the clock.
const LOOK_AT_CLOCK: u32 = 8;

/// Carries an operation out on each element of an array, and gives way in between if it takes long.
#[inline(always)]
fn each<T: FromBytes + IntoBytes + Immutable>(
    call: &mut Call<'_>,
    at: u64,
    count: u32,
    mut operation: impl FnMut(&VcpuRef, &mut T) -> Result<(), Again>,
) -> Answer {
    let mut rest = array::<T>(at, count)?;
    let mut done = 0u32;
    while rest.left() != 0 {
        if done != 0 && done.is_multiple_of(LOOK_AT_CLOCK) && time::entry_budget_spent() {
            return again(call, rest);
        }
        let mut request = rest.read().map_err(fault)?;
        if let Err(Again) = operation(call.caller, &mut request) {
            return again(call, rest);
        }
        rest.write(&request).map_err(fault)?;
        rest.advance();
        done += 1;
    }
    Ok(0)
}

fn array<T: FromBytes + IntoBytes + Immutable>(at: u64, count: u32) -> Result<Array<T>, Errno> {
    Array::new(Vaddr::new(at), count).ok_or(Errno::EFAULT)
}

fn fault(_: GuestFault) -> Errno {
    Errno::EFAULT
}

fn again<T: FromBytes + IntoBytes + Immutable>(call: &mut Call<'_>, rest: Array<T>) -> Answer {
    call.again([call.args()[0], rest.at().raw(), rest.left().into()])
}

/// Carries out an operation that takes no array.
fn one<T: FromBytes + IntoBytes + Immutable>(
    call: &mut Call<'_>,
    at: u64,
    count: u32,
    operation: impl FnOnce(&VcpuRef, &mut T) -> Result<(), Errno>,
) -> Answer {
    if count != 1 {
        return Err(Errno::EINVAL);
    }
    let at = GuestPtr::<T>::new(at);
    let mut request = at.read()?;
    operation(call.caller, &mut request)?;
    at.write(&request)?;
    Ok(0)
}

fn may_ask(caller: &VcpuRef, subject: &Arc<Domain>) -> bool {
    caller.domain().is_privileged || Arc::ptr_eq(caller.domain(), subject)
}

fn domain_of(caller: &VcpuRef, id: RawDomId) -> Result<Arc<Domain>, GrantStatus> {
    domain::resolve(caller.domain(), id).map_err(|_| GrantStatus::BAD_DOMAIN)
}

/// Shared table frames, accessed through the direct map.
struct SharedPages;

impl SharedEntries for SharedPages {
    type Frame = Page;

    #[inline(always)]
    fn frame(&self, frame: Mfn) -> Page {
        match Page::new(frame) {
            Some(page) => page,
            None => panic!("grant frame {frame} is no page"),
        }
    }

    #[inline(always)]
    fn load(&self, frame: Page, index: usize) -> u64 {
        frame.load_u64(index)
    }

    #[inline(always)]
    fn replace(&self, frame: Page, index: usize, old: u64, new: u64) -> bool {
        frame.cas_u64(index, old, new).is_ok()
    }

    #[inline(always)]
    fn clear_flags(&self, frame: Page, index: usize, flags: u16) {
        frame.fetch_and_u16_at(index * 8, !flags);
    }
}

/// A use of another domain's grant: the entry is pinned until this is dropped, or for longer by [`Pin::keep`].
struct Pin<O: Deref<Target = Domain>> {
    owner: O,
    gref: Gref,
    access: Access,
}

impl<O: Deref<Target = Domain>> Pin<O> {
    #[inline(always)]
    fn new(owner: O, gref: Gref, by: DomId, access: Access) -> Result<(Self, Mfn), GrantStatus> {
        let mut grants = owner.grants.lock();
        if owner.life() != Life::Alive {
            return Err(GrantStatus::BAD_DOMAIN);
        }
        let frame = grants.pin(&SharedPages, gref, by, access).map_err(status)?.frame;
        drop(grants);
        Ok((Pin { owner, gref, access }, frame))
    }
}

impl Pin<&Domain> {
    /// Leaves the pin to a mapping, which gives it back by [`unpin`].
    #[inline(always)]
    fn keep(self) {
        core::mem::forget(self);
    }
}

impl<O: Deref<Target = Domain>> Drop for Pin<O> {
    #[inline(always)]
    fn drop(&mut self) {
        self.owner.grants.lock().unpin(&SharedPages, self.gref, self.access);
    }
}

#[inline(always)]
fn hold(owner: &Domain, frame: Mfn, access: Access) -> Result<Held, GrantStatus> {
    let held = match access {
        Access::ReadOnly => memory::hold(owner, frame),
        Access::ReadWrite => memory::hold_writable(owner, frame),
    };
    held.map_err(page_status)
}

fn page_status(why: ferroxen_frames::Refused) -> GrantStatus {
    match why {
        ferroxen_frames::Refused::InUseAs(_) => GrantStatus::GENERAL_ERROR,
        _ => GrantStatus::BAD_PAGE,
    }
}

fn access_of(flags: u32) -> Access {
    if flags & gntmap::READONLY != 0 {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    }
}

/// The domain that lends: a batch mostly has the same one all along.
#[inline(always)]
fn granter(mapper: &Arc<Domain>, last: &mut Option<Arc<Domain>>, id: RawDomId) -> Result<Arc<Domain>, GrantStatus> {
    let id = DomId::new(id.0).ok_or(GrantStatus::BAD_DOMAIN)?;
    if id == mapper.id {
        return Ok(mapper.clone());
    }
    match last {
        Some(last) if last.id == id => Ok(last.clone()),
        _ => look_up(last, id),
    }
}

#[inline(never)]
fn look_up(last: &mut Option<Arc<Domain>>, id: DomId) -> Result<Arc<Domain>, GrantStatus> {
    let found = domain::by_id(id).ok_or(GrantStatus::BAD_DOMAIN)?;
    *last = Some(found.clone());
    Ok(found)
}

#[inline(always)]
fn map(caller: &VcpuRef, last: &mut Option<Arc<Domain>>, request: &abi::MapGrantRef) -> Result<(Handle, Mfn), Stop> {
    let flags = request.flags;
    let uses = Use {
        host: flags & gntmap::HOST_MAP != 0,
        device: flags & gntmap::DEVICE_MAP != 0,
    };
    if !uses.host && !uses.device {
        return Err(GrantStatus::BAD_GNTREF.into());
    }
    let mapper = caller.domain();
    let owner = granter(mapper, last, request.dom)?;
    let handle = take_handle(mapper)?;
    match map_at(caller, owner, request, uses) {
        Ok(mapping) => {
            let frame = mapping.frame;
            mapper.grants.lock().maps.set(handle, mapping);
            Ok((handle, frame))
        }
        Err(stop) => {
            mapper.grants.lock().maps.free(handle);
            Err(stop)
        }
    }
}

/// Who may use the page holds it: for CPUs that is the page-table entry, for devices the mapping itself.
#[inline(always)]
fn map_at(caller: &VcpuRef, owner: Arc<Domain>, request: &abi::MapGrantRef, uses: Use) -> Result<Borrowed, Stop> {
    let (gref, access) = (Gref::new(request.gref), access_of(request.flags));
    let (pin, frame) = Pin::new(&*owner, gref, caller.domain().id, access)?;
    let held = if uses.device {
        Some(hold(&owner, frame, access)?)
    } else {
        None
    };
    let names_entry = request.flags & gntmap::CONTAINS_PTE != 0;
    if uses.host {
        map_grant(
            caller,
            place(request.host_addr, names_entry),
            owner.id,
            frame,
            request.flags,
        )?;
    }
    if held.is_some() && access == Access::ReadWrite {
        note_device_writes(frame, Frame::begin_foreign_writes);
    }
    core::mem::forget(held);
    pin.keep();
    Ok(Mapping {
        owner,
        gref,
        frame,
        access,
        uses,
        names_entry,
    })
}

fn place(at: u64, names_entry: bool) -> GrantPlace {
    if names_entry {
        GrantPlace::Entry(at)
    } else {
        GrantPlace::Address(at)
    }
}

/// Hands out a handle. What a guest can make us remember must not eat the memory that others need.
#[inline(always)]
fn take_handle(mapper: &Domain) -> Result<Handle, GrantStatus> {
    let mut grants = mapper.grants.lock();
    if grants.maps.must_grow() && !may_use_heap(mapper) {
        return Err(GrantStatus::NO_SPACE);
    }
    grants.maps.take().map_err(status)
}

fn may_use_heap(domain: &Domain) -> bool {
    let reserve = if domain.is_privileged {
        HEAP_RESERVE
    } else {
        4 * HEAP_RESERVE
    };
    heap::free_bytes() > reserve
}

/// A page of another domain's, as a mapping remembers it.
type Borrowed = Mapping<Arc<Domain>>;

/// How many mappings are taken back between two flushes.
const BATCH: usize = 32;

/// A mapping that the mapper has let go of, but some CPU may still use.
#[derive(Clone, Copy)]
struct LetGo {
    handle: Handle,
    /// Uses that were taken back, and that are left.
    gone: Use,
    left: Use,
}

#[inline(always)]
fn unmap_all(call: &mut Call<'_>, at: u64, count: u32) -> Answer {
    let mut rest = array::<abi::UnmapGrantRef>(at, count)?;
    while rest.left() != 0 {
        if rest.left() != count && time::entry_budget_spent() {
            return again(call, rest);
        }
        // One at a time is what backends mostly do.
        let stopped = if rest.left() == 1 {
            unmap_some::<1>(call.caller, &mut rest)
        } else {
            unmap_some::<BATCH>(call.caller, &mut rest)
        };
        if let Err(Again) = stopped? {
            return again(call, rest);
        }
    }
    Ok(0)
}

/// Takes up to `N` mappings back; answers what stopped it before.
#[inline(always)]
fn unmap_some<const N: usize>(
    caller: &VcpuRef,
    rest: &mut Array<abi::UnmapGrantRef>,
) -> Result<Result<(), Again>, Errno> {
    let mut let_go = [None; N];
    let mut stopped = Ok(Ok(()));
    for slot in let_go.iter_mut().take(rest.left() as usize) {
        stopped = unmap_element(caller, rest, slot);
        if !matches!(stopped, Ok(Ok(()))) {
            break;
        }
        rest.advance();
    }
    settle(caller, &let_go);
    stopped
}

#[inline(always)]
fn unmap_element(
    caller: &VcpuRef,
    element: &Array<abi::UnmapGrantRef>,
    slot: &mut Option<LetGo>,
) -> Result<Result<(), Again>, Errno> {
    const STATUS: usize = core::mem::offset_of!(abi::UnmapGrantRef, status);
    let request = element.read().map_err(fault)?;
    let done = let_go_of(caller, &request).map(|let_go| *slot = let_go);
    match told(done) {
        Ok(status) => element.write_u16::<STATUS>(status.0 as u16).map_err(fault).map(Ok),
        Err(again) => Ok(Err(again)),
    }
}

#[inline(always)]
fn let_go_of(caller: &VcpuRef, request: &abi::UnmapGrantRef) -> Result<Option<LetGo>, Stop> {
    let handle = Handle::new(request.handle);
    let mapper = caller.domain();
    let mapping = mapper.grants.lock().maps.begin(handle).map_err(status)?;
    let gone = Use {
        host: mapping.uses.host && request.host_addr != 0,
        device: mapping.uses.device && request.dev_bus_addr != 0,
    };
    match take_away(caller, request, &mapping, gone) {
        Ok(()) if gone.host || gone.device => {
            let left = Use {
                host: mapping.uses.host && !gone.host,
                device: mapping.uses.device && !gone.device,
            };
            Ok(Some(LetGo { handle, gone, left }))
        }
        kept => {
            mapper.grants.lock().maps.keep(handle, mapping.uses);
            kept.map(|()| None)
        }
    }
}

#[inline(always)]
fn take_away(caller: &VcpuRef, request: &abi::UnmapGrantRef, mapping: &Facts, gone: Use) -> Result<(), Stop> {
    if gone.device && request.dev_bus_addr != mapping.frame.maddr().raw() {
        return Err(GrantStatus::GENERAL_ERROR.into());
    }
    if gone.host {
        let flags = if mapping.access == Access::ReadOnly {
            gntmap::READONLY
        } else {
            0
        };
        unmap_grant(
            caller,
            place(request.host_addr, mapping.names_entry),
            mapping.frame,
            flags,
        )?;
    }
    Ok(())
}

/// Makes sure that no CPU uses what was unmapped, and gives the pages back to their owners.
#[inline(always)]
fn settle(caller: &VcpuRef, let_go: &[Option<LetGo>]) {
    let mapper = caller.domain();
    if let_go.iter().flatten().any(|one| one.gone.host) {
        flush_after_unmap(caller);
    }
    for &LetGo { handle, gone, left } in let_go.iter().flatten() {
        let mut grants = mapper.grants.lock();
        if left.host || left.device {
            let Facts { frame, access, .. } = grants.maps.keep(handle, left);
            drop(grants);
            release_from_devices(gone, frame, access);
        } else {
            let mapping = grants.maps.finish(handle);
            drop(grants);
            release_from_devices(gone, mapping.frame, mapping.access);
            unpin(&mapping);
        }
    }
}

/// Gives back what a mapping has held for devices.
#[inline(always)]
fn release_from_devices(gone: Use, frame: Mfn, access: Access) {
    if gone.device {
        if access == Access::ReadWrite {
            note_device_writes(frame, Frame::end_foreign_writes);
        }
        memory::release(frame, access == Access::ReadWrite);
    }
}

/// A device may write a frame from now on, or no longer.
#[cold]
fn note_device_writes(frame: Mfn, note: impl FnOnce(&Frame)) {
    if let Some(frame) = memory::frame(frame.raw()) {
        note(frame);
    }
}

/// Tells the owner that a mapping is gone.
#[inline(always)]
fn unpin(mapping: &Borrowed) {
    mapping
        .owner
        .grants
        .lock()
        .unpin(&SharedPages, mapping.gref, mapping.access);
}

/// One end of a copy, held until it is dropped.
struct End {
    page: Page,
    // In this order: the page is given back before its owner is told so.
    _held: Held,
    _pin: Option<Pin<Arc<Domain>>>,
}

#[inline(always)]
fn end_of(
    caller: &VcpuRef,
    last: &mut Option<Arc<Domain>>,
    at: &abi::CopyPtr,
    is_gref: bool,
    access: Access,
) -> Result<End, GrantStatus> {
    if is_gref {
        let owner = if at.domid == RawDomId::SELF {
            caller.domain().clone()
        } else {
            granter(caller.domain(), last, at.domid)?
        };
        let (pin, frame) = Pin::new(owner, Gref::new(at.u as u32), caller.domain().id, access)?;
        let held = hold(&pin.owner, frame, access)?;
        Ok(End {
            page: held.page(),
            _held: held,
            _pin: Some(pin),
        })
    } else if at.domid == RawDomId::SELF {
        let held = hold(caller.domain(), Mfn::new(at.u), access)?;
        Ok(End {
            page: held.page(),
            _held: held,
            _pin: None,
        })
    } else {
        Err(GrantStatus::PERMISSION_DENIED)
    }
}

#[inline(always)]
fn copy(caller: &VcpuRef, last: &mut Option<Arc<Domain>>, request: &abi::Copy) -> Result<(), GrantStatus> {
    let (from, to, len) = (&request.source, &request.dest, usize::from(request.len));
    let fits = |at: &abi::CopyPtr| usize::from(at.offset) + len <= PAGE_SIZE;
    if !fits(from) || !fits(to) {
        return Err(GrantStatus::BAD_COPY_ARG);
    }
    let source = end_of(
        caller,
        last,
        from,
        request.flags & gntcopy::SOURCE_GREF != 0,
        Access::ReadOnly,
    )?;
    let dest = end_of(
        caller,
        last,
        to,
        request.flags & gntcopy::DEST_GREF != 0,
        Access::ReadWrite,
    )?;
    dest.page
        .copy_range(usize::from(to.offset), source.page, usize::from(from.offset), len);
    Ok(())
}

fn setup_table(caller: &VcpuRef, request: &abi::SetupTable) -> Result<(), GrantStatus> {
    let subject = domain_of(caller, request.dom)?;
    if !may_ask(caller, &subject) {
        return Err(GrantStatus::PERMISSION_DENIED);
    }
    if request.nr_frames > subject.grants.lock().max_frames() {
        return Err(GrantStatus::GENERAL_ERROR);
    }
    let list = GuestPtr::<u64>::new(request.frame_list);
    for index in 0..request.nr_frames {
        let frame = shared_frame(&subject, index).map_err(|_| GrantStatus::GENERAL_ERROR)?;
        list.write_element(u64::from(index), &frame.raw())
            .map_err(|_| GrantStatus::BAD_VIRT_ADDR)?;
    }
    Ok(())
}

/// A frame of a domain's shared table, which grows for that if it may: `EINVAL` beyond its limit.
pub fn shared_frame(subject: &Arc<Domain>, index: u32) -> Result<Mfn, Errno> {
    loop {
        let mut grants = subject.grants.lock();
        if let Some(frame) = grants.frame(index) {
            return Ok(frame);
        }
        if index >= grants.max_frames() {
            return Err(Errno::EINVAL);
        }
        if subject.life() != Life::Alive || !may_use_heap(subject) {
            return Err(Errno::ENOMEM);
        }
        grants.prepare_frame().map_err(|_| Errno::ENOMEM)?;
        grants.add_frame(memory::alloc_shared_page(subject)?.mfn());
    }
}

fn query_size(caller: &VcpuRef, request: &mut abi::QuerySize) -> Result<(), GrantStatus> {
    let subject = domain_of(caller, request.dom)?;
    if !may_ask(caller, &subject) {
        return Err(GrantStatus::PERMISSION_DENIED);
    }
    let grants = subject.grants.lock();
    request.nr_frames = grants.frame_count();
    request.max_nr_frames = grants.max_frames();
    Ok(())
}

/// Prints what a domain lends and borrows.
pub fn print(subject: &Domain) {
    let grants = subject.grants.lock();
    crate::info!(
        "{}: {} of {} grant frames; {} mappings of others' pages; in use by others: {}",
        subject.id,
        grants.frame_count(),
        grants.max_frames(),
        grants.maps.used(),
        grants.is_in_use()
    );
}

/// Checks all domains' grants and mappings; says what is wrong, and how often.
pub fn audit(domains: &[Arc<Domain>]) -> u64 {
    let wrong = domains.iter().filter(|of| match of.grants.lock().audit() {
        Ok(()) => false,
        Err(what) => {
            crate::error!("audit: {}: {what}", of.id);
            true
        }
    });
    wrong.count() as u64
}

/// Gives back everything that a dying domain has mapped. What others have mapped of it they keep until they
/// unmap it; nobody gets anything new.
pub fn release_all(domain: &Arc<Domain>) -> Progress {
    let mut from = 0;
    loop {
        let next = domain.grants.lock().maps.finish_next(from);
        let Some((handle, mapping)) = next else {
            return Progress::Done;
        };
        // Its vcpus do not run again, so no translation of its own is used. Its tables, which are taken down
        // later, hold the pages themselves.
        release_from_devices(mapping.uses, mapping.frame, mapping.access);
        unpin(&mapping);
        from = handle.raw();
        if time::entry_budget_spent() {
            return Progress::More;
        }
    }
}
