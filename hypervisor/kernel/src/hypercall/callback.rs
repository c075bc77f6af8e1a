//! `callback_op`, `set_callbacks`, `nmi_op`: where a PV guest's kernel wants to be entered.

use super::{Answer, Call};
use crate::domain::vcpu::Callback;
use crate::guest::GuestPtr;
use crate::pv::trap::vector;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::x86::{CallbackRegister, TrapInfo, callback as kind, selector};
use ferroxen_words::Vaddr;

/// `callback_op(cmd, arg)`.
pub fn callback_op(call: &mut Call<'_>) -> Answer {
    match call.args()[0] {
        kind::OP_REGISTER => {
            let asked = GuestPtr::<CallbackRegister>::new(call.args()[1]).read()?;
            register(
                call,
                asked.kind,
                asked.address,
                asked.flags & kind::FLAG_MASK_EVENTS != 0,
            )
        }
        kind::OP_UNREGISTER => {
            // `callback_unregister` is the first half of the other.
            let asked = GuestPtr::<u32>::new(call.args()[1]).read()?;
            match asked as u16 {
                kind::NMI => name_nmi_handler(call, None),
                kind::EVENT | kind::FAILSAFE | kind::SYSCALL | kind::SYSCALL32 | kind::SYSENTER => {
                    return Err(Errno::EINVAL);
                }
                _ => return Err(Errno::ENOSYS),
            }
            Ok(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn register(call: &Call<'_>, which: u16, address: u64, masks_events: bool) -> Answer {
    if !Vaddr::new(address).is_canonical() {
        return Err(Errno::EINVAL);
    }
    if which == kind::NMI {
        name_nmi_handler(call, Some(address));
        return Ok(0);
    }
    let to = Callback {
        cs: 0,
        address,
        masks_events,
    };
    let mut pv = call.caller.pv.lock();
    match which {
        kind::EVENT => {
            pv.event = Callback {
                masks_events: true,
                ..to
            }
        }
        kind::FAILSAFE => pv.failsafe = to,
        kind::SYSCALL => pv.syscall = to,
        kind::SYSCALL32 => pv.syscall32 = to,
        kind::SYSENTER => pv.sysenter = to,
        _ => return Err(Errno::ENOSYS),
    }
    Ok(0)
}

/// Names the handler of non-maskable interrupts, which is vector 2 of the trap table, however a kernel says it.
fn name_nmi_handler(call: &Call<'_>, handler: Option<u64>) {
    let entry = handler.map_or(TrapInfo::default(), |address| TrapInfo {
        vector: vector::NMI,
        cs: selector::FLAT_RING3_CS64,
        address,
        ..TrapInfo::default()
    });
    call.caller.pv.lock().traps[usize::from(vector::NMI)] = entry;
}

/// `set_callbacks(event, failsafe, syscall)`: the old way to register three at once.
pub fn set_callbacks(call: &mut Call<'_>) -> Answer {
    let [event, failsafe, syscall, ..] = call.args();
    let _ = register(call, kind::EVENT, event, true)?;
    let _ = register(call, kind::FAILSAFE, failsafe, false)?;
    register(call, kind::SYSCALL, syscall, false)
}

/// `nmi_op(cmd, arg)`: the old way to register for non-maskable interrupts; vcpu 0 only.
pub fn nmi_op(call: &mut Call<'_>) -> Answer {
    const REGISTER: u64 = 0;
    const UNREGISTER: u64 = 1;
    match call.args()[0] {
        REGISTER => {
            // `xennmi_callback`: handler address, then a word that is unused.
            let handler = GuestPtr::<u64>::new(call.args()[1]).read()?;
            register(call, kind::NMI, handler, false)
        }
        UNREGISTER => {
            name_nmi_handler(call, None);
            Ok(0)
        }
        _ => Err(Errno::ENOSYS),
    }
}
