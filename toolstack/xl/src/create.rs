//! `xl create`, and the process that stays with a domain.

use crate::cli::{Create, Monitor};
use crate::{console, json};
use anyhow::Context;
use ferroxen_domains::{Toolstack, create, keep, monitor as keeper};
use ferroxen_words::DomId;
use ferroxen_xlconfig::{Loaded, Source};
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// xl's code for "no domain was made".
const NOT_CREATED: u8 = 3;

/// `xl create`
pub fn run(args: &Create) -> anyhow::Result<ExitCode> {
    let loaded = match ferroxen_xlconfig::load(args.defconfig.as_ref().unwrap_or(&args.config), &args.overrides) {
        Ok(loaded) => loaded,
        Err(problem) => {
            eprintln!("error: {problem}");
            return Ok(ExitCode::from(NOT_CREATED));
        }
    };
    if !args.quiet {
        eprintln!("Parsing config from {}", args.config.display());
    }
    for notice in &loaded.notices {
        eprintln!("warning: {notice}");
    }
    if args.dry_run {
        print!("{}", json::config(&loaded.config));
        return Ok(ExitCode::SUCCESS);
    }
    match start(args, loaded) {
        Ok(code) => Ok(code),
        Err(error) => {
            eprintln!("xl: {error:#}");
            Ok(ExitCode::from(NOT_CREATED))
        }
    }
}

fn start(args: &Create, mut loaded: Loaded) -> anyhow::Result<ExitCode> {
    let tools = Toolstack::open()?;
    let given = loaded.config.uuid;
    create::settle(&mut loaded.config);
    let config = &loaded.config;
    let uuid = config.uuid.context("the domain has no UUID")?;
    let mut text = loaded.text.clone();
    if given.is_none() {
        // So that the domain stays the same when it is built again.
        text.push_str(&format!("\nuuid = \"{uuid}\"\n"));
    }
    if !text.contains("name") || ferroxen_xlconfig::parse(Source::new("", text.clone()), &[]).is_err() {
        text.push_str(&format!("\nname = \"{}\"\n", config.name));
    }
    let domid = create::create(&tools, config).with_context(|| format!("cannot create \"{}\"", config.name))?;
    let finished = finish(&tools, args, domid, &loaded, &text, &uuid);
    if finished.is_err() {
        // The complaint that led here is the one worth reading.
        let _ = tools.destroy(domid);
    }
    finished
}

fn finish(
    tools: &Toolstack,
    args: &Create,
    domid: DomId,
    loaded: &Loaded,
    text: &str,
    uuid: &uuid::Uuid,
) -> anyhow::Result<ExitCode> {
    let kept = keep::save(domid, uuid, &loaded.config, text)?;
    if !args.exit && !args.foreground {
        stay_in_background(domid, &loaded.config.name, &kept)?;
    }
    let name = loaded.config.name.clone();
    let (paused, quiet) = (args.paused, args.quiet);
    let start = move |tools: &Toolstack| -> anyhow::Result<()> {
        if !paused {
            tools.unpause(domid)?;
        }
        if !quiet {
            println!("Started domain {name} (domid {})", domid.raw());
        }
        Ok(())
    };
    if args.console {
        // Attaching has its own connections; so does what happens once it is attached.
        console::start_and_join(domid, move || start(&Toolstack::open()?))?;
    } else {
        start(tools)?;
    }
    if args.foreground {
        keeper::supervise(tools, domid, &loaded.config, text, |line| eprintln!("{line}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts another of us, detached from this terminal, to stay with the domain.
fn stay_in_background(domid: DomId, name: &str, kept: &Path) -> anyhow::Result<()> {
    let directory = Path::new("/var/log/xen");
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join(format!("xl-{name}.log"));
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    let errors = log.try_clone().context("opening the log twice")?;
    Command::new("/proc/self/exe")
        .arg0_xl()
        .arg("monitor")
        .arg(domid.raw().to_string())
        .arg(kept)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .context("starting the process that stays with the domain")?;
    Ok(())
}

trait Arg0 {
    fn arg0_xl(&mut self) -> &mut Self;
}

impl Arg0 for Command {
    fn arg0_xl(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::arg0(self, "xl")
    }
}

/// `xl monitor`: what `create` leaves behind.
pub fn monitor(args: &Monitor) -> anyhow::Result<ExitCode> {
    // Fails only for one that leads a session already, which is as good.
    let _ = rustix::process::setsid();
    let domid = DomId::new(args.domid).context("no such domain id")?;
    let text = std::fs::read_to_string(&args.config).with_context(|| format!("reading {}", args.config.display()))?;
    let loaded = ferroxen_xlconfig::parse(Source::new(args.config.display().to_string(), text.clone()), &[])?;
    let tools = Toolstack::open()?;
    let log = |line: String| println!("{line}");
    log(format!(
        "waiting for domain {} (\"{}\")",
        domid.raw(),
        loaded.config.name
    ));
    keeper::supervise(&tools, domid, &loaded.config, &text, log)?;
    Ok(ExitCode::SUCCESS)
}
