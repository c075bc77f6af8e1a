//! `callback_op`, `vm_assist`, `stack_switch`, `fpu_taskswitch`, `set_callbacks`: the small calls of a kernel's start.
//!
//! Promised by: public/callback.h, public/xen.h.

use pv::abi::x86::selector;
use pv::code::Code;
use pv::hypercall::{address, call, number};
use pv::trap::{self, Cause, General};
use pv::{event, user, vcpu};

use crate::bad;
use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let register = |kind: u16, flags: u16, at: u64| trap::set_callback(kind, flags, at);
    report.saw_all("register each kind", (0..9).map(|kind| register(kind, 0, trap::handler(0, Cause::Vector(6)))));
    report.saw_all("register strange kinds", [99, 0xffff].map(|kind| register(kind, 0, 0)));
    report.saw_all("register each not canonical", (0..8).map(|kind| register(kind, 0, bad::NON_CANONICAL)));
    report.saw_all("register each in the hypervisor", (0..8).map(|kind| register(kind, 0, bad::HYPERVISORS_TOO)));
    report.saw("register with all flags", register(1, 0xffff, trap::handler(0, Cause::Failsafe)));
    let unregister = |kind: u16| call(number::CALLBACK_OP, [1, address(&mut [kind, 0])]);
    report.saw_all("unregister each kind", (0..9).map(unregister));
    report.saw_all("no such command", [2, 99].map(|command| call(number::CALLBACK_OP, [command, address(&mut [0_u64; 3])])));
    report.saw_pointers("register", |pointer| call(number::CALLBACK_OP, [0, pointer]));
    report.saw_pointers("unregister", |pointer| call(number::CALLBACK_OP, [1, pointer]));
    for (kind, cause) in [(0, Cause::Event), (1, Cause::Failsafe), (2, Cause::Syscall)] {
        register(kind, 0, trap::handler(0, cause)).ok()?;
    }
    // A callback may ask that events be masked while its handler runs.
    for flags in [0, 1] {
        register(2, flags, trap::handler(0, Cause::Syscall)).ok()?;
        event::set_upcall_mask(false);
        let frame = user::run(leave, 0);
        report.saw(format_args!("syscall callback with flags {flags}"), format_args!(
            "mask inside {}, saved {}", event::upcall_mask(0), frame.saved_mask()
        ));
    }
    event::set_upcall_mask(true);
    let at = |cause| trap::handler(0, cause);
    report.saw_all("set_callbacks: good, odd event, odd failsafe, odd syscall", [
        call(number::SET_CALLBACKS, [at(Cause::Event), at(Cause::Failsafe), at(Cause::Syscall)]),
        call(number::SET_CALLBACKS, [bad::NON_CANONICAL, at(Cause::Failsafe), at(Cause::Syscall)]),
        call(number::SET_CALLBACKS, [at(Cause::Event), bad::NON_CANONICAL, at(Cause::Syscall)]),
        call(number::SET_CALLBACKS, [at(Cause::Event), at(Cause::Failsafe), bad::NON_CANONICAL]),
    ]);
    call(number::SET_CALLBACKS, [at(Cause::Event), at(Cause::Failsafe), at(Cause::Syscall)]).ok()?;
    assists(report);
    stacks(report)?;
    task_switched(report)
}

extern "C" fn leave(_: u64) -> ! {
    pv::insn::leave(0)
}

fn assists(report: &mut Report) {
    for command in [0, 1] {
        report.saw_all(format_args!("vm_assist {command}, types 0 to 7"), (0..8).map(|kind| call(number::VM_ASSIST, [command, kind])));
    }
    report.saw_all("vm_assist, types 31 to 33, 63, 64, 99, all", [31, 32, 33, 63, 64, 99, u64::MAX].map(|kind| call(number::VM_ASSIST, [0, kind])));
    report.saw_all("vm_assist, strange commands", [2, 3, 99].map(|command| call(number::VM_ASSIST, [command, 2])));
    call(number::VM_ASSIST, [1, 4]);
}

fn stacks(report: &mut Report) -> Verdict {
    let switch = |ss: u64, sp: u64| call(number::STACK_SWITCH, [ss, sp]);
    let good = vcpu::entry_stack(0);
    let data = u64::from(selector::FLAT_RING3_DS);
    report.saw_all("stack_switch: good, nowhere, the hypervisor, not canonical", [
        switch(data, good),
        switch(data, bad::UNMAPPED),
        switch(data, bad::HYPERVISORS_TOO),
        switch(data, bad::NON_CANONICAL),
    ]);
    report.saw_all("selectors: null, the hypervisor's, code, far", [0, 0xe010, 0xe033, 0xfffb].map(|ss| switch(ss, good)));
    switch(data, good).ok()?;
    let frame = user::run(leave, 0);
    report.saw("entered", frame);
    Ok(())
}

/// With TS set, the next use of the FPU traps once.
fn task_switched(report: &mut Report) -> Verdict {
    let mut code = Code::new();
    // fninit
    code.set(&[0xdb, 0xe3]);
    let switch = |set: u64| call(number::FPU_TASKSWITCH, [set]);
    report.saw_all("fpu_taskswitch 1, 0, 1, 99", [switch(1), switch(0), switch(1), switch(99)]);
    let twice = || [0; 2].map(|_| code.in_kernel(&mut General::default()).err());
    for (name, set) in [("set", 1), ("not set", 0)] {
        switch(set).ok()?;
        for outcome in twice() {
            match outcome {
                None => report.saw(name, "no trap"),
                Some(frame) => report.saw(name, frame),
            }
        }
    }
    switch(1).ok()?;
    code.set(&[0x0f, 0x20, 0xc3, 0x0f, 0x06, 0xdb, 0xe3]);
    let mut registers = General::default();
    let outcome = code.in_kernel(&mut registers);
    report.saw("cr0 with it set, clts, fninit", format_args!("{:x} {}", registers.rbx, outcome.is_ok()));
    Ok(())
}
