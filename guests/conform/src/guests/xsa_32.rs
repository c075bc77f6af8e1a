//! XSA-32 (CVE-2012-5525): frame numbers beyond the end of memory.
//!
//! A frame number was turned into an address before it was compared with how much memory there is. Every call of a PV
//! guest that names a frame gets numbers at the end of the machine's memory, at the end of what an entry can hold, and
//! beyond. All must be refused; a frame of the guest's own in the same place must not be.

use pv::hypercall::{address, call, number};
use pv::memory::{self, ORDINARY, Page, READ_ONLY};
use pv::tables::{self, Slot, ext};
use pv::{Answer, insn, trap, vcpu};
use pv::abi::vcpu::{RegisterVcpuInfo, vcpuop};

use crate::report::{End, Report, Verdict};

const FRAMES: [u64; 6] = [0x8000, 0x10_0000, 1 << 28, (1 << 40) - 1, 1 << 40, (1 << 52) - 1];

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    let (table, page) = (Page::new(), Page::new());
    table.seal()?;
    tables::pin(1, table.mfn()).ok()?;
    let slot = Slot::of(page.address(), 1).ok_or(End::Fail("no table"))?;
    let calls: [(&str, &dyn Fn(u64) -> Answer); 11] = [
        ("pin", &|mfn| tables::pin(2, mfn)),
        ("unpin", &tables::unpin),
        ("new root", &tables::set_root),
        ("new user root", &tables::set_user_root),
        ("clear", &|mfn| tables::extended(ext::CLEAR_PAGE, mfn, 0)),
        ("copy from", &|mfn| tables::extended(ext::COPY_PAGE, page.mfn(), mfn)),
        ("an entry in", &|mfn| tables::set(mfn << 12, 0)),
        ("its page is", &|mfn| tables::set(mfn << 12 | 1, 5)),
        ("set_gdt", &|mfn| call(number::SET_GDT, [address(&mut [mfn]), 512])),
        ("update_descriptor", &|mfn| call(number::UPDATE_DESCRIPTOR, [mfn << 12, 0])),
        ("vcpu_info", &|mfn| vcpu::op(vcpuop::REGISTER_VCPU_INFO, 1, &mut RegisterVcpuInfo { mfn, offset: 0, rsvd: 0 })),
    ];
    for (name, call) in calls {
        report.saw_all(name, FRAMES.map(call));
    }
    for flags in [READ_ONLY, ORDINARY] {
        // Those at the end of memory may be a device's, which Domain 0 may map.
        let entries = [1 << 28, (1 << 40) - 1].map(|mfn: u64| mfn << 12 | flags);
        report.saw_all("mapped by mmu_update", entries.map(|entry| tables::set(slot.maddr(), entry)));
        report.saw_all("by update_va_mapping", entries.map(|entry| memory::set_entry(page.address(), entry)));
        let stored = entries.map(|entry| trap::attempt(|| insn::poke(table.address(), entry)).is_ok());
        report.saw_all("by a store to a table", stored);
        report.check("nothing of it is there", table.word(0) == 0);
    }
    report.expect("an own frame", tables::set(slot.maddr(), page.mfn() << 12 | ORDINARY), Answer::OK);
    report.expect("an own frame in the table", tables::set(table.mfn() << 12, page.mfn() << 12 | ORDINARY), Answer::OK);
    Ok(())
}
