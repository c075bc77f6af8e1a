//! Other programs: started with a clean environment, and named when they fail.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Variables which cargo and rustup set for us and which would mislead another toolchain's cargo.
const CARGO_NOISE: [&str; 8] = [
    "RUSTC",
    "RUSTDOC",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTUP_TOOLCHAIN",
    "CARGO_BUILD_TARGET",
    "LD_LIBRARY_PATH",
];

/// Prepares `program` free of what the cargo that runs us put into the environment.
pub fn clean_command(program: &str) -> Command {
    cleaned(Command::new(program))
}

/// The same of one that mounts things: nothing of it stays when it is killed, or when we are.
pub fn contained_command(program: &str) -> Command {
    cleaned(ferroxen_contained::command(program))
}

fn cleaned(mut command: Command) -> Command {
    for name in CARGO_NOISE {
        command.env_remove(name);
    }
    command
}

/// Whether we own whatever we make.
pub fn is_root() -> bool {
    answer(clean_command("id").arg("-u")).as_deref() == Some("0")
}

/// Runs `command` with our own output, and fails with its name when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed ({status})");
    }
    Ok(())
}

/// Copies `program` to a file beside it that lacks what `option` of objcopy's names. Whoever can link host programs has
/// binutils, so that is there.
pub fn stripped(option: &str, program: &Path) -> Result<PathBuf> {
    let stripped = program.with_extension("stripped");
    run(clean_command("objcopy").arg(option).arg(program).arg(&stripped))?;
    Ok(stripped)
}

/// Runs `command` and returns what it printed, or `None` when it is absent or failed.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}

/// Runs `command` silently; when it fails, the error carries the last lines of what it said.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    const TAIL: usize = 20;
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if output.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().collect();
    let tail = lines
        .get(lines.len().saturating_sub(TAIL)..)
        .unwrap_or_default()
        .join("\n");
    bail!("{name} failed ({}):\n{tail}", output.status)
}
