//! A virtual machine: QEMU, its serial line and its monitor, for as long as the value lives.
//!
//! Always true: the process ends with the value, and with us if we are killed; every wait has an end;
//! everything the serial line said is in the log file.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
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
    /// By translation that counts instructions, each of which takes the machine a nanosecond: slower still, and the
    /// same on every host.
    Counted,
}

/// A point in the life of a machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// How old it is.
    pub age: Duration,
    /// How many instructions it has carried out; 0 where nobody counts. Idling takes none.
    pub instructions: u64,
}

impl Moment {
    /// Returns what lies between `earlier` and this.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            age: self.age.saturating_sub(earlier.age),
            instructions: self.instructions.saturating_sub(earlier.instructions),
        }
    }
}

/// One CPU model nearly everywhere, so that a test means the same thing on every host.
pub const CPU_MODEL: &str = "qemu64";

/// All processors that libvirt 9.0 has heard of have SYSENTER, which Xen takes from AMD's, and all but the plainest have
/// VME, which QEMU's translation has not. So its driver starts with this one, and on neither hypervisor with QEMU's usual.
pub const CPU_OF_LIBVIRT: &str = "kvm64";

/// What brings the hypervisor, the Domain 0 kernel and its ramdisk into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loader {
    /// QEMU itself, by multiboot 1.
    Qemu,
    /// QEMU itself, and it brings nothing but the hypervisor.
    QemuAlone,
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

/// A Domain 0 that is a Debian with systemd.
#[derive(Debug, Clone)]
pub struct DebianDom0 {
    /// Brings its kernel's modules and our programs, and hands over to the disk.
    pub ramdisk: PathBuf,
    /// Its root.
    pub disk: PathBuf,
}

/// A Domain 0 with a newer kernel than the guests'.
#[derive(Debug, Clone)]
pub struct NewerDom0 {
    /// The kernel.
    pub kernel: PathBuf,
    /// The usual ramdisk, with that kernel's modules.
    pub ramdisk: PathBuf,
}

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// What starts it all.
    pub loader: Loader,
    /// A CD, which is a hard disk as well, with GRUB on it: its menu starts the same hypervisor and ramdisk with the
    /// same options as the other parts say, and `packed_kernel`.
    pub medium: Option<PathBuf>,
    /// The multiboot image that starts first.
    pub hypervisor: PathBuf,
    /// Its command line.
    pub options: String,
    /// The Domain 0 kernel.
    pub kernel: PathBuf,
    /// The same, as Debian ships it.
    pub packed_kernel: PathBuf,
    /// The kernel's command line.
    pub kernel_options: String,
    /// The Domain 0 ramdisk.
    pub ramdisk: PathBuf,
    /// The same with Debian's toolstack in place of ours.
    pub debian_ramdisk: Option<PathBuf>,
    /// The ramdisk with Debian's libvirt.
    pub libvirt_ramdisk: Option<PathBuf>,
    /// Debian's hypervisor.
    pub debian_hypervisor: Option<PathBuf>,
    /// A Domain 0 on a disk of its own.
    pub debian_dom0: Option<DebianDom0>,
    /// A Domain 0 with a newer kernel.
    pub newer_dom0: Option<NewerDom0>,
    /// A disk with images that our tools have made.
    pub built: Option<PathBuf>,
    /// A further disk: Domain 0's root.
    pub root: Option<PathBuf>,
    /// A further disk.
    pub further: Option<PathBuf>,
    /// Empty disks, of so many MiB.
    pub empty_disks: Vec<u64>,
    /// A disk (the one after the guests') that other machines have as well; writes stay.
    pub shared_disk: Option<PathBuf>,
    /// A port of the host's that leads to one of Domain 0's.
    pub forwarded: Option<(u16, u16)>,
    /// What a further card is connected to.
    pub cable: Option<Cable>,
    /// A disk for Domain 0; writes are dropped at the end.
    pub disk: PathBuf,
    /// Which devices it has.
    pub devices: Devices,
    /// Which model its CPUs are.
    pub cpu_model: &'static str,
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

/// One end of a cable between two machines.
#[derive(Debug, Clone)]
pub struct Cable {
    socket: Arc<UnixStream>,
    mac: &'static str,
}

impl Cable {
    /// Both ends.
    pub fn new() -> Result<[Self; 2]> {
        let (one, other) = UnixStream::pair().context("making a cable's sockets")?;
        Ok(
            [(one, "52:54:00:00:09:01"), (other, "52:54:00:00:09:02")].map(|(socket, mac)| Self {
                socket: Arc::new(socket),
                mac,
            }),
        )
    }
}

/// The network that Domain 0 is on: the host is 10.0.2.2, and addresses are given out from 10.0.2.64 on.
const NETWORK: &str = "user,id=net,dhcpstart=10.0.2.64";
/// Where the second card of [`Devices::Both`] is.
const SECOND_NETWORK: &str = "user,id=lan,net=10.0.3.0/24";

impl Parts {
    /// The same machine with a Domain 0 that is a Debian with systemd, and empty disks (vdc, vdd, ...) of so many MiB.
    pub fn with_debian_dom0(&self, empty_disks: &[u64]) -> Result<Self> {
        let debian = self.debian_dom0.clone().context("there is no Debian for Domain 0")?;
        Ok(Self {
            ramdisk: debian.ramdisk,
            root: Some(debian.disk),
            empty_disks: empty_disks.to_vec(),
            kernel_options: "console=hvc0 loglevel=6 rdinit=/init systemd.show_status=error".to_owned(),
            ..self.clone()
        })
    }

    /// The same machine with Debian's hypervisor and Debian's tools.
    pub fn all_debians(&self) -> Result<Self> {
        let hypervisor = self
            .debian_hypervisor
            .clone()
            .context("there is no hypervisor of Debian's")?;
        Ok(Self {
            hypervisor,
            ..self.with_debians_tools()?
        })
    }

    /// The same machine with Debian's libvirt, and a processor that this has heard of.
    pub fn with_libvirt(&self) -> Result<Self> {
        let ramdisk = self
            .libvirt_ramdisk
            .clone()
            .context("no ramdisk with libvirt was made")?;
        Ok(Self {
            ramdisk,
            cpu_model: CPU_OF_LIBVIRT,
            options: self.options.replace("dom0_mem=512M", "dom0_mem=1G"),
            ..self.clone()
        })
    }

    /// The same machine with Debian's tools.
    pub fn with_debians_tools(&self) -> Result<Self> {
        let ramdisk = self
            .debian_ramdisk
            .clone()
            .context("no ramdisk with Debian's tools was made")?;
        Ok(Self {
            ramdisk,
            ..self.clone()
        })
    }

    /// The same machine with a newer kernel in Domain 0.
    pub fn with_newer_dom0(&self) -> Result<Self> {
        let newer = self
            .newer_dom0
            .clone()
            .context("there is no newer kernel for Domain 0")?;
        Ok(Self {
            kernel: newer.kernel,
            ramdisk: newer.ramdisk,
            ..self.clone()
        })
    }

    /// The same machine with a further disk (vdb) that has the images which our tools have made, and nothing else.
    pub fn with_built(&self) -> Result<Self> {
        let built = self.built.clone().context("there are no images that were built")?;
        Ok(Self {
            further: Some(built),
            ..self.clone()
        })
    }

    /// `monitor` is the number of a socket that QEMU inherits.
    fn command(&self, monitor: RawFd) -> Command {
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
            Accelerator::Counted => "tcg,thread=single",
        });
        if self.accelerator == Accelerator::Counted {
            qemu.args(["-icount", "shift=0"]);
        }
        qemu.args(["-cpu", self.cpu_model]);
        qemu.arg("-smp")
            .arg(self.cpus.to_string())
            .arg("-m")
            .arg(format!("{}M", self.memory_mib));
        self.add_loader(&mut qemu);
        self.add_devices(&mut qemu);
        qemu.args(["-object", "rng-random,id=rng,filename=/dev/urandom"]);
        qemu.args(["-device", "virtio-rng-pci,rng=rng"]);
        qemu.args(["-serial", "stdio", "-mon", "chardev=monitor,mode=control", "-chardev"]);
        qemu.arg(format!("socket,id=monitor,fd={monitor}"));
        qemu
    }

    fn add_loader(&self, qemu: &mut Command) {
        let medium = self.medium.as_deref().unwrap_or(Path::new("no-medium"));
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
            Loader::QemuAlone => {
                qemu.arg("-kernel")
                    .arg(&self.hypervisor)
                    .arg("-append")
                    .arg(&self.options);
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
        let forward = self
            .forwarded
            .map(|(here, there)| format!(",hostfwd=tcp:127.0.0.1:{here}-10.0.2.15:{there}"));
        qemu.arg("-drive").arg(guests);
        qemu.arg("-netdev")
            .arg(format!("{NETWORK}{}", forward.unwrap_or_default()));
        if self.devices == Devices::Real {
            qemu.args(["-device", "ahci,id=ahci", "-device", "ide-hd,bus=ahci.0,drive=guests"]);
            qemu.args(["-device", "e1000,netdev=net,romfile="]);
            return;
        }
        qemu.args(["-device", "virtio-blk-pci,drive=guests"]);
        self.add_further_disks(qemu);
        qemu.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        if let Some(Cable { socket, mac }) = &self.cable {
            qemu.arg("-netdev")
                .arg(format!("socket,id=cable,fd={}", socket.as_raw_fd()));
            qemu.arg("-device")
                .arg(format!("virtio-net-pci,netdev=cable,mac={mac},romfile="));
        }
        if self.devices == Devices::Both {
            let kernel = drive("if=none,id=kernel,snapshot=on", &self.kernel);
            qemu.arg("-drive").arg(kernel).args(["-netdev", SECOND_NETWORK]);
            qemu.args(["-device", "ahci,id=ahci", "-device", "ide-hd,bus=ahci.0,drive=kernel"]);
            qemu.args(["-device", "e1000,netdev=lan,romfile="]);
        }
    }
}

impl Parts {
    /// What the empty disks begin as: nothing. Written to are only their snapshots.
    fn empty_disk(&self, number: usize) -> PathBuf {
        self.log.with_extension(format!("empty-{number}.img"))
    }

    fn add_further_disks(&self, qemu: &mut Command) {
        if let Some(shared) = &self.shared_disk {
            // Whoever writes to it sees to it that nobody else does: no lock on the file.
            qemu.arg("-drive")
                .arg(drive("if=none,id=shared,file.locking=off", shared));
            qemu.args(["-device", "virtio-blk-pci,drive=shared,share-rw=on"]);
        }
        let empty = (0..self.empty_disks.len()).map(|number| self.empty_disk(number));
        for (number, file) in self.root.iter().chain(&self.further).cloned().chain(empty).enumerate() {
            let file = drive(&format!("if=none,id=further{number},snapshot=on"), &file);
            qemu.arg("-drive").arg(file);
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive=further{number}"));
        }
    }

    fn make_empty_disks(&self) -> Result<()> {
        for (number, mib) in self.empty_disks.iter().enumerate() {
            let path = self.empty_disk(number);
            let made = File::create(&path).and_then(|file| file.set_len(mib << 20));
            made.with_context(|| format!("making {}", path.display()))?;
        }
        Ok(())
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
    monitor: Monitor,
    started: Instant,
    counts: bool,
    log: PathBuf,
}

impl Machine {
    /// Starts a machine of `parts`.
    pub fn start(parts: &Parts) -> Result<Self> {
        let (monitor, theirs) = UnixStream::pair().context("making the monitor's sockets")?;
        fcntl_setfd(&theirs, FdFlags::empty()).context("leaving a socket to QEMU")?;
        if let Some(cable) = &parts.cable {
            fcntl_setfd(&cable.socket, FdFlags::empty()).context("leaving a cable to QEMU")?;
        }
        if let Some(dir) = parts.log.parent() {
            fs::create_dir_all(dir)?;
        }
        parts.make_empty_disks()?;
        let log = File::create(&parts.log).with_context(|| format!("creating {}", parts.log.display()))?;
        let mut command = parts.command(theirs.as_raw_fd());
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("cannot start QEMU (qemu-system-x86_64, through setpriv)")?;
        drop(theirs);
        let keyboard = process.stdin.take().context("QEMU has no stdin")?;
        let screen = process.stdout.take().context("QEMU has no stdout")?;
        let transcript = Transcript::default();
        let copy = transcript.clone();
        thread::spawn(move || write_down(screen, log, &copy));
        Ok(Self {
            process,
            keyboard,
            transcript,
            monitor: Monitor::new(monitor)?,
            started: Instant::now(),
            counts: parts.accelerator == Accelerator::Counted,
            log: parts.log.clone(),
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

    /// Returns how far its life is.
    pub fn now(&mut self) -> Result<Moment> {
        let age = self.age();
        let instructions = if self.counts {
            let counted = self.monitor("query-replay", &Value::Null)?;
            counted["icount"].as_u64().context("QEMU does not count instructions")?
        } else {
            0
        };
        Ok(Moment { age, instructions })
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
    pub fn monitor(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.monitor.ask(command, arguments)
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

/// QEMU's monitor, at the other end of a socket.
struct Monitor {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
    is_greeted: bool,
}

impl Monitor {
    fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(MONITOR_PATIENCE))?;
        Ok(Self {
            writer: stream.try_clone()?,
            reader: BufReader::new(stream),
            is_greeted: false,
        })
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        if !self.is_greeted {
            self.line()?;
            self.command("qmp_capabilities", &Value::Null)?;
            self.is_greeted = true;
        }
        self.command(command, arguments)
    }

    fn command(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = if arguments.is_null() {
            json!({ "execute": command })
        } else {
            json!({ "execute": command, "arguments": arguments })
        };
        writeln!(self.writer, "{request}").context("QEMU's monitor hung up")?;
        // Events that come in between are passed over.
        loop {
            let said = self.line()?;
            if let Some(answer) = said.get("return") {
                return Ok(answer.clone());
            }
            if let Some(error) = said.get("error") {
                bail!("QEMU refused: {error}");
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("QEMU's monitor is silent")? == 0 {
            bail!("QEMU's monitor hung up");
        }
        Ok(serde_json::from_str(&line)?)
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
