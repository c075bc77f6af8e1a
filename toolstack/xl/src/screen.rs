//! A domain's screen: `xl vncviewer`, and `xl qemu-monitor-command` of the QEMU that shows it.

use anyhow::{Context, bail};
use clap::Args;
use ferroxen_domains::{Toolstack, qemu};
use ferroxen_words::DomId;
use ferroxen_xenstore::Store as _;
use ferroxen_xlconfig::VNC_PORT;
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

#[derive(Debug, Args)]
pub struct VncViewer {
    /// Pass the password to the viewer
    #[arg(long)]
    autopass: bool,
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    domain: String,
}

#[derive(Debug, Args)]
pub struct MonitorCommand {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    domain: String,
    /// A command of QEMU's monitor, such as 'info vnc'
    #[arg(value_name = "COMMAND", required = true)]
    words: Vec<String>,
}

/// `xl vncviewer`
pub fn vncviewer(tools: &Toolstack, args: &VncViewer) -> anyhow::Result<()> {
    view(tools, crate::domain(tools, &args.domain)?, args.autopass)
}

/// Starts a viewer, which goes on by itself.
pub fn view(tools: &Toolstack, domid: DomId, autopass: bool) -> anyhow::Result<()> {
    let read = |name: &str| {
        let path = format!("/local/domain/{}/console/{name}", domid.raw());
        tools.store.read_opt(&path).context("looking for its screen")
    };
    let port = read("vnc-port")?
        .and_then(|port| port.parse().ok())
        .map(|port: u16| port.checked_sub(VNC_PORT));
    let (Some(listen), Some(Some(number))) = (read("vnc-listen")?, port) else {
        bail!("it has no screen that can be seen: its configuration would have vfb = [ \"vnc=1\" ]");
    };
    let mut command = Command::new("vncviewer");
    command.arg(format!("{}:{number}", reachable(&listen))).process_group(0);
    let password = match autopass {
        true => password(tools, domid)?,
        false => None,
    };
    if password.is_some() {
        command.arg("-autopass").stdin(Stdio::piped());
    }
    let mut child = command.spawn().map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("there is no `vncviewer` (Debian: package tigervnc-viewer)"),
        _ => anyhow::Error::new(error).context("starting vncviewer"),
    })?;
    if let (Some(mut pipe), Some(password)) = (child.stdin.take(), password) {
        // If it does not listen, it says why itself.
        let _ = pipe.write_all(password.as_bytes());
    }
    Ok(())
}

/// An address that one can connect to: a server that listens everywhere is here, too.
fn reachable(listen: &str) -> String {
    match listen.parse() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "[::1]".to_owned(),
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => listen.to_owned(),
    }
}

fn password(tools: &Toolstack, domid: DomId) -> anyhow::Result<Option<String>> {
    let info = tools.hypervisor.domain(domid)?.context("the domain has gone")?;
    let loaded = tools.keep.load(domid, &uuid::Uuid::from_bytes(info.handle));
    Ok(loaded.and_then(|loaded| loaded.config.screen?.password))
}

/// `xl qemu-monitor-command`
pub fn monitor_command(tools: &Toolstack, args: &MonitorCommand) -> anyhow::Result<()> {
    let domid = crate::domain(tools, &args.domain)?;
    let said = qemu::monitor(domid, &args.words.join(" "), tools.until_interrupted());
    let said = match said {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            bail!("no QEMU serves the domain: those with `p9`, `vfb` or `channel` have one")
        }
        said => said.context("asking the domain's QEMU")?,
    };
    crate::show(&said)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_everywhere_is_here() {
        assert_eq!(reachable("0.0.0.0"), "127.0.0.1");
        assert_eq!(reachable("192.0.2.1"), "192.0.2.1");
        assert_eq!(reachable("::"), "[::1]");
        assert_eq!(reachable("2001:db8::1"), "[2001:db8::1]");
    }
}
