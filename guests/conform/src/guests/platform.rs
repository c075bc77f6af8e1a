//! `platform_op`, and `sysctl` and `domctl` as far as their door: versions, pointers, commands that are not there.
//!
//! Promised by: public/platform.h, public/sysctl.h, public/domctl.h.

use pv::hypercall::{address, call, number};
use pv::{Answer, start};

use crate::bad;
use crate::report::{End, Report, Verdict};

const PLATFORM_VERSION: u32 = 0x0300_0001;
const CONTROL_VERSION: u32 = 0x15;

fn platform(command: u32, words: &[u64]) -> (Answer, [u64; 20]) {
    let mut request = [0_u64; 20];
    request[0] = u64::from(PLATFORM_VERSION) << 32 | u64::from(command);
    request[1..=words.len()].copy_from_slice(words);
    (call(number::PLATFORM_OP, [address(&mut request)]), request)
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !start::is_dom0() {
        return Err(End::Skip("the platform is Domain 0's"));
    }
    report.saw_pointers("platform_op", |pointer| call(number::PLATFORM_OP, [pointer]));
    report.saw("another version", call(number::PLATFORM_OP, [address(&mut [0x0200_0000_0000_0011_u64; 20])]));
    report.saw_all("no such command", [0, 1, 99, !0].map(|command| platform(command, &[]).0));
    let (answer, request) = platform(55, &[0]);
    report.saw("get_cpuinfo of CPU 0", format_args!("{answer}, {} at most, flags {:x}", request[1] >> 32, request[2] >> 32));
    report.saw_all("of CPU 1, 99, -1", [1, 99, 0xffff_ffff].map(|cpu| platform(55, &[cpu]).0));
    let (answer, _) = platform(48, &[0]);
    report.saw("get_cpu_version", answer);
    report.saw_all("settime to the epoch, mbz set", [platform(62, &[0, 1]).0]);
    report.saw_all("firmware_info: each type", (0..8).map(|kind| platform(50, &[kind]).0));
    // A sleep that is none (the word flags: legacy registers; state 9), power tables of no processor, no type.
    report.saw("enter_acpi_sleep to a state that is none", platform(51, &[0, 9, 0]).0);
    report.saw_all("set_processor_pminfo: of CPU 99, of no type", [platform(54, &[99 | 1 << 32, 0]).0, platform(54, &[0, 9]).0]);
    report.saw_all("cpu_online, offline, hotadd: CPU 99", [56, 57, 58].map(|command| platform(command, &[99, 0, 0]).0));
    report.saw_all("memory types: add, delete, read", [31, 32, 33].map(|command| platform(command, &[0, 0, 9]).0));
    report.saw("getidletime", platform(53, &[0, 0, 0, 0]).0);
    report.saw("get_symbol", platform(63, &[0, 0, 0, 0]).0);

    // Every number, but for the two that set the clock, and the one that switches the machine off.
    for command in (0..=66).chain([99]).filter(|command| ![17, 51, 62].contains(command)) {
        let answers = [0, !0, bad::UNMAPPED].map(|word| platform(command, &[word; 16]).0);
        report.saw_all(format_args!("command {command}: zeros, ones, addresses"), answers);
    }
    report.saw_pointers("sysctl", |pointer| call(number::SYSCTL, [pointer]));
    let control = |hypercall: u32, command: u32, version: u32| {
        let mut request = [0_u64; 20];
        request[0] = u64::from(version) << 32 | u64::from(command);
        call(hypercall, [address(&mut request)])
    };
    report.saw_all("sysctl: another version, no such command", [
        control(number::SYSCTL, 3, 0x14),
        control(number::SYSCTL, 0, CONTROL_VERSION),
        control(number::SYSCTL, 99, CONTROL_VERSION),
    ]);
    report.saw_pointers("domctl", |pointer| call(number::DOMCTL, [pointer]));
    report.saw_all("domctl: another version, no such command", [
        control(number::DOMCTL, 3, 0x14),
        control(number::DOMCTL, 0, CONTROL_VERSION),
        control(number::DOMCTL, 99, CONTROL_VERSION),
    ]);
    let domctl = |command: u32, domain: u16| {
        let mut request = [0_u64; 20];
        request[0] = u64::from(CONTROL_VERSION) << 32 | u64::from(command);
        request[1] = u64::from(domain);
        call(number::DOMCTL, [address(&mut request)])
    };
    report.saw_all("of no domain: destroy, pause, unpause, resume, getdomaininfo", [2, 3, 4, 27, 5].map(|command| domctl(command, 77)));
    report.saw_all("of ourselves: destroy, pause, unpause", [2, 3, 4].map(|command| domctl(command, 0)));
    report.saw_all("of ourselves by DOMID_SELF: destroy, pause", [2, 3].map(|command| domctl(command, 0x7ff0)));
    Ok(())
}
