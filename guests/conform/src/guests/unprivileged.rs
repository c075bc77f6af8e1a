//! What is not a guest's: every call that controls the host, its devices, or another domain.
//!
//! Domain 0 may make these calls, and other guests here show that it can; a domU makes the same ones, with arguments that
//! are in order, and must hear that it may not, whatever else might be said about them. XSA-87 (CVE-2014-1666) was about
//! two that were forgotten. A wrong answer that is not "done" is in the transcript; "done" is a failure at once.
//! Promised by: public/domctl.h, public/sysctl.h, public/platform.h, public/physdev.h.

use pv::abi::domctl::{DOMCTL_INTERFACE_VERSION, Domctl, DomctlCmd};
use pv::abi::physdev::{MapPirq, PciDevice, SetIopl, UnmapPirq, physdevop};
use pv::abi::sysctl::{SYSCTL_INTERFACE_VERSION, Sysctl, SysctlCmd};
use pv::abi::xen::MmuUpdate;
use pv::event::{self, SELF};
use pv::grant::{self, gntmap};
use pv::hypercall::{address, call, number};
use pv::memory::{ORDINARY, Page};
use pv::tables::{self, Slot};
use pv::{Answer, start};
use zerocopy::FromZeros;

use crate::bad;
use crate::report::{End, Report, Verdict};

/// Domain 0's id.
const DOM0: u16 = 0;

fn domctl(cmd: DomctlCmd, subject: u16) -> Answer {
    let mut request = Domctl::new_zeroed();
    (request.cmd, request.interface_version, request.domain.0) = (cmd, DOMCTL_INTERFACE_VERSION, subject);
    call(number::DOMCTL, [address(&mut request)])
}

fn sysctl(cmd: SysctlCmd) -> Answer {
    let mut request = Sysctl::new_zeroed();
    (request.cmd, request.interface_version) = (cmd, SYSCTL_INTERFACE_VERSION);
    call(number::SYSCTL, [address(&mut request)])
}

fn device<T>(command: u64, request: &mut T) -> Answer {
    call(number::PHYSDEV_OP, [command, address(request)])
}

fn refused(report: &mut Report, what: &str, answers: &[Answer]) {
    report.saw_all(what, answers);
    report.check_quietly("none of it is done", answers.iter().all(|answer| !answer.is_ok()));
}

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if start::is_dom0() {
        return Err(End::Skip("Domain 0 may do all this"));
    }
    let own = start::domid().ok_or(End::Fail("no domid"))?;
    for (name, subject) in [("itself", own), ("Domain 0", DOM0), ("no domain", bad::NO_DOMAIN)] {
        // All that there are but debugging aids; none has a use for what is zero here.
        let answers: [Answer; 86] = core::array::from_fn(|cmd| domctl(DomctlCmd(cmd as u32 + 1), subject));
        report.saw(format_args!("domctl on {name}, done"), answers.iter().filter(|answer| answer.is_ok()).count());
        let refused = answers.iter().filter(|answer| [Answer(-1), Answer(-38)].contains(answer)).count();
        // Which numbers are commands differs by what is built in. Who is not there cannot be asked about.
        if subject != bad::NO_DOMAIN {
            report.check("nearly all because that is not permitted, or no command", refused >= answers.len() - 8);
        }
        report.check_quietly("none of it is done", answers.iter().all(|answer| !answer.is_ok()));
    }
    let answers: [Answer; 29] = core::array::from_fn(|cmd| sysctl(SysctlCmd(cmd as u32 + 1)));
    refused(report, "sysctl", &answers);
    let platform: [Answer; 32] = core::array::from_fn(|cmd| {
        // The interface version, and a union of zeros.
        let mut request = [0_u64; 40];
        request[0] = 0x0300_0001 << 32 | (cmd as u64 + 31);
        call(number::PLATFORM_OP, [address(&mut request)])
    });
    refused(report, "platform_op", &platform);
    devices(report);
    domains(report)
}

fn devices(report: &mut Report) {
    let mut line = MapPirq::new_zeroed();
    (line.domid.0, line.kind, line.index, line.pirq) = (SELF, 1, 4, -1);
    let mut pci = PciDevice { seg: 0, bus: 0, devfn: 8 };
    let mut number = UnmapPirq::new_zeroed();
    (number.domid.0, number.pirq) = (SELF, 4);
    report.saw("map a line", device(physdevop::MAP_PIRQ, &mut line));
    report.saw("unmap one", device(physdevop::UNMAP_PIRQ, &mut number));
    report.saw("prepare, release a device's MSI-X table (XSA-87)", device(physdevop::PREPARE_MSIX, &mut pci));
    report.saw("add, remove a device", device(physdevop::PCI_DEVICE_ADD, &mut [0_u32; 3]));
    report.saw("remove it", device(physdevop::PCI_DEVICE_REMOVE, &mut pci));
    report.saw("set up a line", device(physdevop::SETUP_GSI, &mut [4_u32, 0]));
    report.saw("I/O privilege, of its own fiction", device(physdevop::SET_IOPL, &mut SetIopl { iopl: 1 }));
    report.saw("bind a line", event::op(2, &mut [4_u32, 0, 0]));
    report.saw_all("virtual interrupts of the host", [3, 4, 8, 9].map(|virq| {
        event::bind_virq(virq, 0).map_or_else(|refused| refused, |_| Answer::OK)
    }));
    report.saw_all("the machine's memory map, the machine check", [
        call(number::MEMORY_OP, [10, address(&mut [0_u64; 2])]),
        call(number::MCA, [address(&mut [0_u64; 8])]),
    ]);
    report.saw_all("console: write, read", [0, 1].map(|command| call(number::CONSOLE_IO, [command, 1, address(&mut [0_u64])])));
}

fn domains(report: &mut Report) -> Verdict {
    let window = Page::new();
    let slot = Slot::of(window.address(), 1).ok_or(End::Fail("no table"))?;
    for (name, subject) in [("Domain 0", DOM0), ("the machine", 0x7ff1), ("the hypervisor", 0x7ff2), ("no domain", bad::NO_DOMAIN)] {
        let mut update = [MmuUpdate { ptr: slot.maddr(), val: tables::root_mfn() << 12 | ORDINARY }];
        let memory = |command: u64| {
            let mut id = u64::from(subject);
            call(number::MEMORY_OP, [command, address(&mut id)])
        };
        report.saw_all(format_args!("of {name}: map a frame, count memory, set up grants, status of a port, a port for it"), [
            call(number::MMU_UPDATE, [address(&mut update), 1, 0, subject.into()]),
            memory(3),
            grant::map(subject, 8, window.address(), gntmap::HOST_MAP).map_or_else(|status| Answer(status.0.into()), |_| Answer::OK),
            event::status(subject, 1).map_or_else(|refused| refused, |_| Answer::OK),
            event::alloc_unbound(subject, SELF).map_or_else(|refused| refused, |_| Answer::OK),
        ]);
    }
    // Where the host's own devices are: the local APIC, and the page at 0.
    for (name, mfn) in [("the local APIC", 0xfee00), ("page 0", 0), ("the BIOS", 0xf0)] {
        let answers = [
            tables::set(slot.maddr(), mfn << 12 | ORDINARY),
            tables::set(slot.maddr(), mfn << 12 | 5),
        ];
        report.check_quietly("refused", answers.iter().all(|answer| !answer.is_ok()));
        report.saw_all(format_args!("map {name}, writable and not"), answers);
    }
    Ok(())
}
