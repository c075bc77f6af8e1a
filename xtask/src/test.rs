//! `cargo xtask test`: everything that can be shown without a person. Prints a line per step.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ferroxen_stories::stories::{STORIES, Story};

use crate::bench::{Bench, Choice};
use crate::check::JUDGEMENTS;
use crate::conform;
use crate::fuzz_guest;
use crate::images::{self, Toolstack};
use crate::iso;
use crate::packages::{self, Need};
use crate::places;
use crate::programs::clean_command;
use crate::steps::Steps;

/// Which tests to run.
#[derive(Debug, Clone)]
pub struct Selection {
    /// What the stories run on.
    pub choice: Choice,
    /// Stories by name; all of the default set when empty.
    pub stories: Vec<String>,
    /// Leave out the stories.
    pub host_only: bool,
}

/// What was counted.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    passed: usize,
    failed: usize,
}

impl Tally {
    fn judge(&mut self, name: &str, act: impl FnOnce() -> Result<()>) {
        let began = Instant::now();
        let result = act();
        let seconds = began.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok      {name} ({seconds:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {name} ({seconds:.1} s): {error:#}");
            }
        }
    }
}

/// Runs the tests; an error when one of them failed.
pub fn test(selection: &Selection) -> Result<()> {
    let mut tally = Tally::default();
    if selection.stories.is_empty() {
        packages::require(&[Need::BareMetal, Need::Lint], selection.choice.yes)?;
        for (name, judgement) in JUDGEMENTS {
            tally.judge(name, judgement);
        }
        host_tests(&mut tally)?;
        tally.judge("conformance: the tiny guests see what Xen shows them", conform::check);
        tally.judge("random calls leave the hypervisor's books straight", fuzz_guest::check);
    }
    if !selection.host_only {
        if selection.stories.is_empty() {
            tally.judge("conformance: and so they do as domUs", conform::check_domu);
        }
        stories(selection, &mut tally)?;
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        bail!("{} tests failed", tally.failed);
    }
    Ok(())
}

/// Runs `cargo test`, shows failures, and counts every test.
fn host_tests(tally: &mut Tally) -> Result<()> {
    let mut cargo = clean_command("cargo");
    cargo
        .args(["test", "--no-fail-fast", "--target-dir"])
        .arg(places::host_target());
    cargo.current_dir(places::root()).stdin(Stdio::null());
    let (counted, succeeded) = counted_run(&mut cargo)?;
    println!("{} host tests passed, {} failed", counted.passed, counted.failed);
    tally.passed += counted.passed;
    tally.failed += counted.failed;
    if !succeeded && counted.failed == 0 {
        tally.judge("host tests build and run", || bail!("cargo test failed"));
    }
    Ok(())
}

fn counted_run(cargo: &mut Command) -> Result<(Tally, bool)> {
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut counted = Tally::default();
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).lines() {
        let line = line?;
        if let Some((passed, failed)) = result_of(&line) {
            counted.passed += passed;
            counted.failed += failed;
        } else if !line.starts_with("test ") || !line.ends_with(" ok") {
            println!("{line}");
        }
    }
    Ok((counted, child.wait()?.success()))
}

/// Reads `test result: ok. 4 passed; 0 failed; …`.
fn result_of(line: &str) -> Option<(usize, usize)> {
    let counts = line.strip_prefix("test result: ")?;
    let number_before = |word: &str| -> Option<usize> {
        counts
            .split(&format!(" {word}"))
            .next()?
            .rsplit([' ', ';'])
            .next()?
            .parse()
            .ok()
    };
    Some((number_before("passed")?, number_before("failed")?))
}

fn stories(selection: &Selection, tally: &mut Tally) -> Result<()> {
    let wanted = chosen(&selection.stories)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let prepared = Bench::prepare(selection.choice, &mut Steps::new());
    let more = |bench| {
        Ok((
            bench,
            medium_for(&wanted, selection.choice)?,
            debian_ramdisk_for(&wanted)?,
        ))
    };
    let (bench, medium, debian_ramdisk) = match prepared.and_then(more) {
        Ok(prepared) => prepared,
        Err(error) => {
            tally.judge("images for the stories", || Err(error));
            return Ok(());
        }
    };
    for story in wanted {
        let mut parts = bench.parts(&format!("story-{}", story.name));
        parts.medium.clone_from(&medium);
        parts.debian_ramdisk.clone_from(&debian_ramdisk);
        tally.judge(&line_of(story), || (story.tell)(&parts));
    }
    Ok(())
}

/// Only one story needs a CD.
fn medium_for(wanted: &[&Story], choice: Choice) -> Result<Option<PathBuf>> {
    if !wanted.iter().any(|story| story.name == "grub") {
        return Ok(None);
    }
    packages::require(&[Need::Iso], choice.yes)?;
    iso::make().map(Some)
}

/// Only one story needs Debian's toolstack.
fn debian_ramdisk_for(wanted: &[&Story]) -> Result<Option<PathBuf>> {
    if !wanted.iter().any(|story| story.name == "debian-xl") {
        return Ok(None);
    }
    Ok(Some(images::make(Toolstack::Debian, &mut |_| ())?.dom0))
}

fn line_of(story: &Story) -> String {
    let rows = if story.rows.is_empty() {
        String::new()
    } else {
        format!(" [{}]", story.rows.join(" "))
    };
    format!("story {}: {}{rows}", story.name, story.claim)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Story>> {
    if names.is_empty() {
        return Ok(STORIES.iter().collect());
    }
    let known = || STORIES.iter().map(|story| story.name).collect::<Vec<_>>().join(", ");
    names
        .iter()
        .map(|name| {
            let story = STORIES.iter().find(|story| story.name == name);
            story.with_context(|| format!("no story {name}; there are: {}", known()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured";
        assert_eq!(result_of(line), Some((12, 3)));
        assert_eq!(result_of("running 3 tests"), None);
    }
}
