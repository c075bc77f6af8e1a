//! Random hypercalls with plausible arguments, from two vcpus at once: `seed=N steps=M` on the command line.
//!
//! Wild arguments find out whether a call checks what it is given; the storm of `guests/micro` does that. This guest
//! wants to get past the checks: frames are its own (as often as not), tables are tables, handles were given out, ports
//! are open, and a domain beside it has memory, grants and ports to share. So calls succeed, states pile up, and the two
//! vcpus do to the same few pages what nobody would do on purpose.
//!
//! **The same seed makes the same calls.** What a call is, and what its arguments stand for (the third page, the frame
//! behind it, handle 7), is drawn from dice and depends on nothing else; the digest of everything drawn is printed. What
//! the frame behind the third page is by then, and what the call answers, depends on the two vcpus' race.
//!
//! **What is judged** is the hypervisor's books. When the calls are over, both vcpus go back to the tables they came
//! with, give back what they hold, and destroy the domain beside them; then the hypervisor audits itself (debug key `O`).
//! `cargo xtask fuzz-guest` reads its line.
//!
//! The guest must be able to run on: its image, stacks and first tables are never an argument by which they could be lost.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod calls;
mod dice;
mod modes;
mod neighbour;
mod scene;
mod step;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dice::Dice;
use pv::abi::sysctl::{DebugKeys, SYSCTL_INTERFACE_VERSION, Sysctl, SysctlCmd};
use pv::abi::vcpu::vcpuop;
use pv::code::Code;
use pv::hypercall::{address, call, number};
use pv::trap::{self, Cause, Frame, Next};
use pv::{Answer, println, start, vcpu};
use scene::Scene;
use zerocopy::FromZeros;

pv::main!(run);

/// How many vcpus are through.
static DONE: AtomicU32 = AtomicU32::new(0);
/// The digests of all vcpus, together.
static DIGEST: AtomicU64 = AtomicU64::new(0);
/// How many calls were not refused.
static ACCEPTED: AtomicU64 = AtomicU64::new(0);

fn run() {
    let (seed, steps) = (
        start::option("seed").unwrap_or(1),
        start::option("steps").unwrap_or(1000),
    );
    let audits = start::is_dom0() && audit().is_ok();
    match Scene::set() {
        Ok(()) => trap::hook(go_on, || both(steps)),
        Err(answer) => return println!("[fuzz] FAIL the scene cannot be set: {answer}"),
    }
    println!(
        "[fuzz] seed {seed}, {steps} steps on each vcpu, digest {:016x}",
        DIGEST.load(Ordering::SeqCst)
    );
    println!("[fuzz] {} of the calls did something", ACCEPTED.load(Ordering::SeqCst));
    scene::get().clear();
    println!("[fuzz] all given back");
    if audits {
        // A second time: the first was before the calls, to compare with.
        let answer = audit();
        println!("[fuzz] audited: {answer}");
    }
    println!("[fuzz] PASS");
}

/// Lets the hypervisor audit its books.
fn audit() -> Answer {
    let mut keys = *b"O";
    let mut wanted = DebugKeys::new_zeroed();
    (wanted.keys, wanted.nr_keys) = (address(&mut keys), 1);
    let mut request = Sysctl::new_zeroed();
    (request.cmd, request.interface_version) = (SysctlCmd::DEBUG_KEYS, SYSCTL_INTERFACE_VERSION);
    request.set_payload(&wanted);
    call(number::SYSCTL, [address(&mut request)])
}

/// NMIs that the guest sends itself, debug exceptions, and segments that a kernel does not need end nothing.
fn go_on(frame: &mut Frame) -> Next {
    const TRAP_FLAG: u64 = 0x100;
    match frame.cause {
        Cause::Nmi | Cause::Vector(2) => Next::Resume,
        // A breakpoint on what is about to be executed would come again and again.
        Cause::Vector(1) => {
            call(number::SET_DEBUGREG, [7, 0]);
            frame.rflags &= !TRAP_FLAG;
            Next::Resume
        }
        Cause::Failsafe if !frame.was_in_user_mode() => Next::Resume,
        _ => Next::Pass,
    }
}

/// Makes `steps` steps on each vcpu.
fn both(steps: u64) {
    let second = vcpu::start(|| act(1, start::option("steps").unwrap_or(1000)));
    if !second.is_ok() {
        println!("[fuzz] one vcpu only: {second}");
        DONE.fetch_add(1, Ordering::SeqCst);
    }
    act(0, steps);
    while DONE.load(Ordering::SeqCst) < 2 {
        vcpu::bare_op(vcpuop::UP, 1);
        call(number::SCHED_OP, [0, 0]);
    }
}

fn act(vcpu: u64, steps: u64) {
    let seed = start::option("seed").unwrap_or(1);
    let mut dice = Dice::new(seed << 1 | vcpu);
    let mut accepted = 0;
    let mut code = Code::new();
    for _ in 0..steps {
        accepted += step::make(&mut dice, scene::get(), &mut code);
    }
    Scene::leave();
    DIGEST.fetch_xor(dice.digest(), Ordering::SeqCst);
    ACCEPTED.fetch_add(accepted, Ordering::SeqCst);
    DONE.fetch_add(1, Ordering::SeqCst);
}
