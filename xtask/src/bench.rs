//! Brings everything together that a machine needs: hypervisor, images, accelerator.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use ferroxen_stories::console::Transcript;
use ferroxen_stories::machine::{Accelerator, CPU_MODEL, Devices, Loader, Parts};
use flate2::read::GzDecoder;

use crate::hypervisor;
use crate::images::{self, Images, Toolstack};
use crate::packages::{self, Need};
use crate::places;
use crate::programs::clean_command;
use crate::steps::Steps;

/// What Debian installs.
pub const STOCK_XEN: &str = "/boot/xen-4.17-amd64.gz";
/// How long a working /dev/kvm may take to boot a kernel to its first program.
const KVM_PATIENCE: Duration = Duration::from_secs(20);

/// The hypervisor's options.
pub const OPTIONS: &str = "console=com1,vga com1=115200,8n1 dom0_mem=512M loglvl=info guest_loglvl=warning";
/// The options of Domain 0's kernel.
///
/// A tmpfs as root would hold half of the memory that is free at boot at most, and end files short without a word.
pub const KERNEL_OPTIONS: &str = "console=hvc0 loglevel=6 rdinit=/init rootfstype=ramfs";

/// What to run, as the command line chose it.
#[derive(Debug, Clone, Copy)]
pub struct Choice {
    /// Debian's hypervisor instead of ours.
    pub stock: bool,
    /// Whose tools Domain 0 has.
    pub toolstack: Toolstack,
    /// Install what is missing without asking.
    pub yes: bool,
}

impl Choice {
    /// Whether hypervisor and toolstack both are ours.
    pub fn is_ours(self) -> bool {
        !self.stock && self.toolstack == Toolstack::Ours
    }
}

/// Makes images, and says what it is about.
type ImageMaker = fn(Toolstack, &mut dyn FnMut(&str)) -> Result<Images>;

/// Everything that is ready to be started.
pub struct Bench {
    hypervisor: PathBuf,
    images: Images,
    accelerator: Accelerator,
}

impl Bench {
    /// Installs, fetches and builds whatever is missing.
    pub fn prepare(choice: Choice, steps: &mut Steps) -> Result<Self> {
        Self::prepare_with(choice, images::make, steps)
    }

    /// As [`Self::prepare`], for who starts no guests but our own kernels.
    pub fn prepare_bare(choice: Choice, steps: &mut Steps) -> Result<Self> {
        Self::prepare_with(choice, images::make_bare, steps)
    }

    fn prepare_with(choice: Choice, make: ImageMaker, steps: &mut Steps) -> Result<Self> {
        let mut needs = vec![Need::Images, Need::Machine];
        needs.push(if choice.stock { Need::StockXen } else { Need::BareMetal });
        steps.step("tools", "install these packages by hand", |_| {
            packages::require(&needs, choice.yes)
        })?;
        let hypervisor = steps.step("hypervisor", "`cargo xtask build` shows it alone", |step| {
            if choice.stock {
                return stock_xen();
            }
            let built = hypervisor::build()?;
            step.say(&format!("{} bytes loaded, {} bytes packed", built.loaded, built.packed));
            Ok(built.elf)
        })?;
        let remake = "remove target/images to make all of them anew; apt must be able to download packages";
        let images = steps.step("images", remake, |step| {
            make(choice.toolstack, &mut |part| step.say(part))
        })?;
        let accelerator = steps.step("accelerator", "this step cannot fail", |step| {
            let accelerator = choose_accelerator(&images);
            step.say(match accelerator {
                Accelerator::Kvm => "KVM: it booted a kernel",
                Accelerator::Tcg | Accelerator::Counted => "translation (TCG): KVM is absent or does not boot a kernel",
            });
            Ok(accelerator)
        })?;
        Ok(Self {
            hypervisor,
            images,
            accelerator,
        })
    }

    /// Returns the parts of a machine whose log is named after `name`.
    pub fn parts(&self, name: &str) -> Parts {
        Parts {
            hypervisor: self.hypervisor.clone(),
            loader: Loader::Qemu,
            medium: None,
            options: OPTIONS.to_owned(),
            kernel: self.images.kernel.vmlinux.clone(),
            packed_kernel: self.images.kernel.bzimage.clone(),
            kernel_options: KERNEL_OPTIONS.to_owned(),
            ramdisk: self.images.dom0.clone(),
            debian_ramdisk: None,
            debian_hypervisor: None,
            libvirt_ramdisk: None,
            forwarded: None,
            debian_dom0: None,
            newer_dom0: None,
            built: None,
            further: None,
            root: None,
            empty_disks: Vec::new(),
            shared_disk: None,
            cable: None,
            disk: self.images.guests.clone(),
            devices: Devices::Virtio,
            cpu_model: CPU_MODEL,
            cpus: 1,
            memory_mib: 2048,
            accelerator: self.accelerator,
            log: places::made().join("logs").join(format!("{name}.log")),
            xtask: std::env::current_exe().unwrap_or_default(),
        }
    }
}

/// Unpacks Debian's hypervisor: QEMU's loader does not.
pub fn stock_xen() -> Result<PathBuf> {
    let unpacked = images::dir().join("xen-stock.elf");
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(STOCK_XEN).with_context(|| format!("opening {STOCK_XEN}"))?).read_to_end(&mut bytes)?;
    fs::create_dir_all(images::dir())?;
    fs::write(&unpacked, bytes)?;
    Ok(unpacked)
}

/// Takes KVM only after it has booted something; an openable /dev/kvm proves nothing.
///
/// The verdict is kept until the host boots again.
fn choose_accelerator(images: &Images) -> Accelerator {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Accelerator::Tcg;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let verdict_file = images::dir().join("kvm-verdict");
    let remembered = fs::read_to_string(&verdict_file).unwrap_or_default();
    let works = match remembered.strip_prefix(boot.as_str()) {
        Some("works") => true,
        Some("does not") => false,
        _ => {
            let works = kvm_boots(images);
            let verdict = if works { "works" } else { "does not" };
            // Losing the note only costs another probe.
            let _ = fs::write(&verdict_file, format!("{boot}{verdict}"));
            works
        }
    };
    if works { Accelerator::Kvm } else { Accelerator::Tcg }
}

/// Boots Debian's kernel with the smallest ramdisk and waits for its first program to speak.
fn kvm_boots(images: &Images) -> bool {
    let Some(mut probe) = start_probe(&images.kernel.bzimage, &images::dir().join("tiny.img")) else {
        return false;
    };
    let heard = probe.stdout.take().is_some_and(|mut screen| {
        let transcript = Transcript::default();
        let copy = transcript.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = screen.read(&mut bytes) {
                match bytes.get(..count) {
                    Some(said) if !said.is_empty() => copy.add(said),
                    _ => break,
                }
            }
            copy.close();
        });
        transcript
            .wait_for("tiny guest: up", 0, &["Kernel panic"], KVM_PATIENCE)
            .is_ok()
    });
    // Already gone is as good as killed.
    let _ = probe.kill();
    let _ = probe.wait();
    heard
}

fn start_probe(kernel: &Path, ramdisk: &Path) -> Option<Child> {
    let mut qemu = clean_command("setpriv");
    qemu.args([
        "--pdeathsig",
        "KILL",
        "--",
        "qemu-system-x86_64",
        "-nodefaults",
        "-display",
        "none",
    ]);
    qemu.args([
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "512M",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    qemu.args(["-append", "console=ttyS0 rdinit=/init"])
        .arg("-kernel")
        .arg(kernel);
    qemu.arg("-initrd").arg(ramdisk);
    qemu.stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}
