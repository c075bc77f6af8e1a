//! What QEMU serves to a PV domain, as xl.cfg(5) writes it: folders of the host (`p9`), a screen with a keyboard (`vfb`), and
//! lines to programs of the host's (`channel`).

use crate::disk::SpecError;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::PathBuf;

/// A folder of the host that the guest mounts by its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What the guest calls it.
    pub tag: String,
    /// The folder.
    pub path: PathBuf,
}

/// A line of bytes between the guest, which has it as a further console (`/dev/hvc1`, ...), and a program of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    /// What it is for; the guest reads it in its xenstore directory.
    pub name: String,
    /// Where it ends in the host.
    pub connection: Connection,
}

/// The host's end of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// A terminal of its own, which xenstore names.
    Pty,
    /// A socket of this path, to which one program at a time may connect.
    Socket(PathBuf),
}

/// A screen, a keyboard and a pointer, seen by VNC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Whether there is a VNC server, if it was said.
    pub vnc: Option<bool>,
    /// The address at which it listens; none: at the host's own.
    pub listen: Option<IpAddr>,
    /// Its number: port 5900 is that of 0.
    pub display: Option<u16>,
    /// Whether a higher number is taken where that one is in use, if it was said.
    pub unused: Option<bool>,
    /// What a viewer has to know.
    pub password: Option<String>,
    /// The keyboard's language, by QEMU's name.
    pub keymap: Option<String>,
}

impl Screen {
    /// Whether there is a VNC server.
    pub fn has_vnc(&self) -> bool {
        self.vnc.unwrap_or(true)
    }

    /// Where it listens.
    pub fn address(&self) -> IpAddr {
        self.listen.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Its number, or the first that may be.
    pub fn number(&self) -> u16 {
        self.display.unwrap_or(0)
    }

    /// Whether a higher number will do.
    pub fn takes_any(&self) -> bool {
        self.unused.unwrap_or(true)
    }
}

/// The port of the VNC server with the number 0.
pub const VNC_PORT: u16 = 5900;
/// The longest tag: a name of the guest's xenstore and an option of QEMU.
const LONGEST_TAG: usize = 31;
/// The longest name of a channel: nobody needs more, and xenstore takes it.
const LONGEST_NAME: usize = 255;
/// The longest path of a socket (unix(7)), which ends with a zero byte.
const LONGEST_SOCKET: usize = 107;
/// The highest number of a VNC server, so that its port is one.
const LAST_DISPLAY: u16 = u16::MAX - VNC_PORT;

/// Reads one element of `p9 = [...]`.
pub fn share(spec: &str) -> Result<Share, SpecError> {
    let (mut tag, mut path, mut model) = (None, None, None);
    for setting in settings(spec) {
        let Setting { key, value, .. } = setting?;
        match key.text {
            "tag" => tag = Some(tag_of(&value)?),
            "path" => path = Some(path_of(&value)?),
            "security_model" if value.text == "none" => model = Some(()),
            "security_model" => return Err(value.wrong("is no security model: there is `none`, the guest's own users")),
            "backend" if matches!(value.text, "0" | "Domain-0") => {}
            "backend" => return Err(value.wrong("cannot serve folders: Domain 0 does")),
            _ => return Err(key.wrong("is no setting of a folder: tag, path, security_model")),
        }
    }
    let missing = |what: &str| SpecError {
        range: 0..spec.len(),
        message: format!("a folder needs `{what}`, such as tag=data,path=/srv/data,security_model=none"),
    };
    model.ok_or_else(|| missing("security_model=none"))?;
    Ok(Share {
        tag: tag.ok_or_else(|| missing("tag="))?,
        path: path.ok_or_else(|| missing("path="))?,
    })
}

fn tag_of(value: &Word<'_>) -> Result<String, SpecError> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match (1..=LONGEST_TAG).contains(&value.text.len()) && value.text.chars().all(is_plain) {
        true => Ok(value.text.to_owned()),
        false => Err(value.wrong("is no tag: up to 31 letters, digits, dots and dashes")),
    }
}

fn path_of(value: &Word<'_>) -> Result<PathBuf, SpecError> {
    match value.text.starts_with('/') {
        true => Ok(PathBuf::from(value.text)),
        false => Err(value.wrong("is no folder's whole path")),
    }
}

/// Reads one element of `channel = [...]`.
pub fn channel(spec: &str) -> Result<Channel, SpecError> {
    let (mut name, mut connection, mut path) = (None, None, None);
    for setting in settings(spec) {
        let Setting { key, value, .. } = setting?;
        match key.text {
            "name" => name = Some(name_of(&value)?),
            "connection" if matches!(value.text, "pty" | "socket") => connection = Some(value),
            "connection" => return Err(value.wrong("is no connection of a channel: there are `pty` and `socket`")),
            "path" => path = Some((socket_of(&value)?, value)),
            "backend" if matches!(value.text, "0" | "Domain-0") => {}
            "backend" => return Err(value.wrong("cannot serve channels: Domain 0 does")),
            _ => return Err(key.wrong("is no setting of a channel: connection, name, path")),
        }
    }
    let missing = |what: &str| SpecError {
        range: 0..spec.len(),
        message: format!(
            "a channel needs `{what}`, such as connection=socket,name=org.example.agent,path=/run/agent.sock"
        ),
    };
    let connection = connection.ok_or_else(|| missing("connection="))?;
    let name = name.ok_or_else(|| missing("name="))?;
    let connection = match (connection.text, path) {
        ("pty", None) => Connection::Pty,
        ("pty", Some((_, path))) => return Err(path.wrong("is a socket's path, and connection=pty has none")),
        (_, Some((path, _))) => Connection::Socket(path),
        (_, None) => return Err(missing("path=")),
    };
    Ok(Channel { name, connection })
}

fn name_of(value: &Word<'_>) -> Result<String, SpecError> {
    match (1..=LONGEST_NAME).contains(&value.text.len()) && value.text.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(value.text.to_owned()),
        false => Err(value.wrong("is no name of a channel: up to 255 printable characters without blanks")),
    }
}

fn socket_of(value: &Word<'_>) -> Result<PathBuf, SpecError> {
    if value.text.len() > LONGEST_SOCKET || value.text.contains(|c: char| c.is_ascii_control()) {
        return Err(value.wrong("is no socket's path: up to 107 bytes"));
    }
    match value.text.starts_with('/') {
        true => Ok(PathBuf::from(value.text)),
        false => Err(value.wrong("is no socket's whole path")),
    }
}

/// Reads one element of `vfb = [...]`.
pub fn screen(spec: &str) -> Result<Screen, SpecError> {
    let mut screen = Screen {
        vnc: None,
        listen: None,
        display: None,
        unused: None,
        password: None,
        keymap: None,
    };
    for setting in settings(spec) {
        let Setting { key, value } = setting?;
        let text = (!value.text.is_empty()).then(|| value.text.to_owned());
        match key.text {
            "vnc" => screen.vnc = Some(truth(&value)?),
            "vnclisten" => listen(&value, &mut screen)?,
            "vncdisplay" => screen.display = Some(display(&value)?),
            "vncunused" => screen.unused = Some(truth(&value)?),
            "vncpasswd" => screen.password = text,
            "keymap" => screen.keymap = text,
            // `xm`'s way to say the same.
            "type" if value.text == "vnc" => screen.vnc = Some(true),
            "type" => return Err(value.wrong("is no way to show a screen: there is `vnc`")),
            "sdl" | "opengl" if !truth(&value)? => {}
            "sdl" | "opengl" => {
                return Err(key.wrong("would open a window in Domain 0, which Debian's QEMU for Xen cannot: use vnc=1"));
            }
            "display" | "xauthority" => {
                return Err(key.wrong("is of windows in Domain 0, which there are not: use vnc=1"));
            }
            _ => {
                return Err(
                    key.wrong("is no setting of a screen: vnc, vnclisten, vncdisplay, vncunused, vncpasswd, keymap")
                );
            }
        }
    }
    Ok(screen)
}

/// An address, or an address and a number: `127.0.0.1:2`.
fn listen(value: &Word<'_>, screen: &mut Screen) -> Result<(), SpecError> {
    if value.text.is_empty() {
        return Ok(());
    }
    let wrong = || value.wrong("is no address such as 127.0.0.1 or 127.0.0.1:2");
    if let Ok(address) = value.text.parse() {
        screen.listen = Some(address);
        return Ok(());
    }
    let (address, number) = value.text.rsplit_once(':').ok_or_else(wrong)?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    screen.listen = Some(address.parse().map_err(|_| wrong())?);
    let number = number.parse().ok().filter(|number| *number <= LAST_DISPLAY);
    screen.display = Some(number.ok_or_else(wrong)?);
    Ok(())
}

fn display(value: &Word<'_>) -> Result<u16, SpecError> {
    let number = value.text.parse().ok().filter(|number| *number <= LAST_DISPLAY);
    number.ok_or_else(|| value.wrong("is no number of a VNC server (0 to 59635)"))
}

fn truth(value: &Word<'_>) -> Result<bool, SpecError> {
    match value.text {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err(value.wrong("is neither 0 nor 1")),
    }
}

/// A part of the specification, and where it stands.
struct Word<'a> {
    text: &'a str,
    at: usize,
}

impl Word<'_> {
    fn range(&self) -> Range<usize> {
        self.at..self.at + self.text.len()
    }

    fn wrong(&self, what: &str) -> SpecError {
        SpecError {
            range: self.range(),
            message: format!("`{}` {what}", self.text),
        }
    }
}

struct Setting<'a> {
    key: Word<'a>,
    value: Word<'a>,
}

/// `KEY=VALUE`s between commas.
fn settings(spec: &str) -> impl Iterator<Item = Result<Setting<'_>, SpecError>> {
    let mut start = 0;
    let parts = spec.split(',').map(move |part| {
        let word = trimmed(part, start);
        start += part.len() + 1;
        word
    });
    parts.filter(|part| !part.text.is_empty()).map(|part| {
        let Some((key, value)) = part.text.split_once('=') else {
            return Err(part.wrong("is not of the form key=value"));
        };
        Ok(Setting {
            key: trimmed(key, part.at),
            value: trimmed(value, part.at + key.len() + 1),
        })
    })
}

fn trimmed(text: &str, at: usize) -> Word<'_> {
    Word {
        text: text.trim(),
        at: at + (text.len() - text.trim_start().len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_a_tag_a_path_and_a_model() {
        let read = share("tag=data, path=/srv/data ,security_model=none");
        let wanted = Share {
            tag: "data".to_owned(),
            path: PathBuf::from("/srv/data"),
        };
        assert_eq!(read, Ok(wanted));
        for (spec, word) in [
            ("tag=data,path=/srv/data,security_model=mapped", "mapped"),
            ("tag=a b,path=/srv/data,security_model=none", "a b"),
            ("tag=data,path=data,security_model=none", "data"),
            ("tag=data,backend=other,path=/srv,security_model=none", "other"),
            ("tag=data,paht=/srv,security_model=none", "paht"),
        ] {
            let error = share(spec).expect_err(spec);
            assert_eq!(spec.get(error.range.clone()), Some(word), "{spec}: {}", error.message);
        }
        assert!(share("tag=data,path=/srv").is_err_and(|error| error.message.contains("security_model=none")));
        assert!(share("").is_err());
    }

    #[test]
    fn a_channel_has_a_name_and_two_ends() {
        let read = channel("connection=socket, name=org.example.agent,path=/run/agent.sock");
        let wanted = |connection| Channel {
            name: "org.example.agent".to_owned(),
            connection,
        };
        assert_eq!(read, Ok(wanted(Connection::Socket(PathBuf::from("/run/agent.sock")))));
        assert_eq!(
            channel("name=org.example.agent,connection=pty"),
            Ok(wanted(Connection::Pty))
        );
        let long = format!("connection=socket,name=a,path=/{}", "x".repeat(107));
        for (spec, word) in [
            ("connection=tty,name=a", "tty"),
            ("connection=pty,name=a b", "a b"),
            ("connection=pty,name=", ""),
            ("connection=pty,name=a,path=/run/a", "/run/a"),
            ("connection=socket,name=a,path=a", "a"),
            ("connection=socket,name=a,path=/run/a,backend=net", "net"),
            ("connection=socket,name=a,paht=/run/a", "paht"),
            (&long, long.rsplit('=').next().unwrap_or_default()),
        ] {
            let error = channel(spec).expect_err(spec);
            assert_eq!(spec.get(error.range.clone()), Some(word), "{spec}: {}", error.message);
        }
        for (spec, what) in [
            ("name=a", "`connection=`"),
            ("connection=pty", "`name=`"),
            ("connection=socket,name=a", "`path=`"),
        ] {
            let error = channel(spec).expect_err(spec);
            assert!(error.message.contains(what), "{spec}: {}", error.message);
        }
    }

    #[test]
    fn a_screen_is_seen_where_it_says() {
        let seen = |spec: &str| screen(spec).map(|screen| (screen.listen, screen.display));
        let local = "127.0.0.1".parse().ok();
        assert_eq!(seen("vnc=1,vnclisten=127.0.0.1:2"), Ok((local, Some(2))));
        assert_eq!(seen("type=vnc,vnclisten=127.0.0.1,vncdisplay=3"), Ok((local, Some(3))));
        assert_eq!(
            seen("vnc=1,vnclisten=[::1]:0").map(|(address, _)| address),
            Ok("::1".parse().ok())
        );
        assert_eq!(seen("vnclisten=::1"), Ok(("::1".parse().ok(), None)));
        assert_eq!(seen("sdl=0"), Ok((None, None)));
        for spec in [
            "sdl=1",
            "vncdisplay=60000",
            "vnclisten=nowhere",
            "vnc=yes",
            "type=sdl",
            "vga=1",
        ] {
            assert!(screen(spec).is_err(), "{spec}");
        }
    }
}
