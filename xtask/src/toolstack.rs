//! Builds our programs for Domain 0.
//!
//! A command of the toolstack is short, and much of what it takes is that Linux maps the pages of its program, sixteen
//! around each that is touched. So programs are linked whole and at fixed addresses, since relocations would touch most of
//! their pages, and the functions of `xl` that commands run stand beside each other: [`ORDER`] has their names, which
//! `cargo xtask order` finds out. Names that are not there any more are passed over.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};

use crate::places;
use crate::programs::{clean_command, run, stripped};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Functions that run once at the start, and those that hardly ever run, stand apart. Names of functions say for which
/// types they are: without that they are ambiguous.
const RUSTFLAGS: &str = "target.x86_64-unknown-linux-gnu.rustflags=\
                         ['-Ctarget-feature=+crt-static','-Crelocation-model=static',\
                         '-Csymbol-mangling-version=v0','-Clink-arg=-Wl,-z,keep-text-section-prefix']";
/// The package and the program whose functions are put in order.
const PACKAGE: &str = "ferroxen-xl";
const XL: &str = "xl";
/// The names of its functions, as they are first used.
pub const ORDER: &str = "toolstack/xl/order";
/// The first link shows what functions are called, the second has them in order.
const LINKS: usize = 3;

/// Builds programs, named by their package and what it calls them; returns where each is, without symbols.
pub fn build(programs: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
    let _alone = places::alone(&target_dir())?;
    let mut others = cargo("build");
    for (package, _) in programs.iter().filter(|(package, _)| *package != PACKAGE) {
        others.args(["--package", package]);
    }
    run(&mut others).context("building the toolstack")?;
    link_in_order()?;
    programs
        .iter()
        .map(|(_, name)| without_symbols(&linked(name)))
        .collect()
}

/// Builds `xl` alone.
pub fn xl() -> Result<PathBuf> {
    let _alone = places::alone(&target_dir())?;
    link_in_order()?;
    without_symbols(&linked(XL))
}

fn target_dir() -> PathBuf {
    places::made().join("toolstack")
}

fn cargo(verb: &str) -> Command {
    let mut cargo = clean_command("cargo");
    cargo
        .args([verb, "--release", "--quiet", "--target", TARGET])
        .args(["--config", "profile.release.debug=false", "--config", RUSTFLAGS])
        .current_dir(places::root());
    cargo.arg("--target-dir").arg(target_dir());
    cargo
}

/// Where a program is linked, with its symbols.
fn linked(name: &str) -> PathBuf {
    target_dir().join(TARGET).join("release").join(name)
}

/// The same without, made again when it has changed.
fn without_symbols(program: &Path) -> Result<PathBuf> {
    let lean = program.with_extension("stripped");
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    match changed(&lean) < changed(program) {
        true => stripped("--strip-all", program),
        false => Ok(lean),
    }
}

fn link_in_order() -> Result<()> {
    let path = places::root().join(ORDER);
    let wanted = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let wanted: Vec<&str> = wanted.lines().collect();
    // What was linked last is called the same unless much has changed.
    let mut order = match fs::read(linked(XL)) {
        Ok(xl) => in_order(&functions(&xl)?, &wanted),
        Err(_) => String::new(),
    };
    for _ in 0..LINKS {
        link(&order)?;
        let now = in_order(&functions(&fs::read(linked(XL))?)?, &wanted);
        if now == order {
            say_if_old(order.lines().count(), wanted.len());
            return Ok(());
        }
        order = now;
    }
    ensure!(
        false,
        "the functions of {XL} are called otherwise each time it is linked"
    );
    Ok(())
}

fn link(order: &str) -> Result<()> {
    // Cargo sees that a file has another name, not what is in it.
    let mut hasher = DefaultHasher::new();
    order.hash(&mut hasher);
    let file = target_dir().join(format!("{XL}-{:016x}.order", hasher.finish()));
    fs::create_dir_all(target_dir())?;
    if !file.exists() {
        fs::write(&file, order)?;
    }
    let mut rustc = cargo("rustc");
    rustc.args(["--package", PACKAGE, "--bin", XL, "--"]);
    rustc.arg("-Clink-arg=-Wl,--no-warn-symbol-ordering");
    rustc.arg(format!("-Clink-arg=-Wl,--symbol-ordering-file={}", file.display()));
    run(&mut rustc).with_context(|| format!("building {XL}"))
}

fn say_if_old(found: usize, wanted: usize) {
    if found < wanted / 10 * 9 {
        eprintln!("{XL} has {found} of the {wanted} functions in {ORDER}: `cargo xtask order` finds them out anew");
    }
}

/// A function of a program: where it begins and ends, what the linker calls it, and what its author does.
struct Function {
    start: u64,
    end: u64,
    mangled: String,
    name: String,
}

fn functions(program: &[u8]) -> Result<Vec<Function>> {
    let file = object::File::parse(program).context("the built program is no ELF file")?;
    let mut functions: Vec<Function> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let mangled = symbol.name().ok()?.to_owned();
            let name = format!("{:#}", rustc_demangle::demangle(&mangled));
            let (start, end) = (symbol.address(), symbol.address().checked_add(symbol.size())?);
            Some(Function {
                start,
                end,
                mangled,
                name,
            })
        })
        .collect();
    functions.sort_by_key(|function| function.start);
    Ok(functions)
}

/// What the linker calls the functions with names in `wanted`, in that order.
fn in_order(functions: &[Function], wanted: &[&str]) -> String {
    let places: HashMap<&str, usize> = wanted.iter().enumerate().map(|(place, name)| (*name, place)).collect();
    let mut found: Vec<(usize, &str)> = functions
        .iter()
        .filter_map(|function| Some((*places.get(function.name.as_str())?, function.mangled.as_str())))
        .collect();
    found.sort_unstable();
    found.dedup();
    let mut order = String::new();
    for (_, mangled) in found {
        // Writing to a string cannot fail.
        let _ = writeln!(order, "{mangled}");
    }
    order
}

/// Writes the names of the functions of `xl` that ran to [`ORDER`], by the blocks of instructions that a machine's
/// programs began: lines of an address and the first bytes there, in the order of their first use.
pub fn write_order(blocks: &str) -> Result<usize> {
    let program = fs::read(linked(XL))?;
    let functions = functions(&program)?;
    let file = object::File::parse(&*program)?;
    let mut names: Vec<&str> = Vec::new();
    for line in blocks.lines() {
        let (address, bytes) = block(line).with_context(|| format!("`{line}` is no block"))?;
        // Other programs are at the same addresses.
        if !has(&file, address, &bytes) {
            continue;
        }
        let after = functions.partition_point(|function| function.start <= address);
        let function = functions[..after].last().filter(|function| address < function.end);
        if let Some(function) = function
            && !names.contains(&function.name.as_str())
        {
            names.push(&function.name);
        }
    }
    fs::write(places::root().join(ORDER), names.join("\n") + "\n")?;
    Ok(names.len())
}

fn block(line: &str) -> Option<(u64, Vec<u8>)> {
    let (address, bytes) = line.split_once(' ')?;
    let byte = |at| u8::from_str_radix(bytes.get(at..at + 2)?, 16).ok();
    let bytes = (0..bytes.len()).step_by(2).map(byte).collect::<Option<_>>()?;
    Some((u64::from_str_radix(address, 16).ok()?, bytes))
}

fn has(program: &object::File<'_>, address: u64, bytes: &[u8]) -> bool {
    program.segments().any(|segment| {
        segment
            .data_range(address, bytes.len() as u64)
            .is_ok_and(|data| data == Some(bytes))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_stand_in_the_order_of_their_names_whatever_the_linker_calls_them() {
        let function = |mangled: &str, name: &str| Function {
            start: 0,
            end: 0,
            mangled: mangled.to_owned(),
            name: name.to_owned(),
        };
        let functions = [
            function("_Ra1", "a"),
            function("_Rb", "b"),
            function("_Ra2", "a"),
            function("_Rc", "c"),
        ];
        assert_eq!(in_order(&functions, &["c", "gone", "a"]), "_Rc\n_Ra1\n_Ra2\n");
    }

    #[test]
    fn a_block_is_an_address_and_bytes() {
        assert_eq!(block("4d93c0 31ed"), Some((0x4d_93c0, vec![0x31, 0xed])));
        assert_eq!(block("4d93c0"), None);
        assert_eq!(block("4d93c0 3"), None);
    }
}
