//! The hypervisor as a file: joins the machine's entry points to the kernel's functions.
//!
//! The machine cannot depend on the kernel, so its assembly and handlers call these symbols; each only
//! passes on. This and the linker script are all there is.
//!
//! UNSAFETY: only for naming symbols; nothing here can break memory safety as long as the signatures agree
//! with those in `ferroxen_machine::frame::kernel_symbols`.
#![no_std]
#![no_main]

use ferroxen_machine::frame::ReturnFault;
use ferroxen_machine::{GuestFrame, Handoff};
use ferroxen_words::{CpuId, Vaddr};

// SAFETY (this and the following): the name is the machine's, and declared there with this signature.
#[unsafe(no_mangle)]
extern "Rust" fn ferroxen_start(handoff: Handoff) -> ! {
    ferroxen_kernel::start(handoff)
}

#[unsafe(no_mangle)]
extern "Rust" fn ferroxen_secondary(cpu: CpuId) -> ! {
    ferroxen_kernel::secondary(cpu)
}

#[unsafe(no_mangle)]
extern "C" fn ferroxen_syscall64(frame: &mut GuestFrame) {
    ferroxen_kernel::entry::syscall64(frame)
}

#[unsafe(no_mangle)]
extern "C" fn ferroxen_other_syscall(frame: &mut GuestFrame) {
    ferroxen_kernel::entry::other_syscall(frame)
}

#[unsafe(no_mangle)]
extern "C" fn ferroxen_trap(frame: &mut GuestFrame) {
    ferroxen_kernel::entry::trap(frame)
}

#[unsafe(no_mangle)]
extern "C" fn ferroxen_interrupt(frame: &mut GuestFrame) {
    ferroxen_kernel::entry::interrupt(frame)
}

#[unsafe(no_mangle)]
extern "Rust" fn ferroxen_idle_interrupt(vector: u8) {
    ferroxen_kernel::entry::idle_interrupt(vector)
}

#[unsafe(no_mangle)]
extern "Rust" fn ferroxen_ldt_fault(offset: usize) -> bool {
    ferroxen_kernel::entry::ldt_fault(offset)
}

#[unsafe(no_mangle)]
extern "Rust" fn ferroxen_guest_fault(at: Vaddr, code: u32) -> bool {
    ferroxen_kernel::entry::guest_fault(at, code)
}

#[unsafe(no_mangle)]
extern "Rust" fn ferroxen_return_failed(frame: &mut GuestFrame, fault: ReturnFault) {
    ferroxen_kernel::entry::return_failed(frame, fault)
}

/// Names for back-traces; behind everything else in the image, so that adding it moves no function.
// SAFETY: the section is read-only data that only `ferroxen_machine::symbols` looks at.
#[used]
#[unsafe(link_section = ".symbols")]
static SYMBOLS: [u8; include_bytes!(concat!(env!("OUT_DIR"), "/symbols")).len()] =
    *include_bytes!(concat!(env!("OUT_DIR"), "/symbols"));

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    ferroxen_machine::report::panicked(info)
}
