//! Images as the how-tos make them, with e2fsprogs and without a mount.

use ferroxen_images::{
    FileSystem, Identity, Inside, Network, Origin, Way, build, check, clone, create, export, import, overlay, resize,
    take_over,
};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
    build(&image, 16 * MIB, &Origin::Folder(root), &Identity::default(), |_| {}).unwrap();
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
        password: Some("$6$salt$hash".to_owned()),
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
    assert!(read(&web, "/etc/shadow").starts_with("root:$6$salt$hash:0:0:"));
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

/// A clone is there at once, so it makes itself what takes long, if it can; nobody keeps a key that is another machine's.
#[test]
fn a_clone_makes_its_rsa_key_itself_if_something_starts_that() {
    let folder = tempfile::tempdir().unwrap();
    system(folder.path());
    let root = folder.path().join("root");
    let key = |kind: &str| format!("/etc/ssh/ssh_host_{kind}_key");
    for kind in ["rsa", "ecdsa", "dsa"] {
        fs::write(root.join(&key(kind)[1..]), "private\n").unwrap();
        fs::write(root.join(format!("etc/ssh/ssh_host_{kind}_key.pub")), "public\n").unwrap();
    }
    let template = folder.path().join("with-rsa.img");
    let (unit, wanted) = (
        "/etc/systemd/system/clone-host-keys.service",
        "/etc/systemd/system/ssh.service.wants/clone-host-keys.service",
    );
    for has_systemd in [false, true] {
        if has_systemd {
            let sshd = root.join("lib/systemd/system/ssh.service");
            fs::create_dir_all(sshd.parent().unwrap()).unwrap();
            fs::write(&sshd, "[Service]\n").unwrap();
        }
        build(
            &template,
            16 * MIB,
            &Origin::Folder(root.clone()),
            &Identity::default(),
            |_| {},
        )
        .unwrap();
        let copy = folder.path().join("copy.img");
        clone(&template, &copy, &Identity::default()).unwrap();
        let has = |path: &str| Inside::of(&copy).has(path);
        assert!(read(&copy, &key("ed25519")).contains("PRIVATE KEY"));
        for kind in ["rsa", "ecdsa"] {
            assert_eq!(read(&copy, &key(kind)).contains("PRIVATE KEY"), !has_systemd);
            assert_eq!(has(&key(kind)), !has_systemd, "{kind}");
        }
        assert!(!has(&key("dsa")) && !has("/etc/ssh/ssh_host_dsa_key.pub"));
        assert_eq!(has(wanted), has_systemd);
        let made = read(&copy, unit);
        assert_eq!(
            made.contains("[ -e /etc/ssh/ssh_host_rsa_key ] || ssh-keygen"),
            has_systemd,
            "{made}"
        );
    }
}

/// What an image of QEMU's that stands on `below` reads as: by the format's own tables, as QEMU goes through them.
fn flattened(overlay: &Path, below: &Path) -> Vec<u8> {
    const CLUSTER: usize = 1 << 16;
    let bytes = fs::read(overlay).unwrap();
    let long = |at: usize| u64::from_be_bytes(bytes[at..][..8].try_into().unwrap());
    let place = |at: usize| usize::try_from(long(at) & 0x00ff_ffff_ffff_fe00).unwrap();
    assert_eq!(&bytes[..8], b"QFI\xfb\0\0\0\x03");
    let (name, len) = (long(8) as usize, (long(16) >> 32) as usize);
    assert_eq!(Path::new(str::from_utf8(&bytes[name..][..len]).unwrap()), below);
    let mut flat = fs::read(below).unwrap();
    assert_eq!(long(24), flat.len() as u64);
    for (number, cluster) in flat.chunks_mut(CLUSTER).enumerate() {
        let table = place(place(40) + number / 8192 * 8);
        let data = if table == 0 {
            0
        } else {
            place(table + number % 8192 * 8)
        };
        if data != 0 {
            cluster.copy_from_slice(&bytes[data..][..cluster.len()]);
            // Its reference is counted.
            let counts = place(place(48));
            assert_eq!(&bytes[counts + data / CLUSTER * 2..][..2], [0, 1]);
        }
    }
    flat
}

#[test]
fn an_overlay_is_a_machine_of_its_own_and_takes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let template = system(folder.path()).canonicalize().unwrap();
    resize(&template, 80 * MIB, |_| {}).unwrap();
    let before = fs::read(&template).unwrap();
    let mut ids = vec![read(&template, "/etc/machine-id")];
    for name in ["one", "two"] {
        let clone = folder.path().join(format!("{name}.qcow2"));
        let identity = Identity {
            hostname: Some(name.to_owned()),
            fstab: Some("/dev/xvda1 / ext4 defaults 0 1".to_owned()),
            ..Default::default()
        };
        overlay(&template, &clone, &identity).unwrap();
        assert!(fs::metadata(&clone).unwrap().len() < 4 * MIB);
        let flat = folder.path().join("flat.img");
        fs::write(&flat, flattened(&clone, &template)).unwrap();
        check(&flat).unwrap();
        assert_eq!(read(&flat, "/etc/hostname"), format!("{name}\n"));
        assert_eq!(read(&flat, "/etc/fstab"), "/dev/xvda1 / ext4 defaults 0 1\n");
        assert_eq!(read(&flat, "/root/notes"), "keep me\n");
        ids.push(read(&flat, "/etc/machine-id"));
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
    // The template is as it was, and is to stay so.
    assert!(fs::read(&template).unwrap() == before);
    assert!(fs::metadata(&template).unwrap().permissions().readonly());
}

#[test]
fn what_reads_the_network_settings_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let image = system(folder.path());
    let unit = "/etc/systemd/system/multi-user.target.wants/systemd-networkd.service";
    let dhcp = Identity {
        network: Some(Network::Dhcp),
        ..Default::default()
    };
    Inside::of(&image).apply(&dhcp).unwrap();
    assert!(!Inside::of(&image).has(unit));
    let networkd = folder.path().join("root/lib/systemd/system/systemd-networkd.service");
    fs::create_dir_all(networkd.parent().unwrap()).unwrap();
    fs::write(&networkd, "[Service]\n").unwrap();
    build(
        &image,
        16 * MIB,
        &Origin::Folder(folder.path().join("root")),
        &Identity::default(),
        |_| {},
    )
    .unwrap();
    Inside::of(&image).apply(&dhcp).unwrap();
    assert!(Inside::of(&image).has(unit));
    // Once more: the link is in the place of the old one.
    Inside::of(&image).apply(&dhcp).unwrap();
    check(&image).unwrap();
}

#[test]
fn a_password_is_what_crypt_makes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let image = system(folder.path());
    for wrong in ["secret", "$6$a:b", "$6$a\nb"] {
        let identity = Identity {
            password: Some(wrong.to_owned()),
            ..Default::default()
        };
        let error = Inside::of(&image).apply(&identity).unwrap_err().to_string();
        assert!(error.contains("openssl passwd"), "{error}");
    }
    assert!(read(&image, "/etc/shadow").starts_with("root:$6$x:19000:"));
}

/// A disk as an installer leaves it: a partition with the root, one for swap.
fn installed(folder: &Path) -> PathBuf {
    const START: u64 = MIB;
    let root = folder.join("root");
    let image = system(folder);
    fs::write(
        root.join("etc/fstab"),
        "/dev/vda1 / ext4 errors=remount-ro 0 1\n/dev/vda2 none swap sw 0 0\n",
    )
    .unwrap();
    build(&image, 16 * MIB, &Origin::Folder(root), &Identity::default(), |_| {}).unwrap();
    let mut disk = vec![0; (START + 18 * MIB) as usize];
    disk[START as usize..][..16 << 20].copy_from_slice(&fs::read(&image).unwrap());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (number, (flag, kind, start, len)) in [(0x80, 0x83, START, 16 * MIB), (0, 0x82, 17 * MIB, MIB)]
        .into_iter()
        .enumerate()
    {
        let entry = &mut disk[446 + number * 16..][..16];
        (entry[0], entry[4]) = (flag, kind);
        entry[8..12].copy_from_slice(&u32::try_from(start / 512).unwrap().to_le_bytes());
        entry[12..].copy_from_slice(&u32::try_from(len / 512).unwrap().to_le_bytes());
    }
    let path = folder.join("disk.raw");
    fs::write(&path, disk).unwrap();
    path
}

#[test]
fn another_machines_disk_becomes_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let disk = installed(folder.path());
    let web = folder.path().join("web.img");
    let put_aside = take_over(&disk, &web, Some(64 * MIB), &Identity::default(), |_| {}).unwrap();
    assert_eq!(put_aside, ["/dev/vda2 none swap sw 0 0"]);
    check(&web).unwrap();
    assert_eq!(fs::metadata(&web).unwrap().len(), 64 * MIB);
    assert_eq!(
        read(&web, "/etc/fstab"),
        "/dev/xvda1 / ext4 errors=remount-ro 0 1\n# not in this image: /dev/vda2 none swap sw 0 0\n"
    );
    // It has moved, and is the same machine.
    for path in ["/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key", "/root/notes"] {
        assert_eq!(read(&web, path), read(&folder.path().join("template.img"), path));
    }
    // As small as it was; not smaller; and what holds no system is no machine.
    take_over(&disk, &web, None, &Identity::default(), |_| {}).unwrap();
    assert_eq!(fs::metadata(&web).unwrap().len(), 16 * MIB);
    assert!(take_over(&disk, &web, Some(MIB), &Identity::default(), |_| {}).is_err());
    let empty = folder.path().join("empty.img");
    create(&empty, 16 * MIB, FileSystem::Ext4).unwrap();
    let error = format!(
        "{:#}",
        take_over(&empty, &web, None, &Identity::default(), |_| {}).unwrap_err()
    );
    assert!(error.contains("it holds no system"), "{error}");
    fs::write(&empty, b"QFI\xfb and more").unwrap();
    let error = format!(
        "{:#}",
        take_over(&empty, &web, None, &Identity::default(), |_| {}).unwrap_err()
    );
    assert!(error.contains("qemu-img convert"), "{error}");
    check(&web).unwrap();
    assert!(!folder.path().join("web.img.new").exists());
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
    let error = build(&image, 64 * MIB, &origin, &Identity::default(), |_| {})
        .unwrap_err()
        .to_string();
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

#[test]
fn what_is_exported_can_be_imported() {
    let folder = tempfile::tempdir().unwrap();
    let (image, swap) = (system(folder.path()), folder.path().join("template.swap"));
    create(&swap, MIB, FileSystem::Swap).unwrap();
    let config = folder.path().join("template.cfg");
    let disks = format!(
        "disk = [ 'file:{},xvda1,w', 'file:{},xvda2,w' ]\n",
        image.display(),
        swap.display()
    );
    fs::write(&config, disks).unwrap();
    let id = read(&image, "/etc/machine-id");
    for name in ["web.tar", "web.tar.bz2", "web.tgz", "web.tar.xz"] {
        let (archive, place) = (folder.path().join(name), folder.path().join(format!("from-{name}")));
        export(&archive, &[image.clone(), swap.clone(), config.clone()]).unwrap();
        assert!(fs::metadata(&archive).unwrap().blocks() * 512 < 4 * MIB);
        let bundle = import(&archive, &place).unwrap();
        let place = place.canonicalize().unwrap();
        assert_eq!(bundle.images, [place.join("template.img"), place.join("template.swap")]);
        check(&bundle.images[0]).unwrap();
        // Another machine, whose password everybody knows.
        assert_ne!(read(&bundle.images[0], "/etc/machine-id"), id);
        assert!(read(&bundle.images[0], "/etc/shadow").starts_with("root:$6$x:0:"));
        let config = fs::read_to_string(&bundle.configs[0]).unwrap();
        let here = place.display();
        assert_eq!(
            config,
            format!("disk = [ 'file:{here}/template.img,xvda1,w', 'file:{here}/template.swap,xvda2,w' ]\n")
        );
    }
    let archive = folder.path().join("not.tar");
    for wrong in [
        vec![config.clone()],
        vec![image.clone(), image.clone()],
        vec![image, folder.path().join("notes")],
    ] {
        assert!(export(&archive, &wrong).is_err());
        assert!(!archive.exists() && !folder.path().join("not.tar.new").exists());
    }
}

#[test]
fn nothing_is_made_of_itself_nor_by_two_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let template = system(folder.path());
    let (before, identity) = (fs::read(&template).unwrap(), Identity::default());
    let link = folder.path().join("link.img");
    std::os::unix::fs::symlink(&template, &link).unwrap();
    for target in [&template, &link] {
        let error = overlay(&template, target, &identity).unwrap_err();
        assert!(error.to_string().contains("cannot be made of itself"), "{error}");
        assert!(clone(&template, target, &identity).is_err());
    }
    let image = folder.path().join("other.img");
    let other = fs::File::create(folder.path().join("other.img.new")).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = create(&image, MIB, FileSystem::Ext4).unwrap_err();
    assert!(error.to_string().contains("somebody else is making"), "{error}");
    assert!(folder.path().join("other.img.new").exists());
    drop(other);
    create(&image, MIB, FileSystem::Ext4).unwrap();
    assert_eq!(fs::read(&template).unwrap(), before);
    assert!(!fs::metadata(&template).unwrap().permissions().readonly());
}

#[test]
fn an_image_keeps_its_permissions_and_its_place() {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = tempfile::tempdir().unwrap();
    let template = system(folder.path());
    fs::set_permissions(&template, fs::Permissions::from_mode(0o600)).unwrap();
    let link = folder.path().join("link.img");
    std::os::unix::fs::symlink(&template, &link).unwrap();
    resize(&link, 20 * MIB, |_| {}).unwrap();
    let identity = Identity {
        hostname: Some("web".to_owned()),
        ..Default::default()
    };
    Inside::of(&link).apply(&identity).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(read(&template, "/etc/hostname"), "web\n");
    assert_eq!(fs::metadata(&template).unwrap().len(), 20 * MIB);
    let copy = folder.path().join("copy.img");
    clone(&template, &copy, &identity).unwrap();
    assert_eq!((mode(&template), mode(&copy)), (0o600, 0o600));
    // What does not come about leaves no trace.
    let wrong = Identity {
        hostname: Some("not a name".to_owned()),
        ..Default::default()
    };
    let before = fs::read(&template).unwrap();
    assert!(Inside::of(&template).apply(&wrong).is_err());
    assert!(fs::read(&template).unwrap() == before);
    assert!(!folder.path().join("template.img.new").exists());
}

#[test]
fn a_system_gets_its_name_only_with_all_that_is_its_own() {
    let folder = tempfile::tempdir().unwrap();
    system(folder.path());
    let image = folder.path().join("other.img");
    let wrong = Identity {
        password: Some("not encrypted".to_owned()),
        ..Default::default()
    };
    let origin = Origin::Folder(folder.path().join("root"));
    assert!(build(&image, 16 * MIB, &origin, &wrong, |_| {}).is_err());
    assert!(!image.exists() && !folder.path().join("other.img.new").exists());
}

#[test]
fn an_image_takes_the_place_of_no_device() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("null");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    for target in [&link, folder.path()] {
        let error = create(target, MIB, FileSystem::Ext4).unwrap_err().to_string();
        assert!(error.contains("is no file"), "{error}");
    }
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}
