//! `multicall`: several hypercalls for one entry.

use super::{Answer, Arguments, Call, dispatch};
use crate::guest::GuestPtr;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::{MulticallEntry, hypercall as nr};

/// `multicall(list, count)`: runs the entries in order and writes each one's result.
///
/// An entry may not be a multicall itself (`EINVAL`). When time is up, or an entry is not finished, the
/// guest asks again for the rest; the unfinished entry's arguments are updated in its memory.
pub fn multicall(call: &mut Call<'_>) -> Answer {
    let [list, count, ..] = call.args();
    let entries = GuestPtr::<MulticallEntry>::new(list);
    let count = count as u32;
    for index in 0..count {
        let at = entries.element(u64::from(index))?;
        let rest = [at.raw(), u64::from(count - index)];
        if index != 0 && ferroxen_machine::time::entry_budget_spent() {
            return call.again(rest);
        }
        let mut entry = at.read()?;
        let mut part = Call {
            caller: call.caller,
            frame: call.frame,
            from: Arguments::Entry(&mut entry.args),
        };
        let answer = match u32::try_from(entry.op) {
            Ok(nr::MULTICALL) => Err(Errno::EINVAL),
            // All registers are others then: the multicall ends with it, as nothing can come back.
            Ok(nr::IRET) => return dispatch(nr::IRET, &mut part),
            Ok(number) => dispatch(number, &mut part),
            Err(_) => Err(Errno::ENOSYS),
        };
        let result = match answer {
            Ok(value) => value,
            Err(Errno::ERESTART) => {
                at.write(&entry)?;
                return call.again(rest);
            }
            Err(refused) => refused.to_return() as u64,
        };
        // `result` is the second word of the entry.
        at.cast::<u64>().write_element(1, &result)?;
    }
    Ok(0)
}
