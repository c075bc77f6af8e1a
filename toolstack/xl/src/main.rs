//! `xl`, also as `xm`: the command line over [`ferroxen_domains`].
//!
//! One file per group of commands; each prints in stock xl 4.17's layout and leaves the work to the library.
//! Exit codes are xl's: 0 done, 1 failed, 2 not understood, 3 a domain could not be made.
#![forbid(unsafe_code)]

mod cli;
mod console;
mod create;
mod devices;
mod help;
mod host;
mod json;
mod lifecycle;
mod list;
mod time;
mod tune;
mod vcpus;

use anyhow::Context;
use clap::Parser;
use clap::error::ErrorKind;
use cli::{Cli, Command};
use ferroxen_domains::Toolstack;
use ferroxen_words::DomId;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&words, &error),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Some(command) = cli.command else {
        print!("{}", help::overview());
        return Ok(ExitCode::from(1));
    };
    match command {
        Command::Help(args) => return Ok(help::run(&args)),
        Command::Create(args) => return create::run(&args),
        Command::Monitor(args) => return create::monitor(&args),
        _ => {}
    }
    let tools = Toolstack::open()?;
    match command {
        Command::List(args) => list::run(&tools, &args)?,
        Command::VcpuList(args) => vcpus::run(&tools, &args)?,
        Command::VmList => list::vms(&tools)?,
        Command::Claims => list::claims(&tools)?,
        Command::BlockList(args) => devices::disks(&tools, &args)?,
        Command::NetworkList(args) => devices::cards(&tools, &args)?,
        Command::Sysrq(args) => tools.sysrq(domain(&tools, &args.domain)?, args.letter)?,
        Command::Info => print!("{}", host::info(&tools)?),
        Command::Dmesg(args) => host::dmesg(&tools, &args)?,
        Command::DebugKeys(args) => tools.hypervisor.debug_keys(&args.keys).context("sending debug keys")?,
        Command::Domid(args) => match tools
            .find(&args.domain)?
            .filter(|_| args.domain.parse::<u16>().is_err())
        {
            Some(domid) => println!("{}", domid.raw()),
            None => {
                eprintln!(
                    "Can't get domid of domain name '{}', maybe this domain does not exist.",
                    args.domain
                );
                return Ok(ExitCode::FAILURE);
            }
        },
        Command::Domname(args) => {
            let name = DomId::new(args.domid)
                .map(|domid| ferroxen_domains::nodes::name(&tools.store, domid))
                .transpose()?;
            let Some(name) = name.flatten() else {
                eprintln!(
                    "Can't get domain name of domain id '{}', maybe this domain does not exist.",
                    args.domid
                );
                return Ok(ExitCode::FAILURE);
            };
            println!("{name}");
        }
        Command::Uptime(args) => time::run(&tools, &args)?,
        Command::Console(args) => return console::run(domain(&tools, &args.domain)?),
        Command::Destroy(args) => lifecycle::destroy(&tools, &args)?,
        Command::Shutdown(args) => lifecycle::shutdown(&tools, &args)?,
        Command::Reboot(args) => lifecycle::reboot(&tools, &args)?,
        Command::Pause(args) => tools.pause(domain(&tools, &args.domain)?)?,
        Command::Unpause(args) => tools.unpause(domain(&tools, &args.domain)?)?,
        Command::Rename(args) => tools.rename(domain(&tools, &args.domain)?, &args.name)?,
        Command::MemSet(args) => tools.set_memory_target(domain(&tools, &args.domain)?, args.memory.kib())?,
        Command::MemMax(args) => tools.set_memory_max(domain(&tools, &args.domain)?, args.memory.kib())?,
        Command::VcpuSet(args) => tools.set_vcpus(domain(&tools, &args.domain)?, args.count)?,
        Command::VcpuPin(args) => tune::pin(&tools, &args)?,
        Command::SchedCredit2(args) => tune::sched_credit2(&tools, &args)?,
        Command::Help(_) | Command::Create(_) | Command::Monitor(_) => {}
    }
    Ok(ExitCode::SUCCESS)
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

/// Help and versions are no errors; a wrong command gets the nearest one, as do wrong options.
fn misunderstood(words: &[String], error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            print!("{error}");
            ExitCode::SUCCESS
        }
        ErrorKind::InvalidSubcommand => {
            let word = words
                .iter()
                .skip(1)
                .find(|word| !word.starts_with('-'))
                .map_or("", String::as_str);
            eprintln!("{}", help::no_such_command(word));
            ExitCode::from(1)
        }
        _ => {
            eprint!("{error}");
            ExitCode::from(2)
        }
    }
}
