//! What of the host's own hardware a domain may reach: `ioports`, `iomem` and `irqs`, as xl.cfg(5) writes them.

use crate::disk::SpecError;

/// I/O ports, the last one included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// Pages of the host's memory-mapped devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoMemory {
    /// The first page's number.
    pub first: u64,
    /// How many there are.
    pub pages: u64,
}

/// The highest page number that an address can have.
const LAST_PAGE: u64 = (1 << 52) - 1;
/// No host has as many interrupts.
pub const LAST_IRQ: i64 = 0xffff;

/// `2f8-2ff`, or `2f8`: hexadecimal.
pub fn ports(spec: &str) -> Result<Ports, SpecError> {
    let (first, last) = spec.split_once('-').unwrap_or((spec, spec));
    let (first, last) = (hex(spec, first)?, hex(spec, last)?);
    match (u16::try_from(first), u16::try_from(last)) {
        (Ok(first), Ok(last)) if first <= last => Ok(Ports { first, last }),
        (Ok(_), Ok(_)) => Err(whole(spec, format!("`{spec}` ends before it begins"))),
        _ => Err(whole(spec, format!("`{spec}`: the last port is ffff"))),
    }
}

/// `START,COUNT`, or `START,COUNT@GFN`: hexadecimal page numbers. A PV domain maps the pages where it likes, so `GFN`
/// has to be a number and means nothing.
pub fn memory(spec: &str) -> Result<IoMemory, SpecError> {
    let (range, gfn) = match spec.split_once('@') {
        Some((range, gfn)) => (range, Some(gfn)),
        None => (spec, None),
    };
    let Some((first, pages)) = range.split_once(',') else {
        return Err(whole(spec, format!("`{spec}`: expected START,COUNT, such as fed00,1")));
    };
    let (first, pages) = (hex(spec, first)?, hex(spec, pages)?);
    gfn.map(|gfn| hex(spec, gfn)).transpose()?;
    let last = pages.checked_sub(1).and_then(|more| first.checked_add(more));
    match last.is_some_and(|last| last <= LAST_PAGE) {
        true => Ok(IoMemory { first, pages }),
        false => Err(whole(spec, format!("`{spec}` is no range of pages"))),
    }
}

fn whole(spec: &str, message: String) -> SpecError {
    SpecError {
        range: 0..spec.len(),
        message,
    }
}

fn hex(spec: &str, word: &str) -> Result<u64, SpecError> {
    let digits = word.trim();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let is_hex = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit());
    is_hex
        .then(|| u64::from_str_radix(digits, 16).ok())
        .flatten()
        .ok_or_else(|| {
            let at = spec.find(word).unwrap_or(0);
            SpecError {
                range: at..at + word.len(),
                message: format!("`{word}` is no hexadecimal number"),
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_a_range_or_one() {
        let range = |first, last| Ok(Ports { first, last });
        assert_eq!(ports("2f8-2ff"), range(0x2f8, 0x2ff));
        assert_eq!(ports("0x60"), range(0x60, 0x60));
        for wrong in ["", "2ff-2f8", "10000", "2f8-", "-1", "+1", "gg", "ffffffffffffffffff"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_a_page_and_a_count() {
        let range = |first, pages| Ok(IoMemory { first, pages });
        assert_eq!(memory("fed00,1"), range(0xfed00, 1));
        assert_eq!(memory("a0,20@a0"), range(0xa0, 0x20));
        for wrong in ["fed00", "fed00,0", "1,2@", "ffffffffffffffff,2", "10000000000000,1"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }
}
