//! I/O ports: the door for domains that own devices, and the raw instructions for this crate's own drivers.
//!
//! The kernel decides which domain may touch which port. Whatever it decides, the ports in [`crate::ports::OWNED`] stay ours:
//! through them a domain could turn the interrupt controllers or our reference clock against us. PCI
//! configuration space goes through [`pci_read`] and [`pci_write`], because its address and data registers are
//! a pair that several CPUs share.
//!
//! What a device does when it is told to (DMA, above all) is outside what this door can promise: without an
//! IOMMU a domain that owns a device owns the memory it can reach. SOUNDNESS.md says so.

use core::arch::asm;

use spin::{Mutex, MutexGuard};

pub use crate::ports::{PciFunction, Width, is_owned};

/// Reads a device's port; all ones where the port stays ours.
pub fn read(port: u16, width: Width) -> u32 {
    if is_owned(port, width) {
        return width.ones();
    }
    // SAFETY: the controllers that could reach into the hypervisor are refused above; what a device answers is data.
    unsafe {
        match width {
            Width::Byte => u32::from(inb(port)),
            Width::Word => u32::from(inw(port)),
            Width::Dword => inl(port),
        }
    }
}

/// Writes a device's port; nothing happens where the port stays ours.
pub fn write(port: u16, width: Width, value: u32) {
    if is_owned(port, width) {
        return;
    }
    // SAFETY: the controllers that could reach into the hypervisor are refused above. A device's own DMA is the
    // documented limit of the promise (module text).
    unsafe {
        match width {
            Width::Byte => outb(port, value as u8),
            Width::Word => outw(port, value as u16),
            Width::Dword => outl(port, value),
        }
    }
}

static PCI: Mutex<()> = Mutex::new(());

/// Reads from a function's configuration space. `None` if the access is not within one aligned dword.
pub fn pci_read(function: PciFunction, offset: u8, width: Width) -> Option<u32> {
    pci_read_raw(function.address(offset), offset & 3, width)
}

/// Writes to a function's configuration space. `None` if the access is not within one aligned dword.
pub fn pci_write(function: PciFunction, offset: u8, width: Width, value: u32) -> Option<()> {
    pci_write_raw(function.address(offset), offset & 3, width, value)
}

/// Reads the data window at 0xcfc + `byte` with `address` in 0xcf8, as a domain that programs the pair asks for.
///
/// AMD's extended register numbers (bits 27..24 of the address) pass through.
pub fn pci_read_raw(address: u32, byte: u8, width: Width) -> Option<u32> {
    within_dword(byte, width)?;
    let _pair = lock(&PCI);
    let port = 0xcfc + u16::from(byte);
    // SAFETY: the lock makes address and data one access; reading configuration space moves no memory.
    unsafe {
        outl(0xcf8, address);
        Some(match width {
            Width::Byte => u32::from(inb(port)),
            Width::Word => u32::from(inw(port)),
            Width::Dword => inl(port),
        })
    }
}

/// Writes the data window at 0xcfc + `byte` with `address` in 0xcf8.
pub fn pci_write_raw(address: u32, byte: u8, width: Width, value: u32) -> Option<()> {
    within_dword(byte, width)?;
    let _pair = lock(&PCI);
    let port = 0xcfc + u16::from(byte);
    // SAFETY: the lock makes address and data one access. A function's decoding and DMA belong to whoever owns the
    // device (module text).
    unsafe {
        outl(0xcf8, address);
        match width {
            Width::Byte => outb(port, value as u8),
            Width::Word => outw(port, value as u16),
            Width::Dword => outl(port, value),
        }
    }
    Some(())
}

fn within_dword(byte: u8, width: Width) -> Option<()> {
    (byte < 4 && u16::from(byte) + width.bytes() <= 4).then_some(())
}

/// Takes a device lock. While it waits, the CPU answers others' requests, so that no two CPUs wait for each other.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    loop {
        if let Some(guard) = mutex.try_lock() {
            return guard;
        }
        super::smp::service_requests();
        core::hint::spin_loop();
    }
}

/// # Safety
/// Reading the port must have no effect that breaks what other code relies on.
pub(crate) unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the caller vouches for the port; the instruction touches neither memory nor flags.
    unsafe { asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// # Safety
/// As [`inb`].
pub(crate) unsafe fn inw(port: u16) -> u16 {
    let value;
    // SAFETY: as in `inb`.
    unsafe { asm!("in ax, dx", out("ax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// # Safety
/// As [`inb`].
pub(crate) unsafe fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: as in `inb`.
    unsafe { asm!("in eax, dx", out("eax") value, in("dx") port, options(nomem, nostack, preserves_flags)) };
    value
}

/// # Safety
/// Writing the value must have no effect that breaks what other code relies on.
pub(crate) unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller vouches for the effect. No `nomem`: a device may read memory in answer.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
}

/// # Safety
/// As [`outb`].
pub(crate) unsafe fn outw(port: u16, value: u16) {
    // SAFETY: as in `outb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

/// # Safety
/// As [`outb`].
pub(crate) unsafe fn outl(port: u16, value: u32) {
    // SAFETY: as in `outb`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}
