//! xz, by `lzma-rust2`.
//!
//! The crate keeps the window beside the output: as much of the dictionary that the file names (32 MiB for Debian's
//! kernels) as has been written. It moves to twice the room when it is full.

use super::Refused;
use lzma_rust2::{Action, Error, Status, StreamResult, XzStream};

/// LZMA2 cannot produce more in one go ("The LZMA2 chunk": 21 bits).
const LARGEST_CHUNK: usize = 2 << 20;
/// For each block the crate remembers 16 bytes, in a list that doubles; no block is smaller than 20 bytes.
const RECORDS_PER_20_BYTES: usize = 3 * 16;

/// An upper bound of what [`unpack`] takes from the heap.
pub(super) fn heap_needed(packed: &[u8], unpacked: usize) -> usize {
    // Allowed nothing, the crate goes as far as to say what the first block needs.
    let mut stream = XzStream::new_mem_limit(false, 0);
    let _ = stream.process(packed, &mut [], Action::Run);
    let dictionary = stream.memory_usage().unwrap_or(0) as usize * 1024;
    let window = dictionary.min((unpacked + LARGEST_CHUNK).saturating_mul(2));
    // The old windows together are no larger than the last.
    2 * window + packed.len() / 20 * RECORDS_PER_20_BYTES + (1 << 20)
}

/// Unpacks the one stream in `packed` into the front of `out` and gives its length.
pub(super) fn unpack(packed: &[u8], out: &mut [u8]) -> Result<usize, Refused> {
    let mut stream = XzStream::new(false);
    let first = stream.process(packed, out, Action::Finish).map_err(refusal)?;
    if first.status == Status::StreamEnd {
        return Ok(first.bytes_produced);
    }
    // The output is full: what is left may be the end, but no byte more.
    let rest = packed.get(first.bytes_consumed..).ok_or(Refused::Broken("xz"))?;
    match stream.process(rest, &mut [0], Action::Finish).map_err(refusal)? {
        StreamResult {
            status: Status::StreamEnd,
            bytes_produced: 0,
            ..
        } => Ok(first.bytes_produced),
        _ => Err(Refused::LargerThanTold),
    }
}

fn refusal(error: Error) -> Refused {
    match error {
        Error::Eof => Refused::Truncated("xz"),
        Error::OutOfMemory(_) => Refused::NoMemory("xz"),
        Error::Unsupported(_) => Refused::Unsupported("an xz option"),
        _ => Refused::Broken("xz"),
    }
}
