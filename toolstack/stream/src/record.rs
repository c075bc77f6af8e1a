//! Records: a type, a length, and so many bytes, padded with zeroes to a multiple of eight.

use crate::{Error, Result, fill};
use std::io::{Read, Write};

/// The longest body that is read: libxc's own limit.
pub const LONGEST: u32 = 128 << 20;
/// Records with this bit in their type may be skipped by who does not know them.
pub const OPTIONAL: u32 = 1 << 31;
/// To which bodies are padded.
const ALIGN: usize = 8;

/// A record as it travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it is; each layer has its own list.
    pub kind: u32,
    /// Its bytes, without padding.
    pub body: Vec<u8>,
}

fn padding(len: usize) -> usize {
    len.next_multiple_of(ALIGN) - len
}

/// Writes a record whose body is made of `parts`.
pub fn write(to: &mut impl Write, kind: u32, parts: &[&[u8]]) -> Result<()> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let claimed = u32::try_from(len).ok().filter(|len| *len <= LONGEST);
    let claimed = claimed.ok_or_else(|| Error::Malformed(format!("a record of {len} bytes is too long")))?;
    to.write_all(&kind.to_le_bytes())?;
    to.write_all(&claimed.to_le_bytes())?;
    for part in parts {
        to.write_all(part)?;
    }
    to.write_all(&[0; ALIGN][..padding(len)])?;
    Ok(())
}

/// Reads the next record.
pub fn read(from: &mut impl Read) -> Result<Record> {
    let mut head = [[0; 4]; 2];
    fill(from, head.as_flattened_mut(), "a record's head")?;
    let [kind, len] = head.map(u32::from_le_bytes);
    if len > LONGEST {
        return Err(Error::Malformed(format!(
            "a record of type {kind:#x} claims {len} bytes"
        )));
    }
    let whole = len as usize + padding(len as usize);
    let mut body = Vec::new();
    // Grows with what comes, not with what is claimed.
    if from.by_ref().take(whole as u64).read_to_end(&mut body)? != whole {
        return Err(Error::Truncated("a record"));
    }
    body.truncate(len as usize);
    Ok(Record { kind, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_padded_and_what_follows_stays() {
        let mut bytes = Vec::new();
        write(&mut bytes, 7, &[b"ab", b"c"]).unwrap();
        bytes.extend(b"next");
        assert_eq!(bytes.len(), 16 + 4);
        let mut rest = bytes.as_slice();
        let record = read(&mut rest).unwrap();
        assert_eq!((record.kind, record.body.as_slice()), (7, &b"abc"[..]));
        assert_eq!(rest, b"next");
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend((LONGEST + 1).to_le_bytes());
        assert!(matches!(read(&mut bytes.as_slice()), Err(Error::Malformed(_))));
        let mut bytes = vec![1, 0, 0, 0];
        bytes.extend(LONGEST.to_le_bytes());
        bytes.extend([0; 100]);
        assert!(matches!(read(&mut bytes.as_slice()), Err(Error::Truncated(_))));
    }
}
