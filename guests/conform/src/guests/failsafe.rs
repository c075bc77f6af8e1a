//! The failsafe callback: a segment register that can no longer be loaded.
//!
//! What a vcpu has in its data segments is loaded again when it gets the CPU back. If the descriptor has gone meanwhile,
//! the hypervisor must not fault, nor run the guest with something else in the register: it enters the kernel by the
//! callback that was named for that, with all four selectors in the frame. Two vcpus on one CPU take turns, so that every
//! register is loaded again; each of the four registers is tried with descriptors that went away, became code that cannot
//! be read, or lie beyond a table that has shrunk. Promised by: public/callback.h (`CALLBACKTYPE_failsafe`).

use core::sync::atomic::{AtomicU32, Ordering};

use pv::abi::sched::schedop;
use pv::code::Code;
use pv::hypercall::{address, call, number};
use pv::memory::Page;
use pv::trap::{self, Cause, Frame, General, Next};
use pv::vcpu;

use crate::report::{Report, Verdict};

/// Data, DPL 3.
const DATA: u64 = 0x00cf_f300_0000_ffff;
/// Code that can only be executed, DPL 3.
const UNREADABLE: u64 = 0x00af_f900_0000_ffff;
/// The descriptor that goes away: the ninth.
const SELECTOR: u64 = 8 << 3 | 3;

/// How often vcpu 1 had the CPU; 0 until it is on the same.
static TURNS: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicU32 = AtomicU32::new(0);
static CAME: AtomicU32 = AtomicU32::new(0);
static SELECTORS: [AtomicU32; 4] = [const { AtomicU32::new(0) }; 4];

fn take_turns() {
    TURNS.store(u32::from(vcpu::share_cpu().is_ok()), Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) == 0 {
        call(number::SCHED_OP, [schedop::YIELD, 0]);
        TURNS.fetch_add(1, Ordering::SeqCst);
    }
}

/// Notes the frame of a failsafe callback, and goes on.
fn note(frame: &mut Frame) -> Next {
    if frame.cause != Cause::Failsafe {
        return Next::Pass;
    }
    CAME.fetch_add(1, Ordering::SeqCst);
    for (noted, selector) in SELECTORS.iter().zip(frame.segments) {
        noted.store(selector as u32, Ordering::SeqCst);
    }
    Next::Resume
}

fn update(gdt: Page, descriptor: u64) -> Result<(), pv::Answer> {
    call(number::UPDATE_DESCRIPTOR, [(gdt.mfn() << 12) + 64, descriptor]).ok().map(drop)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let gdt = Page::new();
    gdt.seal()?;
    call(number::SET_GDT, [address(&mut [gdt.mfn()]), 512]).ok()?;
    report.expect("pinned to a CPU", vcpu::share_cpu(), pv::Answer::OK);
    vcpu::start(take_turns).ok()?;
    while TURNS.load(Ordering::SeqCst) < 2 {
        call(number::SCHED_OP, [schedop::YIELD, 0]);
    }
    // mov es, ds, fs, gs from eax; they stay what they are while the kernel does not need them.
    let registers: [(&str, &[u8]); 4] =
        [("es", &[0x8e, 0xc0]), ("ds", &[0x8e, 0xd8]), ("fs", &[0x8e, 0xe0]), ("gs", &[0x8e, 0xe8])];
    let mut load = Code::new();
    for (name, bytes) in registers {
        for (what, after) in [("stays", DATA), ("goes away", 0), ("cannot be read", UNREADABLE)] {
            update(gdt, DATA)?;
            load.set(bytes);
            let loaded = load.in_kernel(&mut General { rax: SELECTOR, ..General::default() });
            report.check_quietly("it can be loaded", loaded.is_ok());
            CAME.store(0, Ordering::SeqCst);
            trap::hook(note, || {
                update(gdt, after)?;
                let before = TURNS.load(Ordering::SeqCst);
                while TURNS.load(Ordering::SeqCst) < before + 3 {
                    call(number::SCHED_OP, [schedop::YIELD, 0]);
                }
                Ok::<(), pv::Answer>(())
            })?;
            let came = CAME.load(Ordering::SeqCst) != 0;
            report.saw(format_args!("{name}: its descriptor {what}: failsafe"), came);
            if came {
                let selectors = SELECTORS.each_ref().map(|selector| selector.load(Ordering::SeqCst));
                let named = selectors.iter().filter(|selector| u64::from(**selector) == SELECTOR).count();
                report.saw("selectors in the frame that name it", named);
            }
            load.in_kernel(&mut General::default()).ok();
        }
    }
    STOP.store(1, Ordering::SeqCst);
    Ok(())
}
