//! `multicall`: several hypercalls for one entry.

use super::{Answer, Call, dispatch};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::{MulticallEntry, hypercall as nr};
use ferroxen_machine::guest::Array;
use ferroxen_words::Vaddr;

/// How many entries are run between looks at the clock. What may take long by itself looks at it too.
const LOOK_AT_CLOCK: u32 = 8;

/// `multicall(list, count)`: runs the entries in order and writes each one's result.
///
/// An entry's arguments stand in the caller's registers while it is carried out, as if it had been asked alone; the
/// caller's own come back at the end. An entry may not be a multicall itself (`EINVAL`), and one that is an `iret`
/// ends the list, as nothing can come back. When time is up, or an entry is not finished, the guest asks again for
/// the rest; the unfinished entry's arguments are updated in its memory.
#[inline(always)]
pub fn multicall(call: &mut Call<'_>) -> Answer {
    let own = call.args();
    let [list, count, ..] = own;
    let mut entries = Array::new(Vaddr::new(list), count as u32).ok_or(Errno::EFAULT)?;
    match run(call, &mut entries) {
        Ok(End::Left(value)) => Ok(value),
        Ok(End::Done) => {
            call.set_args(own);
            Ok(0)
        }
        Err(why) => {
            call.set_args(own);
            match why {
                Errno::ERESTART => call.again([entries.at().raw(), u64::from(entries.left())]),
                why => Err(why),
            }
        }
    }
}

/// How a list of entries came to its end.
enum End {
    /// All were run.
    Done,
    /// By an `iret`: the registers are what it made them, and this is `rax`.
    Left(u64),
}

/// Runs entries until none is left. `ERESTART`: not to the end.
#[inline(always)]
fn run(call: &mut Call<'_>, entries: &mut Array<MulticallEntry>) -> Result<End, Errno> {
    let calls = crate::cpu::local().hypercalls.get();
    let mut done = 0u32;
    while entries.left() != 0 {
        if done != 0 && done.is_multiple_of(LOOK_AT_CLOCK) && ferroxen_machine::time::entry_budget_spent() {
            return Err(Errno::ERESTART);
        }
        let MulticallEntry { op, args, .. } = entries.read().map_err(|_| Errno::EFAULT)?;
        call.set_args(args);
        let answer = match u32::try_from(op) {
            Ok(nr::MULTICALL) => Err(Errno::EINVAL),
            Ok(nr::IRET) => return dispatch(calls, nr::IRET, call.caller, call.frame).map(End::Left),
            Ok(number) => dispatch(calls, number, call.caller, call.frame),
            Err(_) => Err(Errno::ENOSYS),
        };
        let result = match answer {
            Ok(value) => value,
            Err(Errno::ERESTART) => {
                let args = call.args();
                let unfinished = MulticallEntry { op, result: 0, args };
                entries.write(&unfinished).map_err(|_| Errno::EFAULT)?;
                return Err(Errno::ERESTART);
            }
            Err(refused) => refused.to_return() as u64,
        };
        const RESULT: usize = core::mem::offset_of!(MulticallEntry, result);
        entries.write_u64::<RESULT>(result).map_err(|_| Errno::EFAULT)?;
        entries.advance();
        done += 1;
    }
    Ok(End::Done)
}
