//! `xenconsole DOMID`: shows a guest's console.
#![forbid(unsafe_code)]

use clap::Parser;
use ferroxen_consoled::{AttachOptions, Ended, attach, interrupts};
use std::process::ExitCode;

/// Shows a guest's console. Ctrl-] detaches.
#[derive(Parser, Debug)]
#[command(name = "xenconsole", version)]
struct Options {
    /// The letter that detaches, with Ctrl
    #[arg(short, long, default_value = "]")]
    escape: char,
    /// The console's number: 0 is the domain's own, others are channels
    #[arg(short, long, default_value_t = 0)]
    num: u32,
    /// The domain's number
    domid: u16,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let Some(escape) = control(options.escape) else {
        eprintln!("xenconsole: {:?} has no control character", options.escape);
        return ExitCode::FAILURE;
    };
    match attach(
        options.domid,
        AttachOptions {
            number: options.num,
            escape: Some(escape),
            interrupt: interrupts().ok(),
            on_attached: None,
        },
    ) {
        Ok(Ended::Detached) => {
            println!();
            ExitCode::SUCCESS
        }
        Ok(Ended::DomainGone) => ExitCode::SUCCESS,
        Ok(Ended::Interrupted) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xenconsole: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The byte that Ctrl and a letter make.
fn control(letter: char) -> Option<u8> {
    let letter = u8::try_from(letter.to_ascii_uppercase()).ok()?;
    (b'@'..=b'_').contains(&letter).then(|| letter - b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_found() {
        assert_eq!(control(']'), Some(0x1d));
        assert_eq!(control('a'), Some(1));
        assert_eq!(control('1'), None);
    }
}
