//! Manual pages and shell completions of `xl` and `xm`, from the same definitions that read the command line.
//!
//! `xl-pages DIRECTORY` writes, as a package has them:
//! `share/man/man1/xl.1` and one page per command, `share/bash-completion/completions/`,
//! `share/zsh/vendor-completions/` and `share/fish/vendor_completions.d/`.
#![forbid(unsafe_code)]

use anyhow::{Context, bail};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use ferroxen_xl::{ABSENT, Absent, NOT_HERE, OLD, OLD_ONES, command};
use std::path::Path;

/// Where each shell looks below `/usr`.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions"),
    (Shell::Zsh, "share/zsh/vendor-completions"),
    (Shell::Fish, "share/fish/vendor_completions.d"),
];
const MANUALS: &str = "share/man/man1";

fn main() -> anyhow::Result<()> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let [directory] = words.as_slice() else {
        bail!("usage: xl-pages DIRECTORY");
    };
    let directory = Path::new(directory);
    manuals(&directory.join(MANUALS))?;
    for (shell, place) in COMPLETIONS {
        completions(shell, &directory.join(place))?;
    }
    Ok(())
}

fn manuals(directory: &Path) -> anyhow::Result<()> {
    make(directory)?;
    let mut xl = command();
    xl.build();
    let mut page = Vec::new();
    Man::new(xl.clone()).render(&mut page)?;
    section(NOT_HERE, ABSENT).to_writer(&mut page)?;
    section(OLD_ONES, OLD).to_writer(&mut page)?;
    write(&directory.join("xl.1"), &page)?;
    write(&directory.join("xm.1"), b".so man1/xl.1\n")?;
    pages_below(&xl, "xl", directory)
}

/// A page for each command below one, under the name by which that one's page tells of it.
fn pages_below(above: &Command, name: &str, directory: &Path) -> anyhow::Result<()> {
    for command in visible(above) {
        let name = format!("{name}-{}", command.get_name());
        let mut page = Vec::new();
        Man::new(command.clone()).title(&name).render(&mut page)?;
        write(&directory.join(format!("{name}.1")), &page)?;
        pages_below(command, &name, directory)?;
    }
    Ok(())
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

/// What is not there, and why.
fn section(heading: &str, commands: &[Absent]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [heading.to_uppercase().as_str()]);
    for command in commands {
        roff.control("TP", []);
        roff.text([bold(command.name)]);
        roff.text([roman(command.why)]);
    }
    roff
}

fn completions(shell: Shell, directory: &Path) -> anyhow::Result<()> {
    make(directory)?;
    for name in ["xl", "xm"] {
        let path = clap_complete::generate_to(shell, &mut command(), name, directory)
            .with_context(|| format!("writing completions to {}", directory.display()))?;
        // bash-completion looks for the bare name.
        if shell == Shell::Bash {
            std::fs::rename(&path, directory.join(name)).with_context(|| format!("renaming {}", path.display()))?;
        }
    }
    Ok(())
}

fn make(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}
