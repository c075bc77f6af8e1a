//! Debian's kernel: the file it boots from, the raw ELF inside it, and the modules an image needs.
//!
//! Unpacking xz costs seconds under an emulator, so we do it once, here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection};

use crate::packages::{self, Package};
use crate::places;
use crate::programs::{clean_command, run_quietly};
use crate::tree::{Tree, deb_file, each_deb_entry};

/// A Debian kernel, unpacked under `build/`.
pub struct Kernel {
    /// `6.1.0-NN-amd64`: what `uname -r` says.
    pub release: String,
    /// As Debian ships it.
    pub bzimage: PathBuf,
    /// The ELF file inside it.
    pub vmlinux: PathBuf,
    package: Package,
}

impl Kernel {
    /// Fetches the newest one of a flavour (`amd64`, `cloud-amd64`, `6.12-amd64`), unless it is here.
    pub fn fetch(flavour: &str) -> Result<Self> {
        let package = packages::newest_kernel(flavour)?;
        packages::fetch(std::slice::from_ref(&package))?;
        let release = package.name.trim_start_matches("linux-image-").to_owned();
        let dir = places::fetched()
            .join("kernel")
            .join(format!("{release}_{}", package.version));
        let kernel = Self {
            bzimage: dir.join("vmlinuz"),
            vmlinux: dir.join("vmlinux"),
            release,
            package,
        };
        if !kernel.vmlinux.exists() {
            fs::create_dir_all(&dir)?;
            let bzimage = deb_file(&kernel.package.path(), &format!("boot/vmlinuz-{}", kernel.release))?;
            let vmlinux = unpack(&bzimage).context("the kernel's bzImage")?;
            fs::write(&kernel.bzimage, &bzimage)?;
            fs::write(&kernel.vmlinux, vmlinux)?;
        }
        Ok(kernel)
    }

    /// Returns a bzImage with the same kernel, packed another way.
    pub fn packed_by(&self, packer: Packer) -> Result<Vec<u8>> {
        let mut command = clean_command(packer.program);
        let output = command
            .args(packer.arguments)
            .stdin(File::open(&self.vmlinux)?)
            .output();
        let output = output.with_context(|| format!("cannot start {}", packer.program))?;
        ensure!(output.status.success(), "{} failed ({})", packer.program, output.status);
        let mut payload = output.stdout;
        if !packer.tells_size {
            // The kernel's own build appends the size where the format does not end with it.
            let size = u32::try_from(fs::metadata(&self.vmlinux)?.len())?;
            payload.extend_from_slice(&size.to_le_bytes());
        }
        repack(&fs::read(&self.bzimage)?, &payload)
    }

    /// Adds `wanted` modules and what they depend on to `tree`, with the list for `modprobe`.
    ///
    /// Returns their names in an order in which `insmod` takes them.
    pub fn add_modules(&self, tree: &mut Tree, wanted: &[String]) -> Result<Vec<String>> {
        let all = self.modules()?;
        let built_in = fs::read_to_string(self.modules_dir()?.join(BUILT_IN)).unwrap_or_default();
        let is_module = |name: &str| !built_in.lines().any(|line| line == name.replace('-', "_"));
        let mut order = Vec::new();
        for name in wanted.iter().filter(|name| is_module(name)) {
            in_load_order(&all, name, &mut order, &mut BTreeSet::new())?;
        }
        let top = format!("lib/modules/{}", self.release);
        let mut dep = String::new();
        for name in &order {
            let Some(module) = all.get(name) else { continue };
            let bytes = fs::read(&module.cached)?;
            let inside = module.path.strip_prefix(&format!("{top}/")).unwrap_or(&module.path);
            dep.push_str(inside);
            dep.push(':');
            for needed in all_needs(&all, name) {
                if let Some(needed) = all.get(&needed) {
                    dep.push(' ');
                    dep.push_str(needed.path.strip_prefix(&format!("{top}/")).unwrap_or(&needed.path));
                }
            }
            dep.push('\n');
            tree.file(&module.path, 0o644, bytes);
        }
        tree.file(&format!("{top}/modules.dep"), 0o644, dep.into_bytes());
        Ok(order)
    }

    fn modules_dir(&self) -> Result<PathBuf> {
        let dir = self.bzimage.parent().context("the kernel has a directory")?;
        Ok(dir.join("modules"))
    }

    /// Reads every module's needs, unpacking the package once.
    fn modules(&self) -> Result<BTreeMap<String, Module>> {
        let dir = self.modules_dir()?;
        let index = dir.join("index");
        if let Ok(text) = fs::read_to_string(&index) {
            return Ok(text.lines().filter_map(|line| Module::from_index(&dir, line)).collect());
        }
        fs::create_dir_all(&dir)?;
        let (mut found, mut packed) = (Vec::new(), Vec::new());
        each_deb_entry(&self.package.path(), |path, entry| {
            let plain = path.strip_suffix(".xz").unwrap_or(path);
            let mut bytes = Vec::new();
            if path.ends_with("/modules.builtin") {
                entry.read_to_end(&mut bytes)?;
                let names = String::from_utf8_lossy(&bytes)
                    .lines()
                    .filter_map(name_of)
                    .collect::<Vec<_>>();
                return Ok(fs::write(dir.join(BUILT_IN), names.join("\n"))?);
            }
            let Some(name) = name_of(plain) else {
                return Ok(());
            };
            entry.read_to_end(&mut bytes)?;
            if plain == path {
                fs::write(dir.join(&name), &bytes)?;
            } else {
                let file = dir.join(format!("{name}.xz"));
                fs::write(&file, &bytes)?;
                packed.push(file);
            }
            found.push((name, plain.to_owned()));
            Ok(())
        })?;
        // Newer kernels come with packed modules; a few hundred fit on a command line.
        for files in packed.chunks(500) {
            run_quietly(clean_command("xz").args(["--decompress", "--force"]).args(files))?;
        }
        let mut lines = String::new();
        for (name, path) in found {
            let needs = needs_of(&fs::read(dir.join(&name))?).with_context(|| path.clone())?;
            lines.push_str(&format!("{name} {path} {needs}\n"));
        }
        fs::write(&index, &lines)?;
        Ok(lines
            .lines()
            .filter_map(|line| Module::from_index(&dir, line))
            .collect())
    }
}

/// A module's name, as the kernel writes it, from its path.
fn name_of(path: &str) -> Option<String> {
    let stem = path.rsplit('/').next()?.strip_suffix(".ko")?;
    Some(stem.replace('-', "_"))
}

/// Beside the modules: the names of those that the kernel has in itself.
const BUILT_IN: &str = "builtin";

struct Module {
    /// In the image: `lib/modules/…/x.ko`.
    path: String,
    /// Here.
    cached: PathBuf,
    needs: Vec<String>,
}

impl Module {
    fn from_index(dir: &std::path::Path, line: &str) -> Option<(String, Self)> {
        let mut words = line.split(' ');
        let (name, path) = (words.next()?, words.next()?);
        let needs = words.next().unwrap_or_default();
        let needs = needs
            .split(',')
            .filter(|need| !need.is_empty())
            .map(|need| need.replace('-', "_"));
        let module = Self {
            path: path.to_owned(),
            cached: dir.join(name),
            needs: needs.collect(),
        };
        Some((name.to_owned(), module))
    }
}

/// Reads `depends=` from a module: names with commas between them.
fn needs_of(module: &[u8]) -> Result<String> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("a module without .modinfo")?;
    let info = section.data()?;
    let depends = info
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"depends="));
    Ok(String::from_utf8_lossy(depends.unwrap_or_default()).into_owned())
}

fn in_load_order(
    all: &BTreeMap<String, Module>,
    name: &str,
    order: &mut Vec<String>,
    above: &mut BTreeSet<String>,
) -> Result<()> {
    let name = name.replace('-', "_");
    if order.contains(&name) {
        return Ok(());
    }
    ensure!(above.insert(name.clone()), "module {name} needs itself");
    let module = all
        .get(&name)
        .with_context(|| format!("the kernel has no module {name}"))?;
    for need in &module.needs {
        in_load_order(all, need, order, above)?;
    }
    above.remove(&name);
    order.push(name);
    Ok(())
}

/// Everything `name` needs, nearest first, as `modules.dep` lists it.
fn all_needs(all: &BTreeMap<String, Module>, name: &str) -> Vec<String> {
    let mut order = Vec::new();
    if in_load_order(all, name, &mut order, &mut BTreeSet::new()).is_ok() {
        order.pop();
    }
    order.reverse();
    order
}

/// A program that packs its stdin, as the kernel's own build calls it.
#[derive(Debug, Clone, Copy)]
pub struct Packer {
    /// What the kernel's configuration calls the format.
    pub name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    /// The format ends with the unpacked size.
    tells_size: bool,
}

impl Packer {
    /// RFC 1952.
    pub const GZIP: Self = Self {
        name: "gzip",
        program: "gzip",
        arguments: &["-n"],
        tells_size: true,
    };
    /// RFC 8878, with the wide window that the kernel's build asks for.
    pub const ZSTD: Self = Self {
        name: "zstd",
        program: "zstd",
        arguments: &["-q", "-T1", "--long=27"],
        tells_size: false,
    };
}

/// Where in a bzImage the packed kernel is (Documentation/x86/boot.rst: `payload_offset`).
fn payload_of(bzimage: &[u8]) -> Result<Range<usize>> {
    ensure!(
        bzimage.get(0x202..0x206) == Some(b"HdrS"),
        "no bzImage: the header says so"
    );
    let setup_sectors = match bzimage.get(0x1f1).copied() {
        Some(0) | None => 4,
        Some(sectors) => usize::from(sectors),
    };
    let number = |at: usize| -> Result<usize> {
        let bytes = bzimage.get(at..at + 4).context("the header is cut short")?;
        Ok(usize::try_from(u32::from_le_bytes(bytes.try_into()?))?)
    };
    let start = (setup_sectors + 1) * 512 + number(PAYLOAD_OFFSET)?;
    let end = start.saturating_add(number(PAYLOAD_LENGTH)?);
    ensure!(end <= bzimage.len(), "the payload lies outside the file");
    Ok(start..end)
}

const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// Puts another payload into a bzImage: good for loaders that unpack it themselves, as Xen's do.
fn repack(bzimage: &[u8], payload: &[u8]) -> Result<Vec<u8>> {
    let place = payload_of(bzimage)?;
    let mut file = bzimage.get(..place.start).unwrap_or_default().to_vec();
    let length = u32::try_from(payload.len())?.to_le_bytes();
    let field = file.get_mut(PAYLOAD_LENGTH..PAYLOAD_LENGTH + length.len());
    field.context("the header is cut short")?.copy_from_slice(&length);
    file.extend_from_slice(payload);
    Ok(file)
}

/// Takes the ELF file out of a bzImage.
fn unpack(bzimage: &[u8]) -> Result<Vec<u8>> {
    /// No kernel is near this large.
    const LIMIT: usize = 1 << 30;
    Ok(ferroxen_loader::image::unpack_to_vec(bzimage, LIMIT)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repacked_bzimage_holds_the_new_payload() {
        let mut bzimage = vec![0; 1024];
        bzimage[0x1f1] = 1;
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        bzimage.extend_from_slice(b"old");
        bzimage[PAYLOAD_LENGTH] = 3;
        let file = repack(&bzimage, b"another").unwrap();
        assert_eq!(file.get(payload_of(&file).unwrap()), Some(&b"another"[..]));
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let module = |needs: &[&str]| Module {
            path: String::new(),
            cached: PathBuf::new(),
            needs: needs.iter().map(|need| (*need).to_owned()).collect(),
        };
        let all = BTreeMap::from([
            ("ext4".to_owned(), module(&["jbd2", "mbcache"])),
            ("jbd2".to_owned(), module(&[])),
            ("mbcache".to_owned(), module(&[])),
        ]);
        let mut order = Vec::new();
        in_load_order(&all, "ext4", &mut order, &mut BTreeSet::new()).unwrap();
        assert_eq!(order, ["jbd2", "mbcache", "ext4"]);
    }
}
