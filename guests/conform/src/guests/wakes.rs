//! A vcpu that wants a CPU gets one that has nothing to do, however many times and by however many ways it was woken.
//!
//! A vcpu that may run waits in some CPU's queue. Waking it once more is nothing new, but it may be the moment in which it
//! is given to a CPU that sleeps; that one has to be told. Here vcpu 1 is switched on while it may only use the CPU of
//! vcpu 0, then it may use all, then it is switched on again; all in one multicall, so that nobody decides anything in
//! between. Vcpu 0 computes on, without a call. Promised by: public/vcpu.h (`VCPUOP_up`), and by what a scheduler is for.

use core::sync::atomic::{AtomicBool, Ordering};

use pv::abi::domctl::{DOMCTL_INTERFACE_VERSION, Domctl, DomctlCmd, VCPUAFFINITY_HARD, Vcpuaffinity};
use pv::abi::vcpu::vcpuop;
use pv::hypercall::{address, call, entry, multicall, number};
use pv::{Answer, start, time, vcpu};
use zerocopy::FromZeros;

use crate::report::{End, Report, Verdict};

const ROUNDS: u32 = 20;
const FIRST_CPU: u64 = 1;
const ALL_CPUS: u64 = 0b11;
/// Far longer than it takes to tell a CPU.
const PATIENCE_NS: u64 = 2_000_000_000;

static RAN: AtomicBool = AtomicBool::new(false);

/// Vcpu 1: says that it runs, and goes off again, for ever.
fn say_so() {
    loop {
        RAN.store(true, Ordering::SeqCst);
        vcpu::bare_op(vcpuop::DOWN, 1);
    }
}

/// A request that vcpu 1 may use these CPUs.
fn affinity(cpus: &mut u64) -> Domctl {
    let mut wanted = Vcpuaffinity::new_zeroed();
    (wanted.vcpu, wanted.flags) = (1, VCPUAFFINITY_HARD);
    (wanted.cpumap_hard.bitmap, wanted.cpumap_hard.nr_bits) = (address(cpus), 2);
    let mut request = Domctl::new_zeroed();
    (request.cmd, request.interface_version) = (DomctlCmd::SETVCPUAFFINITY, DOMCTL_INTERFACE_VERSION);
    request.set_payload(&wanted);
    request
}

fn ran() -> bool {
    let until = time::now() + PATIENCE_NS;
    while !RAN.load(Ordering::SeqCst) && time::now() < until {
        core::hint::spin_loop();
    }
    RAN.swap(false, Ordering::SeqCst)
}

fn wait_until_down() {
    while vcpu::bare_op(vcpuop::IS_UP, 1) != Answer::OK {}
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !start::is_dom0() {
        return Err(End::Skip("only Domain 0 says which CPUs a vcpu may use"));
    }
    report.expect("vcpu 0 stays on the first CPU", vcpu::share_cpu(), Answer::OK);
    vcpu::start(say_so).ok()?;
    report.check("vcpu 1 runs", ran());
    let (mut first, mut all) = (FIRST_CPU, ALL_CPUS);
    let mut here_only = affinity(&mut first);
    let mut anywhere = affinity(&mut all);
    for _ in 0..ROUNDS {
        wait_until_down();
        call(number::DOMCTL, [address(&mut here_only)]).ok()?;
        let up = || entry(number::VCPU_OP, [vcpuop::UP, 1, 0]);
        let mut calls = [up(), entry(number::DOMCTL, [address(&mut anywhere)]), up()];
        multicall(&mut calls).ok()?;
        if calls.iter().any(|call| call.result != 0) {
            return Err(End::Fail("a call of the multicall was refused"));
        }
        if !ran() {
            return Err(End::Fail("a CPU sleeps, and vcpu 1 waits for one"));
        }
    }
    report.check("each time vcpu 1 was switched on, it ran", true);
    Ok(())
}
