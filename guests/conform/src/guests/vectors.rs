//! Every vector, from the kernel and from user mode, by `int` and by what causes it.
//!
//! `int N` enters the guest's handler when its gate lets that mode in, else it is a general protection fault whose
//! error code names the gate. Exceptions come with the error codes that the manual gives them; software interrupts
//! come without, whatever their number. (QEMU makes the error code 16 N + 2 where the manual says 8 N + 2.)
//! Promised by: public/arch-x86/xen.h (`trap_info`), SDM 3A "Interrupt and Exception Handling".

use pv::abi::x86::{TrapInfo, selector};
use pv::code::Code;
use pv::event;
use pv::hypercall::{call, number};
use pv::trap::{self, Cause, Frame, General, Next};
use pv::user;

use crate::bad;
use crate::report::{Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    user::share_everything()?;
    let mut code = Code::new();
    software(report, &mut code, "as installed");
    let mut open = [TrapInfo::default(); 257];
    for vector in 0..=255 {
        open[usize::from(vector)] = TrapInfo { flags: 3, ..trap::gate(0, vector) };
    }
    trap::set_table(&mut open).ok()?;
    software(report, &mut code, "all gates open");
    let mut none = [TrapInfo::default(); 1];
    report.saw("an empty table", trap::set_table(&mut none));
    // A null pointer takes the whole table away; nothing may trap until there is one again.
    report.saw("no table", call(number::SET_TRAP_TABLE, [0]));
    trap::set_table(&mut [trap::gate(0, 13), trap::gate(0, 14), trap::gate(0, 6), trap::gate(0, 3), TrapInfo::default()]).ok()?;
    exceptions(report, &mut code);
    masking(report, &mut code)?;
    tables(report)
}

/// Where QEMU's error code is what Xen takes it for, so that the oracle's answer means something; 128 has an entry of
/// its own there.
const TELLING: [u8; 4] = [0, 3, 4, 128];

/// Prints how the telling vectors end, and how many of all end in which way.
fn software(report: &Report, code: &mut Code, gates: &str) {
    for mode in ["kernel", "user"] {
        let mut outcome = |vector: u8| {
            code.set(&[0xcd, vector]);
            let mut registers = General::default();
            let outcome = if mode == "kernel" {
                code.in_kernel(&mut registers)
            } else {
                code.in_user(&mut registers)
            };
            kind(outcome, vector)
        };
        for vector in TELLING {
            report.saw(format_args!("int {vector}, {gates}, {mode}"), outcome(vector));
        }
        let mut count = |wanted: &str| (0..=255).filter(|vector| outcome(*vector) == wanted).count();
        let (handled, refused) = (count(HANDLED), count(REFUSED) + count(REFUSED_BY_QEMU));
        report.saw(format_args!("int 0 to 255, {gates}, {mode}"), format_args!(
            "{handled} {HANDLED}, {refused} refused, {} otherwise", 256 - handled - refused
        ));
    }
}

const HANDLED: &str = "handled, no error code";
const REFUSED: &str = "#GP(8 N + 2)";
const REFUSED_BY_QEMU: &str = "#GP(16 N + 2)";

/// How `int N` ended, without the number.
fn kind(outcome: Result<(), Frame>, vector: u8) -> &'static str {
    let number = u64::from(vector);
    match outcome {
        Ok(()) => "nothing",
        Err(frame) if frame.cause == Cause::Vector(13) => match frame.error_code {
            Some(code) if code == number * 8 + 2 => REFUSED,
            Some(code) if code == number * 16 + 2 => REFUSED_BY_QEMU,
            Some(_) => "#GP with another code",
            None if vector == 13 => HANDLED,
            None => "another trap",
        },
        Err(frame) if frame.cause == Cause::Vector(vector) && frame.error_code.is_none() => HANDLED,
        Err(frame) if frame.cause == Cause::Vector(vector) => "handled, with an error code",
        Err(_) => "another trap",
    }
}

fn exceptions(report: &Report, code: &mut Code) {
    let mut table = [TrapInfo::default(); 257];
    for vector in 0..=255 {
        table[usize::from(vector)] = trap::gate(0, vector);
    }
    trap::set_table(&mut table);
    let cases: [(&str, &[u8]); 12] = [
        ("divide error", &[0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1]),
        ("icebp", &[0xf1]),
        ("int3", &[0xcc]),
        ("ud2", &[0x0f, 0x0b]),
        ("load from nowhere", &[0x48, 0x8b, 0x00]),
        ("store to nowhere", &[0x48, 0x89, 0x00]),
        ("jump to nowhere", &[0xff, 0xe0]),
        ("load from the hypervisor", &[0x48, 0x8b, 0x03]),
        ("store to the hypervisor", &[0x48, 0x89, 0x03]),
        ("jump to the hypervisor", &[0xff, 0xe3]),
        ("load not canonical", &[0x48, 0x8b, 0x06]),
        // In alignment-check mode: push 0x40202; popfq; mov rax, [rsp - 7]; then flags back.
        ("unaligned load, checked", &[0x68, 0x02, 0x02, 0x04, 0x00, 0x9d, 0x48, 0x8b, 0x44, 0x24, 0xf9, 0x6a, 0x02, 0x9d]),
    ];
    for (name, bytes) in cases {
        code.set(bytes);
        for mode in ["kernel", "user"] {
            let mut registers = General {
                rax: bad::UNMAPPED,
                rbx: bad::HYPERVISORS_TOO,
                rsi: bad::NON_CANONICAL,
                ..General::default()
            };
            let outcome = if mode == "kernel" { code.in_kernel(&mut registers) } else { code.in_user(&mut registers) };
            match outcome {
                Ok(()) => report.saw(format_args!("{name}, {mode}"), "done"),
                Err(frame) => {
                    let address = match frame.cr2 {
                        bad::UNMAPPED => "nowhere",
                        bad::HYPERVISORS_TOO => "the hypervisor",
                        _ => "other",
                    };
                    let shown = if frame.cause == Cause::Vector(14) { address } else { "-" };
                    report.saw(format_args!("{name}, {mode}"), format_args!(
                        "{frame}, cr2 {shown}, cs {:x}, ss {:x}, from user {}",
                        frame.cs & 0xffff, frame.ss, frame.was_in_user_mode()
                    ));
                }
            }
        }
    }
}

/// A gate may ask that events be masked while its handler runs.
fn masking(report: &mut Report, code: &mut Code) -> Verdict {
    fn hook(frame: &mut Frame) -> Next {
        frame.general.rax = event::upcall_mask(0).into();
        frame.general.rbx = frame.saved_mask();
        frame.rip += 2;
        Next::Resume
    }
    code.set(&[0x0f, 0x0b]);
    for flags in [0, 4] {
        trap::set_table(&mut [TrapInfo { flags, ..trap::gate(0, 6) }, TrapInfo::default()]).ok()?;
        for masked in [false, true] {
            event::set_upcall_mask(masked);
            let mut registers = General::default();
            let outcome = trap::hook(hook, || code.in_kernel(&mut registers));
            report.check("the handler returned", outcome.is_ok());
            report.saw(format_args!("gate flags {flags}, events masked {masked}"), format_args!(
                "inside {}, saved {}, afterwards {}", registers.rax, registers.rbx, event::upcall_mask(0)
            ));
        }
    }
    event::set_upcall_mask(true);
    // A handler that faults itself, three deep.
    fn nested(frame: &mut Frame) -> Next {
        if frame.general.rdi > 0 {
            let mut deeper = General { rdi: frame.general.rdi - 1, ..General::default() };
            let inner = Code::new().set(&[0x0f, 0x0b]).in_kernel(&mut deeper);
            frame.general.rax = deeper.rax + u64::from(inner.is_ok());
        }
        frame.rip += 2;
        Next::Resume
    }
    let mut registers = General { rdi: 3, ..General::default() };
    let outcome = trap::hook(nested, || code.in_kernel(&mut registers));
    report.check("nested handlers returned", outcome.is_ok());
    report.expect("as deep as asked", registers.rax, 3);
    Ok(())
}

fn tables(report: &mut Report) -> Verdict {
    let with = |change: &dyn Fn(&mut TrapInfo)| {
        let mut table = [trap::gate(0, 200), TrapInfo::default()];
        change(&mut table[0]);
        trap::set_table(&mut table)
    };
    report.saw_all("handlers in the hypervisor, not canonical, at the last byte", [
        with(&|gate| gate.address = bad::HYPERVISORS),
        with(&|gate| gate.address = bad::NON_CANONICAL),
        with(&|gate| gate.address = u64::MAX),
    ]);
    report.saw_all("code selectors: null, the hypervisor's, a data segment, RPL 0", [
        with(&|gate| gate.cs = 0),
        with(&|gate| gate.cs = 0xe008),
        with(&|gate| gate.cs = selector::FLAT_RING3_DS),
        with(&|gate| gate.cs = selector::FLAT_RING3_CS64 & !3),
    ]);
    report.saw("all flags", with(&|gate| gate.flags = 0xff));
    report.saw_pointers("table", |pointer| call(number::SET_TRAP_TABLE, [pointer]));
    Ok(())
}
