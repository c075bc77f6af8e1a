//! Which byte strings are paths.
//!
//! Letters, digits, and `-/_@`; no empty component, no trailing slash but in `/` itself. `@`-names are no
//! nodes but events ([`crate::INTRODUCE_DOMAIN`]).

use crate::{ABS_PATH_MAX, REL_PATH_MAX};
use alloc::format;
use alloc::string::String;
use core::fmt;

/// What kind of name a path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Starts with `/`.
    Absolute,
    /// Starts with `@`: the name of an event.
    Special,
    /// Anything else: taken from the caller's own directory.
    Relative,
}

/// Why a byte string is no path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadPath {
    /// There is nothing.
    Empty,
    /// It is longer than the protocol allows.
    TooLong,
    /// It has a byte that paths may not have.
    Character(u8),
    /// It has two slashes in a row, or ends with one.
    EmptyComponent,
}

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadPath::Empty => f.write_str("the path is empty"),
            BadPath::TooLong => write!(
                f,
                "the path is longer than {ABS_PATH_MAX} bytes ({REL_PATH_MAX} if relative)"
            ),
            BadPath::Character(byte) => {
                write!(f, "{:?} may not stand in a path", char::from(*byte))
            }
            BadPath::EmptyComponent => f.write_str("the path has an empty component"),
        }
    }
}

impl core::error::Error for BadPath {}

/// Checks a path as a client sent it (without its NUL) and says of which kind it is.
pub fn check(bytes: &[u8]) -> Result<(Kind, &str), BadPath> {
    let kind = match bytes.first() {
        None => return Err(BadPath::Empty),
        Some(b'/') => Kind::Absolute,
        Some(b'@') => Kind::Special,
        Some(_) => Kind::Relative,
    };
    let limit = if kind == Kind::Absolute {
        ABS_PATH_MAX
    } else {
        REL_PATH_MAX
    };
    if bytes.len() > limit {
        return Err(BadPath::TooLong);
    }
    if let Some(bad) = bytes.iter().find(|byte| !is_allowed(**byte)) {
        return Err(BadPath::Character(*bad));
    }
    if bytes != b"/" && (bytes.ends_with(b"/") || bytes.windows(2).any(|pair| pair == b"//")) {
        return Err(BadPath::EmptyComponent);
    }
    let text = core::str::from_utf8(bytes).map_err(|_| BadPath::Empty)?;
    Ok((kind, text))
}

/// Whether a byte may stand in a path.
pub const fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@')
}

/// A domain's own directory, from which its relative paths start.
pub fn domain_path(domid: u16) -> String {
    format!("/local/domain/{domid}")
}

/// The components of an absolute path; none for `/`.
///
/// They are short: going through the bytes one by one is quicker than any search that sets out for long texts.
pub fn components(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    core::iter::from_fn(move || {
        while !rest.is_empty() {
            let end = rest.bytes().position(|byte| byte == b'/').unwrap_or(rest.len());
            let name = rest.get(..end)?;
            rest = rest.get(end + 1..).unwrap_or("");
            if !name.is_empty() {
                return Some(name);
            }
        }
        None
    })
}

/// The parent of an absolute path; `None` for `/`.
pub fn parent(path: &str) -> Option<&str> {
    match path.rsplit_once('/')? {
        (_, "") => None,
        ("", _) => Some("/"),
        (parent, _) => Some(parent),
    }
}

/// How many levels `path` lies below `ancestor` (0 if they are the same), if it does.
pub fn depth_below(path: &str, ancestor: &str) -> Option<usize> {
    if ancestor == "/" && path.starts_with('/') {
        return Some(components(path).count());
    }
    match path.strip_prefix(ancestor)? {
        "" => Some(0),
        rest if rest.starts_with('/') => Some(components(rest).count()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn ordinary_paths_pass() {
        assert_eq!(check(b"/").unwrap().0, Kind::Absolute);
        assert_eq!(check(b"/local/domain/0").unwrap().0, Kind::Absolute);
        assert_eq!(check(b"device/vif-0_x@y").unwrap().0, Kind::Relative);
        assert_eq!(check(b"@releaseDomain/7").unwrap().0, Kind::Special);
        assert!(check(&[b"/".as_slice(), &[b'a'; ABS_PATH_MAX - 1]].concat()).is_ok());
    }

    #[test]
    fn malformed_paths_are_refused() {
        assert_eq!(check(b""), Err(BadPath::Empty));
        assert_eq!(check(b"/a//b"), Err(BadPath::EmptyComponent));
        assert_eq!(check(b"//"), Err(BadPath::EmptyComponent));
        assert_eq!(check(b"a/"), Err(BadPath::EmptyComponent));
        assert_eq!(check(b"/a b"), Err(BadPath::Character(b' ')));
        assert_eq!(check(b"/\xc3\xa4"), Err(BadPath::Character(0xc3)));
        assert_eq!(
            check(&[b"/".as_slice(), &[b'a'; ABS_PATH_MAX]].concat()),
            Err(BadPath::TooLong)
        );
        assert_eq!(check(&[b'a'; REL_PATH_MAX + 1]), Err(BadPath::TooLong));
    }

    #[test]
    fn components_are_what_stands_between_slashes() {
        let of = |path| components(path).collect::<Vec<_>>();
        assert_eq!(of("/"), [""; 0]);
        assert_eq!(of("/a"), ["a"]);
        assert_eq!(of("/local/domain/7"), ["local", "domain", "7"]);
        assert_eq!(of("a//b/"), ["a", "b"]);
    }

    #[test]
    fn parents_and_depths() {
        assert_eq!(parent("/"), None);
        assert_eq!(parent("/a"), Some("/"));
        assert_eq!(parent("/a/b"), Some("/a"));
        assert_eq!(depth_below("/a/b/c", "/a"), Some(2));
        assert_eq!(depth_below("/a", "/a"), Some(0));
        assert_eq!(depth_below("/ab", "/a"), None);
        assert_eq!(depth_below("/a/b", "/"), Some(2));
        assert_eq!(depth_below("/", "/"), Some(0));
        assert_eq!(depth_below("@releaseDomain/3", "@releaseDomain"), Some(1));
    }
}
