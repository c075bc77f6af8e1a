//! Permission strings: `n0`, `r5`, `w7`, `b1`.
//!
//! The first entry of a node's list names its owner, and its letter says what everybody else may do; the
//! entries after it are exceptions, one domain each.

use crate::strings;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// What a permission entry allows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Rights {
    /// `n`: nothing.
    None,
    /// `r`: reading.
    Read,
    /// `w`: writing.
    Write,
    /// `b`: both.
    Both,
}

impl Rights {
    /// Whether it includes reading.
    pub const fn may_read(self) -> bool {
        matches!(self, Rights::Read | Rights::Both)
    }

    /// Whether it includes writing.
    pub const fn may_write(self) -> bool {
        matches!(self, Rights::Write | Rights::Both)
    }

    /// What either of the two allows.
    pub const fn or(self, other: Rights) -> Rights {
        match (
            self.may_read() || other.may_read(),
            self.may_write() || other.may_write(),
        ) {
            (true, true) => Rights::Both,
            (true, false) => Rights::Read,
            (false, true) => Rights::Write,
            (false, false) => Rights::None,
        }
    }

    /// Its letter.
    pub const fn letter(self) -> char {
        match self {
            Rights::None => 'n',
            Rights::Read => 'r',
            Rights::Write => 'w',
            Rights::Both => 'b',
        }
    }
}

/// One entry of a node's permission list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Permission {
    /// What is allowed.
    pub rights: Rights,
    /// To which domain (or, in the first entry, whose node it is).
    pub domid: u16,
}

/// A string that is no permission entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadPermission;

impl fmt::Display for BadPermission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a permission is one of the letters n, r, w, b and a domain id, as in r5")
    }
}

impl core::error::Error for BadPermission {}

impl Permission {
    /// An entry.
    pub const fn new(rights: Rights, domid: u16) -> Permission {
        Permission { rights, domid }
    }

    /// Reads one entry.
    pub fn parse(text: &[u8]) -> Result<Permission, BadPermission> {
        let (letter, digits) = text.split_first().ok_or(BadPermission)?;
        let rights = match letter {
            b'n' => Rights::None,
            b'r' => Rights::Read,
            b'w' => Rights::Write,
            b'b' => Rights::Both,
            _ => return Err(BadPermission),
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(BadPermission);
        }
        let digits = core::str::from_utf8(digits).map_err(|_| BadPermission)?;
        Ok(Permission {
            rights,
            domid: digits.parse().map_err(|_| BadPermission)?,
        })
    }

    /// Writes entries as a payload: each with its NUL.
    pub fn encode_all(entries: &[Permission]) -> Vec<u8> {
        use fmt::Write;
        let mut text = String::new();
        for entry in entries {
            // Writing to a String cannot fail.
            let _ = write!(text, "{entry}\0");
        }
        text.into_bytes()
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.rights.letter(), self.domid)
    }
}

/// Reads a payload of entries; at least one.
pub fn parse_permissions(payload: &[u8]) -> Result<Vec<Permission>, BadPermission> {
    let entries = strings(payload).map(Permission::parse).collect::<Result<Vec<_>, _>>()?;
    if entries.is_empty() {
        Err(BadPermission)
    } else {
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn entries_read_back_as_written() {
        let payload = b"n0\0r5\0w65535\0b1\0";
        let entries = parse_permissions(payload).unwrap();
        assert_eq!(entries[1], Permission::new(Rights::Read, 5));
        assert_eq!(entries[2].to_string(), "w65535");
        assert_eq!(Permission::encode_all(&entries), payload);
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [&b""[..], b"n", b"x1", b"n-1", b"n+1", b"r65536", b"r5x", b"n1\0\0"] {
            assert!(parse_permissions(bad).is_err(), "{bad:?}");
        }
    }
}
