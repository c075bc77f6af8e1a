//! The first steps: from the entry point to the guest's own function.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicPtr, Ordering};

use ferroxen_abi::xen::StartInfo;

use crate::{console, event, power, println, trap, vcpu};

static INFO: AtomicPtr<StartInfo> = AtomicPtr::new(core::ptr::null_mut());

/// Prepares vcpu 0 and calls `main`. For [`crate::main!`] alone.
#[doc(hidden)]
pub fn begin(start_info: usize, main: fn()) -> ! {
    INFO.store(core::ptr::with_exposed_provenance_mut(start_info), Ordering::SeqCst);
    event::map_shared_info();
    console::note_port();
    vcpu::set_entry_stack(vcpu::entry_stack(0));
    trap::install(0);
    main();
    power::off(power::POWEROFF)
}

/// Returns what the domain builder told us.
pub fn info() -> &'static StartInfo {
    // SAFETY: `begin` stored the page that the builder filled before anything else ran; nobody writes to it.
    unsafe { &*INFO.load(Ordering::SeqCst) }
}

/// Tells whether this is the first domain of the host.
pub fn is_dom0() -> bool {
    info().flags & StartInfo::INITDOMAIN != 0
}

/// Returns our own domain id, which no call tells: a port connected to ourselves knows it.
pub fn domid() -> Option<u16> {
    let far = event::alloc_unbound(event::SELF, event::SELF).ok()?;
    let near = event::bind_interdomain(event::SELF, far).ok();
    let status = near.and_then(|port| event::status(event::SELF, port).ok());
    near.map(event::close);
    event::close(far);
    event::acknowledge(vcpu::current());
    status.map(|status| status.u[0] as u16)
}

/// Returns the words of the command line.
pub fn words() -> impl Iterator<Item = &'static str> + Clone {
    let line = info().cmd_line.split(|byte| *byte == 0).next().unwrap_or_default();
    core::str::from_utf8(line).unwrap_or_default().split_ascii_whitespace()
}

/// Returns the number in `NAME=NUMBER` on the command line, as `option("seed")`.
pub fn option(name: &str) -> Option<u64> {
    words().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("panic: {info}");
    power::off(power::CRASH)
}
