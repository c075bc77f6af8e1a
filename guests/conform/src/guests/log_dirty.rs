//! The log of what another domain writes (`XEN_DOMCTL_shadow_op`): nothing is missed, and nothing else is in it.
//!
//! Domain 0 makes a child of 32 pages and lets it do one thing at a time: a store by its kernel or by its user mode, a
//! load, a hypercall. After each the log must hold exactly the pages that were written, by whomever: by the child, by the
//! hypervisor into its buffers and onto its stack, by updates of its page tables and the A and D bits in them, by copies
//! and mappings of others. Once read, it is empty, and the next store is seen again. The child's own tables must say what
//! a processor would have made of them: A after a load, D only after a store, and its faults must have the error codes
//! of its own tables. Promised by: public/domctl.h. Xen as Debian builds it has no shadow paging and refuses; then there
//! is nothing to see.

use pv::abi::domctl::{
    Createdomain, DOMCTL_INTERFACE_VERSION, Domctl, DomctlCmd, Getdomaininfo, SHADOW_LOGDIRTY_FINAL, ShadowOp, ShadowOpCmd, Vcpucontext, dominf,
    shadow_enable,
};
use pv::abi::errno::Errno;
use pv::abi::grant_table::{Copy, CopyPtr, SetupTable, gntcopy, gnttabop};
use pv::abi::memory::MemoryReservation;
use pv::abi::x86::{VcpuGuestContext, selector, vgcf};
use pv::abi::xen::{MmuUpdate, MmuextOp, vm_assist};
use pv::event::SELF;
use pv::grant::{self, gntmap, gtf};
use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page, READ_ONLY, SIZE, pte};
use pv::tables::{self, Slot, ext};
use pv::{Answer, start};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use crate::host;
use crate::report::{End, Report, Verdict};

const PAGES: usize = 32;
/// What the child's first pages are; page n lies at n pages from 0.
const TABLES: [usize; 4] = [3, 2, 1, 0];
const L1: usize = TABLES[0];
const PROGRAMS: usize = 4;
const STACK: usize = 5;
const DATA: usize = 6;
const USER_ROOT: usize = 8;

/// The child's address of a page.
const fn at(page: usize) -> u64 {
    page as u64 * SIZE
}

/// mov [rdi], rsi
const STORE: (u64, &[u8]) = (0, &[0x48, 0x89, 0x37]);
/// mov rsi, [rdi]
const LOAD: (u64, &[u8]) = (64, &[0x48, 0x8b, 0x37]);
/// syscall
const CALL: (u64, &[u8]) = (128, &[0x0f, 0x05]);
/// mov [rdi], rsi; syscall, which in user mode leads to the kernel
const USER_STORE: (u64, &[u8]) = (192, &[0x48, 0x89, 0x37, 0x0f, 0x05]);
/// The handler of page faults: mov rax, [rsp + 16], the error code
const FAULT: (u64, &[u8]) = (256, &[0x48, 0x8b, 0x44, 0x24, 0x10]);
/// Where all of them go on: mov rbx, rax; mov eax, 29 (sched_op); mov edi, 2 (shutdown); mov esi, 0x6000; syscall
const END: (u64, &[u8]) = (
    2048,
    &[
        0x48, 0x89, 0xc3, 0xb8, 29, 0, 0, 0, 0xbf, 2, 0, 0, 0, 0xbe, 0, 0x60, 0, 0, 0x0f, 0x05,
    ],
);

/// Registers with which the child starts, and whether that is in its user mode.
#[derive(Clone, Copy, Default)]
struct Orders {
    program: u64,
    is_user: bool,
    rax: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    r10: u64,
}

struct Child {
    id: u16,
    frames: [u64; PAGES],
    /// A page of ours to see the child's through, and its entry.
    window: Page,
    entry: u64,
}

fn control<T: IntoBytes + Immutable>(id: u16, cmd: DomctlCmd, payload: &T) -> (Answer, Domctl) {
    let mut request = Domctl::new_zeroed();
    (request.cmd, request.interface_version, request.domain.0) = (cmd, DOMCTL_INTERFACE_VERSION, id);
    request.set_payload(payload);
    let answer = call(number::DOMCTL, [address(&mut request)]);
    (answer, request)
}

fn end_of_copy(u: u64, domid: u16, offset: u16) -> CopyPtr {
    let mut end = CopyPtr::new_zeroed();
    (end.u, end.domid.0, end.offset) = (u, domid, offset);
    end
}

impl Child {
    /// Makes it, with vcpus or without.
    fn make(vcpus: u32) -> Result<Child, Answer> {
        let wanted = Createdomain {
            max_vcpus: 1,
            max_evtchn_port: 1023,
            max_grant_frames: 4,
            max_maptrack_frames: 4,
            grant_opts: 1,
            ..Createdomain::default()
        };
        let (created, request) = control(0, DomctlCmd::CREATEDOMAIN, &wanted);
        created.ok()?;
        let window = Page::new();
        let mut child = Child {
            id: request.domain.0,
            frames: core::array::from_fn(|pfn| pfn as u64),
            window,
            entry: Slot::of(window.address(), 1).map_or(0, Slot::maddr),
        };
        if vcpus == 0 {
            return Ok(child);
        }
        control(child.id, DomctlCmd::MAX_VCPUS, &vcpus).0.ok()?;
        control(child.id, DomctlCmd::MAX_MEM, &(PAGES as u64 * 4)).0.ok()?;
        let mut request = MemoryReservation::new_zeroed();
        (request.extent_start, request.nr_extents) = (address(&mut child.frames), PAGES as u64);
        request.domid.0 = child.id;
        call(number::MEMORY_OP, [host::POPULATE, address(&mut request)]).ok()?;
        child.fill()?;
        Ok(child)
    }

    /// Maps one of its pages in our window.
    fn see(&self, pfn: usize, flags: u64) -> Result<Page, Answer> {
        let mut update = [MmuUpdate {
            ptr: self.entry,
            val: self.frames[pfn] << 12 | flags,
        }];
        call(number::MMU_UPDATE, [address(&mut update), 1, 0, self.id.into()]).ok()?;
        tables::extended(ext::INVLPG_LOCAL, self.window.address(), 0);
        Ok(self.window)
    }

    fn look_away(&self) -> Result<(), Answer> {
        memory::unmap(self.window.address()).ok().map(drop)
    }

    /// Its entry for one of its pages.
    fn entry_of(&self, page: usize) -> Result<u64, Answer> {
        let entry = self.see(L1, READ_ONLY)?.word(page);
        self.look_away()?;
        Ok(entry)
    }

    fn fill(&self) -> Result<(), Answer> {
        for level in 2..=4 {
            let below = self.frames[TABLES[level - 2]] << 12 | ORDINARY;
            self.see(TABLES[level - 1], ORDINARY)?.set_word(0, below);
        }
        let below = self.frames[TABLES[2]] << 12 | ORDINARY;
        self.see(USER_ROOT, ORDINARY)?.set_word(0, below);
        let first = self.see(L1, ORDINARY)?;
        for (pfn, mfn) in self.frames.iter().enumerate() {
            let is_table = TABLES.contains(&pfn) || pfn == USER_ROOT;
            first.set_word(pfn, mfn << 12 | if is_table { READ_ONLY } else { ORDINARY });
        }
        let page = self.see(PROGRAMS, ORDINARY)?;
        let put = |offset: u64, bytes: &[u8]| {
            (offset as usize..).zip(bytes).for_each(|(at, byte)| page.set_byte(at, *byte));
        };
        for (offset, bytes) in [STORE, LOAD, CALL, USER_STORE, FAULT] {
            put(offset, bytes);
            // jmp to the end
            let next = offset + bytes.len() as u64 + 5;
            let [a, b, c, d, ..] = (END.0 - next).to_le_bytes();
            put(next - 5, &[0xe9, a, b, c, d]);
        }
        put(END.0, END.1);
        // The reason of the shutdown: suspend.
        self.see(DATA, ORDINARY)?.set_word(0, 2);
        self.look_away()?;
        // So that they are tables also while it has no context.
        for root in [TABLES[3], USER_ROOT] {
            let mut pin = [MmuextOp {
                cmd: ext::PIN_L4_TABLE,
                pad: 0,
                arg1: self.frames[root],
                arg2: 0,
            }];
            call(number::MMUEXT_OP, [address(&mut pin), 1, 0, self.id.into()]).ok()?;
        }
        Ok(())
    }

    /// Writes words into its page of data, as long as nothing is logged.
    fn prepare(&self, offset: u64, words: &[u8]) -> Result<(), Answer> {
        let page = self.see(DATA, ORDINARY)?;
        (offset as usize..).zip(words).for_each(|(at, byte)| page.set_byte(at, *byte));
        self.look_away()
    }

    /// Lets it do one thing. Answers what `rax` was at the end of that.
    fn run(&self, orders: Orders) -> Result<u64, Answer> {
        let mut context = VcpuGuestContext::new_zeroed();
        context.flags = vgcf::ONLINE | if orders.is_user { 0 } else { vgcf::IN_KERNEL };
        let registers = &mut context.user_regs;
        (registers.rip, registers.rsp, registers.rflags) = (at(PROGRAMS) + orders.program, at(STACK + 1), 0x202);
        (registers.cs, registers.ss) = (selector::FLAT_RING3_CS64, selector::FLAT_RING3_DS);
        (registers.rax, registers.rdi, registers.rsi) = (orders.rax, orders.rdi, orders.rsi);
        (registers.rdx, registers.r10) = (orders.rdx, orders.r10);
        context.ctrlreg[3] = self.frames[TABLES[3]] << 12;
        context.ctrlreg[1] = self.frames[USER_ROOT] << 12;
        (context.kernel_sp, context.kernel_ss) = (at(STACK + 1), selector::FLAT_RING3_DS.into());
        context.syscall_callback_eip = at(PROGRAMS) + END.0;
        let fault = &mut context.trap_ctxt[14];
        (fault.vector, fault.cs, fault.address) = (14, selector::FLAT_RING3_CS64, at(PROGRAMS) + FAULT.0);
        context.vm_assist = 1 << vm_assist::WRITABLE_PAGETABLES;
        let place = Vcpucontext {
            vcpu: 0,
            pad: 0,
            ctxt: address(&mut context),
        };
        control(self.id, DomctlCmd::SETVCPUCONTEXT, &place).0.ok()?;
        control(self.id, DomctlCmd::RESUMEDOMAIN, &0_u64).0.ok()?;
        control(self.id, DomctlCmd::UNPAUSEDOMAIN, &0_u64).0.ok()?;
        for _ in 0..1_000_000 {
            let (answer, request) = control(self.id, DomctlCmd::GETDOMAININFO, &Getdomaininfo::new_zeroed());
            answer.ok()?;
            if request.payload::<Getdomaininfo>().flags & dominf::SHUTDOWN != 0 {
                control(self.id, DomctlCmd::PAUSEDOMAIN, &0_u64).0.ok()?;
                control(self.id, DomctlCmd::GETVCPUCONTEXT, &place).0.ok()?;
                return Ok(context.user_regs.rbx);
            }
            call(number::SCHED_OP, [0, 0]);
        }
        Err(Answer::refused(Errno::ETIME))
    }

    fn store(&self, page: usize) -> Result<u64, Answer> {
        self.run(Orders {
            program: STORE.0,
            rdi: at(page) + 8,
            rsi: page as u64,
            ..Orders::default()
        })
    }

    fn load(&self, page: usize) -> Result<u64, Answer> {
        self.run(Orders {
            program: LOAD.0,
            rdi: at(page) + 8,
            ..Orders::default()
        })
    }

    fn call(&self, number: u32, [rdi, rsi, rdx, r10]: [u64; 4]) -> Result<u64, Answer> {
        let program = CALL.0;
        let rax = number.into();
        self.run(Orders { program, rax, rdi, rsi, rdx, r10, is_user: false })
    }

    /// Changes its entry for one of its pages, as it does it itself, and flushes.
    fn remap(&self, page: usize, flags: u64) -> Result<u64, Answer> {
        let entry = self.frames[page] << 12 | flags;
        self.call(number::UPDATE_VA_MAPPING, [at(page), entry, memory::FLUSH_PAGE, 0])
    }

    fn shadow(&self, op: ShadowOpCmd, mode: u32) -> Answer {
        let wanted = ShadowOp { op, mode, ..ShadowOp::new_zeroed() };
        control(self.id, DomctlCmd::SHADOW_OP, &wanted).0
    }

    /// The pages in the log; all ones if it cannot be read.
    fn read(&self, op: ShadowOpCmd) -> u64 {
        // What stands there before must not come back.
        let mut bits = [0xffff_ffff_u64];
        let wanted = ShadowOp {
            op,
            mode: SHADOW_LOGDIRTY_FINAL,
            dirty_bitmap: address(&mut bits),
            pages: PAGES as u64,
            ..ShadowOp::new_zeroed()
        };
        let (answer, request) = control(self.id, DomctlCmd::SHADOW_OP, &wanted);
        let got: ShadowOp = request.payload();
        let is_right = got.pages == PAGES as u64 && got.stats.dirty_count == bits[0].count_ones();
        if answer == Answer::OK && is_right { bits[0] } else { u64::MAX }
    }
}

/// What is expected of the log after each step.
struct Log<'a> {
    child: &'a Child,
    report: &'a mut Report,
}

impl Log<'_> {
    /// The log has these pages, and is empty then.
    fn has(&mut self, what: &str, pages: &[usize]) {
        let wanted = pages.iter().fold(0_u64, |bits, page| bits | 1 << page);
        let peeked = self.child.read(ShadowOpCmd::PEEK);
        let found = self.child.read(ShadowOpCmd::CLEAN);
        self.check(
            format_args!("{what}: {found:#x}, by a look before {peeked:#x}, instead of {wanted:#x}"),
            found == wanted && peeked == wanted,
        );
    }

    fn check(&mut self, what: impl core::fmt::Display, holds: bool) {
        self.report.check_quietly(what, holds);
    }
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !start::is_dom0() {
        return Err(End::Skip("only Domain 0 keeps logs"));
    }
    let free = host::free_pages()?;
    let child = Child::make(1)?;
    // Requests that the child will make.
    let [pin, unpin] = [ext::PIN_L1_TABLE, ext::UNPIN_TABLE].map(|cmd| MmuextOp {
        cmd,
        pad: 0,
        arg1: child.frames[19],
        arg2: 0,
    });
    let hook = |val| MmuUpdate {
        ptr: (child.frames[TABLES[1]] << 12) + 8,
        val,
    };
    let inner = MmuUpdate {
        ptr: child.frames[19] << 12,
        val: child.frames[20] << 12 | ORDINARY & !(pte::ACCESSED | pte::DIRTY),
    };
    child.prepare(64, pin.as_bytes())?;
    child.prepare(128, hook(child.frames[19] << 12 | ORDINARY).as_bytes())?;
    child.prepare(192, inner.as_bytes())?;
    child.prepare(256, hook(0).as_bytes())?;
    child.prepare(320, unpin.as_bytes())?;
    let copy = Copy {
        source: end_of_copy(child.frames[DATA], SELF, 0),
        dest: end_of_copy(child.frames[14], SELF, 64),
        len: 8,
        ..Copy::new_zeroed()
    };
    child.prepare(384, copy.as_bytes())?;

    let enabled = child.shadow(ShadowOpCmd::ENABLE_LOGDIRTY, 0);
    report.saw("a log of another's writes", enabled);
    if !enabled.is_ok() {
        control(child.id, DomctlCmd::DESTROYDOMAIN, &0_u64).0.ok()?;
        return Ok(());
    }
    let mut log = Log { child: &child, report };
    refusals(&mut log)?;
    writes(&mut log)?;
    bits(&mut log)?;
    tables_come_and_go(&mut log)?;
    others(&mut log)?;
    end(&mut log)?;
    control(child.id, DomctlCmd::DESTROYDOMAIN, &0_u64).0.ok()?;
    let kept = free.saturating_sub(host::free_pages()?);
    report.check_quietly(format_args!("{kept} pages are kept"), kept < PAGES as u64);
    Ok(())
}

fn refusals(log: &mut Log<'_>) -> Result<(), Answer> {
    let child = log.child;
    const INVALID: Answer = Answer::refused(Errno::EINVAL);
    log.check("a second log", child.shadow(ShadowOpCmd::ENABLE_LOGDIRTY, 0) == INVALID);
    let enable = |mode| child.shadow(ShadowOpCmd::ENABLE, mode);
    log.check("and another way", enable(shadow_enable::LOG_DIRTY) == INVALID);
    log.check("strange modes", enable(shadow_enable::TRANSLATE) == INVALID);
    log.check("shadow paging", enable(0) == Answer::refused(Errno::EOPNOTSUPP));
    log.check("no such command", child.shadow(ShadowOpCmd(99), 0) == INVALID);
    log.check("a strange way to read", child.shadow(ShadowOpCmd::CLEAN, 2) == INVALID);
    let wanted = ShadowOp { op: ShadowOpCmd::ENABLE_LOGDIRTY, ..ShadowOp::new_zeroed() };
    let itself = start::domid().unwrap_or_default();
    log.check("oneself", control(itself, DomctlCmd::SHADOW_OP, &wanted).0 == INVALID);
    let bare = Child::make(0)?;
    log.check("no vcpus", bare.shadow(ShadowOpCmd::ENABLE_LOGDIRTY, 0) == INVALID);
    control(bare.id, DomctlCmd::DESTROYDOMAIN, &0_u64).0.ok()?;
    for bitmap in crate::bad::pointers() {
        let wanted = ShadowOp {
            op: ShadowOpCmd::CLEAN,
            dirty_bitmap: bitmap,
            pages: 1 << 16,
            ..ShadowOp::new_zeroed()
        };
        let answer = control(child.id, DomctlCmd::SHADOW_OP, &wanted).0;
        log.check(
            format_args!("a bitmap nowhere: {answer}"),
            bitmap == 0 || answer == Answer::refused(Errno::EFAULT),
        );
    }
    Ok(())
}

fn writes(log: &mut Log<'_>) -> Result<(), Answer> {
    let child = log.child;
    log.has("before anything runs", &[]);
    child.store(10)?;
    log.has("a store", &[10]);
    log.has("and nothing since", &[]);
    child.store(10)?;
    child.store(10)?;
    child.store(31)?;
    log.has("more stores", &[10, 31]);
    let user = Orders {
        program: USER_STORE.0,
        is_user: true,
        rdi: at(11),
        ..Orders::default()
    };
    child.run(user)?;
    log.has("a store by user mode, and the frame of its entry", &[11, STACK]);
    child.load(12)?;
    log.has("a load", &[]);
    // XENVER_extraversion
    child.call(number::XEN_VERSION, [1, at(13), 0, 0])?;
    log.has("a hypercall's answer", &[13]);
    child.call(number::XEN_VERSION, [1, at(16) - 8, 0, 0])?;
    log.has("one over two pages", &[15, 16]);
    let copied = child.call(number::GRANT_TABLE_OP, [gnttabop::COPY, at(DATA) + 384, 1, 0])?;
    log.check("copied", copied == 0);
    log.has("a copy and its status", &[DATA, 14]);
    Ok(())
}

/// A and D in the child's own entries, faults that are its own, and emulated stores to its tables.
fn bits(log: &mut Log<'_>) -> Result<(), Answer> {
    const FRESH: u64 = ORDINARY & !(pte::ACCESSED | pte::DIRTY);
    let child = log.child;
    let touched = |page| child.entry_of(page).map(|entry| entry & (pte::ACCESSED | pte::DIRTY));
    log.check("mapped anew", child.remap(17, FRESH)? == 0);
    log.has("an update of an entry", &[L1]);
    log.check("neither read nor written", touched(17)? == 0);
    child.load(17)?;
    log.check("read", touched(17)? == pte::ACCESSED);
    log.has("a load sets A", &[L1]);
    child.store(17)?;
    log.check("written", touched(17)? == pte::ACCESSED | pte::DIRTY);
    log.has("a store sets D", &[L1, 17]);
    child.store(17)?;
    log.has("which it then is", &[17]);
    log.check("made clean", child.remap(17, FRESH | pte::ACCESSED)? == 0);
    child.load(17)?;
    log.check("only read since", touched(17)? == pte::ACCESSED);
    child.store(17)?;
    log.check("written again", touched(17)? == pte::ACCESSED | pte::DIRTY);
    // The log is not read in between: what the mirrors still allow must go with the entry.
    log.check("made clean once more", child.remap(17, FRESH | pte::ACCESSED)? == 0);
    child.store(17)?;
    log.check("and written", touched(17)? == pte::ACCESSED | pte::DIRTY);
    log.has("clean and dirty again", &[L1, 17]);

    child.store(18)?;
    log.check("read-only", child.remap(18, READ_ONLY)? == 0);
    log.check("a store there, as soon as that", child.store(18)? == 3);
    log.has("made read-only", &[L1, 18, STACK]);
    log.check("a store there: write to what is present", child.store(18)? == 3);
    log.has("but for its frame nothing is written", &[STACK]);
    child.load(18)?;
    log.check("gone", child.remap(18, 0)? == 0);
    log.check("a store nowhere: write to what is absent", child.store(18)? == 2);
    log.check("a load nowhere", child.load(18)? == 0);
    log.has("nor there", &[L1, STACK]);
    let entry = child.frames[18] << 12 | ORDINARY;
    let emulated = Orders {
        program: STORE.0,
        rdi: at(L1) + 18 * 8,
        rsi: entry,
        ..Orders::default()
    };
    child.run(emulated)?;
    log.check("a store to a table", child.entry_of(18)? == entry);
    log.has("an emulated store", &[L1]);
    child.store(18)?;
    log.has("through the new entry", &[18]);
    Ok(())
}

/// A page becomes a table and a page again.
fn tables_come_and_go(log: &mut Log<'_>) -> Result<(), Answer> {
    let child = log.child;
    let there = 1 << 21;
    let update = |offset| child.call(number::MMU_UPDATE, [at(DATA) + offset, 1, 0, tables::SELF]);
    let extended = |offset| child.call(number::MMUEXT_OP, [at(DATA) + offset, 1, 0, tables::SELF]);
    let store = |rdi| {
        child.run(Orders {
            program: STORE.0,
            rdi,
            ..Orders::default()
        })
    };
    child.store(19)?;
    store(at(19) + 8)?;
    // What was stored there is no entry.
    store(at(19) + 8)?;
    log.check("sealed", child.remap(19, READ_ONLY)? == 0);
    log.has("a page that will be a table", &[19, L1]);
    log.check("pinned", extended(64)? == 0);
    log.has("what was memory is a table", &[19]);
    log.check("an entry in it", update(192)? == 0);
    log.check("it hangs", update(128)? == 0);
    log.has("the table and the one above", &[19, TABLES[1]]);
    store(there)?;
    log.has("a store through it", &[19, 20]);
    store(there)?;
    log.has("another", &[20]);
    log.check("it hangs no more", update(256)? == 0);
    log.check("unpinned", extended(320)? == 0);
    log.has("what was a table, and the one above", &[19, TABLES[1]]);
    log.check("nothing is there now", store(there)? == 2);
    log.check("unsealed", child.remap(19, ORDINARY)? == 0);
    child.store(19)?;
    log.has("a page again", &[19, L1, STACK]);
    Ok(())
}

/// Those who write the child's pages by tables of their own.
fn others(log: &mut Log<'_>) -> Result<(), Answer> {
    let child = log.child;
    child.see(21, READ_ONLY)?;
    log.has("we look", &[]);
    child.see(21, ORDINARY)?;
    log.has("we may write", &[21]);
    log.has("and may still", &[21]);
    child.look_away()?;
    log.has("and did perhaps before we let go", &[21]);
    log.has("but not since", &[]);

    let mut frame = [0_u64];
    let mut request = SetupTable::new_zeroed();
    (request.dom.0, request.nr_frames, request.frame_list) = (child.id, 1, address(&mut frame));
    grant::op(gnttabop::SETUP_TABLE, core::slice::from_mut(&mut request)).ok()?;
    let mut update = [MmuUpdate { ptr: child.entry, val: frame[0] << 12 | ORDINARY }];
    call(number::MMU_UPDATE, [address(&mut update), 1, 0, child.id.into()]).ok()?;
    tables::extended(ext::INVLPG_LOCAL, child.window.address(), 0);
    let own = start::domid().unwrap_or_default();
    let offer = u64::from(gtf::PERMIT_ACCESS) | u64::from(own) << 16 | child.frames[22] << 32;
    child.window.set_word(8, offer);
    child.look_away()?;
    let page = Page::new();
    let mapped = grant::map(child.id, 8, page.address(), gntmap::HOST_MAP | gntmap::READONLY);
    log.has("a grant to read", &[]);
    log.check("is taken back", mapped.is_ok_and(|handle| grant::unmap(handle, page.address()).0 == 0));
    log.has("and was one", &[]);
    let mapped = grant::map(child.id, 8, page.address(), gntmap::HOST_MAP);
    log.has("a grant to write", &[22]);
    log.has("while it lasts", &[22]);
    log.check("is taken back", mapped.is_ok_and(|handle| grant::unmap(handle, page.address()).0 == 0));
    log.has("and once more", &[22]);
    let source = Page::new();
    let mut copy = [Copy {
        source: end_of_copy(source.mfn(), SELF, 0),
        dest: end_of_copy(8, child.id, 0),
        len: 16,
        flags: gntcopy::DEST_GREF,
        ..Copy::new_zeroed()
    }];
    log.check("copied", grant::op(gnttabop::COPY, &mut copy) == Answer::OK && copy[0].status.0 == 0);
    log.has("a copy to a grant", &[22]);
    log.has("and no more", &[]);
    Ok(())
}

fn end(log: &mut Log<'_>) -> Result<(), Answer> {
    let child = log.child;
    child.store(10)?;
    log.check("off", child.shadow(ShadowOpCmd::OFF, 0) == Answer::OK);
    log.check("and off again", child.shadow(ShadowOpCmd::OFF, 0) == Answer::OK);
    let unread = child.shadow(ShadowOpCmd::CLEAN, 0);
    log.check("nothing to read", unread == Answer::refused(Errno::EINVAL));
    child.store(23)?;
    let logs = ShadowOpCmd::ENABLE;
    log.check("on again", child.shadow(logs, shadow_enable::LOG_DIRTY) == Answer::OK);
    log.has("from the beginning", &[]);
    child.store(24)?;
    log.has("a store", &[24]);
    // It is destroyed while it is logged.
    child.store(25).map(drop)
}
