//! `xen_version`: who we are. Linux also uses it as the cheapest call there is, to have events delivered.

use super::{Answer, Call};
use crate::domain::Domain;
use crate::guest::GuestPtr;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::version::{CompileInfo, FeatureInfo, VersionCmd};
use ferroxen_abi::xen::{HYPERVISOR_VIRT_START, vm_assist};

/// Major and minor number of the Xen whose ABI we keep.
pub const VERSION: (u64, u64) = (4, 17);
/// Who built us: nobody in particular, for the same bits come out wherever it is done.
pub const COMPILE_BY: &str = "ferroxen";
/// When: likewise.
pub const COMPILE_DATE: &str = "reproducible";
/// By what.
pub const COMPILER: &str = concat!("rustc, ", env!("CARGO_PKG_NAME"));
/// From what.
pub const CHANGESET: &str = concat!("ferroxen ", env!("CARGO_PKG_VERSION"));
/// What follows the number: who we really are.
pub const EXTRAVERSION: &str = ".0-ferroxen";
/// Kinds of guest that we run.
pub const CAPABILITIES: &str = "xen-3.0-x86_64 ";

/// Feature bits of a PV guest (`XENFEAT_*`, word 0).
fn features(domain: &Domain) -> u32 {
    const PAE_PGDIR_ABOVE_4GB: u32 = 4;
    const MMU_PT_UPDATE_PRESERVE_AD: u32 = 5;
    const HIGHMEM_ASSIST: u32 = 6;
    const GNTTAB_MAP_AVAIL_BITS: u32 = 7;
    const DOM0: u32 = 11;
    const MEMORY_OP_VNODE_SUPPORTED: u32 = 13;
    // A PV guest's own frame numbers are machine frame numbers.
    const DIRECT_MAPPED: u32 = 17;
    1 << MMU_PT_UPDATE_PRESERVE_AD
        | 1 << HIGHMEM_ASSIST
        | 1 << GNTTAB_MAP_AVAIL_BITS
        | 1 << MEMORY_OP_VNODE_SUPPORTED
        | 1 << DIRECT_MAPPED
        | u32::from(domain.assists(vm_assist::PAE_EXTENDED_CR3)) << PAE_PGDIR_ABOVE_4GB
        | u32::from(domain.is_privileged) << DOM0
}

/// Text in a field of fixed size, ended by a zero byte.
fn text<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    let room = N.saturating_sub(1).min(from.len());
    field[..room].copy_from_slice(&from[..room]);
    field
}

/// `xen_version(cmd, arg)`.
#[inline(always)]
pub fn xen_version(call: &mut Call<'_>) -> Answer {
    let [command, arg, ..] = call.args();
    match VersionCmd(command as u32) {
        VersionCmd::VERSION => Ok(VERSION.0 << 16 | VERSION.1),
        command => tell(&call.apart(), command, arg),
    }
}

#[inline(never)]
fn tell(call: &Call<'_>, command: VersionCmd, arg: u64) -> Answer {
    let is_privileged = call.caller.domain().is_privileged;
    match command {
        VersionCmd::EXTRAVERSION => GuestPtr::<[u8; 16]>::new(arg).write(&text(EXTRAVERSION.as_bytes()))?,
        VersionCmd::COMPILE_INFO => {
            let info = CompileInfo {
                compiler: text(COMPILER.as_bytes()),
                compile_by: text(COMPILE_BY.as_bytes()),
                compile_domain: text(b""),
                compile_date: text(COMPILE_DATE.as_bytes()),
            };
            GuestPtr::new(arg).write(&info)?;
        }
        VersionCmd::CAPABILITIES => {
            // A kilobyte on the stack, once in a while.
            GuestPtr::<[u8; 1024]>::new(arg).write(&text(CAPABILITIES.as_bytes()))?;
        }
        VersionCmd::CHANGESET => {
            GuestPtr::<[u8; 64]>::new(arg).write(&text(CHANGESET.as_bytes()))?;
        }
        VersionCmd::PLATFORM_PARAMETERS => GuestPtr::new(arg).write(&HYPERVISOR_VIRT_START)?,
        VersionCmd::GET_FEATURES => {
            let at = GuestPtr::<FeatureInfo>::new(arg);
            let mut info = at.read()?;
            info.submap = match info.submap_idx {
                0 => features(call.caller.domain()),
                _ => return Err(Errno::EINVAL),
            };
            at.write(&info)?;
        }
        VersionCmd::PAGESIZE => {
            if arg != 0 {
                return Err(Errno::EINVAL);
            }
            return Ok(4096);
        }
        VersionCmd::GUEST_HANDLE => {
            let handle = *call.caller.domain().handle.lock();
            GuestPtr::new(arg).write(&handle)?;
        }
        VersionCmd::COMMANDLINE => {
            // A guest has no business with the host's options.
            let line = if is_privileged {
                crate::boot::command_line().as_bytes()
            } else {
                b"<denied>"
            };
            GuestPtr::<[u8; 1024]>::new(arg).write(&text(line))?;
        }
        VersionCmd::BUILD_ID if !is_privileged => return Err(Errno::EPERM),
        VersionCmd::BUILD_ID => return Err(Errno::ENODATA),
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}
