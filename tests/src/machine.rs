//! A virtual machine: QEMU, its serial line and its monitor, for as long as the value lives.
//!
//! Always true: the process ends with the value, and with us if we are killed; every wait has an end;
//! everything the serial line said is in the log file.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::console::Transcript;

/// How long the monitor may take to answer.
const MONITOR_PATIENCE: Duration = Duration::from_secs(10);

/// How the processor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the host's processor.
    Kvm,
    /// By translation: slower, always there.
    Tcg,
}

/// One CPU model everywhere, so that a test means the same thing on every host.
pub const CPU_MODEL: &str = "qemu64";

/// What brings the hypervisor, the Domain 0 kernel and its ramdisk into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// QEMU itself, by multiboot 1.
    Qemu,
    /// GRUB, from a CD; the key chooses what it starts.
    Cd(char),
    /// GRUB, from a hard disk with the same contents.
    HardDisk(char),
}

/// Which disks and network cards a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// A virtio disk and a virtio card.
    Virtio,
    /// A disk on an AHCI controller and an e1000 card, as in a real machine.
    Real,
    /// Those of `Virtio`, and beside them an AHCI disk that holds the kernel's file, and an e1000 card on a
    /// network of its own (10.0.3.0/24).
    Both,
}

/// A CD, which is a hard disk as well, with GRUB on it: its menu starts the same hypervisor, ramdisk and kernel
/// with the same options as the machine's other parts say.
#[derive(Debug, Clone)]
pub struct Medium {
    /// The image.
    pub image: PathBuf,
    /// The kernel on it, as Debian ships it.
    pub kernel: PathBuf,
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// What starts it all.
    pub loader: Loader,
    /// What GRUB starts from.
    pub medium: Option<Medium>,
    /// The multiboot image that starts first.
    pub hypervisor: PathBuf,
    /// Its command line.
    pub options: String,
    /// The Domain 0 kernel.
    pub kernel: PathBuf,
    /// The kernel's command line.
    pub kernel_options: String,
    /// The Domain 0 ramdisk.
    pub ramdisk: PathBuf,
    /// A disk for Domain 0; writes are dropped at the end.
    pub disk: PathBuf,
    /// Which devices it has.
    pub devices: Devices,
    /// How many CPUs.
    pub cpus: u32,
    /// How much memory, in MiB.
    pub memory_mib: u32,
    /// Which accelerator.
    pub accelerator: Accelerator,
    /// Where the serial line is written down.
    pub log: PathBuf,
    /// The program behind `cargo xtask`.
    pub xtask: PathBuf,
}

/// The network that Domain 0 is on: the host is 10.0.2.2, and addresses are given out from 10.0.2.64 on.
const NETWORK: &str = "user,id=net,dhcpstart=10.0.2.64";
/// Where the second card of [`Devices::Both`] is.
const SECOND_NETWORK: &str = "user,id=lan,net=10.0.3.0/24";

impl Parts {
    fn command(&self, monitor: &Path) -> Command {
        // setpriv ends QEMU when we end, however we end.
        let mut qemu = Command::new("setpriv");
        qemu.args([
            "--pdeathsig",
            "KILL",
            "--",
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
        ]);
        qemu.args([
            "-display",
            "none",
            "-vga",
            "std",
            "-no-reboot",
            "-machine",
            "pc,usb=off",
        ]);
        qemu.arg("-accel").arg(match self.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        });
        qemu.args(["-cpu", CPU_MODEL]);
        qemu.arg("-smp")
            .arg(self.cpus.to_string())
            .arg("-m")
            .arg(format!("{}M", self.memory_mib));
        self.add_loader(&mut qemu);
        self.add_devices(&mut qemu);
        qemu.args(["-object", "rng-random,id=rng,filename=/dev/urandom"]);
        qemu.args(["-device", "virtio-rng-pci,rng=rng"]);
        qemu.args(["-serial", "stdio", "-qmp"]);
        qemu.arg(format!("unix:{},server=on,wait=off", monitor.display()));
        qemu
    }

    fn add_loader(&self, qemu: &mut Command) {
        let medium = self
            .medium
            .as_ref()
            .map_or(Path::new("no-medium"), |medium| &medium.image);
        match self.loader {
            Loader::Qemu => {
                qemu.arg("-kernel").arg(&self.hypervisor);
                qemu.arg("-append").arg(&self.options).arg("-initrd").arg(format!(
                    "{} {},{}",
                    self.kernel.display(),
                    self.kernel_options.replace(',', ",,"),
                    self.ramdisk.display()
                ));
            }
            Loader::Cd(_) => {
                qemu.arg("-drive").arg(drive("if=ide,media=cdrom,readonly=on", medium));
            }
            Loader::HardDisk(_) => {
                qemu.arg("-drive").arg(drive("if=ide,media=disk,snapshot=on", medium));
            }
        }
    }

    fn add_devices(&self, qemu: &mut Command) {
        let guests = drive("if=none,id=guests,snapshot=on", &self.disk);
        qemu.arg("-drive").arg(guests).args(["-netdev", NETWORK]);
        if self.devices == Devices::Real {
            qemu.args(["-device", "ahci,id=ahci", "-device", "ide-hd,bus=ahci.0,drive=guests"]);
            qemu.args(["-device", "e1000,netdev=net,romfile="]);
            return;
        }
        qemu.args(["-device", "virtio-blk-pci,drive=guests"]);
        qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        if self.devices == Devices::Both {
            let kernel = drive("if=none,id=kernel,snapshot=on", &self.kernel);
            qemu.arg("-drive").arg(kernel).args(["-netdev", SECOND_NETWORK]);
            qemu.args(["-device", "ahci,id=ahci", "-device", "ide-hd,bus=ahci.0,drive=kernel"]);
            qemu.args(["-device", "e1000,netdev=lan,romfile="]);
        }
    }
}

fn drive(how: &str, file: &Path) -> String {
    format!("{how},format=raw,file={}", file.display())
}

/// A running machine.
pub struct Machine {
    process: Child,
    keyboard: ChildStdin,
    transcript: Transcript,
    monitor: PathBuf,
    started: Instant,
    log: PathBuf,
    _sockets: tempfile::TempDir,
}

impl Machine {
    /// Starts a machine of `parts`.
    pub fn start(parts: &Parts) -> Result<Self> {
        let sockets = tempfile::Builder::new().prefix("ferroxen-vm-").tempdir()?;
        let monitor = sockets.path().join("qmp");
        if let Some(dir) = parts.log.parent() {
            fs::create_dir_all(dir)?;
        }
        let log = File::create(&parts.log).with_context(|| format!("creating {}", parts.log.display()))?;
        let mut command = parts.command(&monitor);
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot start QEMU (qemu-system-x86_64, through setpriv)")?;
        let keyboard = process.stdin.take().context("QEMU has no stdin")?;
        let screen = process.stdout.take().context("QEMU has no stdout")?;
        let transcript = Transcript::default();
        let copy = transcript.clone();
        thread::spawn(move || write_down(screen, log, &copy));
        Ok(Self {
            process,
            keyboard,
            transcript,
            monitor,
            started: Instant::now(),
            log: parts.log.clone(),
            _sockets: sockets,
        })
    }

    /// Returns what the serial line has said so far, and a way to wait for more.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// Returns where the serial line is written down.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Returns the time since the start.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Types `bytes` on the serial line.
    pub fn type_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.keyboard.write_all(bytes).context("the machine has gone")?;
        self.keyboard.flush().context("the machine has gone")
    }

    /// Types `text` as slowly as the machine takes it: each piece waits for the echo of the one before.
    ///
    /// A hypervisor's console has room for a line or so of typing ahead, and drops what comes on top.
    pub fn type_paced(&mut self, text: &str) -> Result<()> {
        const PIECE: usize = 48;
        const ECHO_PATIENCE: Duration = Duration::from_secs(2);
        for piece in text.as_bytes().chunks(PIECE) {
            let before = self.transcript.len();
            self.type_bytes(piece)?;
            self.transcript.wait_for_length(before + piece.len(), ECHO_PATIENCE);
        }
        Ok(())
    }

    /// Returns another hand on the keyboard, and leaves this machine without one.
    ///
    /// For handing over to a person; the machine ends when it is dropped, as ever.
    pub fn type_from(mut self, mut source: impl Read) -> Result<Self> {
        let mut bytes = [0; 256];
        loop {
            let count = source.read(&mut bytes)?;
            let Some(typed) = bytes.get(..count).filter(|typed| !typed.is_empty()) else {
                break;
            };
            if self.has_ended()? || self.type_bytes(typed).is_err() {
                break;
            }
        }
        Ok(self)
    }

    /// Tells whether QEMU has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_some())
    }

    /// Waits until QEMU ends by itself: the machine was switched off from inside.
    pub fn wait_for_power_off(&mut self, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Some(status) = self.process.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("QEMU ended with {status}");
            }
            self.transcript.wait_for_change(Duration::from_millis(100));
        }
        bail!(
            "the machine was still on {} s after it was told to switch off",
            patience.as_secs()
        )
    }

    /// Waits for the report of a hypervisor that has found itself broken: `why`, registers, a trace, then `last`.
    pub fn wait_for_report(&self, why: &str, last: &str) -> Result<()> {
        const REPORT_PATIENCE: Duration = Duration::from_secs(60);
        let mut at = 0;
        for sign in ["Ferroxen has found itself broken", why, "rsp ", "Called from:", last] {
            let seen = self.transcript.wait_for(sign, at, &[], REPORT_PATIENCE);
            at = seen.context("the report of a broken host")?;
        }
        Ok(())
    }

    /// Asks the monitor to carry out `command` (QMP), and returns its answer.
    pub fn monitor(&self, command: &str, arguments: &Value) -> Result<Value> {
        let stream = UnixStream::connect(&self.monitor).context("connecting to QEMU's monitor")?;
        stream.set_read_timeout(Some(MONITOR_PATIENCE))?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut answer = Value::Null;
        for request in [json!({ "execute": "qmp_capabilities" }), request(command, arguments)] {
            writeln!(writer, "{request}")?;
            answer = next_answer(&mut reader)?;
        }
        Ok(answer)
    }

    /// Writes the last lines that the machine said, for a report.
    pub fn last_words(&self, count: usize) -> String {
        let text = self.transcript.text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(count)..).unwrap_or_default();
        let mut words = String::new();
        for line in tail {
            let _ = writeln!(words, "    {}", line.trim_end());
        }
        words
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Already gone is as good as killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn request(command: &str, arguments: &Value) -> Value {
    if arguments.is_null() {
        json!({ "execute": command })
    } else {
        json!({ "execute": command, "arguments": arguments })
    }
}

/// Reads lines until one is an answer; events in between are passed over.
fn next_answer(reader: &mut impl BufRead) -> Result<Value> {
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            bail!("QEMU's monitor hung up");
        }
        let value: Value = serde_json::from_str(&line)?;
        if let Some(answer) = value.get("return") {
            return Ok(answer.clone());
        }
        if let Some(error) = value.get("error") {
            bail!("QEMU refused: {error}");
        }
    }
}

/// Copies the serial line to the log and the transcript until the machine ends.
fn write_down(mut screen: impl Read, mut log: File, transcript: &Transcript) {
    let mut bytes = [0; 4096];
    while let Ok(count) = screen.read(&mut bytes) {
        let Some(said) = bytes.get(..count).filter(|said| !said.is_empty()) else {
            break;
        };
        // A full disk must not stop the story: the transcript still has it.
        let _ = log.write_all(said);
        transcript.add(said);
    }
    transcript.close();
}
