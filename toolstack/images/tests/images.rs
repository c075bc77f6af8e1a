//! Images as the how-tos make them, with e2fsprogs and without a mount.

use ferroxen_images::{
    FileSystem, Identity, Inside, Network, Origin, Way, build, check, clone, create, import, resize,
};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// A folder like a small system's root, and an image of it.
fn system(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    for (path, text) in [
        ("etc/hostname", "template\n"),
        ("etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\ttemplate\n"),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("etc/shadow", "root:$6$x:19000:0:99999:7:::\nbin:*:19000:0:99999:7:::\n"),
        ("etc/ssh/ssh_host_ed25519_key", "private\n"),
        ("etc/ssh/ssh_host_ed25519_key.pub", "public\n"),
        ("root/notes", "keep me\n"),
    ] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let image = folder.join("template.img");
    build(&image, 16 * MIB, &Origin::Folder(root), |_| {}).unwrap();
    image
}

fn read(image: &Path, path: &str) -> String {
    String::from_utf8(Inside::of(image).read(path).unwrap().unwrap_or_default()).unwrap()
}

#[test]
fn an_empty_image_takes_little_room_and_is_in_order() {
    let folder = tempfile::tempdir().unwrap();
    for (name, file_system) in [
        ("a.img", FileSystem::Ext4),
        ("b.img", FileSystem::Ext2),
        ("c.swap", FileSystem::Swap),
    ] {
        let image = folder.path().join(name);
        create(&image, 1024 * MIB, file_system).unwrap();
        let meta = fs::metadata(&image).unwrap();
        assert_eq!(meta.len(), 1024 * MIB);
        assert!(
            meta.blocks() * 512 < 80 * MIB,
            "{name} takes {} bytes",
            meta.blocks() * 512
        );
        assert_eq!(check(&image).is_ok(), file_system != FileSystem::Swap);
    }
}

#[test]
fn a_clone_is_a_machine_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let template = system(folder.path());
    let web = folder.path().join("web.img");
    let identity = Identity {
        hostname: Some("web".to_owned()),
        network: Some(Network::Static(
            "192.0.2.10/24".to_owned(),
            Some("192.0.2.1".to_owned()),
        )),
        fstab: Some("/dev/sda1 / ext4 defaults 0 1".to_owned()),
        keys: Some("ssh-ed25519 AAAA me\n".to_owned()),
        expire_password: true,
    };
    assert!(matches!(
        clone(&template, &web, &identity).unwrap(),
        Way::Copied | Way::Shared
    ));
    check(&web).unwrap();
    assert_eq!(read(&web, "/etc/hostname"), "web\n");
    assert!(read(&web, "/etc/hosts").ends_with("127.0.1.1\tweb\n"));
    assert_eq!(read(&web, "/root/notes"), "keep me\n");
    assert_eq!(read(&web, "/etc/fstab"), "/dev/sda1 / ext4 defaults 0 1\n");
    assert!(read(&web, "/etc/systemd/network/10-eth0.network").contains("Gateway=192.0.2.1"));
    assert!(read(&web, "/etc/shadow").starts_with("root:$6$x:0:0:"));
    assert_eq!(read(&web, "/root/.ssh/authorized_keys"), "ssh-ed25519 AAAA me\n");
    let other = folder.path().join("other.img");
    clone(&template, &other, &Identity::default()).unwrap();
    for path in ["/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key"] {
        let all = [read(&template, path), read(&web, path), read(&other, path)];
        assert!(all.iter().all(|text| !text.is_empty()), "{path} is empty somewhere");
        assert!(
            all[0] != all[1] && all[1] != all[2] && all[0] != all[2],
            "{path}: {all:?}"
        );
    }
    // The template is as it was.
    assert_eq!(read(&template, "/etc/hostname"), "template\n");
    check(&template).unwrap();
}

#[test]
fn an_image_grows_and_shrinks_with_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let image = system(folder.path());
    for size in [64 * MIB, 24 * MIB] {
        resize(&image, size, |_| {}).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), size);
        check(&image).unwrap();
        assert_eq!(read(&image, "/root/notes"), "keep me\n");
    }
    // What cannot be done leaves all as it was, and nothing beside it.
    let before = fs::read(&image).unwrap();
    assert!(resize(&image, MIB / 2, |_| {}).is_err());
    assert!(fs::read(&image).unwrap() == before);
    assert!(!folder.path().join("template.img.new").exists());
}

#[test]
fn what_an_interrupted_step_left_is_told_and_does_not_stop_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let image = system(folder.path());
    assert!(!check(&image).unwrap().contains("interrupted"));
    fs::write(folder.path().join("template.img.new"), "half").unwrap();
    let said = check(&image).unwrap();
    assert!(
        said.contains("template.img.new is left of a step that was interrupted"),
        "{said}"
    );
    resize(&image, 64 * MIB, |_| {}).unwrap();
    assert!(!check(&image).unwrap().contains("interrupted"));
}

#[test]
fn a_folder_of_packages_has_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let origin = Origin::Debian {
        suite: "bookworm".to_owned(),
        mirror: Some(folder.path().display().to_string()),
        include: vec![],
    };
    let image = folder.path().join("web.img");
    let error = build(&image, 64 * MIB, &origin, |_| {}).unwrap_err().to_string();
    assert!(error.contains("has no file Packages"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_broken_image_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let image = system(folder.path());
    let broken = std::process::Command::new("debugfs")
        .args(["-w", "-R", "clri /root/notes", image.to_str().unwrap()])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output();
    assert!(broken.unwrap().status.success());
    assert!(check(&image).is_err());
    assert!(check(&folder.path().join("nothing.img")).is_err());
}

#[test]
fn a_bundle_finds_its_place() {
    let folder = tempfile::tempdir().unwrap();
    system(folder.path());
    let inside = folder.path().join("pack/centos.4-4");
    fs::create_dir_all(&inside).unwrap();
    fs::rename(folder.path().join("template.img"), inside.join("centos.4-4.img")).unwrap();
    create(&inside.join("centos.swap"), MIB, FileSystem::Swap).unwrap();
    fs::write(
        inside.join("centos.4-4.xen3.cfg"),
        "name = 'centos.4-4'\ndisk = [ 'file:/xen/centos.4-4.img,sda1,w', 'file:/xen/centos.swap,sda2,w' ]\n",
    )
    .unwrap();
    let archive = folder.path().join("centos.tar.gz");
    let packed = std::process::Command::new("tar")
        .args([
            "-cSzf",
            archive.to_str().unwrap(),
            "-C",
            folder.path().join("pack").to_str().unwrap(),
            ".",
        ])
        .status();
    assert!(packed.unwrap().success());
    let place = folder.path().join("vmimages");
    let bundle = import(&archive, &place).unwrap();
    let place = place.canonicalize().unwrap();
    assert_eq!(bundle.images, [place.join("centos.4-4.img"), place.join("centos.swap")]);
    let config = fs::read_to_string(&bundle.configs[0]).unwrap();
    assert!(
        config.contains(&format!("'file:{}/centos.4-4.img,sda1,w'", place.display())),
        "{config}"
    );
    assert!(read(&bundle.images[0], "/etc/shadow").starts_with("root:$6$x:0:"));
    // What is there stays.
    let error = import(&archive, &place).unwrap_err().to_string();
    assert!(error.contains("is there already"), "{error}");
}
