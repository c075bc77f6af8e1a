//! Names by address, in a third of the room that their letters take.
//!
//! What names have in common ([`pack`] finds it) is written once: a *token* is a letter or a pair of other tokens, and a
//! name is a row of tokens. Whoever reads needs the table and some stack, but no memory, and can begin at each
//! [`BLOCK`]-th name: names are wanted when something is broken.
//!
//! Little-endian: the number of names (4 bytes), of tokens (2), and of those that take one byte (2); each token's three
//! bytes, which are two tokens of 12 bits, or [`LETTER`] and a letter; for each block its first address and where it begins
//! among the names (4 each); the names. Of those, each is the distance from the address before it in its block (seven bits
//! in a byte, the least first; the eighth says that there are more), the number of bytes that follow, and its tokens.
//!
//! No table makes this panic or loop: what is not well formed names nothing, or something else.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "pack")]
mod pack;

#[cfg(feature = "pack")]
pub use pack::pack;

/// Bytes of a name, at most.
pub const LONGEST: usize = 72;

/// Names that are found one after the other, from the first of them.
const BLOCK: usize = 32;
/// Tokens within tokens, at most.
const DEEPEST: usize = 24;
/// Stands in place of a token's first half; the other is a letter.
const LETTER: u16 = 0xfff;

const HEADER: usize = 8;
const TOKEN: usize = 3;
const PLACE: usize = 8;

/// A name that was read.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    letters: [u8; LONGEST],
    length: usize,
}

impl Name {
    /// What it says.
    pub fn as_str(&self) -> &str {
        let letters = self.letters.get(..self.length).unwrap_or_default();
        core::str::from_utf8(letters).unwrap_or("?")
    }
}

/// A table, as [`pack`] made it; one of no bytes has no names.
#[derive(Clone, Copy)]
pub struct Table<'a>(&'a [u8]);

/// A name as it stands in the table, and its address.
struct Entry<'a> {
    address: u32,
    tokens: &'a [u8],
}

impl<'a> Table<'a> {
    /// Reads a table from bytes, and from no more of them than its names take.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The last name at or below an address, and how far above its own that is.
    pub fn at(&self, address: u32) -> Option<(Name, u32)> {
        let (mut low, mut high) = (0, self.names().div_ceil(BLOCK));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.block(middle)?.0 <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let found = self
            .entries(low.checked_sub(1)?)?
            .take_while(|entry| entry.address <= address)
            .last()?;
        Some((self.spell(found.tokens)?, address - found.address))
    }

    /// A name by its number, in order of address, and its address.
    pub fn by_number(&self, number: usize) -> Option<(Name, u32)> {
        if number >= self.names() {
            return None;
        }
        let found = self.entries(number / BLOCK)?.nth(number % BLOCK)?;
        Some((self.spell(found.tokens)?, found.address))
    }

    fn names(&self) -> usize {
        word(self.0, 0).map_or(0, |names| names as usize)
    }

    fn tokens(&self) -> Option<usize> {
        Some(half(self.0, 4)?.into())
    }

    /// A block's first address, and the bytes that begin with its names.
    fn block(&self, number: usize) -> Option<(u32, &'a [u8])> {
        let places = HEADER + TOKEN * self.tokens()?;
        let at = places + PLACE * number;
        let names = places + PLACE * self.names().div_ceil(BLOCK);
        let begin = names.checked_add(word(self.0, at + 4)? as usize)?;
        Some((word(self.0, at)?, self.0.get(begin..)?))
    }

    /// The names of a block. (What follows those of the last one is no name.)
    fn entries(&self, block: usize) -> Option<impl Iterator<Item = Entry<'a>>> {
        let (mut address, mut rest) = self.block(block)?;
        let here = BLOCK.min(self.names().saturating_sub(block * BLOCK));
        Some((0..here).map_while(move |_| {
            address = address.checked_add(distance(&mut rest)?)?;
            let (&length, after) = rest.split_first()?;
            let (tokens, next) = after.split_at_checked(length.into())?;
            rest = next;
            Some(Entry { address, tokens })
        }))
    }

    fn spell(&self, tokens: &[u8]) -> Option<Name> {
        let singles = half(self.0, 6)?;
        let mut name = Name {
            letters: [0; LONGEST],
            length: 0,
        };
        let mut bytes = tokens.iter().map(|&byte| u16::from(byte));
        while let Some(first) = bytes.next() {
            let token = match first.checked_sub(singles) {
                None => first,
                Some(above) => singles + (above << 8 | bytes.next()?),
            };
            self.spell_token(token, &mut name)?;
        }
        Some(name)
    }

    fn spell_token(&self, token: u16, name: &mut Name) -> Option<()> {
        let mut waiting = [0; DEEPEST];
        let mut depth = 0;
        let mut token = token;
        loop {
            match self.halves(token)? {
                (LETTER, letter) => {
                    *name.letters.get_mut(name.length)? = u8::try_from(letter).ok()?;
                    name.length += 1;
                    if depth == 0 {
                        return Some(());
                    }
                    depth -= 1;
                    token = waiting[depth];
                }
                (first, second) => {
                    *waiting.get_mut(depth)? = second;
                    depth += 1;
                    token = first;
                }
            }
        }
    }

    fn halves(&self, token: u16) -> Option<(u16, u16)> {
        let at = HEADER + TOKEN * usize::from(token);
        let &[low, middle, high] = self.0.get(at..)?.first_chunk()?;
        let (low, middle, high) = (u16::from(low), u16::from(middle), u16::from(high));
        Some((low | (middle & 0xf) << 8, middle >> 4 | high << 4))
    }
}

/// Takes a number of seven bits in each byte.
fn distance(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in (0..28).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use std::borrow::ToOwned;
    use std::collections::BTreeMap;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    fn packed(names: &[(u32, String)]) -> Vec<u8> {
        let names: Vec<(u32, &str)> = names.iter().map(|(at, name)| (*at, name.as_str())).collect();
        pack(&names)
    }

    #[test]
    fn an_address_within_a_function_has_its_name_and_the_distance() {
        let bytes = pack(&[(0x10, "first"), (0x20, "second"), (0x1234, "third")]);
        let table = Table::new(&bytes);
        let at = |address| table.at(address).map(|(name, above)| (name.as_str().to_owned(), above));
        assert_eq!(at(0xf), None);
        assert_eq!(at(0x10), Some(("first".to_owned(), 0)));
        assert_eq!(at(0x1f), Some(("first".to_owned(), 0xf)));
        assert_eq!(at(0x1233), Some(("second".to_owned(), 0x1213)));
        assert_eq!(at(0x12_3456), Some(("third".to_owned(), 0x12_2222)));
        assert!(Table::new(&[]).at(0x10).is_none());
    }

    #[test]
    fn numbers_end_with_the_names() {
        let bytes = pack(&[(0, "a"), (7, "b")]);
        let table = Table::new(&bytes);
        assert_eq!(
            table.by_number(1).map(|(name, at)| (name.as_str() == "b", at)),
            Some((true, 7))
        );
        assert!(table.by_number(2).is_none());
        assert!(Table::new(&[]).by_number(0).is_none());
    }

    #[test]
    fn names_that_share_much_take_little() {
        let names: Vec<(u32, String)> = (0..2000)
            .map(|number| (number * 100, format!("kernel::hypercall::domctl::number_{number}")))
            .collect();
        let letters: usize = names.iter().map(|(_, name)| name.len()).sum();
        let bytes = packed(&names);
        assert!(bytes.len() * 4 < letters, "{} of {letters}", bytes.len());
        let table = Table::new(&bytes);
        for (number, (at, name)) in names.iter().enumerate() {
            assert_eq!(table.at(at + 99).unwrap().0.as_str(), name);
            assert_eq!(table.by_number(number).unwrap().0.as_str(), name);
        }
    }

    #[test]
    fn a_token_of_itself_names_nothing() {
        // One name, of one token, whose halves are the token.
        let mut bytes = std::vec![1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0];
        bytes.extend([0; 8]);
        bytes.extend([0, 1, 0]);
        assert!(Table::new(&bytes).by_number(0).is_none());
    }

    proptest! {
        #[test]
        fn what_was_packed_is_read(names in prop::collection::btree_map(0u32..1 << 22, "[a-c:é]{0,20}", 0..200)) {
            let names: Vec<(u32, String)> = names.into_iter().collect();
            let bytes = packed(&names);
            let table = Table::new(&bytes);
            let places: BTreeMap<u32, &String> = names.iter().map(|(at, name)| (*at, name)).collect();
            for (number, (at, name)) in names.iter().enumerate() {
                let (read, address) = table.by_number(number).unwrap();
                prop_assert_eq!((read.as_str(), address), (name.as_str(), *at));
            }
            for address in (0..1 << 22).step_by(65_521) {
                let expected = places.range(..=address).next_back().map(|(at, name)| (name.as_str(), address - at));
                let found = table.at(address);
                prop_assert_eq!(found.as_ref().map(|(name, above)| (name.as_str(), *above)), expected);
            }
        }

        #[test]
        fn no_table_is_bad_enough(bytes in prop::collection::vec(any::<u8>(), 0..200), address: u32, number in 0usize..100) {
            let _ = Table::new(&bytes).at(address);
            let _ = Table::new(&bytes).by_number(number);
        }

        #[test]
        fn nor_is_a_good_one_with_a_bad_byte(at: prop::sample::Index, byte: u8, address in 0u32..300) {
            let mut bytes = pack(&[(0, "abcabcabcabc"), (9, "abcd"), (200, "cbabc")]);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Table::new(&bytes).at(address);
        }
    }
}
