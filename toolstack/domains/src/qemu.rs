//! QEMU as a program of Domain 0's: how it is started, heard and ended.
//!
//! It goes into the background once it serves. It outlives us, so it carries the domain that it is for in its environment.

use crate::hotplug::wait;
use crate::patience::{Patience, Piped};
use crate::servers;
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Channel, Connection, Screen, VNC_PORT};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where distributions have a QEMU that knows Xen; the first is Debian's.
const PROGRAMS: [&str; 3] = [
    "/usr/libexec/xen-qemu-system-i386",
    "/usr/lib/xen-4.17/bin/qemu-system-i386",
    "/usr/lib/xen/bin/qemu-system-i386",
];
/// What it has in its environment: the domain.
const OWNER: &str = "XEN_DEVICE_MODEL";
/// Where it listens for questions, as libxl has it.
const SOCKETS: &str = "/run/xen";
/// Where what it prints goes.
const LOGS: &str = "/var/log/xen";
/// How long it may take to start, which is a matter of linking it on a slow host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The most that it says at once.
const LONGEST_ANSWER: u64 = 1 << 20;
/// Numbers after the wanted one that are tried, where any will do.
const NUMBERS: u16 = 99;

/// The program, if there is one.
pub(crate) fn program() -> Option<&'static Path> {
    PROGRAMS.iter().map(Path::new).find(|program| program.exists())
}

/// Where somebody can look at a screen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Viewed {
    /// The address.
    pub listen: String,
    /// And its port.
    pub port: u16,
}

/// Starts it for what the domain's nodes say; tells where its screen can be seen, if it has one that can.
pub(crate) fn start(
    domid: DomId,
    name: &str,
    screen: Option<&Screen>,
    channels: &[Channel],
    patience: Patience<'_>,
) -> io::Result<Option<Viewed>> {
    let program = program().ok_or(ErrorKind::NotFound)?;
    fs::create_dir_all(SOCKETS)?;
    let log = Path::new(LOGS).join(format!("qemu-dm-{name}.log"));
    let (out, err) = open_log(&log)?;
    let mut command = Command::new(program);
    command
        .args(arguments(domid, name, screen, channels))
        .env(OWNER, domid.raw().to_string())
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdout(out)
        .stderr(err);
    let password = screen.and_then(|screen| screen.password.as_deref());
    command.stdin(if password.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    let mut child = command.spawn()?;
    if let (Some(mut pipe), Some(password)) = (child.stdin.take(), password) {
        // If it does not listen, it says why itself.
        let _ = pipe.write_all(password.as_bytes());
    }
    let status = wait(child, patience)?;
    if !status.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().last().unwrap_or("it ended without a word");
        return Err(io::Error::other(format!("{last} (see {})", log.display())));
    }
    match screen.filter(|screen| screen.has_vnc()) {
        Some(_) => ask(&socket(domid), "query-vnc", &json!({}), patience).and_then(|answer| viewed(&answer).map(Some)),
        None => Ok(None),
    }
}

/// Ends it.
pub(crate) fn end(domid: DomId) -> io::Result<()> {
    let domid_text = domid.raw().to_string();
    servers::end(OWNER, |owner| owner == domid_text)?;
    match fs::remove_file(socket(domid)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Has its monitor do something, as a person would; gives what it says.
pub fn monitor(domid: DomId, command: &str, patience: Patience<'_>) -> io::Result<String> {
    let arguments = json!({ "command-line": command });
    let said = ask(&socket(domid), "human-monitor-command", &arguments, patience)?;
    Ok(said.as_str().unwrap_or_default().replace("\r\n", "\n"))
}

fn socket(domid: DomId) -> PathBuf {
    Path::new(SOCKETS).join(format!("qmp-libxl-{}", domid.raw()))
}

/// A new log; the one before it is kept as `.1`.
fn open_log(path: &Path) -> io::Result<(File, File)> {
    let open = || {
        fs::create_dir_all(LOGS)?;
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        match fs::rename(path, PathBuf::from(old)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::create_new(path)?;
        Ok((file.try_clone()?, file))
    };
    open().map_err(|error: io::Error| io::Error::new(error.kind(), format!("opening {}: {error}", path.display())))
}

/// What a channel's node calls the socket that it leads to, as libxl has it.
pub(crate) fn line(id: u32) -> String {
    format!("libxl-channel{id}")
}

fn arguments(domid: DomId, name: &str, screen: Option<&Screen>, channels: &[Channel]) -> Vec<OsString> {
    let mut list: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| list.extend(words.iter().map(OsString::from));
    add(&["-xen-domid", &domid.raw().to_string(), "-xen-attach"]);
    add(&["-name", &format!("guest={}", one_value(name))]);
    add(&[
        "-machine",
        "xenpv",
        "-no-user-config",
        "-nodefaults",
        "-daemonize",
        "-display",
        "none",
    ]);
    let socket = socket(domid);
    add(&[
        "-chardev",
        &format!("socket,id=libxl-cmd,path={},server=on,wait=off", socket.display()),
    ]);
    add(&["-mon", "chardev=libxl-cmd,mode=control"]);
    // A terminal it makes by itself, for what the node says.
    for (id, channel) in (1..).zip(channels) {
        if let Connection::Socket(path) = &channel.connection {
            let path = one_value(&path.display().to_string());
            let socket = format!("socket,id={},path={path},server=on,wait=off", line(id));
            add(&["-chardev", &socket]);
        }
    }
    let Some(screen) = screen else {
        return list;
    };
    if let Some(keymap) = &screen.keymap {
        add(&["-k", keymap]);
    }
    if screen.password.is_some() {
        add(&["-object", "secret,id=vnc,file=/dev/stdin"]);
    }
    if screen.has_vnc() {
        add(&["-vnc", &vnc(screen)]);
    }
    list
}

/// A comma would begin another option.
fn one_value(text: &str) -> String {
    text.replace(',', ",,")
}

fn vnc(screen: &Screen) -> String {
    let address = match screen.address() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let number = screen.number();
    let mut spec = format!("{address}:{number}");
    if screen.takes_any() {
        let last = number.saturating_add(NUMBERS).min(u16::MAX - VNC_PORT);
        // Writing to a string cannot fail.
        let _ = write!(spec, ",to={last}");
    }
    if screen.password.is_some() {
        spec.push_str(",password-secret=vnc");
    }
    spec
}

/// Asks one question by QMP: a greeting, the end of negotiations, and then answers among events.
fn ask(socket: &Path, question: &str, arguments: &Value, patience: Patience<'_>) -> io::Result<Value> {
    let stream = UnixStream::connect(socket)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(io::Read::take(Piped::new(stream, patience)?, LONGEST_ANSWER));
    let mut next = || -> io::Result<Value> {
        let mut line = String::new();
        match reader.read_line(&mut line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(serde_json::from_str(&line)?),
        }
    };
    next()?;
    for (command, arguments) in [("qmp_capabilities", &json!({})), (question, arguments)] {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        // A line is far smaller than what a socket takes at once.
        writer.write_all(line.as_bytes())?;
        loop {
            let answer = next()?;
            if let Some(why) = answer.get("error") {
                return Err(io::Error::other(
                    why["desc"].as_str().unwrap_or("it refuses").to_owned(),
                ));
            }
            match answer.get("return") {
                Some(value) if command == question => return Ok(value.clone()),
                Some(_) => break,
                // An event.
                None => {}
            }
        }
    }
    Err(ErrorKind::UnexpectedEof.into())
}

fn viewed(answer: &Value) -> io::Result<Viewed> {
    let word = |key: &str| answer.get(key).and_then(Value::as_str);
    match (word("host"), word("service").and_then(|port| port.parse().ok())) {
        (Some(listen), Some(port)) => Ok(Viewed {
            listen: listen.to_owned(),
            port,
        }),
        _ => Err(io::Error::other("it does not say where its VNC server is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::io::Read as _;
    use std::os::unix::net::UnixListener;

    fn screen(spec: &str) -> Screen {
        let text = format!("kernel='k'\nname='n'\nvfb=['{spec}']\n");
        let loaded = ferroxen_xlconfig::parse(ferroxen_xlconfig::Source::new("n.cfg", text), &[]);
        loaded.expect("is valid").config.screen.expect("has one")
    }

    #[test]
    fn a_screen_is_shown_where_it_says() {
        assert_eq!(vnc(&screen("vnc=1")), "127.0.0.1:0,to=99");
        assert_eq!(vnc(&screen("vnclisten=0.0.0.0:3,vncunused=0")), "0.0.0.0:3");
        assert_eq!(
            vnc(&screen("vnclisten=::1,vncpasswd=x")),
            "[::1]:0,to=99,password-secret=vnc"
        );
        assert_eq!(vnc(&screen("vncdisplay=59635")), "127.0.0.1:59635,to=59635");
        let domid = DomId::new(3).expect("is one");
        let arguments = arguments(domid, "a,b", Some(&screen("vnc=0,vncpasswd=secret")), &[]);
        assert!(arguments.contains(&OsString::from("guest=a,,b")));
        assert!(
            !arguments
                .iter()
                .any(|word| word == OsStr::new("-vnc") || word == OsStr::new("secret"))
        );
    }

    #[test]
    fn a_channel_to_a_socket_has_its_number() {
        let text =
            "kernel='k'\nname='n'\nchannel=['connection=pty,name=a', 'connection=socket,name=b,path=/run/b.sock']\n";
        let loaded = ferroxen_xlconfig::parse(ferroxen_xlconfig::Source::new("n.cfg", text), &[]).expect("is valid");
        let domid = DomId::new(3).expect("is one");
        let arguments = arguments(domid, "n", None, &loaded.config.channels);
        let sockets: Vec<_> = arguments
            .iter()
            .filter(|word| word.to_string_lossy().contains("channel"))
            .collect();
        assert_eq!(
            sockets,
            ["socket,id=libxl-channel2,path=/run/b.sock,server=on,wait=off"]
        );
    }

    #[test]
    fn events_stand_between_a_question_and_its_answer() {
        let path = std::env::temp_dir().join(format!("qmp-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket");
        let peer = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody comes");
            let mut words = [0; 256];
            stream.write_all(b"{\"QMP\": {}}\n").expect("is there");
            let _ = stream.read(&mut words).expect("asks");
            stream
                .write_all(b"{\"return\": {}}\n{\"event\": \"RESET\"}\n")
                .expect("is there");
            let _ = stream.read(&mut words).expect("asks");
            let answer = b"{\"event\": \"RESET\"}\n{\"return\": {\"host\": \"127.0.0.1\", \"service\": \"5901\"}}\n";
            stream.write_all(answer).expect("is there");
        });
        let answer = ask(&path, "query-vnc", &json!({}), Patience::stubborn(PATIENCE)).expect("is answered");
        let wanted = Viewed {
            listen: "127.0.0.1".to_owned(),
            port: 5901,
        };
        assert_eq!(viewed(&answer).expect("is complete"), wanted);
        peer.join().expect("has not failed");
        fs::remove_file(path).expect("was there");
    }
}
