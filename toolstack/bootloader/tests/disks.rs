//! Disks as people have them: a file system alone, one in a partition, `/boot` in another.

use ferroxen_bootloader::{Error, Wish, find};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const MIB: u64 = 1 << 20;
const MENU: &str = "set default=\"1\"\nmenuentry 'first' {\n linux /boot/vmlinuz root=/dev/xvda1\n}\n\
                    menuentry 'second' {\n linux /boot/vmlinuz root=/dev/xvda1 single\n initrd /boot/a /boot/b\n}\n";

/// A file system with these files at byte `start` of an image.
fn disk(folder: &Path, name: &str, start: u64, files: &[(&str, &str)]) -> PathBuf {
    let root = folder.join(format!("{name}.root"));
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("is below the root")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    let image = folder.join(name);
    File::create(&image)
        .and_then(|file| file.set_len(start + 8 * MIB))
        .expect("an image");
    let made = Command::new("mkfs.ext4")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-q", "-F", "-E", &format!("offset={start}"), "-d"])
        .args([&root, &image])
        .arg("8M")
        .status();
    assert!(made.expect("e2fsprogs is installed").success());
    image
}

/// Marks one partition, from a MiB on, in the classic table.
fn partition(image: &Path) {
    let mut file = File::options().read(true).write(true).open(image).expect("is there");
    let mut table = mbrman::MBR::new_from(&mut file, 512, [1, 2, 3, 4]).expect("a table");
    table[1] = mbrman::MBRPartitionEntry {
        boot: mbrman::BOOT_ACTIVE,
        sys: 0x83,
        starting_lba: 2048,
        sectors: 8 * 2048,
        ..mbrman::MBRPartitionEntry::empty()
    };
    table.write_into(&mut file).expect("can be written");
}

fn files() -> Vec<(&'static str, &'static str)> {
    vec![
        ("boot/grub/grub.cfg", MENU),
        ("boot/vmlinuz", "kernel"),
        ("boot/a", "early,"),
        ("boot/b", "late"),
    ]
}

#[test]
fn the_default_entry_is_found_with_and_without_partitions() {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = disk(folder.path(), "plain.img", 0, &files());
    let parted = disk(folder.path(), "parted.img", MIB, &files());
    partition(&parted);
    let wish = Wish {
        args: Some("debug".to_owned()),
        ..Wish::default()
    };
    for image in [plain, parted] {
        let boot = find(&image, &wish).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
        assert_eq!(
            (boot.title.as_str(), boot.kernel.as_slice()),
            ("second", b"kernel".as_slice())
        );
        assert_eq!(boot.ramdisk.as_deref(), Some(b"early,late".as_slice()));
        assert_eq!(boot.args, "root=/dev/xvda1 single debug");
    }
}

#[test]
fn a_boot_partition_and_a_kernel_by_name_are_understood() {
    let folder = tempfile::tempdir().expect("a folder");
    let files: Vec<_> = files()
        .into_iter()
        .map(|(path, text)| (&path["boot/".len()..], text))
        .collect();
    let image = disk(folder.path(), "boot.img", MIB, &files);
    let offset = Some(MIB);
    let first = find(
        &image,
        &Wish {
            offset,
            entry: Some("0".to_owned()),
            ..Wish::default()
        },
    )
    .expect("is there");
    assert_eq!((first.title.as_str(), first.ramdisk), ("first", None));
    let named = find(
        &image,
        &Wish {
            offset,
            kernel: Some("/vmlinuz".to_owned()),
            ..Wish::default()
        },
    );
    assert_eq!(named.expect("is there").kernel, b"kernel");
}

#[test]
fn what_cannot_be_found_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty.img");
    File::create(&empty)
        .and_then(|file| file.set_len(MIB))
        .expect("an image");
    assert!(matches!(find(&empty, &Wish::default()), Err(Error::NoFileSystem(_))));
    let bare = disk(folder.path(), "bare.img", 0, &[("etc/hostname", "web")]);
    let error = find(&bare, &Wish::default()).expect_err("has no menu").to_string();
    assert!(error.contains("/boot/grub/grub.cfg"), "{error}");
    let image = disk(folder.path(), "web.img", 0, &files());
    let error = find(
        &image,
        &Wish {
            entry: Some("third".to_owned()),
            ..Wish::default()
        },
    )
    .expect_err("is not there");
    assert!(error.to_string().ends_with("it has \"first\", \"second\""), "{error}");
    let broken = disk(folder.path(), "broken.img", 0, &[("boot/grub/grub.cfg", MENU)]);
    let error = find(&broken, &Wish::default()).expect_err("has no kernel").to_string();
    assert!(error.contains("/vmlinuz"), "{error}");
}
