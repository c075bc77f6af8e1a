//! The hypercall page: 128 stubs of 32 bytes in a page of the guest's own, so that a guest calls by number
//! without knowing how its hypervisor is entered (arch-x86/xen-x86_64.h).

use crate::domain::Domain;
use crate::memory;
use alloc::sync::Arc;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::hypercall as nr;
use ferroxen_machine::memory::Page;
use ferroxen_words::Mfn;

const SLOT: usize = 32;

/// One stub. SYSCALL destroys `rcx` and `r11`, so both are kept on the stack around it; `iret` leaves them,
/// and `rax`, there for us.
fn stub(number: u32) -> [u8; SLOT] {
    const INT3: u8 = 0xcc;
    let mut code = [INT3; SLOT];
    let [n0, n1, n2, n3] = number.to_le_bytes();
    let text: &[u8] = if number == nr::IRET {
        // push rcx; push r11; push rax; mov eax, number; syscall
        &[0x51, 0x41, 0x53, 0x50, 0xb8, n0, n1, n2, n3, 0x0f, 0x05]
    } else {
        // push rcx; push r11; mov eax, number; syscall; pop r11; pop rcx; ret
        &[
            0x51, 0x41, 0x53, 0xb8, n0, n1, n2, n3, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3,
        ]
    };
    code[..text.len()].copy_from_slice(text);
    code
}

/// Writes the stubs into a page that nobody else uses in another way.
pub fn write(page: &Page) {
    for number in 0..nr::PAGE_SLOTS {
        page.write_bytes(number as usize * SLOT, &stub(number));
    }
}

/// Fills a frame of the domain's: `EACCES` or `EINVAL` if it is not its own or no ordinary page.
pub fn fill(domain: &Arc<Domain>, mfn: Mfn) -> Result<(), Errno> {
    memory::with_writable_page(domain, mfn, write)
}
