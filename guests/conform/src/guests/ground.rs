//! The ground on which the others stand: an exception reaches its handler with its error code and address,
//! user mode runs and comes back, an event is delivered, a second vcpu starts, a page changes its frame.
//!
//! Promised by: public/xen.h (`set_trap_table`, `update_va_mapping`), public/arch-x86/xen-x86_64.h (`iret`,
//! the frame), public/vcpu.h, public/event_channel.h.

use core::sync::atomic::{AtomicU32, Ordering};

use pv::abi::vcpu::vcpuop;
use pv::memory::{self, Page};
use pv::{event, insn, start, tables, time, trap, user, vcpu};

use crate::report::{End, Report, Verdict};

static RAN: AtomicU32 = AtomicU32::new(0);

/// See the module.
pub fn act(report: &mut Report) -> Verdict {
    if !vcpu::bare_op(vcpuop::IS_UP, 1).is_ok() {
        return Err(End::Skip("needs two vcpus"));
    }
    let page = Page::new();
    let fault = |act: &dyn Fn()| trap::attempt(act).err().ok_or(End::Fail("no trap"));

    memory::unmap(page.address()).ok()?;
    let frame = fault(&|| insn::poke(page.address() + 8, 1))?;
    report.expect("writing to no page", frame.error_code.unwrap_or(99), 2);
    report.check("the address is told", frame.cr2 == page.address() + 8);
    report.check("from the kernel", !frame.was_in_user_mode());
    memory::map(page.address(), page.mfn(), memory::ORDINARY).ok()?;
    insn::poke(page.address(), 0x5eed);
    report.saw("mapped again", page.word(0));
    report.saw("its frame counts as", memory::m2p(page.mfn()) == Some(page.address() >> 12));
    let slot = tables::Slot::of(page.address(), 1).ok_or(End::Fail("no table"))?;
    report.check("its entry names its frame", slot.get() >> 12 & 0xff_ffff_ffff == page.mfn());

    user::share_everything()?;
    extern "C" fn in_user_mode(argument: u64) -> ! {
        insn::leave(argument + 1)
    }
    let frame = user::run(in_user_mode, 41);
    report.saw("user mode ends by", frame);
    report.expect("it brings", frame.general.rax, 42);
    report.check("it is user mode", frame.was_in_user_mode());
    extern "C" fn faulting(address: u64) -> ! {
        insn::poke(address, 0);
        insn::leave(0)
    }
    let frame = user::run(faulting, 0x7f00_0000_0000);
    report.saw("a store to nowhere ends it by", frame);

    let port = event::bind_ipi(0)?;
    event::set_mask(port, false);
    event::enable();
    event::send(port).ok()?;
    // A domU also hears of its console and its store.
    report.check("an upcall came", event::upcalls(0) > 0);
    report.check("the port is pending", event::take(port));

    let before = time::now();
    report.saw("vcpu 1", vcpu::start(|| { RAN.store(1, Ordering::SeqCst); }));
    while RAN.load(Ordering::SeqCst) == 0 {
        core::hint::spin_loop();
    }
    report.check("time passes", time::now() > before);
    report.check("our domid is known", start::domid().is_some());
    Ok(())
}
