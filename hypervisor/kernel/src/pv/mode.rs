//! Kernel mode and user mode of a 64-bit PV guest: both at CPL 3, told apart by page tables and GS base.
//!
//! While a vcpu runs, the GS base of the mode it is in is the CPU's, and that of the other mode waits in
//! `KERNEL_GS_BASE`; changing mode exchanges the two.

use crate::domain::{PvState, Vcpu};
use ferroxen_machine::{cpu, paging};

/// Moves the running vcpu, which is in its user mode, to its kernel: kernel page tables, kernel GS base.
#[inline(always)]
pub fn leave_user(vcpu: &Vcpu, pv: &PvState) {
    cpu::swap_guest_gs();
    vcpu.set_in_kernel(true);
    if let Some(root) = &pv.kernel_loads {
        paging::change_mode(root);
    }
}

/// Moves the running vcpu to its user mode; refuses if it never gave us user page tables.
#[inline(always)]
pub fn enter_user(vcpu: &Vcpu) -> Result<(), NoUserTables> {
    if !vcpu.is_in_kernel() {
        return Ok(());
    }
    let pv = vcpu.pv.lock();
    let Some(root) = &pv.user_loads else {
        return Err(NoUserTables);
    };
    cpu::swap_guest_gs();
    paging::change_mode(root);
    vcpu.set_in_kernel(false);
    Ok(())
}

/// The guest went to user mode without having set user page tables.
#[derive(Debug)]
pub struct NoUserTables;
