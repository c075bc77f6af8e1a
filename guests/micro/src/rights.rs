//! Where the kernel of a guest that is no Domain 0 stands, and what it is refused.
//!
//! A guest's kernel runs at the level of its programs: what only a kernel may do traps into the hypervisor, which
//! carries it out as far as the ABI says so, or hands the guest a fault. Hypercalls that reach beyond the guest are
//! refused with `EPERM`: to control domains or the host is Domain 0's.

use pv::abi::domctl::{DOMCTL_INTERFACE_VERSION, DomctlCmd};
use pv::abi::platform::PLATFORM_INTERFACE_VERSION;
use pv::abi::sysctl::{SYSCTL_INTERFACE_VERSION, SysctlCmd};
use pv::code::Code;
use pv::hypercall::{Answer, address, call, entry, multicall, number};
use pv::println;
use pv::trap::General;

/// Name and bytes.
const PRIVILEGED: &[(&str, &[u8])] = &[
    ("cli", &[0xfa]),
    ("hlt", &[0xf4]),
    ("lgdt [rsp]", &[0x0f, 0x01, 0x14, 0x24]),
    ("lidt [rsp]", &[0x0f, 0x01, 0x1c, 0x24]),
    // Frame 0 is no table of ours.
    ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
];
/// `mov eax, cs`
const READ_CS: &[u8] = &[0x8c, 0xc8];

/// Says it all on the console.
pub fn tell() {
    let mut code = Code::new();
    let mut registers = General::default();
    match code.set(READ_CS).in_kernel(&mut registers) {
        Ok(()) => println!("rights: the kernel runs at level {}", registers.rax & 3),
        Err(frame) => println!("rights: reading cs: {frame}"),
    }
    for (name, bytes) in PRIVILEGED {
        let mut registers = General {
            rax: 0,
            ..General::default()
        };
        match code.set(bytes).in_kernel(&mut registers) {
            Ok(()) => println!("rights: {name}: done"),
            Err(frame) => println!("rights: {name}: {frame}"),
        }
    }
    for (name, answer) in [
        ("domctl: getdomaininfo of Domain 0", domctl(DomctlCmd::GETDOMAININFO)),
        ("domctl: pause Domain 0", domctl(DomctlCmd::PAUSEDOMAIN)),
        ("domctl: destroy Domain 0", domctl(DomctlCmd::DESTROYDOMAIN)),
        ("sysctl: physinfo", sysctl(SysctlCmd::PHYSINFO)),
        ("sysctl: read the console ring", sysctl(SysctlCmd::READCONSOLE)),
        ("platform_op: set the time", platform_op(SETTIME64)),
        ("physdev_op: announce a PCI device", physdev_op(PCI_DEVICE_ADD)),
        ("console_io: read the host's console", console_read()),
    ] {
        println!("rights: {name}: {answer}");
    }
    let mut words = head(SysctlCmd::PHYSINFO.0, SYSCTL_INTERFACE_VERSION);
    let mut calls = [
        entry(number::XEN_VERSION, [0, 0]),
        entry(number::SYSCTL, [address(&mut words)]),
    ];
    let whole = multicall(&mut calls);
    let [version, refused] = calls.map(|call| Answer(call.result as i64));
    println!("rights: multicall: {whole}; in it, xen_version: {version}, sysctl: {refused}");
    println!("rights: that is all");
}

/// `PHYSDEVOP_pci_device_add`
const PCI_DEVICE_ADD: u64 = 25;
/// `XENPF_settime64`
const SETTIME64: u32 = 62;
/// `CONSOLEIO_read`
const CONSOLEIO_READ: u64 = 1;

/// Asks to control Domain 0.
fn domctl(command: DomctlCmd) -> Answer {
    request(number::DOMCTL, command.0, DOMCTL_INTERFACE_VERSION)
}

fn sysctl(command: SysctlCmd) -> Answer {
    request(number::SYSCTL, command.0, SYSCTL_INTERFACE_VERSION)
}

fn platform_op(command: u32) -> Answer {
    request(number::PLATFORM_OP, command, PLATFORM_INTERFACE_VERSION)
}

/// A request of Domain 0's kind: command and version, and zeroes, which name Domain 0 where a domain is asked for.
fn request(number: u32, command: u32, version: u32) -> Answer {
    call(number, [address(&mut head(command, version))])
}

fn head(command: u32, version: u32) -> [u64; 32] {
    let mut words = [0; 32];
    words[0] = u64::from(version) << 32 | u64::from(command);
    words
}

fn physdev_op(command: u64) -> Answer {
    let mut words = [0_u64; 8];
    call(number::PHYSDEV_OP, [command, address(&mut words)])
}

fn console_read() -> Answer {
    let mut bytes = [0_u8; 16];
    let count = bytes.len() as u64;
    call(number::CONSOLE_IO, [CONSOLEIO_READ, count, address(&mut bytes)])
}
