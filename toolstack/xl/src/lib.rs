//! `xl`, also as `xm`: the command line over [`ferroxen_domains`].
//!
//! One file per group of commands: what they take, and what they print, in stock xl 4.17's layout. The work is left
//! to the library. Exit codes are xl's: 0 done, 1 failed, 2 not understood, 3 a domain could not be made.
#![forbid(unsafe_code)]

mod absent;
mod cdrom;
mod cli;
mod console;
mod create;
mod devd;
mod devices;
mod domids;
mod dump;
mod help;
mod host;
mod image;
mod json;
mod lifecycle;
mod list;
mod migrate;
mod network;
mod pools;
mod progress;
mod save;
mod sched;
mod screen;
mod time;
mod tune;
mod vcpus;

pub use absent::{ABSENT, Absent, OLD};
pub use cli::command;
pub use help::{NOT_HERE, OLD_ONES, absent};

use anyhow::Context;
use clap::error::ErrorKind;
use cli::{Cli, Command};
use ferroxen_domains::Toolstack;
use ferroxen_words::DomId;
use std::io::Write;
use std::process::ExitCode;

/// Runs the command line.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let cli = match cli::parse(&words) {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&words, &error),
    };
    match run(cli) {
        Ok(code) => code,
        // Whoever reads what we print has had enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Some(command) = cli.command else {
        show(&help::overview())?;
        return Ok(ExitCode::from(1));
    };
    let dry = cli.general.dry_run;
    match command {
        Command::Help(args) => return Ok(help::run(&args)),
        Command::Create(args) => return create::run(&args, dry),
        Command::Validate(args) => return create::validate(&args),
        Command::ConfigUpdate(args) => create::update(&args)?,
        Command::List(args) => list::run(&tools()?, &args)?,
        Command::VcpuList(args) => return vcpus::run(&tools()?, &args),
        Command::VmList(args) => list::vms(&tools()?, &args)?,
        Command::Claims(args) => list::claims(&tools()?, &args)?,
        Command::Sharing(args) => list::sharing(&tools()?, &args)?,
        Command::BlockAttach(args) => devices::attach_disk(&args, dry)?,
        Command::BlockList(args) => return devices::disks(&tools()?, &args),
        Command::BlockResize(args) => devices::resize_disk(&tools()?, &args)?,
        Command::BlockDetach(args) => devices::detach_disk(&tools()?, &args)?,
        Command::NetworkAttach(args) => devices::attach_card(&args, dry)?,
        Command::NetworkList(args) => return devices::cards(&tools()?, &args),
        Command::ChannelList(args) => return devices::channels(&tools()?, &args),
        Command::NetworkDetach(args) => devices::detach_card(&tools()?, &args)?,
        Command::CdInsert(args) => cdrom::insert(&tools()?, &args)?,
        Command::CdEject(args) => cdrom::eject(&tools()?, &args)?,
        Command::Image(args) => image::run(&args)?,
        Command::NetworkScript(args) => return network::run(&args),
        Command::Info(args) => host::info(&args)?,
        Command::Dmesg(args) => host::dmesg(&args)?,
        Command::DebugKeys(args) => host::debug_keys(&args)?,
        Command::SetParameters(args) => host::set_parameters(&args)?,
        Command::Devd(args) => devd::run(&args)?,
        Command::Top => host::top()?,
        Command::CpupoolCreate(args) => pools::create(&args, dry)?,
        Command::CpupoolList(args) => pools::list(&args)?,
        Command::CpupoolDestroy(args) => pools::destroy(&args)?,
        Command::CpupoolRename(args) => pools::rename(&args)?,
        Command::CpupoolCpuAdd(args) => pools::add_cpus(&args)?,
        Command::CpupoolCpuRemove(args) => pools::remove_cpus(&args)?,
        Command::CpupoolMigrate(args) => pools::migrate(&args)?,
        Command::CpupoolNumaSplit => pools::split()?,
        Command::Domid(args) => return domids::domid(&tools()?, &args),
        Command::Domname(args) => return domids::domname(&tools()?, &args),
        Command::Uptime(args) => return time::run(&tools()?, &args),
        Command::Console(args) => return console::run(&tools()?, &args),
        Command::Destroy(args) => lifecycle::destroy(&tools()?, &args)?,
        Command::Shutdown(args) => return lifecycle::shutdown(&args),
        Command::Reboot(args) => return lifecycle::reboot(&args),
        Command::Pause(args) => {
            let tools = tools()?;
            tools.pause(domain(&tools, &args.domain)?)?;
        }
        Command::Unpause(args) => {
            let tools = tools()?;
            tools.unpause(domain(&tools, &args.domain)?)?;
        }
        Command::Save(args) => save::save(&args)?,
        Command::Restore(args) => save::restore(&args)?,
        Command::Migrate(args) => migrate::send(&args)?,
        Command::MigrateReceive(args) => migrate::receive(&args)?,
        Command::Rename(args) => lifecycle::rename(&tools()?, &args)?,
        Command::DumpCore(args) => dump::run(&args)?,
        Command::Sysrq(args) => lifecycle::sysrq(&tools()?, &args)?,
        Command::Vncviewer(args) => screen::vncviewer(&tools()?, &args)?,
        Command::QemuMonitor(args) => screen::monitor_command(&tools()?, &args)?,
        Command::Trigger(args) => lifecycle::trigger(&tools()?, &args)?,
        Command::MemSet(args) => tune::set_memory(&tools()?, &args)?,
        Command::MemMax(args) => tune::set_max_memory(&tools()?, &args)?,
        Command::VcpuSet(args) => tune::set_vcpus(&tools()?, &args)?,
        Command::VcpuPin(args) => tune::pin(&tools()?, &args, dry)?,
        // Stock xl's, too, prints nothing of domains that another scheduler runs.
        Command::SchedCredit(args) => sched::credit(&args)?,
        Command::SchedCredit2(args) => sched::credit2(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn tools() -> anyhow::Result<Toolstack> {
    Ok(Toolstack::open()?)
}

/// Prints; whether somebody is still there to read it is found out here.
fn show(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// The domain that a name or number means, and that exists.
fn domain(tools: &Toolstack, word: &str) -> anyhow::Result<DomId> {
    let found = tools.find(word)?;
    let exists = match found {
        Some(domid) => tools
            .hypervisor
            .domain(domid)
            .context("asking about the domain")?
            .is_some(),
        None => false,
    };
    found
        .filter(|_| exists)
        .with_context(|| format!("{word} is an invalid domain identifier (rc=-6)"))
}

/// The named domains, or all; of each word that means none, it is said, and the rest goes on.
fn chosen(tools: &Toolstack, words: &[String]) -> anyhow::Result<(Vec<DomId>, ExitCode)> {
    if words.is_empty() {
        let infos = tools.hypervisor.domains().context("asking for the domains")?;
        let domids = infos.iter().filter_map(|info| DomId::new(info.domain.0)).collect();
        return Ok((domids, ExitCode::SUCCESS));
    }
    let mut code = ExitCode::SUCCESS;
    let mut domids = Vec::new();
    for word in words {
        match domain(tools, word) {
            Ok(domid) => domids.push(domid),
            Err(error) => {
                eprintln!("{error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok((domids, code))
}

/// Help and versions are no errors; a wrong command gets the nearest one, as do wrong options.
fn misunderstood(words: &[String], error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Whoever asked for help and does not read it will not miss it.
            let _ = show(&error.to_string());
            ExitCode::SUCCESS
        }
        ErrorKind::InvalidSubcommand => {
            let word = words
                .iter()
                .skip(1)
                .find(|word| !word.starts_with('-'))
                .map_or("", String::as_str);
            eprintln!("{}", help::no_such_command(word));
            ExitCode::FAILURE
        }
        _ => {
            eprint!("{error}");
            ExitCode::from(2)
        }
    }
}
