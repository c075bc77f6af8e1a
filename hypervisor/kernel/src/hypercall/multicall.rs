//! `multicall`: several hypercalls for one entry.

use super::{Answer, Arguments, Call, dispatch};
use crate::guest::GuestPtr;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::{MulticallEntry, hypercall as nr};

/// How many entries are run between looks at the clock. What may take long by itself looks at it too.
const LOOK_AT_CLOCK: u32 = 8;

/// `multicall(list, count)`: runs the entries in order and writes each one's result.
///
/// An entry may not be a multicall itself (`EINVAL`). When time is up, or an entry is not finished, the
/// guest asks again for the rest; the unfinished entry's arguments are updated in its memory.
pub fn multicall(call: &mut Call<'_>) -> Answer {
    let [list, count, ..] = call.args();
    let count = count as u32;
    let mut at = GuestPtr::<MulticallEntry>::new(list);
    let mut part = Call {
        caller: call.caller,
        frame: call.frame,
        from: Arguments::Registers,
    };
    let counts = crate::cpu::local().hypercalls;
    for index in 0..count {
        if index != 0 && index.is_multiple_of(LOOK_AT_CLOCK) && ferroxen_machine::time::entry_budget_spent() {
            return call.again([at.raw(), u64::from(count - index)]);
        }
        let MulticallEntry { op, args, .. } = at.read()?;
        counts.note(op as u32);
        part.from = Arguments::Entry(args);
        let answer = match u32::try_from(op) {
            Ok(nr::MULTICALL) => Err(Errno::EINVAL),
            // All registers are others then: the multicall ends with it, as nothing can come back.
            Ok(nr::IRET) => return dispatch(nr::IRET, &mut part),
            Ok(number) => dispatch(number, &mut part),
            Err(_) => Err(Errno::ENOSYS),
        };
        let result = match answer {
            Ok(value) => value,
            Err(Errno::ERESTART) => {
                let args = part.args();
                at.write(&MulticallEntry { op, result: 0, args })?;
                return call.again([at.raw(), u64::from(count - index)]);
            }
            Err(refused) => refused.to_return() as u64,
        };
        // `result` is the second word of the entry.
        at.cast::<u64>().write_element(1, &result)?;
        at = at.element(1)?;
    }
    Ok(0)
}
