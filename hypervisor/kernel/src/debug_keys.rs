//! Debug keys: one letter each, typed on the serial line while it is ours or sent by a tool (`xl debug-keys`).
//!
//! The letters are upstream's where upstream has one. They print for people; only the line of the audit (`O`) has a
//! form that tests rely on. A key may hold its CPU for longer than anything else here: it is pressed by whoever owns the
//! machine, and what it prints should be of one moment.

use crate::domain::{self, Domain, VcpuRef};
use crate::hypercall::{NUMBER_OF_CALLS, counts, event_channel, grant_table};
use crate::{irq, memory, sched, time};
use alloc::sync::Arc;
use ferroxen_machine::{GuestFrame, cpu, heap, power};
use ferroxen_words::DomId;

struct Key {
    letter: u8,
    title: &'static str,
    press: fn(),
}

const KEYS: &[Key] = &[
    key(b'0', "registers of Domain 0", || registers(|of| of == DomId::DOM0)),
    key(b'C', "crash the host", || panic!("a debug key asked for it")),
    key(b'O', "audit frames, grants, ports and interrupts", audit),
    key(b'R', "restart the machine", || power::reboot()),
    key(b'd', "registers of all domains", || registers(|_| true)),
    key(b'e', "event channels", || {
        domains().for_each(|of| event_channel::print(&of))
    }),
    key(b'g', "grants", || domains().for_each(|of| grant_table::print(&of))),
    key(b'h', "this list", help),
    key(b'm', "memory", memory_in_use),
    key(b'p', "hypercalls since the start", hypercalls),
    key(b'q', "domains", || domains().for_each(|of| describe(&of))),
    key(b'r', "vcpus and where they run", vcpus),
    key(b't', "clocks", clocks),
];

const fn key(letter: u8, title: &'static str, press: fn()) -> Key {
    Key { letter, title, press }
}

/// Does what a key stands for.
pub fn press(letter: u8) {
    match KEYS.iter().find(|key| key.letter == letter) {
        Some(key) => {
            crate::info!("'{}' pressed -> {}", letter.escape_ascii(), key.title);
            (key.press)();
        }
        None => crate::info!(
            "debug key '{}' does nothing; 'h' lists those that do",
            letter.escape_ascii()
        ),
    }
}

fn help() {
    for key in KEYS {
        crate::info!("  {}  {}", key.letter as char, key.title);
    }
}

fn hypercalls() {
    crate::info!("{NUMBER_OF_CALLS} numbers have a call; those that were made:");
    for (number, count) in counts::made() {
        crate::info!("hypercall {number}: {count}");
    }
}

fn domains() -> impl Iterator<Item = Arc<Domain>> {
    domain::list::all().into_iter()
}

fn describe(of: &Arc<Domain>) {
    let pages = memory::counts(of);
    crate::info!(
        "{}: {:?}, {} vcpus, {} pages (at most {})",
        of.id,
        of.life(),
        of.vcpus().len(),
        pages.total,
        pages.max
    );
}

fn vcpus() {
    for vcpu in domains().flat_map(|of| VcpuRef::all(&of).collect::<alloc::vec::Vec<_>>()) {
        let state = sched::state_of(&vcpu);
        let what = match () {
            () if state.is_running => "runs",
            () if !vcpu.is_online() => "is offline",
            () if vcpu.is_paused() => "is paused",
            () if state.is_blocked => "is blocked",
            () => "waits for its turn",
        };
        crate::info!("{vcpu}: {what}, {}, has run {} ms", state.cpu, state.run_ns / 1_000_000);
    }
}

/// What a vcpu that runs has in its registers is on its CPU; what lies here is of its last stop.
fn registers(wanted: impl Fn(DomId) -> bool) {
    for of in domains().filter(|of| wanted(of.id)) {
        for vcpu in VcpuRef::all(&of) {
            match vcpu.sched.cpu() {
                Some(cpu) => crate::info!("{vcpu}: on {cpu}"),
                None => print_registers(&vcpu, &vcpu.pv.lock().frame),
            }
        }
    }
}

fn print_registers(vcpu: &VcpuRef, r: &GuestFrame) {
    crate::info!(
        "{vcpu}: rip {:04x}:{:016x} rsp {:04x}:{:016x} rflags {:08x}\n\
         rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n\
         rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}\n\
         r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}\n\
         r13 {:016x} r14 {:016x} r15 {:016x}",
        r.cs,
        r.rip,
        r.ss,
        r.rsp,
        r.rflags,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15
    );
}

fn memory_in_use() {
    crate::info!(
        "memory: {} of {} pages free, {} to scrub; heap {} of {} bytes free",
        memory::free_pages(),
        memory::total_pages(),
        memory::pages_to_scrub(),
        heap::free_bytes(),
        heap::total_bytes()
    );
}

fn clocks() {
    let (seconds, _) = time::date();
    crate::info!(
        "clocks: {} ns since the start; counter at {}, {} Hz; {seconds} s since 1970",
        time::now(),
        cpu::tsc(),
        ferroxen_machine::time::tsc_hz()
    );
}

/// Checks every account that the hypervisor keeps, against what it counts. Tests look for "0 wrong".
fn audit() {
    let all = domain::list::all();
    let mirrors: u64 = all.iter().map(|of| crate::pv::mm::audit_mirrors(of)).sum();
    let accounts = event_channel::audit(&all) + grant_table::audit(&all) + irq::audit() + mirrors;
    match memory::audit(&all) {
        Some(found) => crate::info!(
            "audit: {} wrong; {} L1, {} L2, {} L3, {} L4 tables, {} writable frames, {} other references",
            found.wrong + accounts,
            found.tables[0],
            found.tables[1],
            found.tables[2],
            found.tables[3],
            found.writable,
            found.unexplained
        ),
        None => crate::warn!("audit: not enough heap to count in"),
    }
}
