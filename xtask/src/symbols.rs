//! The hypervisor's functions by address, for the back-traces that it prints.
//!
//! Format: see `hypervisor/machine/src/x86_64/symbols.rs`, which reads it.

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol, SymbolKind};

/// Longer names (deep generics) are cut: the table is part of the image.
const LONGEST: usize = 72;

/// Makes the table from a linked image.
pub fn table(image: &[u8]) -> Result<Vec<u8>> {
    let file = object::File::parse(image).context("the built hypervisor is no ELF file")?;
    let start = file
        .symbols()
        .find(|symbol| symbol.name() == Ok("__image_start"))
        .context("the built hypervisor does not say where it starts")?
        .address();
    let mut functions: Vec<(u32, String)> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let offset = symbol.address().checked_sub(start)?;
            Some((u32::try_from(offset).ok()?, readable(symbol.name().ok()?)))
        })
        .filter(|(_, name)| !name.is_empty())
        .collect();
    functions.sort();
    functions.dedup_by_key(|(offset, _)| *offset);
    Ok(encode(&functions))
}

/// The name as its author wrote it, cut to size.
fn readable(mangled: &str) -> String {
    let mut name = format!("{:#}", rustc_demangle::demangle(mangled));
    if name.len() > LONGEST {
        let end = (0..=LONGEST - 2)
            .rev()
            .find(|&at| name.is_char_boundary(at))
            .unwrap_or(0);
        name.truncate(end);
        name.push_str("..");
    }
    name
}

fn encode(functions: &[(u32, String)]) -> Vec<u8> {
    let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let mut table = Vec::from(word(functions.len()));
    let mut end = 0;
    for (offset, name) in functions {
        end += name.len();
        table.extend(offset.to_le_bytes());
        table.extend(word(end));
    }
    for (_, name) in functions {
        table.extend(name.as_bytes());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_numbers_that_say_where_they_end() {
        let table = encode(&[(0x10, "ab".to_owned()), (0x20, "cde".to_owned())]);
        let words: Vec<u32> = table[..20]
            .chunks(4)
            .map(|w| u32::from_le_bytes(w.try_into().unwrap()))
            .collect();
        assert_eq!(words, [2, 0x10, 2, 0x20, 5]);
        assert_eq!(&table[20..], b"abcde");
    }

    #[test]
    fn a_long_name_is_cut() {
        assert_eq!(readable(&"x".repeat(500)).len(), LONGEST);
        assert_eq!(readable("plain"), "plain");
    }
}
