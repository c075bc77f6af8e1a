//! Frames that are no memory of ours: devices, firmware, the hypervisor's own.
//!
//! Domain 0 may map devices and firmware tables; nobody may map the hypervisor's memory, another's, or an interrupt
//! controller. Promised by: public/xen.h (`DOMID_IO`, `DOMID_XEN`); `iomem_permit_access` of upstream's Domain 0
//! builder. In the spirit of XSA-217 and XSA-333.

use pv::abi::xen::MmuUpdate;
use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page, READ_ONLY, pte};
use pv::tables::Slot;
use pv::{insn, start, trap};

use crate::report::{End, Report, Verdict};

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let window = Page::new();
    let slot = Slot::of(window.address(), 1).ok_or(End::Fail("no table"))?;
    let own = window.mfn();
    let map = |mfn: u64, flags: u64, owner: u64| {
        let mut update = [MmuUpdate { ptr: slot.maddr(), val: mfn << 12 | flags }];
        let answer = call(number::MMU_UPDATE, [address(&mut update), 1, 0, owner]);
        let reads = answer.is_ok() && trap::attempt(|| insn::peek(window.address())).is_ok();
        memory::map(window.address(), own, ORDINARY);
        (answer, reads)
    };
    let devices = ORDINARY | pte::CACHE_DISABLE;
    for (name, mfn, flags) in [
        ("page 0", 0, ORDINARY),
        ("the BIOS data area's end", 0x9f, ORDINARY),
        ("the VGA", 0xb8, devices),
        ("the BIOS", 0xf0, READ_ONLY),
        ("the BIOS, writable", 0xf0, ORDINARY),
        ("the hypervisor's image", 0x200, READ_ONLY),
        ("the local APIC", 0xfee00, devices),
        ("the I/O APIC", 0xfec00, devices),
        ("the I/O APIC, read-only", 0xfec00, READ_ONLY),
        ("the HPET", 0xfed00, devices),
        ("the HPET, read-only", 0xfed00, READ_ONLY),
        ("the BIOS at the end of 4 GiB", 0xfffff, READ_ONLY),
        ("a hole below 4 GiB", 0xe0000, devices),
        ("a hole above", 0x10_0000, devices),
        ("beyond the processor's addresses", 0xff_ffff_ffff, devices),
    ] {
        for (who, owner) in [("self", 0x7ff0), ("the machine", 0x7ff1), ("the hypervisor", 0x7ff2)] {
            let (answer, reads) = map(mfn, flags, owner);
            report.saw(format_args!("{name}, as of {who}"), format_args!("{answer}, readable {reads}"));
        }
    }
    report.saw("the shared page, once more", memory::set_entry(window.address(), start::info().shared_info | ORDINARY));
    memory::map(window.address(), own, ORDINARY).ok()?;
    let m2p = pv::abi::xen::MACH2PHYS_VIRT_START;
    report.saw("reading the machine-to-physical table", trap::attempt(|| insn::peek(m2p)).is_ok());
    let written = trap::attempt(|| insn::poke(m2p, 0));
    report.check("writing to it faults", written.is_err());
    let last = trap::attempt(|| insn::peek(m2p + (1 << 38) - 8));
    report.check("reading behind its end faults", last.is_err());
    Ok(())
}
