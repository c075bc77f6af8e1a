//! `XEN_DOMCTL_shadow_op`: the log of what a domain writes, for those who move it while it runs.
//!
//! Of upstream's shadow paging only this is here, and by other means ([`crate::pv::mm::Mirrors`]). The log itself is a
//! mark in each frame's record; reading it turns the marks of the domain's frames into bits by the domain's own numbers
//! (the machine-to-phys table). So what had no number, or changed it, or was not there before, needs no care: it is in
//! the log under whatever number it has when that is read.
//!
//! What is written without a guest's table has its mark from who writes, before and after. What may be written at any
//! time counts as written whenever the log is read: frames that other domains have mapped writable, pages of which the
//! hypervisor keeps something up to date, and descriptor pages, in which processors set a bit.
//!
//! Each command may stop when its time is up, and goes on when it is asked for again: [`Pass`] remembers how far a
//! reading came.

use super::Call;
use super::domctl::Reply;
use crate::domain::death::Progress;
use crate::domain::{Domain, Life, VcpuRef};
use crate::guest::GuestPtr;
use crate::memory::{self, Walk};
use crate::pv::mm::{self, Pass};
use alloc::sync::Arc;
use ferroxen_abi::domctl::{Domctl, SHADOW_LOGDIRTY_FINAL, ShadowOp, ShadowOpCmd, ShadowOpStats, shadow_enable};
use ferroxen_abi::errno::Errno;
use ferroxen_machine::smp::{self, Request};
use ferroxen_machine::{guest, m2p, time};
use ferroxen_words::{Mfn, Vaddr};

/// Mirrors for each vcpu, at least: its roots, and what one instruction may touch many times over.
const MIRRORS_PER_VCPU: usize = 128;
/// Pages of a domain for which there is one mirror more: tables of four times as much as it has.
const PAGES_PER_MIRROR: u64 = 128;
/// Frames in what allocations are counted in.
const FRAMES_PER_MB: u64 = 256;
/// How much of a bitmap is emptied between looks at the clock.
const EMPTIED_AT_ONCE: u64 = 16 << 10;

/// Carries one command out.
///
/// `EINVAL` for the caller itself, a domain without vcpus, a log that is kept already or is not kept, and modes that
/// we do not know; `EOPNOTSUPP` for shadow paging as such; `EBUSY` while somebody else reads the log; `ENOMEM`.
pub(super) fn shadow_op(call: &Call<'_>, subject: &Arc<Domain>, request: &mut Domctl) -> Result<Reply, Errno> {
    if Arc::ptr_eq(call.caller.domain(), subject) {
        return Err(Errno::EINVAL);
    }
    if subject.life() != Life::Alive {
        return Ok(Reply::Done);
    }
    if subject.vcpus().is_empty() {
        return Err(Errno::EINVAL);
    }
    let mut wanted: ShadowOp = request.payload();
    let asker = asker(call);
    let progress = match wanted.op {
        ShadowOpCmd::OFF => off(subject),
        ShadowOpCmd::ENABLE if wanted.mode == 0 => return Err(Errno::EOPNOTSUPP),
        ShadowOpCmd::ENABLE if wanted.mode != shadow_enable::LOG_DIRTY => return Err(Errno::EINVAL),
        ShadowOpCmd::ENABLE | ShadowOpCmd::ENABLE_LOGDIRTY => enable(subject, asker)?,
        ShadowOpCmd::CLEAN | ShadowOpCmd::PEEK => {
            if wanted.mode & !SHADOW_LOGDIRTY_FINAL != 0 || !subject.is_logged() {
                return Err(Errno::EINVAL);
            }
            let bitmap = Bitmap::new(&wanted)?;
            let keeps = wanted.op == ShadowOpCmd::PEEK;
            match read(subject, asker, bitmap, keeps)? {
                Some(stats) => {
                    wanted.stats = stats;
                    request.set_payload(&wanted);
                    return Ok(Reply::Write);
                }
                None => Progress::More,
            }
        }
        ShadowOpCmd::GET_ALLOCATION => {
            wanted.mb = megabytes(subject);
            request.set_payload(&wanted);
            return Ok(Reply::Write);
        }
        ShadowOpCmd::SET_ALLOCATION => match set_allocation(subject, wanted.mb)? {
            Progress::Done => {
                wanted.mb = megabytes(subject);
                request.set_payload(&wanted);
                return Ok(Reply::Write);
            }
            Progress::More => Progress::More,
        },
        ShadowOpCmd::ENABLE_TEST => return Err(Errno::EOPNOTSUPP),
        _ => return Err(Errno::EINVAL),
    };
    Ok(match progress {
        Progress::Done => Reply::Done,
        Progress::More => Reply::Again,
    })
}

/// Who asks, as far as an interrupted request is concerned: it is asked for again from the same address space.
fn asker(call: &Call<'_>) -> (u64, u64) {
    let root = mm::running_root(call.caller).map_or(0, Mfn::raw);
    (call.args()[0], root)
}

/// How many mirrors a domain gets if nobody says how many.
fn default_mirrors(subject: &Domain) -> usize {
    let by_pages = memory::counts(subject).total / PAGES_PER_MIRROR;
    least_mirrors(subject).saturating_add(by_pages as usize)
}

fn least_mirrors(subject: &Domain) -> usize {
    subject.vcpus().len().saturating_mul(MIRRORS_PER_VCPU)
}

/// Takes frames until there are so many mirrors.
fn grow(subject: &Domain, count: usize) -> Result<Progress, Errno> {
    subject.mirrors.lock().make_room(count, subject.vcpus().len())?;
    while subject.mirrors.lock().frames() < count {
        let page = memory::take_own_page()?;
        subject.mirrors.lock().add(page);
        if time::entry_budget_spent() {
            return Ok(Progress::More);
        }
    }
    Ok(Progress::Done)
}

fn megabytes(subject: &Domain) -> u32 {
    let frames = subject.mirrors.lock().frames() as u64;
    frames.div_ceil(FRAMES_PER_MB) as u32
}

/// Gives the log so many megabytes for mirrors. While it is kept it gets no smaller.
fn set_allocation(subject: &Domain, mb: u32) -> Result<Progress, Errno> {
    let wanted = u64::from(mb) * FRAMES_PER_MB;
    if wanted > memory::counts(subject).total.max(FRAMES_PER_MB) + least_mirrors(subject) as u64 {
        // More tables than pages: no domain has them.
        return Err(Errno::ENOMEM);
    }
    if subject.is_logged() || wanted as usize > subject.mirrors.lock().frames() {
        return grow(subject, wanted as usize);
    }
    Ok(shrink(subject, wanted as usize))
}

/// Gives frames of mirrors that are not used back to the host.
fn shrink(subject: &Domain, count: usize) -> Progress {
    loop {
        let page = {
            let mut mirrors = subject.mirrors.lock();
            if mirrors.frames() <= count && count != 0 {
                return Progress::Done;
            }
            mirrors.take()
        };
        let Some(page) = page else { return Progress::Done };
        memory::return_own_page(page);
        if time::entry_budget_spent() {
            return Progress::More;
        }
    }
}

/// Begins the log, with nothing in it.
fn enable(subject: &Arc<Domain>, asker: (u64, u64)) -> Result<Progress, Errno> {
    if !subject.is_logged() {
        let count = default_mirrors(subject).max(subject.mirrors.lock().frames());
        if grow(subject, count)? == Progress::More {
            return Ok(Progress::More);
        }
        subject.pause();
        mm::switch_mirrors(subject, true);
        subject.unpause();
    } else if subject.mirrors.lock().pass.is_none_or(|pass| pass.asker != asker) {
        return Err(Errno::EINVAL);
    }
    let emptied = read(subject, asker, Bitmap::NONE, false)?;
    Ok(emptied.map_or(Progress::More, |_| Progress::Done))
}

/// Ends the log, if there is one, and gives back what it took.
fn off(subject: &Arc<Domain>) -> Progress {
    if subject.is_logged() {
        subject.pause();
        mm::switch_mirrors(subject, false);
        subject.unpause();
    }
    shrink(subject, 0)
}

/// As [`off`], for a dying domain, whose vcpus do not run.
pub fn end(subject: &Arc<Domain>) -> Progress {
    off(subject)
}

/// Where the caller wants the bits.
#[derive(Clone, Copy)]
struct Bitmap {
    at: GuestPtr<u8>,
    bits: u64,
}

impl Bitmap {
    const NONE: Bitmap = Bitmap {
        at: GuestPtr::new(0),
        bits: 0,
    };

    /// As the request says; a null bitmap has no bits.
    fn new(wanted: &ShadowOp) -> Result<Bitmap, Errno> {
        let at = GuestPtr::new(wanted.dirty_bitmap);
        let bits = if at.is_null() { 0 } else { wanted.pages };
        at.element(bits.div_ceil(8))?;
        Ok(Bitmap { at, bits })
    }

    fn bytes(self) -> u64 {
        self.bits.div_ceil(8)
    }
}

/// The byte of a bitmap that is being put together.
#[derive(Default)]
struct Pending {
    byte: u64,
    bits: u8,
}

impl Pending {
    fn set(&mut self, bitmap: Bitmap, number: u64) -> Result<(), Errno> {
        if number / 8 != self.byte {
            self.write(bitmap)?;
            self.byte = number / 8;
        }
        self.bits |= 1 << (number % 8);
        Ok(())
    }

    fn write(&mut self, bitmap: Bitmap) -> Result<(), Errno> {
        let bits = core::mem::take(&mut self.bits);
        if bits == 0 || bitmap.at.is_null() {
            return Ok(());
        }
        let at = bitmap.at.element(self.byte)?;
        at.write(&(at.read()? | bits))
    }
}

/// Turns the log into bits, and empties it unless it `keeps` them. `None`: the time is up.
fn read(subject: &Arc<Domain>, asker: (u64, u64), bitmap: Bitmap, keeps: bool) -> Result<Option<ShadowOpStats>, Errno> {
    let under_way = subject.mirrors.lock().pass;
    let mut pass = match under_way {
        Some(pass) if pass.asker != asker => return Err(Errno::EBUSY),
        Some(pass) => pass,
        None => {
            mark_what_may_be_written(subject);
            Pass {
                asker,
                emptied: 0,
                next: None,
                found: 0,
            }
        }
    };
    subject.mirrors.lock().pass = Some(pass);
    let done = read_on(subject, &mut pass, bitmap, keeps);
    let mut mirrors = subject.mirrors.lock();
    if let Ok(Progress::More) = done {
        mirrors.pass = Some(pass);
        return Ok(None);
    }
    let stats = ShadowOpStats {
        fault_count: mirrors.faults,
        dirty_count: pass.found,
    };
    mirrors.pass = None;
    if !keeps {
        // From here on the first write to each frame faults. Until then it went to what is just being handed out.
        mirrors.drop_all();
        mirrors.faults = 0;
        drop(mirrors);
        smp::request(subject.dirty_cpus.snapshot(), Request::FlushTlb);
    }
    done.map(|_| Some(stats))
}

fn read_on(subject: &Arc<Domain>, pass: &mut Pass, bitmap: Bitmap, keeps: bool) -> Result<Progress, Errno> {
    while pass.emptied < bitmap.bytes() {
        let bytes = (bitmap.bytes() - pass.emptied).min(EMPTIED_AT_ONCE);
        let at = bitmap.at.element(pass.emptied)?;
        guest::clear_guest(Vaddr::new(at.raw()), bytes as usize).map_err(|_| Errno::EFAULT)?;
        pass.emptied += bytes;
        if time::entry_budget_spent() {
            return Ok(Progress::More);
        }
    }
    let mut pending = Pending::default();
    let walked = memory::walk(subject, pass.next, |mfn, frame| {
        if !frame.is_dirty() && frame.foreign_writers() == 0 {
            return Ok(());
        }
        let number = m2p::get(mfn).filter(|number| *number < bitmap.bits);
        if let Some(number) = number {
            pending.set(bitmap, number)?;
            pass.found = pass.found.saturating_add(1);
        }
        if !keeps && (number.is_some() || bitmap.at.is_null()) {
            let _ = frame.take_dirty();
        }
        Ok(())
    });
    pending.write(bitmap)?;
    Ok(match walked? {
        Walk::Done => Progress::Done,
        Walk::More(next) => {
            pass.next = Some(next);
            Progress::More
        }
    })
}

/// Puts what may be written at any time into the log.
fn mark_what_may_be_written(subject: &Arc<Domain>) {
    let mark = |mfn: Mfn| {
        if let Some(frame) = memory::frame(mfn.raw()) {
            frame.mark_dirty();
        }
    };
    for vcpu in VcpuRef::all(subject) {
        vcpu.info_frame().into_iter().for_each(mark);
        vcpu.pv.lock().gdt_frames().iter().copied().for_each(mark);
    }
    mm::ldt_frames(subject).into_iter().map(Mfn::new).for_each(mark);
    crate::irq::eoi_frame(subject).into_iter().for_each(mark);
}
