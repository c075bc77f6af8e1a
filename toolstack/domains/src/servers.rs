//! Programs of QEMU's that serve one domain, and outlive us.
//!
//! Whoever starts one may be killed before it could note the program anywhere. So a program carries what it is for in its
//! environment, and whoever ends the domain finds it by that.

use crate::patience::Patience;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io::{self, ErrorKind};
use std::time::Duration;

/// How long a program may take to write what it still has.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(10);

/// Ends the programs whose `variable` says that they are meant, and waits until they have.
pub(crate) fn end(variable: &str, is_meant: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        // Held before it is looked at, so that the number stays its own. It may end at any moment, which is as good.
        let Ok(server) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        // Others may have got the variable from whoever started them.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if !name.contains("qemu") || !value_in(&environment, variable).is_some_and(&is_meant) {
            continue;
        }
        match pidfd_send_signal(&server, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        if !Patience::stubborn(LAST_WORDS).ready(&server)? {
            return Err(ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// Reads a variable of a program's environment.
fn value_in<'a>(environment: &'a [u8], variable: &str) -> Option<&'a str> {
    let value = |entry: &'a [u8]| entry.strip_prefix(variable.as_bytes())?.strip_prefix(b"=");
    let value = environment.split(|byte| *byte == 0).find_map(value)?;
    std::str::from_utf8(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_tells_whom_it_serves() {
        let variable = "XEN_DISK";
        assert_eq!(
            value_in(b"HOME=/\0XEN_DISK=5/51712\0LC_ALL=C\0", variable),
            Some("5/51712")
        );
        assert_eq!(value_in(b"HOME=/\0XEN_DISKS=5/51712\0LC_ALL=C\0", variable), None);
    }
}
