//! Long requests do not hold the processor: an event that comes due in the middle of one is delivered within a
//! millisecond, however long the request is.
//!
//! Each request here takes well over a millisecond as a whole, and a timer comes due shortly after it was made. The
//! upcall notes when it was let in. Promised by: the rule that long work is preemptible (`docs/preemption.md`); in
//! the spirit of XSA-45, XSA-77, XSA-150, XSA-273 and the many others about long-running operations.
//!
//! Times are the paravirtual clock's, and would say little on a machine that is emulated beside others: `conform`
//! runs this guest where a tick of the clock is an instruction.

use pv::abi::memory::MemoryReservation;
use pv::event::{self, SELF};
use pv::hypercall::{address, call, number};
use pv::memory::{ORDINARY, Page, READ_ONLY, SIZE};
use pv::tables::{self, Slot, ext};
use pv::{Answer, insn, start, time};
use zerocopy::FromZeros;

use crate::report::{End, Report, Verdict};

/// The most an event may be kept waiting.
const BOUND_NS: u64 = 1_000_000;
/// When the timer comes due: in the middle of what is longer than this.
const SOON_NS: u64 = 20_000;

/// Full tables in a tree.
const TABLES: usize = 300;

/// Pages side by side, for long lists.
struct List(Page);

impl List {
    fn of_pages(count: usize) -> Self {
        let first = Page::new();
        for _ in 1..count {
            Page::new();
        }
        Self(first)
    }

    /// Fills it with `count` items of the same words.
    fn fill<const N: usize>(&self, count: u64, item: impl Fn(u64) -> [u64; N]) {
        for index in 0..count {
            for (word, value) in item(index).into_iter().enumerate() {
                insn::poke(self.at() + (index * N as u64 + word as u64) * 8, value);
            }
        }
    }

    fn at(&self) -> u64 {
        self.0.address()
    }
}

/// Does `work` with a timer that comes due in its middle.
fn watch(report: &mut Report, port: u32, what: &str, work: impl FnOnce() -> Answer) -> Result<(), End> {
    event::set_upcall_mask(true);
    event::take(port);
    event::acknowledge(0);
    let upcalls = event::upcalls(0);
    let due = time::now() + SOON_NS;
    call(number::SET_TIMER_OP, [due]).ok()?;
    event::set_upcall_mask(false);
    let answer = work();
    let took = time::now().saturating_sub(due);
    event::set_upcall_mask(true);
    report.saw(what, answer);
    report.check("  it takes longer than an event may wait", took > BOUND_NS);
    report.check("  an event came in its middle", event::upcalls(0) > upcalls);
    let late = event::last_upcall(0).saturating_sub(due);
    if late > BOUND_NS {
        pv::println!("  (late by {late} ns)");
    }
    report.check("  in time", late <= BOUND_NS);
    Ok(())
}

fn memory(command: u64, domain: u16, list: &List, count: u64) -> Answer {
    let mut request = MemoryReservation::new_zeroed();
    request.extent_start = list.at();
    request.nr_extents = count;
    request.domid.0 = domain;
    call(number::MEMORY_OP, [command, address(&mut request)])
}

/// Asks a control operation of which `words` are the arguments.
fn control(command: u32, domain: u16, words: &[u32]) -> (Answer, u16) {
    // public/domctl.h: the command, the interface's version, the domain; then 128 bytes.
    let mut request = [0_u32; 36];
    (request[0], request[1], request[2]) = (command, 0x15, domain.into());
    request[4..4 + words.len()].copy_from_slice(words);
    let answer = call(number::DOMCTL, [address(&mut request)]);
    (answer, request[2] as u16)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let port = event::bind_virq(0, 0)?;
    event::set_mask(port, false);

    let list = List::of_pages(640);
    list.fill(40_000, |_| [number::XEN_VERSION.into(), 0, 0, 0, 0, 0, 0, 0]);
    watch(report, port, "40,000 calls in a multicall", || call(number::MULTICALL, [list.at(), 40_000]))?;

    let window = Page::new();
    let slot = Slot::of(window.address(), 1).ok_or(End::Fail("a page without an entry"))?;
    let entry = slot.get();
    list.fill(25_600, |_| [slot.maddr(), entry]);
    watch(report, port, "25,600 updates of an entry", || call(number::MMU_UPDATE, [list.at(), 25_600, 0, SELF.into()]))?;
    list.fill(30_000, |_| [ext::INVLPG_LOCAL.into(), window.address(), 0]);
    watch(report, port, "30,000 flushes", || call(number::MMUEXT_OP, [list.at(), 30_000, 0, SELF.into()]))?;

    let data = Page::new();
    let directory = Page::new();
    for index in 0..TABLES {
        let table = Page::new();
        for entry in 0..512 {
            let frame = if entry % 2 == 0 { data } else { window };
            table.set_word(entry, frame.mfn() << 12 | READ_ONLY);
        }
        table.seal()?;
        directory.set_word(index, table.mfn() << 12 | ORDINARY);
    }
    let upper = Page::new();
    upper.set_word(0, directory.mfn() << 12 | ORDINARY);
    let root = tables::copy_of_root();
    root.set_word(100, upper.mfn() << 12 | ORDINARY);
    for page in [directory, upper, root] {
        page.seal()?;
    }
    watch(report, port, "a pin of a tree of 153,600 entries", || tables::pin(4, root.mfn()))?;
    // It may be finished only when the tables are asked for next.
    let unpin = || match tables::unpin(root.mfn()) {
        Answer::OK => pv::memory::map(data.address(), data.mfn(), ORDINARY),
        refused => refused,
    };
    watch(report, port, "its unpin", unpin)?;

    let pages = start::info().nr_pages;
    let count = 4096;
    let first = pages - count;
    list.fill(count, |index| [pv::memory::p2m(first + index)]);
    watch(report, port, "4,096 pages go", || memory(1, SELF, &list, count))?;
    list.fill(count, |index| [first + index]);
    watch(report, port, "and come back", || memory(6, SELF, &list, count))?;
    for index in 0..count {
        pv::memory::set_p2m(first + index, insn::peek(list.at() + index * 8));
    }

    let other = Page::new();
    let by_frame = |page: Page| [page.mfn(), u64::from(SELF)];
    list.fill(4096, |_| {
        let ([from, whose], [to, _]) = (by_frame(data), by_frame(other));
        [from, whose, to, whose, SIZE]
    });
    watch(report, port, "4,096 copies of a page", || call(number::GRANT_TABLE_OP, [5, list.at(), 4096]))?;

    // createdomain: no HVM, one vcpu, no limits worth the name.
    let mut words = [0; 16];
    (words[7], words[8], words[9], words[10], words[11]) = (1, 1023, 4, 16, 1);
    let (created, domain) = control(1, 0, &words);
    created.ok()?;
    control(11, domain, &[64 << 10, 0]).0.ok()?;
    list.fill(count, |index| [index]);
    watch(report, port, "4,096 pages for another domain", || memory(6, domain, &list, count))?;
    watch(report, port, "its end", || control(2, domain, &[]).0)?;
    Ok(())
}
