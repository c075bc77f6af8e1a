//! `console_io`: the hypervisor's own console, for Domain 0 (`hvc0` of a Linux there).

use super::{Answer, Call};
use crate::guest::GuestPtr;
use crate::{access, console};
use ferroxen_abi::errno::Errno;
use ferroxen_access::Operation;

const WRITE: u64 = 0;
const READ: u64 = 1;

/// Bytes passed on before the budget is looked at.
const PIECE: usize = 128;

/// `console_io(cmd, count, buffer)`: `EPERM` for anyone but Domain 0.
pub fn console_io(call: &mut Call<'_>) -> Answer {
    access::to_host(call.caller.domain(), Operation::Console)?;
    let [command, count, buffer, ..] = call.args();
    // The ABI's count has 32 bits.
    let count = count as u32;
    match command {
        WRITE => write(call, count, buffer),
        READ => {
            let mut bytes = [0; PIECE];
            let room = bytes.len().min(count as usize);
            let read = console::input::take(&mut bytes[..room]);
            GuestPtr::<u8>::new(buffer).write_slice(&bytes[..read])?;
            Ok(read as u64)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn write(call: &mut Call<'_>, count: u32, buffer: u64) -> Answer {
    let mut done = 0;
    while done < count {
        if done != 0 && ferroxen_machine::time::entry_budget_spent() {
            return call.again([WRITE, u64::from(count - done), buffer.wrapping_add(done.into())]);
        }
        let mut bytes = [0; PIECE];
        let piece = PIECE.min((count - done) as usize);
        GuestPtr::<u8>::new(buffer)
            .element(u64::from(done))?
            .read_slice(&mut bytes[..piece])?;
        console::write_raw(&bytes[..piece]);
        done += piece as u32;
    }
    Ok(0)
}
