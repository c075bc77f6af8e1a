//! `/etc/fstab` of a machine whose disks were others.

/// What the root is to be called in the guest.
const ROOT: &str = "/dev/xvda1";

/// Whether the root's file system is the one that the machine had, or a new one with its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// It has its UUID and its label, and all files.
    Kept,
    /// It has others, and not the files that are swap.
    New,
}

/// `/etc/fstab` for a machine that has its root and no other disk, and the lines that it has no more.
pub(crate) fn fitted(old: &str, names: Names) -> (String, Vec<String>) {
    let mut put_aside = Vec::new();
    let lines: Vec<String> = old
        .lines()
        .map(|line| {
            let mut fields = line.split_whitespace();
            let (device, place) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            let is_swap = fields.next() == Some("swap") && names == Names::New;
            let is_disk =
                device.starts_with("/dev/") || device.contains("UUID=") || device.contains("LABEL=") || is_swap;
            // Those of the file system, not those of the partition.
            let stays = names == Names::Kept && (device.starts_with("UUID=") || device.starts_with("LABEL="));
            match (device.starts_with('#') || !is_disk, place) {
                (true, _) => line.to_owned(),
                (false, "/") if stays => line.to_owned(),
                (false, "/") => line.replacen(device, ROOT, 1),
                (false, _) => {
                    put_aside.push(line.to_owned());
                    format!("# not in this image: {line}")
                }
            }
        })
        .collect();
    (lines.join("\n"), put_aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_stays_and_other_disks_are_put_aside() {
        let old = "# made by the installer\nproc /proc proc defaults 0 0\n\
                   UUID=9b1e / ext4 errors=remount-ro 0 1\nUUID=77aa none swap sw 0 0\n\
                   /dev/sr0 /media/cdrom0 udf user,noauto 0 0\n/swapfile none swap sw 0 0\n";
        let (new, put_aside) = fitted(old, Names::Kept);
        assert_eq!(
            new,
            "# made by the installer\nproc /proc proc defaults 0 0\nUUID=9b1e / ext4 errors=remount-ro 0 1\n\
             # not in this image: UUID=77aa none swap sw 0 0\n\
             # not in this image: /dev/sr0 /media/cdrom0 udf user,noauto 0 0\n/swapfile none swap sw 0 0"
        );
        assert_eq!(put_aside.len(), 2);
        for root in ["/dev/vda1", "PARTUUID=12-01", "/dev/mapper/vg-root"] {
            let (new, put_aside) = fitted(&format!("{root} / ext4 defaults 0 1\n"), Names::Kept);
            assert_eq!(new, "/dev/xvda1 / ext4 defaults 0 1");
            assert!(put_aside.is_empty());
        }
        assert_eq!(
            fitted(
                "UUID=9b1e / ext4 defaults 0 1\n/swapfile none swap sw 0 0\n",
                Names::New
            )
            .0,
            "/dev/xvda1 / ext4 defaults 0 1\n# not in this image: /swapfile none swap sw 0 0"
        );
    }
}
