//! Fresh names: UUIDs that nobody waits for.
//!
//! A machine without a random number generator may be up for minutes before its kernel calls its random numbers
//! unpredictable, and getrandom(2) waits for that. Keys must. A name only has to be another one than all others, and
//! nobody gains by guessing it, so [`fresh`] takes what the kernel has.
//!
//! The crate `uuid` is used without its feature `v4` everywhere, so that this is the one way to make one.
#![forbid(unsafe_code)]

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use uuid::{Builder, Uuid};

/// Gives a UUID of version 4.
pub fn fresh() -> Uuid {
    let mut bytes = [0; 16];
    // So few bytes always come at once, and whole.
    let got = getrandom(&mut bytes, GetRandomFlags::INSECURE).or_else(|error| match error {
        // Linux before 5.6 has no such flag.
        Errno::INVAL => getrandom(&mut bytes, GetRandomFlags::empty()),
        other => Err(other),
    });
    assert_eq!(got, Ok(bytes.len()), "getrandom(2) gives no bytes");
    Builder::from_random_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use uuid::{Variant, Version};

    #[test]
    fn fresh_ones_are_random_ones_and_all_different() {
        let all: HashSet<Uuid> = (0..1000).map(|_| fresh()).collect();
        assert_eq!(all.len(), 1000);
        for uuid in all {
            assert_eq!(uuid.get_version(), Some(Version::Random));
            assert_eq!(uuid.get_variant(), Variant::RFC4122);
        }
    }
}
