//! What this host has mounted, and what it swaps to.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A use of a block device by the host itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// For the reader: `mounted on /mnt`, `swap`.
    pub place: String,
    /// It may be written there.
    pub is_written: bool,
}

/// How the host uses a device, or an image by way of a loop device.
pub fn of(target: &Path) -> Option<Mount> {
    let devices = match std::fs::metadata(target).ok()? {
        meta if meta.file_type().is_block_device() => vec![meta.rdev()],
        _ => loops_of(target),
    };
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    devices.into_iter().find_map(|device| {
        let numbers = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        mounted(&mountinfo, &numbers).or_else(|| swapped(device))
    })
}

/// How the host or one of its guests uses an image right now.
pub fn user_of(image: &Path) -> Option<String> {
    let looped = || {
        loops_of(image)
            .first()
            .map(|device| format!("by /dev/loop{}", rustix::fs::minor(*device)))
    };
    of(image).map(|mount| mount.place).or_else(looped)
}

/// The first mount of the device `major:minor` (proc(5), "mountinfo").
fn mounted(mountinfo: &str, device: &str) -> Option<Mount> {
    let line = mountinfo
        .lines()
        .find(|line| line.split(' ').nth(2).is_some_and(|numbers| numbers == device))?;
    let point = line.split(' ').nth(4)?;
    // The options of the file system itself stand last; those of the mount point may be stricter.
    let options = line.rsplit(' ').next()?;
    Some(Mount {
        place: format!("mounted on {point}"),
        is_written: options.split(',').next() != Some("ro"),
    })
}

fn swapped(device: u64) -> Option<Mount> {
    let swaps = std::fs::read_to_string("/proc/swaps").ok()?;
    let is_it = |line: &str| {
        let path = line.split_whitespace().next().unwrap_or_default();
        std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device() && meta.rdev() == device)
    };
    swaps.lines().skip(1).any(is_it).then(|| Mount {
        place: "swap".to_owned(),
        is_written: true,
    })
}

/// The loop devices that an image is bound to, whoever bound it.
fn loops_of(image: &Path) -> Vec<u64> {
    let Ok(wanted) = std::fs::canonicalize(image) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let bound = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            wanted == Path::new(bound.trim_end())
        })
        .filter_map(|entry| {
            Some(
                std::fs::metadata(Path::new("/dev").join(entry.file_name()))
                    .ok()?
                    .rdev(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number_and_say_whether_they_write() {
        let info = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n\
                    35 21 7:0 / /mnt ro,relatime shared:9 - iso9660 /dev/loop0 ro,nojoliet\n";
        assert_eq!(
            mounted(info, "8:1"),
            Some(Mount {
                place: "mounted on /".to_owned(),
                is_written: true
            })
        );
        assert!(mounted(info, "7:0").is_some_and(|mount| !mount.is_written));
        assert_eq!(mounted(info, "7:1"), None);
    }
}
