//! A domain beside ours: what calls about other domains are about.
//!
//! Only Domain 0 can make one. Its frames are mapped, its grants taken and its ports bound by us; it is paused, given a
//! context, let run, and replaced by another one. When it runs it yields, rings, and changes an entry of its own tables,
//! until somebody takes something away that it needs: then it crashes, which is as good.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pv::abi::domctl::{Createdomain, DOMCTL_INTERFACE_VERSION, Domctl, DomctlCmd};
use pv::abi::grant_table::{SetupTable, gnttabop};
use pv::abi::memory::MemoryReservation;
use pv::abi::x86::{VcpuGuestContext, selector, vgcf};
use pv::abi::xen::MmuUpdate;
use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page, READ_ONLY, SIZE};
use pv::tables::{self, Slot, ext};
use pv::{Answer, grant, insn};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::scene::Scene;

/// How many pages it has, the last of which it never maps.
pub const PAGES: usize = 32;
/// KiB of a page.
const KIB: u64 = 4;
/// How many there can be, one after the other.
const ALL: usize = 64;

/// The ids of all, and how many these are; the last is the one that is meant.
static IDS: [AtomicU64; ALL] = [const { AtomicU64::new(0) }; ALL];
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Where its first context is, and a page to see its pages through, with its entry.
static CONTEXT: AtomicU64 = AtomicU64::new(0);
static WINDOW: AtomicU64 = AtomicU64::new(0);
static WINDOW_ENTRY: AtomicU64 = AtomicU64::new(0);

/// Returns its id.
pub fn domid() -> u16 {
    let last = (COUNT.load(Ordering::SeqCst) as usize).clamp(1, ALL) - 1;
    IDS[last].load(Ordering::SeqCst) as u16
}

/// Returns where the context is with which it may start.
pub fn context() -> u64 {
    CONTEXT.load(Ordering::SeqCst)
}

/// Notes where to see its pages, and makes room for its context.
pub fn prepare(window: Page) {
    WINDOW.store(window.address(), Ordering::SeqCst);
    WINDOW_ENTRY.store(entry_of(window), Ordering::SeqCst);
    CONTEXT.store(Page::new().address(), Ordering::SeqCst);
    Page::new();
}

fn control<T: IntoBytes + Immutable>(domid: u16, cmd: DomctlCmd, payload: &T) -> (Answer, u16) {
    let mut request = Domctl::new_zeroed();
    (request.cmd, request.interface_version, request.domain.0) = (cmd, DOMCTL_INTERFACE_VERSION, domid);
    request.set_payload(payload);
    let answer = call(number::DOMCTL, [address(&mut request)]);
    (answer, request.domain.0)
}

/// Makes one, and returns its frames.
pub fn make() -> Result<[u64; PAGES], Answer> {
    let request = Createdomain {
        max_vcpus: 2,
        max_evtchn_port: 1023,
        max_grant_frames: 4,
        max_maptrack_frames: 4,
        grant_opts: 1,
        ..Createdomain::default()
    };
    // Any id that is free.
    let (created, id) = control(0, DomctlCmd::CREATEDOMAIN, &request);
    created.ok()?;
    let index = COUNT.load(Ordering::SeqCst) as usize;
    let Some(slot) = IDS.get(index) else {
        control(id, DomctlCmd::DESTROYDOMAIN, &0_u64);
        return Err(Answer(-1));
    };
    slot.store(id.into(), Ordering::SeqCst);
    COUNT.store(index as u64 + 1, Ordering::SeqCst);
    control(id, DomctlCmd::MAX_VCPUS, &2_u32).0.ok()?;
    control(id, DomctlCmd::MAX_MEM, &(PAGES as u64 * KIB)).0.ok()?;
    let mut frames = core::array::from_fn(|pfn| pfn as u64);
    let mut request = MemoryReservation::new_zeroed();
    request.extent_start = address(&mut frames);
    request.nr_extents = PAGES as u64;
    request.domid.0 = id;
    call(number::MEMORY_OP, [6, address(&mut request)]).ok()?;
    fill(id, &frames)?;
    Ok(frames)
}

/// What each of its first pages is; page n lies at n pages from 0.
const TABLES: [usize; 4] = [3, 2, 1, 0];
const PROGRAM: usize = 4;
const STACK_TOP: u64 = 6 * SIZE;
const DATA: usize = 6;
const OWN_ENTRY: usize = 7;

/// mov eax, 29 (sched_op); xor edi, edi; xor esi, esi; syscall
/// mov eax, 32 (event_channel_op); mov edi, 4; mov esi, 0x6000; syscall
/// inc qword ptr [0x6008]
/// mov eax, 14 (update_va_mapping); mov edi, 0x7000; mov rsi, [0x6010]; mov edx, 2; syscall
/// jmp to the first
const CODE: [u8; 63] = [
    0xb8, 29, 0, 0, 0, 0x31, 0xff, 0x31, 0xf6, 0x0f, 0x05, 0xb8, 32, 0, 0, 0, 0xbf, 4, 0, 0, 0, 0xbe, 0, 0x60, 0, 0,
    0x0f, 0x05, 0x48, 0xff, 0x04, 0x25, 8, 0x60, 0, 0, 0xb8, 14, 0, 0, 0, 0xbf, 0, 0x70, 0, 0, 0x48, 0x8b, 0x34, 0x25,
    0x10, 0x60, 0, 0, 0xba, 2, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xc1,
];

/// Writes its tables, its program, and the context with which that starts.
fn fill(id: u16, frames: &[u64; PAGES]) -> Result<(), Answer> {
    let window = Page::at(WINDOW.load(Ordering::SeqCst));
    let entry = WINDOW_ENTRY.load(Ordering::SeqCst);
    let see = |pfn: usize| {
        map(id, entry, frames[pfn])?;
        // An update by the entry's address flushes nothing.
        tables::extended(ext::INVLPG_LOCAL, window.address(), 0);
        Ok::<Page, Answer>(window)
    };
    for level in 2..=4 {
        see(TABLES[level - 1])?.set_word(0, frames[TABLES[level - 2]] << 12 | ORDINARY);
    }
    let first = see(TABLES[0])?;
    for (pfn, mfn) in frames.iter().enumerate().take(PAGES - 1) {
        let flags = if TABLES.contains(&pfn) { READ_ONLY } else { ORDINARY };
        first.set_word(pfn, mfn << 12 | flags);
    }
    let program = see(PROGRAM)?;
    CODE.iter()
        .enumerate()
        .for_each(|(at, byte)| program.set_byte(at, *byte));
    let data = see(DATA)?;
    data.set_word(0, 1);
    data.set_word(2, frames[OWN_ENTRY] << 12 | ORDINARY);
    memory::unmap(window.address()).ok()?;
    let mut context = VcpuGuestContext::new_zeroed();
    context.flags = vgcf::IN_KERNEL | vgcf::ONLINE;
    let registers = &mut context.user_regs;
    (registers.rip, registers.rsp, registers.rflags) = (PROGRAM as u64 * SIZE, STACK_TOP, 0x202);
    (registers.cs, registers.ss) = (selector::FLAT_RING3_CS64, selector::FLAT_RING3_DS);
    context.ctrlreg[3] = frames[TABLES[3]] << 12;
    // Two pages; a context is longer than one.
    let place = CONTEXT.load(Ordering::SeqCst);
    for (index, bytes) in context.as_bytes().chunks_exact(8).enumerate() {
        insn::poke(
            place + index as u64 * 8,
            u64::from_le_bytes(bytes.try_into().unwrap_or_default()),
        );
    }
    Ok(())
}

/// Returns where the entry of a page lies. To be asked before the calls begin, which may change what the tables tell.
pub fn entry_of(page: Page) -> u64 {
    Slot::of(page.address(), 1).map_or(0, Slot::maddr)
}

/// Maps a frame of the domain's.
fn map(id: u16, entry: u64, mfn: u64) -> Result<(), Answer> {
    let mut update = [MmuUpdate {
        ptr: entry,
        val: mfn << 12 | ORDINARY,
    }];
    call(number::MMU_UPDATE, [address(&mut update), 1, 0, id.into()])
        .ok()
        .map(drop)
}

/// Replaces it by another, unless the other vcpu is about to; what others hold of it keeps its remains.
pub fn make_anew(scene: &Scene) -> bool {
    static BUSY: AtomicBool = AtomicBool::new(false);
    if !scene.has_neighbour() || BUSY.swap(true, Ordering::SeqCst) {
        return false;
    }
    let made = COUNT.load(Ordering::SeqCst) < ALL as u64 && {
        destroy(domid());
        scene.meet_another().is_ok()
    };
    BUSY.store(false, Ordering::SeqCst);
    made
}

/// Maps its grant table by the entry at `entry`.
pub fn map_grants(entry: u64) -> Result<(), Answer> {
    let id = domid();
    let mut frame = [0_u64];
    let mut request = SetupTable::new_zeroed();
    (request.dom.0, request.nr_frames, request.frame_list) = (id, 1, address(&mut frame));
    grant::op(gnttabop::SETUP_TABLE, core::slice::from_mut(&mut request)).ok()?;
    map(id, entry, frame[0])
}

/// Ends all there were.
pub fn destroy_all() {
    let count = (COUNT.load(Ordering::SeqCst) as usize).min(ALL);
    IDS[..count]
        .iter()
        .for_each(|id| destroy(id.load(Ordering::SeqCst) as u16));
}

/// Ends one, however long that takes; what others hold of it keeps its last remains.
fn destroy(id: u16) {
    while !control(id, DomctlCmd::DESTROYDOMAIN, &0_u64).0.is_ok() {
        // Not there at all: it was never made.
        if control(id, DomctlCmd::PAUSEDOMAIN, &0_u64).0 == Answer::refused(pv::abi::errno::Errno::ESRCH) {
            return;
        }
    }
}
