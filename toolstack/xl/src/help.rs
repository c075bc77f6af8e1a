//! `xl help`, and what is said of commands that are not there.

use crate::cli::{Cli, Help};
use clap::CommandFactory;
use std::fmt::Write as _;
use std::process::ExitCode;

/// Commands of xl 4.17 that are not here yet.
const NOT_YET: &[&str] = &[
    "config-update",
    "pci-attach",
    "pci-detach",
    "pci-list",
    "pci-assignable-add",
    "pci-assignable-remove",
    "pci-assignable-list",
    "vncviewer",
    "save",
    "migrate",
    "restore",
    "migrate-receive",
    "dump-core",
    "cd-insert",
    "cd-eject",
    "button-press",
    "sharing",
    "sched-credit",
    "sched-rtds",
    "trigger",
    "set-parameters",
    "top",
    "network-attach",
    "network-detach",
    "channel-list",
    "block-attach",
    "block-detach",
    "vtpm-attach",
    "vtpm-list",
    "vtpm-detach",
    "vkb-attach",
    "vkb-list",
    "vkb-detach",
    "vdispl-attach",
    "vdispl-list",
    "vdispl-detach",
    "vsnd-attach",
    "vsnd-list",
    "vsnd-detach",
    "cpupool-create",
    "cpupool-list",
    "cpupool-destroy",
    "cpupool-rename",
    "cpupool-cpu-add",
    "cpupool-cpu-remove",
    "cpupool-migrate",
    "cpupool-numa-split",
    "getenforce",
    "setenforce",
    "loadpolicy",
    "remus",
    "devd",
    "psr-hwinfo",
    "psr-cmt-attach",
    "psr-cmt-detach",
    "psr-cmt-show",
    "psr-cat-set",
    "psr-cat-show",
    "psr-mba-set",
    "psr-mba-show",
    "usbctrl-attach",
    "usbctrl-detach",
    "usbdev-attach",
    "usbdev-detach",
    "usb-list",
    "qemu-monitor-command",
];

fn commands() -> Vec<clap::Command> {
    let mut cli = Cli::command();
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

/// `xl help`
pub fn run(args: &Help) -> ExitCode {
    match &args.command {
        Some(wanted) => match commands().into_iter().find(|command| command.get_name() == wanted) {
            Some(mut command) => {
                print!("{}", command.render_help());
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
                print!("\n{}", command.render_help());
            }
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
    if NOT_YET.contains(&word) {
        return format!("xl: the command `{word}` is not available yet (`xl help` lists those that are)");
    }
    let commands = commands();
    let near = commands
        .iter()
        .map(|command| {
            (
                strsim::damerau_levenshtein(word, command.get_name()),
                command.get_name(),
            )
        })
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
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
    fn a_slip_finds_its_command() {
        assert!(no_such_command("crete").contains("`create`"));
        assert!(no_such_command("migrate").contains("not available yet"));
        assert!(no_such_command("frobnicate").contains("lists them"));
    }

    #[test]
    fn no_command_is_both_here_and_not() {
        assert!(commands().iter().all(|command| !NOT_YET.contains(&command.get_name())));
    }
}
