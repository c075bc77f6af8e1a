//! Programs that mount things while they work, and are to leave nothing behind however they end.
//!
//! mmdebstrap mounts proc, sys and parts of dev in the system that it makes. One that is killed, or whose reader goes, leaves
//! them there, and who then removes its folder removes what is in them. Here such a program has mounts and processes of its
//! own, which end with it; and it ends with the thread that has started it.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, Stdio};

/// Ends a program with its parent.
const WITH_US: [&str; 4] = ["setpriv", "--pdeathsig", "KILL", "--"];
/// Gives it mounts and processes of its own.
const APART: [&str; 7] = [
    "unshare",
    "--mount",
    "--mount-proc",
    "--pid",
    "--fork",
    "--kill-child=KILL",
    "--",
];

/// A program that ends with us, and whose mounts and processes end with it.
///
/// Who may not have mounts of their own may not mount either: then there is nothing to hold together. The files of both
/// programs that are needed for this are util-linux', which no Debian is without.
pub fn command(program: &str) -> Command {
    let apart: &[&str] = if may_be_apart() { &APART } else { &[] };
    let words: Vec<&str> = WITH_US.iter().chain(apart).copied().chain([program]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn may_be_apart() -> bool {
    if !rustix::process::geteuid().is_root() {
        return false;
    }
    let mut tried = Command::new(APART[0]);
    tried
        .args(&APART[1..])
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    tried
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// What is mounted in a folder, or on it: whoever removes the folder would remove what is in there.
pub fn mounted_in(folder: &Path) -> std::io::Result<Option<String>> {
    let folder = folder.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&mounts).find(|point| Path::new(point).starts_with(&folder)))
}

/// The fifth field of each line of proc(5)'s "mountinfo", in which four characters are written as octal numbers.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = String> {
    const ESCAPED: [(&str, &str); 4] = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| {
            ESCAPED
                .iter()
                .fold(point.to_owned(), |point, (code, is)| point.replace(code, is))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};

    /// Anybody's processes end; root's mounts are nobody else's, too.
    #[test]
    fn mounts_and_processes_end_with_who_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mounts = match may_be_apart() {
            true => "mount -t tmpfs none \"$1\" && mountpoint -q \"$1\"",
            false => ":",
        };
        let script = format!("{mounts}; echo there; (sleep 60; echo outlived) & wait");
        let mut killed = command("sh")
            .args(["-ec", &script, "sh"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut says = BufReader::new(killed.stdout.take().unwrap());
        let mut said = String::new();
        says.read_line(&mut said).unwrap();
        assert_eq!(said, "there\n");
        assert_eq!(mounted_in(folder.path()).unwrap(), None);
        killed.kill().unwrap();
        killed.wait().unwrap();
        if may_be_apart() {
            // The end of the pipe comes when nobody has it any more.
            said.clear();
            says.read_to_string(&mut said).unwrap();
            assert_eq!(said, "");
        }
        std::fs::remove_dir(folder.path()).unwrap();
    }

    #[test]
    fn it_ends_with_who_started_it() {
        let starter = std::thread::spawn(|| {
            let mut shell = command("sh");
            shell.args(["-c", "echo there; exec sleep 60"]);
            let mut child = shell.stdout(Stdio::piped()).spawn().unwrap();
            let mut says = BufReader::new(child.stdout.take().unwrap());
            let mut said = String::new();
            says.read_line(&mut said).unwrap();
            (child, said)
        });
        let (mut child, said) = starter.join().unwrap();
        assert_eq!(said, "there\n");
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_mount_below_a_folder_is_found_by_its_name() {
        let lines = "22 1 0:20 / /proc rw - proc proc rw\n23 1 0:21 / /srv/a\\040b/root/proc rw - proc proc rw\n";
        let points: Vec<_> = mount_points(lines).collect();
        assert_eq!(points, ["/proc", "/srv/a b/root/proc"]);
        assert_eq!(mounted_in(Path::new("/proc")).unwrap().as_deref(), Some("/proc"));
    }
}
