//! `cargo xtask compat`: Debian's own Xen tools on Debian's Xen and on ours, and what they said compared.
//!
//! Both run the script of `tests/compat` in the same machine, with the same Domain 0. What each command printed and how
//! it ended must be alike, after what tells of the run itself (addresses, times, memory left over) has been masked; a
//! line in which ours differs is a failure, unless `tests/compat/differences.toml` has it with a reason. With `--ours`
//! the tools are ours: what they say on either hypervisor must be alike; and on Debian's they must do what Debian's tools
//! did when they were recorded, print what those printed, and refuse what those refused, in their own words.

mod differences;
mod masks;
mod recording;
mod script;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use ferroxen_stories::dom0::{Dom0, PATIENCE};
use ferroxen_stories::machine::{Accelerator, CPU_OF_LIBVIRT, Parts};

use crate::bench::{Bench, Choice};
use crate::images::{self, Toolstack};
use crate::places;
use crate::steps::Steps;
use crate::tree::Tree;
use differences::{Between, Comparison, Differences};
use masks::Masks;
use script::{Answer, Command, Compared, Script};

/// What the command line chose.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Parts of the titles of chapters; all of them without any.
    pub chapters: Vec<String>,
    /// Whose tools.
    pub tools: Toolstack,
    /// Where Debian's word comes from, and ours.
    pub oracle: Oracle,
    /// Install what is missing without asking.
    pub yes: bool,
}

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oracle {
    /// Both hypervisors, at once.
    Both,
    /// Debian's, of which the answers are written down.
    Record,
    /// Ours, compared with what is written down of Debian's.
    Recorded,
    /// Neither: what both said in the last run is enough.
    Kept,
}

/// How long a whole script may take on a slow machine.
const WHOLE: Duration = Duration::from_secs(3600);
/// What every machine has: two CPUs, so that there is one to spare for a pool; and guests of which the hypervisor
/// says nothing between what the tools say.
const CPUS: u32 = 2;
const OPTIONS: &str = "console=com1,vga com1=115200,8n1 dom0_mem=1G loglvl=info guest_loglvl=none";

/// Configurations of xm as people wrote them, which our own parser is tested with.
const OLD_CONFIGURATIONS: &str = "toolstack/xlconfig/tests/old";

/// Returns the folder of the script and all that belongs to it.
fn folder() -> PathBuf {
    places::root().join("tests/compat")
}

/// Runs the script on both hypervisors, prints the table, and fails where ours differs.
pub fn compat(selection: &Selection) -> Result<()> {
    let toolstack = selection.tools;
    let script = match toolstack {
        Toolstack::Ours | Toolstack::Debian => "script",
        Toolstack::Libvirt => "libvirt",
    };
    let script = Script::read(&folder().join(script))?.chosen(&selection.chapters, toolstack)?;
    let masks = Masks::read(&folder().join("masks.toml"))?;
    let recorded = folder().join("recorded").join(word(toolstack));
    let machine = |stock| parts(toolstack, stock, selection.yes, &script);
    let (stock, ours) = match selection.oracle {
        Oracle::Record => {
            return recording::write(&recorded, &script, &masks, &run_on_stock(&machine(true)?, &script)?);
        }
        Oracle::Recorded => (
            recording::read(&recorded, &script)?,
            run_on_ours(&machine(false)?, &script)?,
        ),
        Oracle::Kept => (kept(toolstack, true, &script)?, kept(toolstack, false, &script)?),
        Oracle::Both => run_on_both(&machine(true)?, &machine(false)?, &script)?,
    };
    if toolstack != Toolstack::Ours {
        return judge(Between::Hypervisors, &script, &masks, &stock, &ours);
    }
    let debians = recorded_of_debians_tools(&selection.chapters)?;
    let hypervisors = judge(Between::HypervisorsBelowOurTools, &script, &masks, &stock, &ours);
    judge(Between::Tools, &script, &masks, &debians, &stock).and(hypervisors)
}

/// What Debian's tools answered on Debian's hypervisor to the commands that there are with ours.
fn recorded_of_debians_tools(chapters: &[String]) -> Result<Vec<Answer>> {
    let whole = Script::read(&folder().join("script"))?.chosen(chapters, Toolstack::Debian)?;
    let answers = recording::read(&folder().join("recorded").join(word(Toolstack::Debian)), &whole)?;
    let both = whole.commands.iter().zip(answers);
    Ok(both
        .filter(|(command, _)| command.is_with_our_tools())
        .map(|(_, answer)| answer)
        .collect())
}

fn run_on_stock(parts: &Parts, script: &Script) -> Result<Vec<Answer>> {
    let answers = run_on(parts, script).context("on Debian's hypervisor")?;
    keep("stock", script, &answers)?;
    Ok(answers)
}

fn run_on_ours(parts: &Parts, script: &Script) -> Result<Vec<Answer>> {
    let answers = run_on(parts, script).context("on our hypervisor")?;
    keep("ours", script, &answers)?;
    Ok(answers)
}

/// Runs the script on both hypervisors at once.
fn run_on_both(stock: &Parts, ours: &Parts, script: &Script) -> Result<(Vec<Answer>, Vec<Answer>)> {
    thread::scope(|scope| {
        let stock = scope.spawn(|| run_on_stock(stock, script));
        let ours = run_on_ours(ours, script);
        let stock = stock.join();
        let stock = stock.map_err(|_| anyhow!("the run on Debian's hypervisor panicked"))?;
        Ok((stock?, ours?))
    })
}

/// The name of a machine and its log.
fn name(toolstack: Toolstack, stock: bool) -> String {
    let host = if stock { "stock" } else { "ours" };
    format!("compat-{}-on-{host}", word(toolstack))
}

/// Whose tools, in names of files.
fn word(toolstack: Toolstack) -> &'static str {
    match toolstack {
        Toolstack::Ours => "ours",
        Toolstack::Debian => "debian",
        Toolstack::Libvirt => "libvirt",
    }
}

/// What a machine said when it last ran the script.
fn kept(toolstack: Toolstack, stock: bool, script: &Script) -> Result<Vec<Answer>> {
    let path = places::made()
        .join("logs")
        .join(name(toolstack, stock))
        .with_extension("log");
    let said = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let answers = script::answers(&String::from_utf8_lossy(&said), script.commands.len());
    ensure!(
        answers.len() == script.commands.len(),
        "{} has other commands than the script, or not all of them",
        path.display()
    );
    Ok(answers)
}

/// Makes ready a machine whose Domain 0 has the script at /compat.
fn parts(toolstack: Toolstack, stock: bool, yes: bool, script: &Script) -> Result<Parts> {
    let choice = Choice { stock, toolstack, yes };
    let bench = Bench::prepare(choice, &mut Steps::new())?;
    let mut parts = bench.parts(&name(toolstack, stock));
    parts.ramdisk = with_script(&parts.ramdisk, script)?;
    parts.cpus = CPUS;
    if toolstack == Toolstack::Libvirt {
        parts.cpu_model = CPU_OF_LIBVIRT;
    }
    // Its time goes by what it does, so that no busy host makes a script of Debian's take too long.
    parts.accelerator = Accelerator::Counted;
    OPTIONS.clone_into(&mut parts.options);
    Ok(parts)
}

/// Lays the script over a ramdisk: one archive after the other, as Linux unpacks them.
fn with_script(ramdisk: &Path, script: &Script) -> Result<PathBuf> {
    let mut tree = Tree::default();
    add_files(&mut tree, "compat", &folder())?;
    add_files(&mut tree, "compat/old", &places::root().join(OLD_CONFIGURATIONS))?;
    let lines: String = script
        .commands
        .iter()
        .map(|command| format!("{}\n", command.text))
        .collect();
    tree.file("compat/commands", 0o644, lines.into_bytes());
    let mut bytes = fs::read(ramdisk)?;
    bytes.extend(tree.to_initramfs()?);
    let name = ramdisk.file_name().context("a ramdisk has a name")?.to_string_lossy();
    let with = images::dir().join(format!("compat-{name}"));
    fs::write(&with, bytes).with_context(|| format!("writing {}", with.display()))?;
    Ok(with)
}

/// Puts the files that lie in `from` under `to`.
fn add_files(tree: &mut Tree, to: &str, from: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            tree.file(&format!("{to}/{name}"), 0o755, fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// Boots a machine, runs the script there, and returns an answer for each command.
fn run_on(parts: &Parts, script: &Script) -> Result<Vec<Answer>> {
    let mut dom0 = Dom0::boot(parts)?;
    let from = dom0.machine().transcript().len();
    dom0.type_line("bash /compat/run")?;
    let ran = dom0.wait_for("<compat end>", from, WHOLE);
    let said = dom0.machine().transcript().text_from(from);
    let answers = script::answers(&said, script.commands.len());
    ran.with_context(|| match script.commands.get(answers.len()) {
        Some(command) => format!("`{}` was the last to be run", command.text),
        None => "after the last command".to_owned(),
    })?;
    ensure!(
        answers.len() == script.commands.len(),
        "{} of {} commands answered",
        answers.len(),
        script.commands.len()
    );
    dom0.power_off(PATIENCE)?;
    Ok(answers)
}

/// Writes down what was said, for who wants to look closer.
fn keep(host: &str, script: &Script, answers: &[Answer]) -> Result<()> {
    let mut text = String::new();
    for (command, answer) in script.commands.iter().zip(answers) {
        text.push_str(&format!("$ {}\n{}\n", command.text, answer.lines().join("\n")));
    }
    let path = places::made().join(format!("logs/compat-{host}.txt"));
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// Prints a line per command, and what differs; fails if something does that is not listed.
///
/// `theirs` is what Debian's answered, be it hypervisor or tools.
fn judge(between: Between, script: &Script, masks: &Masks, theirs: &[Answer], ours: &[Answer]) -> Result<()> {
    let mut differences = Differences::read(&folder().join("differences.toml"), between)?;
    println!("\n{}", title(between));
    let (mut chapter, mut wrong, mut listed) = ("", 0, 0);
    for ((command, theirs), ours) in script.commands.iter().zip(theirs).zip(ours) {
        if command.chapter != chapter {
            chapter = &command.chapter;
            println!("\n{chapter}");
        }
        let seen = |answer| match between {
            Between::Tools => what_was_done(command, masks, answer),
            Between::Hypervisors | Between::HypervisorsBelowOurTools => what_was_said(command, masks, answer),
        };
        let comparison = differences.judge(&command.text, &seen(theirs), &seen(ours));
        let word = match &comparison {
            Comparison::Same => "same",
            Comparison::Listed(_) => "listed",
            Comparison::Differs(_) => "DIFFERS",
        };
        println!("  {word:8}{:4}{:4}  {}", theirs.status, ours.status, command.text);
        match comparison {
            Comparison::Same => {}
            Comparison::Listed(reasons) => {
                listed += 1;
                reasons.iter().for_each(|reason| println!("            ({reason})"));
            }
            Comparison::Differs(lines) => {
                wrong += 1;
                lines.iter().for_each(|line| println!("            {line}"));
            }
        }
    }
    let count = script.commands.len();
    println!(
        "\n{count} commands: {} alike, {listed} as listed, {wrong} otherwise",
        count - listed - wrong
    );
    let stale = differences.unused(&script.commands);
    for difference in &stale {
        println!("listed, but not there any more: {difference}");
    }
    ensure!(wrong == 0, "{wrong} of {count} commands are answered otherwise");
    ensure!(
        stale.is_empty(),
        "tests/compat/differences.toml lists what no longer differs"
    );
    Ok(())
}

fn title(between: Between) -> &'static str {
    match between {
        Between::Hypervisors => "Debian's Xen and ours, as Debian's tools see them",
        Between::HypervisorsBelowOurTools => "Debian's Xen and ours, as our tools see them",
        Between::Tools => "Debian's tools and ours, on Debian's Xen",
    }
}

fn what_was_said(command: &Command, masks: &Masks, answer: &Answer) -> Vec<String> {
    match command.compared {
        Compared::Everything => masks.masked(&command.text, &answer.lines()),
        Compared::Status => vec![answer.last_line()],
    }
}

/// Everything of a success; of a refusal, that it is one: the words for it are each toolstack's own.
fn what_was_done(command: &Command, masks: &Masks, answer: &Answer) -> Vec<String> {
    match answer.status {
        0 => what_was_said(command, masks, answer),
        _ => vec!["refused".to_owned()],
    }
}
