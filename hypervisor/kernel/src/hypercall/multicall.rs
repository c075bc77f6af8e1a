//! `multicall`: several hypercalls for one entry.

use super::{Answer, Call, Switchboard, dispatch};
use ferroxen_abi::errno::Errno;
use ferroxen_abi::xen::{MulticallEntry, hypercall as nr};
use ferroxen_machine::guest::Array;
use ferroxen_words::Vaddr;

/// How many entries are run between looks at the clock. What may take long by itself looks at it too.
const LOOK_AT_CLOCK: u32 = 8;

/// Numbers that an entry may not have, or that end the list.
const UNLIKE_OTHERS: u64 = 1 << nr::MULTICALL | 1 << nr::IRET;

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
    match run(call, &mut entries, crate::cpu::local().hypercalls.get()) {
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
///
/// Not inlined: the loop has the registers for itself.
#[inline(never)]
fn run(call: &mut Call<'_>, entries: &mut Array<MulticallEntry>, calls: Switchboard) -> Result<End, Errno> {
    let Call { caller, frame } = call;
    let mut rest = *entries;
    let end = loop {
        if rest.left() == 0 {
            break Ok(End::Done);
        }
        // The clock starts when it is first looked at, so something is done each time.
        if rest.left().is_multiple_of(LOOK_AT_CLOCK) && ferroxen_machine::time::entry_budget_spent() {
            break Err(Errno::ERESTART);
        }
        let Ok(MulticallEntry { op, args, .. }) = rest.read() else {
            break Err(Errno::EFAULT);
        };
        super::set_args(frame, args);
        let answer = if op < 64 && UNLIKE_OTHERS >> op & 1 != 0 {
            if op == u64::from(nr::IRET) {
                break dispatch(calls, nr::IRET, caller, frame).map(End::Left);
            }
            Err(Errno::EINVAL)
        } else {
            u32::try_from(op).map_or(Err(Errno::ENOSYS), |number| dispatch(calls, number, caller, frame))
        };
        let result = match answer {
            Ok(value) => value,
            Err(Errno::ERESTART) => {
                let args = super::args(frame);
                let unfinished = MulticallEntry { op, result: 0, args };
                break Err(rest.write(&unfinished).map_or(Errno::EFAULT, |()| Errno::ERESTART));
            }
            Err(refused) => refused.to_return() as u64,
        };
        const RESULT: usize = core::mem::offset_of!(MulticallEntry, result);
        if rest.write_u64::<RESULT>(result).is_err() {
            break Err(Errno::EFAULT);
        }
        rest.advance();
    };
    *entries = rest;
    end
}
