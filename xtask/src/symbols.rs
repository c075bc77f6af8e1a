//! The hypervisor's functions by address, for the back-traces that it prints.
//!
//! `ferroxen_nametable` packs them, and the hypervisor reads them with it.

use anyhow::{Context, Result, ensure};
use ferroxen_nametable::{LONGEST, Table, pack};
use object::{Object, ObjectSymbol, SymbolKind};

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
    let names: Vec<(u32, &str)> = functions
        .iter()
        .map(|(offset, name)| (*offset, name.as_str()))
        .collect();
    let table = pack(&names);
    for (number, (offset, name)) in names.iter().enumerate() {
        let read = Table::new(&table).by_number(number);
        let is_read = read.is_some_and(|(read, at)| (read.as_str(), at) == (*name, *offset));
        ensure!(is_read, "the packed table of symbols has no {name} at {offset:#x}");
    }
    Ok(table)
}

/// The name much as its author wrote it. Longer ones (deep generics) are cut.
fn readable(mangled: &str) -> String {
    let mut name = without_paths(&format!("{:#}", rustc_demangle::demangle(mangled)));
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

/// Leaves out what a reader of ours knows: within angle brackets, where a type lives; and `ferroxen_`.
fn without_paths(name: &str) -> String {
    let mut short = String::new();
    let mut depth = 0;
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let word = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let after = &rest[word..];
        let is_module = after.starts_with("::") && after[2..].starts_with(|c: char| c.is_alphabetic() || c == '_');
        if word == 0 {
            match first {
                '<' => depth += 1,
                '>' => depth -= 1,
                _ => {}
            }
            short.push(first);
            rest = &rest[first.len_utf8()..];
        } else if depth > 0 && is_module {
            rest = &after[2..];
        } else {
            let whole = &rest[..word];
            short.push_str(whole.strip_prefix("ferroxen_").unwrap_or(whole));
            rest = after;
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_no_more_than_a_reader_needs() {
        assert_eq!(
            without_paths("ferroxen_kernel::pv::mm::pin_root"),
            "kernel::pv::mm::pin_root"
        );
        assert_eq!(
            without_paths("<ferroxen_kernel::pv::emulate::Cpu as ferroxen_x86emu::Space>::read"),
            "<Cpu as Space>::read"
        );
        assert_eq!(
            without_paths("core::ptr::drop_in_place::<alloc::vec::Vec<u8>>"),
            "core::ptr::drop_in_place::<Vec<u8>>"
        );
        assert_eq!(
            without_paths("<alloc::vec::Vec<u8>>::retain::{closure#0}"),
            "<Vec<u8>>::retain::{closure#0}"
        );
    }

    #[test]
    fn a_long_name_is_cut() {
        assert_eq!(readable(&"x".repeat(500)).len(), LONGEST);
        assert_eq!(readable("plain"), "plain");
    }
}
