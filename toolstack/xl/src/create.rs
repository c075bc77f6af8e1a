//! `xl create`, and the process that stays with a domain.

use crate::{console, json, progress, screen};
use anyhow::{Context, bail};
use clap::Args;
use ferroxen_consoled::interrupts;
use ferroxen_domains::patience::{Interrupt, Patience};
use ferroxen_domains::{Toolstack, create, monitor as keeper};
use ferroxen_words::DomId;
use ferroxen_xenctl::start_copy;
use ferroxen_xlconfig::Loaded;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

/// xl's code for "no domain was made", and for "there is no file".
const NOT_CREATED: u8 = 3;
/// xl's code for "what configuration?".
const NO_FILE: u8 = 6;
/// How long the process that stays with a domain may take to begin.
const MONITOR_PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(
    override_usage = "xl create [OPTIONS] <ConfigFile> [KEY=VALUE]...",
    after_help = "A file without a directory is looked for here, then in /etc/xen.\n\
                  Settings on the command line stand behind the file's; quotes round a string may be left out:\n  \
                  xl create web.cfg memory=512 'disk+=[\"phy:/dev/vg/data,xvdb,w\"]'"
)]
pub struct Create {
    /// The configuration file, and settings that override its own
    #[arg(value_name = "ConfigFile | KEY=VALUE")]
    pub words: Vec<String>,
    /// Connect to the console after the domain is created
    #[arg(short = 'c')]
    pub console: bool,
    /// Leave the domain paused after it is created
    #[arg(short = 'p')]
    pub paused: bool,
    /// Dry run: print the resulting configuration, make nothing
    #[arg(short = 'n', long = "dryrun")]
    pub dry_run: bool,
    /// Quiet
    #[arg(short = 'q', long = "quiet")]
    pub quiet: bool,
    /// Do not wait in the background for the death of the domain
    #[arg(short = 'e')]
    pub exit: bool,
    /// Run in foreground until death of the domain
    #[arg(short = 'F')]
    pub foreground: bool,
    /// Use the given configuration file
    #[arg(short = 'f', long = "defconfig", value_name = "FILE")]
    pub defconfig: Option<PathBuf>,
    /// Say more
    #[arg(short = 'd')]
    debug: bool,
    /// Connect to the VNC display after the domain is created
    #[arg(short = 'V', long = "vncviewer")]
    vncviewer: bool,
    /// Pass the VNC password to the viewer
    #[arg(short = 'A', long = "vncviewer-autopass")]
    vncviewer_autopass: bool,
    /// Let it run also on CPUs that vm.cpumask and vm.pv.cpumask of xl.conf leave out
    #[arg(long)]
    ignore_global_affinity_masks: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Nothing is made, and the hypervisor is not asked: this works anywhere.")]
pub struct Validate {
    /// Configuration files
    #[arg(value_name = "ConfigFile", required = true)]
    pub files: Vec<PathBuf>,
    /// Only say what is wrong
    #[arg(short = 'q', long = "quiet")]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct ConfigUpdate {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The configuration file, and settings that override its own
    #[arg(value_name = "ConfigFile | KEY=VALUE")]
    pub words: Vec<String>,
    /// Use the given configuration file
    #[arg(short = 'f', long = "defconfig", value_name = "FILE")]
    pub defconfig: Option<PathBuf>,
    /// Say more
    #[arg(short = 'd')]
    debug: bool,
}

/// Takes a file and settings apart; a setting is what has a `=` in it.
fn file_and_settings(words: &[String], defconfig: Option<&PathBuf>) -> Result<(PathBuf, Vec<String>), ExitCode> {
    let (settings, files): (Vec<_>, Vec<_>) = words.iter().cloned().partition(|word| word.contains('='));
    match (files.as_slice(), defconfig) {
        ([], Some(file)) => Ok((file.clone(), settings)),
        ([file], None) => Ok((file.into(), settings)),
        ([], None) => {
            eprintln!("xl: no configuration file is named");
            Err(ExitCode::from(NO_FILE))
        }
        _ => {
            eprintln!("xl: one configuration file at a time; settings are written KEY=VALUE");
            Err(ExitCode::from(2))
        }
    }
}

/// `xl create`
pub fn run(args: &Create, dry: bool) -> anyhow::Result<ExitCode> {
    let (file, settings) = match file_and_settings(&args.words, args.defconfig.as_ref()) {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    let Some(file) = ferroxen_xlconfig::find(&file) else {
        eprintln!("xl: {}", ferroxen_xlconfig::not_found(&file));
        return Ok(ExitCode::from(NOT_CREATED));
    };
    let Some(all) = read(&file, &settings, args.quiet) else {
        return Ok(ExitCode::FAILURE);
    };
    if args.dry_run || dry {
        crate::show(&json::configs(&all))?;
        return Ok(ExitCode::SUCCESS);
    }
    if all.len() > 1 && (args.console || args.foreground) {
        bail!(
            "{} describes {} domains: -c and -F are for one",
            file.display(),
            all.len()
        );
    }
    for loaded in all {
        if let Err(error) = make(args, loaded) {
            eprintln!("xl: {error:#}");
            return Ok(ExitCode::from(NOT_CREATED));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a file and says what there is to say about it; nothing if it cannot be used.
fn read(file: &Path, settings: &[String], quiet: bool) -> Option<Vec<Loaded>> {
    if !quiet {
        eprintln!("Parsing config from {}", file.display());
    }
    let mut all = match ferroxen_xlconfig::load_all(file, settings) {
        Ok(all) => all,
        Err(problem) => {
            problem.each().for_each(|problem| eprintln!("error: {problem}"));
            return None;
        }
    };
    let mut said = BTreeSet::new();
    for notice in all.iter().flat_map(|loaded| &loaded.notices) {
        if said.insert(notice.to_string()) {
            eprintln!("warning: {notice}");
        }
    }
    for loaded in &mut all {
        loaded.settle();
    }
    Some(all)
}

/// `xl validate`
pub fn validate(args: &Validate) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for file in &args.files {
        let Some(found) = ferroxen_xlconfig::find(file) else {
            eprintln!("xl: {}", ferroxen_xlconfig::not_found(file));
            code = ExitCode::FAILURE;
            continue;
        };
        match read(&found, &[], args.quiet) {
            Some(all) if !args.quiet => crate::show(&json::configs(&all))?,
            Some(_) => {}
            None => code = ExitCode::FAILURE,
        }
    }
    Ok(code)
}

fn make(args: &Create, mut loaded: Loaded) -> anyhow::Result<()> {
    let stop = interrupts().context("preparing for Ctrl-C")?;
    let mut tools = Toolstack::open()?.until(Interrupt::from_pipe(stop.try_clone()?));
    if args.ignore_global_affinity_masks {
        tools.conf.cpumasks.clear();
    }
    let tools = match args.quiet {
        true => tools,
        false => {
            tools
                .conf_notices
                .iter()
                .for_each(|notice| eprintln!("warning: {notice}"));
            tools.showing(progress::for_people("create"))
        }
    };
    loaded.settle();
    let domid =
        create::create(&tools, &loaded.config).with_context(|| format!("cannot create \"{}\"", name(&loaded)))?;
    let start = Start {
        console: args.console,
        paused: args.paused,
        quiet: args.quiet,
        alone: args.exit,
        foreground: args.foreground,
        viewer: Viewer::wanted(args.vncviewer, args.vncviewer_autopass),
    };
    start.finish(&tools, domid, &loaded, stop)
}

/// What happens to a domain that was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// Its console is shown.
    pub console: bool,
    /// It stays paused.
    pub paused: bool,
    /// Nothing is said.
    pub quiet: bool,
    /// Nobody stays with it.
    pub alone: bool,
    /// We stay with it, and not another process.
    pub foreground: bool,
    /// Its screen is shown.
    pub viewer: Option<Viewer>,
}

/// How a domain's screen is shown.
#[derive(Clone, Copy, Debug)]
pub struct Viewer {
    autopass: bool,
}

impl Viewer {
    /// By `-V` and `-A`, of which the second is enough.
    pub fn wanted(viewer: bool, autopass: bool) -> Option<Viewer> {
        (viewer || autopass).then_some(Viewer { autopass })
    }
}

impl Start {
    /// Starts a domain that is complete and paused. If that fails the domain is taken back.
    pub fn finish(self, tools: &Toolstack, domid: DomId, loaded: &Loaded, stop: OwnedFd) -> anyhow::Result<()> {
        // From the moment it runs it is on its own.
        let is_started = Rc::new(Cell::new(false));
        let finished = self.start(tools, domid, loaded, stop, &is_started);
        if finished.is_err() && !is_started.get() {
            // The complaint that led here is the one worth reading.
            let _ = tools.destroy(domid);
        }
        finished
    }

    fn start(
        self,
        tools: &Toolstack,
        domid: DomId,
        loaded: &Loaded,
        stop: OwnedFd,
        is_started: &Rc<Cell<bool>>,
    ) -> anyhow::Result<()> {
        tools.keep.save(domid, loaded)?;
        if !self.alone && !self.foreground {
            stay_in_background(domid, loaded, &stop)?;
        }
        let (name, paused, quiet, viewer) = (name(loaded).to_owned(), self.paused, self.quiet, self.viewer);
        let is_started = is_started.clone();
        let start = move |tools: &Toolstack| -> anyhow::Result<()> {
            if !paused {
                tools.unpause(domid)?;
            }
            is_started.set(true);
            if let Some(viewer) = viewer
                && let Err(error) = screen::view(tools, domid, viewer.autopass)
            {
                // The domain can do without.
                eprintln!("warning: {name} is not shown: {error:#}");
            }
            if !quiet {
                crate::show(&format!("Started domain {name} (domid {})\n", domid.raw()))?;
            }
            Ok(())
        };
        if self.console {
            // Attaching has its own connections; so does what happens once it is attached.
            console::start_and_join(domid, stop, move || start(&Toolstack::open()?))?;
        } else {
            start(tools)?;
        }
        if self.foreground {
            keeper::supervise(tools, domid, loaded, |line| eprintln!("{line}"))?;
        }
        Ok(())
    }
}

fn name(loaded: &Loaded) -> &str {
    &loaded.config.name
}

/// Starts a copy of this process, detached from this terminal, to stay with the domain, and waits until it does.
fn stay_in_background(domid: DomId, loaded: &Loaded, stop: &OwnedFd) -> anyhow::Result<()> {
    let directory = Path::new("/var/log/xen");
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join(format!("xl-{}.log", name(loaded)));
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let (mut ready, theirs) = UnixStream::pair().context("making sockets")?;
    let doing = || "starting the process that stays with the domain";
    let stdio = [theirs.as_fd(), log.as_fd(), log.as_fd()];
    // The copy's own, for as long as it stays.
    let configuration: &'static Loaded = Box::leak(Box::new(loaded.clone()));
    start_copy(stdio, (domid, configuration), stay).with_context(doing)?;
    drop(theirs);
    let interrupt = Interrupt::from_pipe(stop.try_clone()?);
    let patience = Patience::until_interrupted(&interrupt, Some(MONITOR_PATIENCE));
    let mut word = [0];
    if !patience.ready(&ready).with_context(doing)? || ready.read(&mut word)? == 0 {
        bail!("{}: it ended, or did not begin; see {}", doing(), path.display());
    }
    Ok(())
}

/// What the copy does: its exit code.
fn stay((domid, loaded): (DomId, &Loaded)) -> u8 {
    match supervise(domid, loaded) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("xl: {error:#}");
            1
        }
    }
}

fn supervise(domid: DomId, loaded: &Loaded) -> anyhow::Result<()> {
    let tools = Toolstack::open_to_stay()?;
    tell_creator();
    let log = |line: String| println!("{line}");
    log(format!("waiting for domain {} (\"{}\")", domid.raw(), name(loaded)));
    keeper::supervise(&tools, domid, loaded, log)?;
    Ok(())
}

/// Our standard input is a socket of whoever started us; after a word it becomes what a daemon's should be.
fn tell_creator() {
    let stdin = std::io::stdin();
    if let Ok(socket) = stdin.as_fd().try_clone_to_owned() {
        // Whoever does not listen any more does not wait either.
        let _ = File::from(socket).write_all(b"+");
    }
    if let Ok(nothing) = File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&nothing);
    }
}

/// Reads a file that describes one domain, from here or from /etc/xen.
pub fn load(file: &Path, settings: &[String]) -> anyhow::Result<Loaded> {
    let found = ferroxen_xlconfig::find(file).with_context(|| ferroxen_xlconfig::not_found(file))?;
    ferroxen_xlconfig::load(&found, settings).map_err(|problem| anyhow::anyhow!("{problem}"))
}

/// `xl config-update`
pub fn update(args: &ConfigUpdate) -> anyhow::Result<()> {
    let Ok((file, settings)) = file_and_settings(&args.words, args.defconfig.as_ref()) else {
        bail!("nothing was changed");
    };
    let mut loaded = load(&file, &settings)?;
    let tools = Toolstack::open()?;
    let domid = crate::domain(&tools, &args.domain)?;
    let info = tools.hypervisor.domain(domid)?.context("the domain has gone")?;
    loaded.become_domain(uuid::Uuid::from_bytes(info.handle), &tools.name(domid));
    tools.keep.save(domid, &loaded)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken_apart(words: &[&str]) -> Option<(PathBuf, usize)> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let (file, settings) = file_and_settings(&words, None).ok()?;
        Some((file, settings.len()))
    }

    #[test]
    fn settings_and_the_file_come_in_any_order() {
        let web = PathBuf::from("web.cfg");
        assert_eq!(taken_apart(&["web.cfg", "memory=1", "vcpus=2"]), Some((web.clone(), 2)));
        assert_eq!(taken_apart(&["memory=1", "web.cfg"]), Some((web, 1)));
        assert_eq!(taken_apart(&["a", "b"]), None);
        assert_eq!(taken_apart(&["memory=1"]), None);
    }
}
