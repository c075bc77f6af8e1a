//! virt-manager beside the machine, on a screen that nobody looks at: it shows what a guest's console says.
//!
//! Domain 0 has Debian's libvirt, which listens on a port of the machine's network.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::dom0::{Dom0, PATIENCE};
use crate::guest::Tiny;
use crate::machine::Parts;

const NAME: &str = "seen";
/// What it fills its console with.
const WORDS: &str = "on the screen of virt-manager";
/// Where libvirt listens.
const PORT: u16 = 16509;
/// How long virt-manager may take to show a console.
const LONG: Duration = Duration::from_secs(120);

pub(super) fn shows_a_console(parts: &Parts) -> Result<()> {
    // Nobody takes it in between, but by accident.
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let mut parts = parts.with_libvirt()?;
    parts.forwarded = Some((port, PORT));
    let mut dom0 = Dom0::boot(&parts)?;
    dom0.run(
        "mkdir -p /run/libvirt /var/log/libvirt/libxl /var/lib/libvirt/libxl/save && ln -s /run/libvirt /var/run",
    )?;
    dom0.run(
        "printf '%s\\n' 'listen_tls = 0' 'listen_tcp = 1' 'auth_tcp = \"none\"' 'auth_unix_rw = \"none\"' \
         'unix_sock_group = \"root\"' >/tmp/libvirtd.conf && libvirtd -d -l -f /tmp/libvirtd.conf",
    )?;
    dom0.run_within(
        "for _ in $(seq 60); do virsh uri && break; sleep 1; done; virsh uri",
        LONG,
    )?;
    let fill = format!("yes {WORDS}|head -n 100");
    dom0.write_config(NAME, &Tiny::new(NAME).memory(96).then(&fill).config())?;
    dom0.run_within(
        "virsh domxml-from-native xen-xl /tmp/seen.cfg >/tmp/seen.xml && virsh create /tmp/seen.xml",
        LONG,
    )?;
    look(port, &parts.log.with_extension("ppm"))?;
    dom0.run_within("virsh destroy seen", LONG)?;
    dom0.power_off(PATIENCE)
}

/// A program that ends with us.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_owned();
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", "KILL", "--"])
            .arg(&name)
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            tied.env(name, value.unwrap_or_default());
        }
        let child = tied
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        child
            .map(Running)
            .with_context(|| format!("starting {}", name.display()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Who has ended already needs neither.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Opens the guest's console, waits until its words are there, and keeps a picture of that.
fn look(port: u16, kept: &Path) -> Result<()> {
    let home = tempfile::tempdir()?;
    let mut screen = Running::start(
        Command::new("Xvfb")
            .args(["-displayfd", "1", "-screen", "0", "1024x768x24", "-fbdir"])
            .arg(home.path()),
    )?;
    let mut number = String::new();
    let said = screen.0.stdout.take().context("Xvfb has no stdout")?;
    BufReader::new(said).read_line(&mut number)?;
    let uri = format!("xen+tcp://127.0.0.1:{port}/system");
    let _viewer = Running::start(
        Command::new("dbus-run-session")
            .args([
                "--",
                "virt-manager",
                "--no-fork",
                "--connect",
                &uri,
                "--show-domain-console",
                NAME,
            ])
            .env("DISPLAY", format!(":{}", number.trim()))
            .env("GSETTINGS_BACKEND", "memory")
            .env("NO_AT_BRIDGE", "1")
            .env("XDG_RUNTIME_DIR", home.path())
            .env("HOME", home.path()),
    )?;
    let end = Instant::now() + LONG;
    loop {
        let picture = Picture::of(&home.path().join("Xvfb_screen0"))?;
        let is_there = picture.is_full_of_text();
        if is_there || Instant::now() > end {
            fs::write(kept, picture.ppm())?;
            ensure!(is_there, "virt-manager shows no console; see {}", kept.display());
            return Ok(());
        }
        sleep(Duration::from_millis(500));
    }
}

/// What is on a screen.
struct Picture {
    width: usize,
    /// Red, green and blue of each dot.
    dots: Vec<[u8; 3]>,
}

impl Picture {
    /// From a file as xwd writes it (XWDFile.h): numbers with the high byte first, a map of colours, and dots.
    fn of(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let number = |index: usize| -> Result<usize> {
            let at = bytes.get(index * 4..index * 4 + 4).context("the picture is cut off")?;
            Ok(u32::from_be_bytes(at.try_into()?) as usize)
        };
        let (head, width, height) = (number(0)?, number(4)?, number(5)?);
        let (bits, line, colours) = (number(11)?, number(12)?, number(19)?);
        ensure!(
            bits == 32 && line == width * 4,
            "dots of {bits} bits, lines of {line} bytes"
        );
        let dots = bytes.get(head + colours * 12..).context("the picture has no dots")?;
        let dots = dots.chunks_exact(4).take(width * height);
        Ok(Self {
            width,
            dots: dots.map(|dot| [dot[2], dot[1], dot[0]]).collect(),
        })
    }

    /// A terminal is black, and these words fill a good part of its left half: a window without a console is light, and a
    /// prompt alone leaves it empty.
    fn is_full_of_text(&self) -> bool {
        const BARS: usize = 100;
        let lines = self.dots.chunks_exact(self.width).skip(BARS);
        let (mut black, mut light) = (0, 0);
        for dot in lines.flat_map(|line| &line[..self.width / 2]) {
            *(if *dot == [0; 3] { &mut black } else { &mut light }) += 1;
        }
        light > 10_000 && black > light
    }

    fn ppm(&self) -> Vec<u8> {
        let height = self.dots.len() / self.width;
        let mut bytes = format!("P6 {} {height} 255\n", self.width).into_bytes();
        bytes.extend(self.dots.iter().flatten());
        bytes
    }
}
