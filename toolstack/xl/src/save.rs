//! `xl save` and `xl restore`.

use crate::create::{Start, Viewer, load};
use crate::{json, progress};
use anyhow::{Context, bail};
use clap::Args;
use ferroxen_consoled::interrupts;
use ferroxen_domains::create::Holder;
use ferroxen_domains::draft::Draft;
use ferroxen_domains::patience::Interrupt;
use ferroxen_domains::{Toolstack, create, recall, save};
use ferroxen_stream::{envelope, file::Head};
use ferroxen_words::DomId;
use ferroxen_xlconfig::Loaded;
use std::fs::File;
use std::io::{BufReader, BufWriter, IntoInnerError, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes gathered before they are written, or read ahead.
const BUFFER: usize = 1 << 20;

#[derive(Debug, Args)]
pub struct Save {
    /// A domain, by name or number
    #[arg(value_name = "Domain")]
    pub domain: String,
    /// The file to write
    #[arg(value_name = "CheckpointFile")]
    pub file: PathBuf,
    /// A configuration to save with it instead of its own
    #[arg(value_name = "ConfigFile")]
    pub config: Option<PathBuf>,
    /// Leave the domain running after creating the snapshot
    #[arg(short = 'c')]
    pub checkpoint: bool,
    /// Leave the domain paused after creating the snapshot
    #[arg(short = 'p', conflicts_with = "checkpoint")]
    pub pause: bool,
    /// Let the domain have its number again when it is restored
    #[arg(short = 'D')]
    pub keeps_domid: bool,
}

#[derive(Debug, Args)]
#[command(override_usage = "xl restore [OPTIONS] [ConfigFile] <CheckpointFile>")]
pub struct Restore {
    /// The saved domain; before it, a configuration to use instead of the one saved with it
    #[arg(value_name = "[ConfigFile] CheckpointFile", required = true, num_args = 1..=2)]
    pub files: Vec<PathBuf>,
    /// Connect to the console after the domain is restored
    #[arg(short = 'c')]
    pub console: bool,
    /// Do not unpause the domain after restoring it
    #[arg(short = 'p')]
    pub paused: bool,
    /// Do not wait in the background for the death of the domain
    #[arg(short = 'e')]
    pub exit: bool,
    /// Run in foreground until death of the domain
    #[arg(short = 'F')]
    pub foreground: bool,
    /// Say more
    #[arg(short = 'd')]
    debug: bool,
    /// Connect to the VNC display after the domain is restored
    #[arg(short = 'V', long = "vncviewer")]
    vncviewer: bool,
    /// Pass the VNC password to the viewer
    #[arg(short = 'A', long = "vncviewer-autopass")]
    vncviewer_autopass: bool,
}

/// `xl save`
pub fn save(args: &Save) -> anyhow::Result<()> {
    let stop = interrupts().context("preparing for Ctrl-C")?;
    let tools = Toolstack::open()?
        .until(Interrupt::from_pipe(stop))
        .showing(progress::for_people("save"));
    let domid = crate::domain(&tools, &args.domain)?;
    let head = head(&tools, domid, args.config.as_deref(), args.keeps_domid)?;
    let draft = Draft::open(&args.file).with_context(|| format!("cannot write {}", args.file.display()))?;
    eprintln!(
        "Saving to {} new xl format (info 0x3/0x0/{})",
        args.file.display(),
        head.config.len()
    );
    tools.suspend(domid)?;
    let written = write(&tools, domid, &head, draft);
    if let Err(error) = written {
        tools.resume(domid)?;
        return Err(error.context("the domain was not saved, and runs on"));
    }
    if args.pause {
        tools.pause(domid)?;
    }
    match args.checkpoint || args.pause {
        true => tools.resume(domid)?,
        false => tools.destroy(domid)?,
    }
    Ok(())
}

/// What stands in front of the image: the configuration that a file gives, or the domain's own.
pub fn head(tools: &Toolstack, domid: DomId, file: Option<&Path>, keeps_domid: bool) -> anyhow::Result<Head> {
    let info = tools.hypervisor.domain(domid)?.context("the domain has gone")?;
    let uuid = uuid::Uuid::from_bytes(info.handle);
    let config = match file {
        Some(file) => {
            let mut loaded = load(file, &[])?;
            loaded.become_domain(uuid, &tools.name(domid));
            loaded.config.domid = keeps_domid.then_some(domid.raw());
            json::configs(&[loaded])
        }
        None => {
            if tools.keep.load(domid, &uuid).is_none() {
                bail!(
                    "no configuration is kept of domain {}: name its file behind the other arguments",
                    domid.raw()
                );
            }
            json::running(tools, &info, domid, keeps_domid)
        }
    };
    Ok(Head { config })
}

fn write(tools: &Toolstack, domid: DomId, head: &Head, draft: Draft) -> anyhow::Result<()> {
    let mut to = BufWriter::with_capacity(BUFFER, draft);
    stream(tools, domid, head, &mut to)?;
    let draft = to.into_inner().map_err(IntoInnerError::into_error);
    draft.and_then(Draft::keep).context("writing the file")
}

/// Writes a suspended domain whole.
pub fn stream(tools: &Toolstack, domid: DomId, head: &Head, to: &mut dyn Write) -> anyhow::Result<()> {
    let mut to = to;
    head.write(&mut to)?;
    envelope::open(&mut to)?;
    save::write_image(tools, domid, to)?;
    envelope::close(&mut to)?;
    Ok(())
}

/// `xl restore`
pub fn restore(args: &Restore) -> anyhow::Result<()> {
    let (config, path) = match args.files.as_slice() {
        [path] => (None, path),
        [config, path] => (Some(config), path),
        _ => bail!("one saved domain at a time"),
    };
    let opened = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut from = BufReader::with_capacity(BUFFER, opened);
    let what = || format!("reading {}", path.display());
    let head = Head::read(&mut from).with_context(what)?;
    eprintln!(
        "Loading new save file {} (new xl fmt info 0x3/0x0/{})",
        path.display(),
        head.config.len()
    );
    let mut loaded = match config {
        None => recalled(&head)?,
        Some(config) => load(config, &[])?,
    };
    let stop = interrupts().context("preparing for Ctrl-C")?;
    let tools = Toolstack::open()?
        .until(Interrupt::from_pipe(stop.try_clone()?))
        .showing(progress::for_people("restore"));
    loaded.settle();
    let domid = receive(&tools, &loaded, &mut from, Holder::Nobody).with_context(what)?;
    let start = Start {
        console: args.console,
        paused: args.paused,
        quiet: true,
        alone: args.exit,
        foreground: args.foreground,
        viewer: Viewer::wanted(args.vncviewer, args.vncviewer_autopass),
    };
    start.finish(&tools, domid, &loaded, stop)
}

/// The configuration that was saved with a domain; says what of it we have no setting for.
pub fn recalled(head: &Head) -> anyhow::Result<Loaded> {
    let (loaded, strange) = recall::config(&head.config)?;
    if !strange.is_empty() {
        eprintln!(
            "warning: the saved configuration has settings that are not known here: {}",
            strange.join(", ")
        );
    }
    Ok(loaded)
}

/// Makes a domain of a stream from behind its head on.
pub fn receive(tools: &Toolstack, loaded: &Loaded, from: &mut dyn Read, holder: Holder) -> anyhow::Result<DomId> {
    let mut from = from;
    envelope::header(&mut from)?;
    if envelope::next(&mut from)? != envelope::Next::Image {
        bail!("there is no domain in it");
    }
    let domid = create::restore(tools, &loaded.config, from, holder)?;
    match envelope::next(&mut from) {
        Ok(envelope::Next::End) => Ok(domid),
        other => {
            tools.destroy(domid)?;
            other?;
            bail!("there is more than one domain in it");
        }
    }
}
