//! `multicall`: several hypercalls for one entry.

use super::{Answer, Call, Outcome, dispatch};
use crate::guest::GuestPtr;
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::{MulticallEntry, hypercall as nr};

/// `multicall(list, count)`: runs the entries in order and writes each one's result.
///
/// An entry may not be a multicall itself (`EINVAL`). When time is up, or an entry is not finished, the
/// guest asks again for the rest; the unfinished entry's arguments are updated in its memory.
pub fn multicall(call: &mut Call<'_>) -> Answer {
    let [list, count, ..] = call.args;
    let entries = GuestPtr::<MulticallEntry>::new(list);
    let count = count as u32;
    for index in 0..count {
        let at = entries.element(u64::from(index))?;
        let rest = [at.raw(), u64::from(count - index)];
        if index != 0 && ferroxen_machine::time::entry_budget_spent() {
            return call.again(rest);
        }
        let entry = at.read()?;
        let op = entry.op as u32;
        let answer = if op == nr::MULTICALL || entry.op > u64::from(u32::MAX) {
            Err(if op == nr::MULTICALL {
                Errno::EINVAL
            } else {
                Errno::ENOSYS
            })
        } else {
            dispatch(
                op,
                &mut Call {
                    caller: call.caller,
                    frame: call.frame,
                    args: entry.args,
                },
            )
        };
        let result = match answer {
            Ok(Outcome::Done(value)) => value,
            // Only `iret` replaces the registers; the multicall ends with it, as nothing can come back.
            Ok(Outcome::Replaced) => return Ok(Outcome::Replaced),
            Ok(Outcome::Again(args)) => {
                at.write(&MulticallEntry { args, ..entry })?;
                return call.again(rest);
            }
            Err(refused) => refused.to_return() as u64,
        };
        // `result` is the second word of the entry.
        at.cast::<u64>().write_element(1, &result)?;
    }
    Ok(Outcome::Done(0))
}
