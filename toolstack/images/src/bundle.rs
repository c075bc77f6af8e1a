//! Images that others have made, as jailtime.org gave them away: an archive with an image, its swap and a configuration.

use crate::interruption::go_on;
use crate::tools::{must, program, text};
use crate::unfinished::{Staging, Unfinished};
use crate::{Identity, Inside};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What an archive held, where it lies now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle {
    /// File systems and swaps.
    pub images: Vec<PathBuf>,
    /// Configurations, with the images' paths as they are now.
    pub configs: Vec<PathBuf>,
}

/// Packs images and configurations into an archive that [`import`] takes, each under its own name and nothing else: whose
/// disks they are is told by those names. What is empty in an image takes no room.
pub fn export(archive: &Path, files: &[PathBuf]) -> Result<()> {
    let bundle = Unfinished::new(archive)?;
    let mut names = BTreeSet::new();
    let mut arguments = vec![format!("-cS{}f", packer(archive)), text(&bundle.path)?.to_owned()];
    for file in files {
        let path = std::path::absolute(file).with_context(|| format!("where {} is", file.display()))?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            bail!("{} is no file", file.display());
        };
        if !(IMAGES.contains(&kind(&path)) || CONFIGS.contains(&kind(&path))) {
            let known = [&IMAGES[..], &CONFIGS].concat().join(", .");
            bail!("{}: who unpacks it knows .{known} only, by their names", file.display());
        }
        if !names.insert(name.to_owned()) {
            bail!("two of the files are called {name}");
        }
        arguments.extend(["-C".to_owned(), text(folder)?.to_owned(), format!("./{name}")]);
    }
    if !files.iter().any(|file| IMAGES.contains(&kind(file))) {
        bail!("there is no image (*.img) among the files");
    }
    must(program("tar", arguments)).with_context(|| format!("packing {}", archive.display()))?;
    bundle.finish()
}

/// What images are called, and configurations.
const IMAGES: [&str; 2] = ["img", "swap"];
const CONFIGS: [&str; 2] = ["cfg", "hvm"];

fn kind(path: &Path) -> &str {
    path.extension().and_then(|kind| kind.to_str()).unwrap_or_default()
}

/// Unpacks an archive into `directory`. Nothing that is there is written over. Root's password, which everybody knows,
/// has to be changed at the first login.
pub fn import(archive: &Path, directory: &Path) -> Result<Bundle> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let directory = directory
        .canonicalize()
        .with_context(|| format!("finding {}", directory.display()))?;
    let staging = Staging::new(&directory.join(archive.file_name().context("the archive has no name")?))?;
    must(program(
        "tar",
        [
            &format!("-xo{}f", packer(archive)),
            text(archive)?,
            "-C",
            text(staging.path())?,
        ],
    ))
    .with_context(|| format!("unpacking {}", archive.display()))?;
    let mut found = Vec::new();
    files(staging.path(), &mut found)?;
    let images: Vec<_> = found.iter().filter(|path| IMAGES.contains(&kind(path))).collect();
    let configs: Vec<_> = found.iter().filter(|path| CONFIGS.contains(&kind(path))).collect();
    if images.is_empty() {
        bail!("{} holds no image (*.img)", archive.display());
    }
    let place = |path: &PathBuf| directory.join(path.file_name().unwrap_or_default());
    for path in images.iter().chain(&configs) {
        if place(path).exists() {
            bail!("{} is there already", place(path).display());
        }
    }
    for image in &images {
        let inside = Inside::of(image);
        if inside.has("/etc/shadow") {
            let identity = Identity {
                expire_password: true,
                ..Default::default()
            };
            inside.become_own(&identity)?;
        }
    }
    go_on()?;
    let mut bundle = Bundle::default();
    for config in configs {
        let old = fs::read_to_string(config).with_context(|| format!("reading {}", config.display()))?;
        fs::write(config, with_paths(&old, &images, &place))
            .with_context(|| format!("writing {}", config.display()))?;
        bundle.configs.push(place(config));
        fs::rename(config, place(config)).context("moving a configuration")?;
    }
    for image in images {
        bundle.images.push(place(image));
        fs::rename(image, place(image)).context("moving an image")?;
    }
    Ok(bundle)
}

/// The letter by which `tar` knows how an archive is packed; not every one tells by itself.
fn packer(archive: &Path) -> &'static str {
    match kind(archive) {
        "bz2" | "tbz" | "tbz2" => "j",
        "gz" | "tgz" => "z",
        "xz" | "txz" => "J",
        _ => "",
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found)?,
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            // A link could lead anywhere.
            _ => {}
        }
    }
    found.sort();
    Ok(())
}

/// Wherever a configuration names one of the images, by whatever path, it names it where it is now.
fn with_paths(text: &str, images: &[&PathBuf], place: &impl Fn(&PathBuf) -> PathBuf) -> String {
    let mut text = text.to_owned();
    for image in images {
        let Some(name) = image.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let new = place(image).display().to_string();
        let mut rest = std::mem::take(&mut text);
        while let Some(at) = rest.find(name) {
            let before = &rest[..at];
            // The path ends where a quote, a colon or a comma stands before it.
            let start = before
                .rfind(['\'', '"', ':', ',', '=', ' '])
                .map_or(0, |start| start + 1);
            text.push_str(&before[..start]);
            text.push_str(&new);
            rest = rest[at + name.len()..].to_owned();
        }
        text.push_str(&rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_images_are_those_of_here() {
        let old = "disk = [ 'file:/xen/centos/centos.img,sda1,w', 'file:centos.swap,sda2,w' ]\nname = 'centos'\n";
        let (image, swap) = (PathBuf::from("/t/centos.img"), PathBuf::from("/t/centos.swap"));
        let place = |path: &PathBuf| Path::new("/srv").join(path.file_name().unwrap());
        assert_eq!(
            with_paths(old, &[&image, &swap], &place),
            "disk = [ 'file:/srv/centos.img,sda1,w', 'file:/srv/centos.swap,sda2,w' ]\nname = 'centos'\n"
        );
    }
}
