//! `xl help`, and what is said of commands that are not there.

use crate::absent::{ABSENT, Absent, OLD};
use crate::cli;
use clap::Args;
use std::fmt::Write as _;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub struct Help {
    /// Explain all commands
    #[arg(short, long)]
    pub long: bool,
    /// Explain this one
    pub command: Option<String>,
}

/// The heading of what stock xl has.
pub const NOT_HERE: &str = "Not available";
/// The heading of what only `xm` had.
pub const OLD_ONES: &str = "Only ever `xm`'s";

fn commands() -> Vec<clap::Command> {
    let mut cli = cli::command();
    cli.build();
    cli.get_subcommands()
        .filter(|command| !command.is_hide_set())
        .cloned()
        .collect()
}

/// The list of commands, in xl's layout.
pub fn overview() -> String {
    let mut text = "Usage xl [-vfNtT] <subcommand> [args]\n\nxl full list of subcommands:\n\n".to_owned();
    for command in commands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, " {:<19} {about}", command.get_name());
    }
    text
}

/// Commands that are not here, a line for each reason.
pub fn absent(heading: &str, commands: &[Absent]) -> String {
    let mut text = format!("{heading}:\n\n");
    let mut reasons: Vec<&str> = Vec::new();
    for command in commands {
        if !reasons.contains(&command.why) {
            reasons.push(command.why);
        }
    }
    for reason in reasons {
        let names: Vec<&str> = commands
            .iter()
            .filter(|command| command.why == reason)
            .map(|command| command.name)
            .collect();
        let _ = writeln!(text, " {}: {reason}", names.join(", "));
    }
    text
}

/// `xl help`
pub fn run(args: &Help) -> ExitCode {
    match &args.command {
        Some(wanted) => match commands().into_iter().find(|command| command.get_name() == wanted) {
            Some(mut command) => {
                print!("{}", command.render_long_help());
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("{}", no_such_command(wanted));
                ExitCode::FAILURE
            }
        },
        None if args.long => {
            print!("{}", overview());
            for mut command in commands() {
                print!("\n{}", command.render_long_help());
            }
            print!("\n{}", absent(NOT_HERE, ABSENT));
            print!("\n{}", absent(OLD_ONES, OLD));
            ExitCode::SUCCESS
        }
        None => {
            print!("{}", overview());
            println!("\n`xl help COMMAND` explains one, `xl help --long` all.");
            ExitCode::SUCCESS
        }
    }
}

/// What to say of a command that is not there.
pub fn no_such_command(word: &str) -> String {
    let mut known = ABSENT.iter().chain(OLD);
    if let Some(command) = known.find(|command| command.name == word) {
        return format!("xl: `{word}` is not available: {}", command.why);
    }
    let commands = commands();
    let here = commands.iter().map(clap::Command::get_name);
    let near = here
        .chain(ABSENT.iter().map(|command| command.name))
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .filter(|(distance, _)| *distance <= word.len().div_ceil(4).min(2))
        .min();
    match near {
        Some((_, name)) => format!("xl: there is no command `{word}`; did you mean `{name}`?"),
        None => format!("xl: there is no command `{word}` (`xl help` lists them)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overview_has_xls_layout() {
        insta::assert_snapshot!(overview());
    }

    #[test]
    fn what_is_absent_is_told_with_reasons() {
        insta::assert_snapshot!([absent(NOT_HERE, ABSENT), absent(OLD_ONES, OLD)].concat());
    }

    #[test]
    fn a_slip_finds_its_command() {
        assert!(no_such_command("crete").contains("`create`"));
        assert!(no_such_command("migrte").contains("`migrate`"));
        assert!(no_such_command("nope").contains("lists them"));
        assert!(no_such_command("remus").contains("Remus, COLO"));
        assert!(no_such_command("start").contains("`xl create FILE`"));
        assert!(no_such_command("frobnicate").contains("lists them"));
    }

    /// M145: what is absent says why, with an exit code.
    #[test]
    fn every_command_of_stock_xl_is_here_or_absent() {
        let stock = include_str!("../tests/stock-commands.txt");
        let commands = commands();
        let is_here = |name: &str| commands.iter().any(|command| command.get_name() == name);
        for name in stock.lines() {
            let is_absent = ABSENT.iter().any(|command| command.name == name);
            assert!(is_here(name) != is_absent, "{name}");
        }
    }
}
