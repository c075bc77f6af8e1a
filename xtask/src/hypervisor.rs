//! Builds the hypervisor for bare metal, and says how large it is.
//!
//! Which compiler does it is [`toolchain`]'s choice.

use std::env;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use object::{Object, ObjectSection, SectionFlags, elf};

use crate::places;
use crate::programs::{clean_command, run, stripped};
use crate::symbols;
use crate::toolchain::{self, TARGET, Toolchain};

/// What may be loaded, at most: text, read-only data and data together.
pub const LOADED_BUDGET: u64 = 1 << 20;

/// Returns the compiler and linker flags of the hypervisor: the one place where they stand.
fn rustflags(linker_script: &Path) -> Vec<String> {
    let link = |argument: &str| format!("link-arg={argument}");
    let codegen = [
        "relocation-model=pic".to_owned(),
        "code-model=small".to_owned(),
        "force-frame-pointers=yes".to_owned(),
        // One copy of what is generic, and more is inlined: 3 % smaller, and no slower.
        "codegen-units=1".to_owned(),
        "linker=ld.lld".to_owned(),
        link(&format!("-T{}", linker_script.display())),
        link("-no-pie"),
        link("--no-dynamic-linker"),
        link("--build-id=none"),
        link("-z"),
        link("max-page-size=4096"),
    ];
    // There are no vector registers for us, so no vector code; and what checks a sum once may be slow.
    let backends = [r#"sha2_backend="soft""#, r#"sha2_backend_soft="compact""#].map(str::to_owned);
    let codegen = codegen.into_iter().flat_map(|flag| ["-C".to_owned(), flag]);
    let backends = backends.into_iter().flat_map(|backend| ["--cfg".to_owned(), backend]);
    // All is linked into one image, so no call and no access needs a table of addresses: 2 % smaller, and up to 3 % fewer
    // instructions. (No stable option says so of an image outside of the topmost 2 GiB.)
    let direct = ["plt=yes", "direct-access-external-data=yes"].map(str::to_owned);
    let direct = direct.into_iter().flat_map(|flag| ["-Z".to_owned(), flag]);
    codegen
        .chain(backends)
        .chain(direct)
        .chain(shorter_names_of_files())
        .collect()
}

/// Panics name the file that they are in: those of other people's crates by crate and file, wherever this user's cargo
/// unpacks them. So the image is the same for everybody, and 2 KiB smaller.
fn shorter_names_of_files() -> Vec<String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")));
    let unpacked = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok());
    let mut registries: Vec<PathBuf> = unpacked
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    registries.sort();
    registries
        .iter()
        .map(|registry| format!("--remap-path-prefix={}/=", registry.display()))
        .collect()
}

/// What a build left behind.
pub struct Built {
    /// The image that `qemu -kernel` and GRUB's `multiboot` take.
    pub elf: PathBuf,
    /// The same, packed.
    pub gz: PathBuf,
    /// Bytes of text, read-only data and data.
    pub loaded: u64,
    /// Bytes that the boot code clears: .bss.
    pub zeroed: u64,
    /// Bytes of the packed image.
    pub packed: u64,
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.elf.display())?;
        writeln!(
            f,
            "  loaded   {:>9} bytes ({:.1}% of the 1 MiB budget)",
            self.loaded,
            percent(self.loaded)
        )?;
        writeln!(f, "  zeroed   {:>9} bytes", self.zeroed)?;
        write!(f, "{}\n  packed   {:>9} bytes", self.gz.display(), self.packed)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
fn percent(bytes: u64) -> f64 {
    bytes as f64 * 100.0 / LOADED_BUDGET as f64
}

/// Builds the hypervisor and leaves it in `target/`.
pub fn build() -> Result<Built> {
    let target_dir = places::made().join("hypervisor");
    let _alone = places::alone(&target_dir)?;
    let made = target_dir.join(TARGET).join("release/ferroxen");
    // Twice: the names for back-traces come from the linked image, and are appended to it without moving
    // a function.
    let table = places::made().join("ferroxen.symbols");
    if !table.exists() {
        fs::create_dir_all(places::made())?;
        fs::write(&table, [])?;
    }
    let link = || -> Result<Vec<u8>> {
        let mut cargo = bare_metal_cargo(Verb::Build)?;
        cargo
            .args(["--release", "--quiet"])
            .args(["--package", "ferroxen-image"])
            .arg("--target-dir")
            .arg(&target_dir)
            .env("FERROXEN_SYMBOLS", &table);
        run(&mut cargo).context("building the hypervisor (package ferroxen-image)")?;
        fs::read(&made).with_context(|| format!("reading {}", made.display()))
    };
    let mut bytes = link()?;
    for attempt in 0.. {
        let names = symbols::table(&bytes)?;
        if names == fs::read(&table)? {
            break;
        }
        // Sources that change while we build may cost another round.
        if attempt == 3 {
            bail!("the table of symbols moves the functions that it names");
        }
        fs::write(&table, &names)?;
        bytes = link()?;
    }
    let (loaded, zeroed) = sizes(&bytes)?;
    let elf = places::made().join("ferroxen.elf");
    let gz = places::made().join("ferroxen.gz");
    let lean = fs::read(without_debug(&made)?)?;
    let packed = gzip(&lean)?;
    fs::write(&elf, &lean)?;
    fs::write(&gz, &packed)?;
    Ok(Built {
        elf,
        gz,
        loaded,
        zeroed,
        packed: packed.len() as u64,
    })
}

/// What to do with the bare-metal crates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Compile and link.
    Build,
    /// Look for lints; give `CLIPPY_ARGS` for more than warnings.
    Clippy,
}

/// Prepares cargo for the bare-metal target.
pub fn bare_metal_cargo(verb: Verb) -> Result<Command> {
    cargo_with(verb, &rustflags(&places::root().join("hypervisor/image/link.ld")))
}

/// Builds the guest kernel `name` (package `ferroxen-NAME-guest`), and returns where it is.
pub fn build_guest(name: &str) -> Result<PathBuf> {
    build_as(Linked::Kernel, "guests", name)
}

/// Builds the program for guests' Linux (package `ferroxen-linux-guest`), and returns where it is.
pub fn build_linux_program() -> Result<PathBuf> {
    build_as(Linked::Program, "guests-programs", "linux")
}

fn build_as(linked: Linked, directory: &str, name: &str) -> Result<PathBuf> {
    let target_dir = places::made().join(directory);
    let package = format!("ferroxen-{name}-guest");
    let mut cargo = guest_cargo(linked)?;
    cargo
        .args(["--release", "--quiet", "--package", &package, "--target-dir"])
        .arg(&target_dir);
    run(&mut cargo).with_context(|| format!("building the {name} guest (package {package})"))?;
    let built = target_dir.join(TARGET).join("release").join(name);
    without_debug(&built)
}

/// What a guest of ours is linked as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Linked {
    /// A kernel, at a fixed low address.
    Kernel,
    /// A program for Linux, which the linker knows how to place.
    Program,
}

/// Prepares cargo for what runs in guests.
fn guest_cargo(linked: Linked) -> Result<Command> {
    let mut flags = vec![
        "relocation-model=static".to_owned(),
        "linker=ld.lld".to_owned(),
        "link-arg=--no-dynamic-linker".to_owned(),
        "link-arg=--build-id=none".to_owned(),
    ];
    if linked == Linked::Kernel {
        let script = places::root().join("guests/pv/link.ld");
        flags.push(format!("link-arg=-T{}", script.display()));
    }
    let flags: Vec<String> = flags.into_iter().flat_map(|flag| ["-C".to_owned(), flag]).collect();
    cargo_with(Verb::Build, &flags)
}

fn cargo_with(verb: Verb, flags: &[String]) -> Result<Command> {
    let flags = flags.join("\x1f");
    let mut cargo = match toolchain::chosen() {
        Toolchain::Own => {
            let mut own = clean_command("cargo");
            // For the options of `rustflags` that are not stable, as with Debian's.
            own.env("RUSTC_BOOTSTRAP", "1");
            own.arg(match verb {
                Verb::Build => "build",
                Verb::Clippy => "clippy",
            });
            own
        }
        Toolchain::Debian => {
            if !toolchain::debian_is_complete() {
                bail!(
                    "no toolchain for {TARGET}: `rustup target add {TARGET}`, \
                     or on Debian `apt-get install rustc-web cargo-web rust-web-src`"
                );
            }
            let mut debian = clean_command(toolchain::DEBIAN_CARGO);
            debian.env("RUSTC", toolchain::DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            match verb {
                Verb::Build => debian.arg("build"),
                // `cargo clippy` would take the user's clippy, which does not fit this compiler.
                Verb::Clippy => debian
                    .arg("check")
                    .env("RUSTC_WORKSPACE_WRAPPER", toolchain::DEBIAN_CLIPPY),
            };
            debian.args(["-Zbuild-std=core,alloc", "-Zbuild-std-features=compiler-builtins-mem"]);
            debian
        }
    };
    cargo
        .current_dir(places::root())
        .args(["--target", TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    Ok(cargo)
}

/// Adds up what the image occupies: (loaded from the file, zeroed).
pub fn sizes(image: &[u8]) -> Result<(u64, u64)> {
    let file = object::File::parse(image).context("the built hypervisor is no ELF file")?;
    let (mut loaded, mut zeroed) = (0, 0);
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else {
            continue;
        };
        if sh_flags & u64::from(elf::SHF_ALLOC) == 0 {
            continue;
        }
        match section.kind() {
            object::SectionKind::UninitializedData => zeroed += section.size(),
            _ => loaded += section.size(),
        }
    }
    Ok((loaded, zeroed))
}

/// Drops debug sections: a loader has no use for them, and they would be most of the file. The symbols stay.
fn without_debug(path: &Path) -> Result<PathBuf> {
    stripped("--strip-debug", path)
}

/// Packs bytes as `gzip -9` would, without name or time: the same bytes give the same file.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    packer.write_all(bytes)?;
    Ok(packer.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_the_same_bytes_twice_gives_the_same_file() {
        let bytes = b"one image".repeat(100);
        assert_eq!(gzip(&bytes).unwrap(), gzip(&bytes).unwrap());
    }

    #[test]
    fn the_linker_script_is_named_by_its_full_path() {
        let flags = rustflags(Path::new("/somewhere/link.ld"));
        assert!(flags.contains(&"link-arg=-T/somewhere/link.ld".to_owned()));
    }
}
