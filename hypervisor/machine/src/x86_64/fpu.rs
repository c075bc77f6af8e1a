//! The guest's floating point and vector registers. The hypervisor itself never touches them.

use alloc::boxed::Box;

/// The states of XCR0 that we save: x87, SSE, AVX, and the AVX-512 three.
pub const KNOWN_STATES: u64 = 0b1110_0111;

/// A guest's registers, saved.
pub struct FpuState {
    area: Box<[u128]>,
}

impl FpuState {
    /// Registers as after a reset.
    pub fn new() -> FpuState {
        todo!()
    }

    /// Saves the CPU's registers here.
    pub fn save(&mut self) {
        todo!()
    }

    /// Loads the CPU's registers from here. `false` if the saved values were refused; the registers are
    /// then as after a reset.
    #[must_use]
    pub fn restore(&self) -> bool {
        todo!()
    }

    /// The saved area: 512 bytes as FXSAVE lays them out, then (with XSAVE) header and extended states.
    pub fn bytes(&self) -> &[u8] {
        zerocopy::IntoBytes::as_bytes(&*self.area)
    }

    /// The same, to be replaced.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        zerocopy::IntoBytes::as_mut_bytes(&mut *self.area)
    }
}

impl Default for FpuState {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of a saved state on this host.
pub fn area_bytes() -> usize {
    todo!()
}

/// Makes the next use of these registers trap (#NM).
pub fn set_task_switched() {
    todo!()
}

/// Lets these registers be used.
pub fn clear_task_switched() {
    todo!()
}
