//! The guest's floating point and vector registers. The hypervisor itself never touches them.
//!
//! With XSAVE, all states that the host's XCR0 names are saved; else the 512 bytes of FXSAVE.

use super::cpu::{cpuid, features};
use super::fixups::on_fault;
use super::percpu;
use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use core::arch::asm;
use core::ptr::NonNull;
use core::slice;

/// The states of XCR0 that we save: x87, SSE, AVX, and the AVX-512 three.
pub const KNOWN_STATES: u64 = 0b1110_0111;

const LEGACY_BYTES: usize = 512;
const HEADER_BYTES: usize = 64;
/// x87 control word and MXCSR after a reset, as Linux and FNINIT set them.
const CONTROL_WORD: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// Bytes of a saved state on this host.
pub fn area_bytes() -> usize {
    static BYTES: spin::Once<usize> = spin::Once::new();
    *BYTES.call_once(|| match features().xsave {
        // EBX: the size for the states that XCR0 enables now; boot asks first, when it enables all that it ever will.
        true => (cpuid(0xd, 0)[1] as usize).max(LEGACY_BYTES + HEADER_BYTES),
        false => LEGACY_BYTES,
    })
}

/// A guest's registers, saved.
pub struct FpuState {
    area: NonNull<u8>,
}

// SAFETY: plain bytes on the heap that this value owns.
unsafe impl Send for FpuState {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for FpuState {}

fn layout() -> Layout {
    // Constant after boot, and far from overflow.
    Layout::from_size_align(area_bytes(), 64).expect("the saved state's size fits")
}

impl FpuState {
    /// Registers as after a reset.
    pub fn new() -> FpuState {
        // SAFETY: the layout is not empty.
        let area = NonNull::new(unsafe { alloc_zeroed(layout()) });
        let mut state = FpuState {
            area: area.unwrap_or_else(|| handle_alloc_error(layout())),
        };
        state.reset();
        state
    }

    /// Puts the saved registers back to what they are after a reset.
    pub fn reset(&mut self) {
        let bytes = self.bytes_mut();
        bytes.fill(0);
        bytes[0..2].copy_from_slice(&CONTROL_WORD.to_le_bytes());
        bytes[24..28].copy_from_slice(&MXCSR.to_le_bytes());
    }

    /// Saves the CPU's registers here. Their use must not trap at the moment.
    #[inline]
    pub fn save(&mut self) {
        clear_task_switched();
        let _ = set_xcr0(features().xcr0);
        let area = self.area.as_ptr();
        // SAFETY: the area is large enough for every state that XCR0 names, and 64-byte aligned; the
        // instructions write nothing else.
        unsafe {
            if features().xsaveopt {
                asm!("xsaveopt64 [{}]", in(reg) area, in("eax") !0u32, in("edx") !0u32, options(nostack, preserves_flags));
            } else if features().xsave {
                asm!("xsave64 [{}]", in(reg) area, in("eax") !0u32, in("edx") !0u32, options(nostack, preserves_flags));
            } else {
                asm!("fxsave64 [{}]", in(reg) area, options(nostack, preserves_flags));
            }
        }
    }

    /// Loads the CPU's registers from here, and lets them be used.
    ///
    /// `false` if the processor refuses the saved values; the registers are then as after a reset.
    #[inline]
    #[must_use]
    pub fn restore(&self) -> bool {
        clear_task_switched();
        let _ = set_xcr0(features().xcr0);
        if restore_area(self.area.as_ptr()) {
            return true;
        }
        let fresh = FpuState::new();
        restore_area(fresh.area.as_ptr());
        false
    }

    /// The saved area: 512 bytes as FXSAVE lays them out, then (with XSAVE) header and extended states.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: owned, initialised bytes.
        unsafe { slice::from_raw_parts(self.area.as_ptr(), area_bytes()) }
    }

    /// The same, to be replaced. Whatever is put here, [`FpuState::restore`] takes or refuses it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: owned, initialised bytes.
        unsafe { slice::from_raw_parts_mut(self.area.as_ptr(), area_bytes()) }
    }
}

/// Loads the registers; `false` if that faulted.
#[inline]
fn restore_area(area: *const u8) -> bool {
    let failed: u32;
    // SAFETY: reads no more than `area_bytes`; the registers are the guest's; #GP is fixed up.
    unsafe {
        if features().xsave {
            asm!(
                "2: xrstor64 [{area}]",
                on_fault!("mov {failed:e}, 1"),
                area = in(reg) area, failed = inout(reg) 0u32 => failed,
                in("eax") !0u32, in("edx") !0u32,
                options(nostack)
            );
        } else {
            asm!(
                "2: fxrstor64 [{area}]",
                on_fault!("mov {failed:e}, 1"),
                area = in(reg) area, failed = inout(reg) 0u32 => failed,
                options(nostack)
            );
        }
    }
    failed == 0
}

impl Drop for FpuState {
    fn drop(&mut self) {
        // SAFETY: from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.area.as_ptr(), layout()) };
    }
}

impl Default for FpuState {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the next use of these registers trap (#NM).
#[inline]
pub fn set_task_switched() {
    // SAFETY: this CPU's info; CR0.TS concerns only the guest's registers.
    unsafe {
        let info = percpu::info();
        if !(*info).task_switched {
            (*info).task_switched = true;
            let cr0: u64;
            asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack, preserves_flags));
            asm!("mov cr0, {}", in(reg) cr0 | 1 << 3, options(nostack, preserves_flags));
        }
    }
}

/// Lets these registers be used.
#[inline]
pub fn clear_task_switched() {
    // SAFETY: as above.
    unsafe {
        let info = percpu::info();
        if (*info).task_switched {
            (*info).task_switched = false;
            asm!("clts", options(nomem, nostack, preserves_flags));
        }
    }
}

/// Sets XCR0 for the guest that runs next: a subset of the host's that the processor takes.
///
/// `false`, with nothing changed, if it is not.
#[inline]
#[must_use]
pub fn set_xcr0(states: u64) -> bool {
    features().xsave && set_known_xcr0(states)
}

fn set_known_xcr0(states: u64) -> bool {
    let known = states & !features().xcr0 == 0 && states & 1 != 0;
    let avx_needs_sse = states & 4 == 0 || states & 2 != 0;
    let wide = states & 0b1110_0000;
    let wide_is_whole = wide == 0 || (wide == 0b1110_0000 && states & 4 != 0);
    let takes_it = known && avx_needs_sse && wide_is_whole;
    if !takes_it {
        return false;
    }
    // SAFETY: this CPU's info; checked to be a value that the processor takes; it concerns only the guest's registers.
    unsafe {
        let info = percpu::info();
        if (*info).xcr0 == states {
            return true;
        }
        (*info).xcr0 = states;
        asm!("xsetbv", in("ecx") 0, in("eax") states as u32, in("edx") (states >> 32) as u32,
            options(nostack, preserves_flags));
    }
    true
}
