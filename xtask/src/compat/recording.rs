//! What Debian's Xen answered, written down with the script: a run that compares with it needs ours alone.
//!
//! A file per chapter, in `tests/compat/recorded`: each command behind `$ `, what it printed behind `| ` once what tells
//! of the run was masked, and how it ended behind `= `.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::masks::Masks;
use super::script::{Answer, Command, Compared, Script};

/// The file of a chapter.
fn file(folder: &Path, chapter: &str) -> PathBuf {
    let word = |letter: char| if letter.is_alphanumeric() { letter } else { '-' };
    folder.join(chapter.to_lowercase().chars().map(word).collect::<String>() + ".txt")
}

/// Writes down what was answered in each of the script's chapters, in `folder`.
pub fn write(folder: &Path, script: &Script, masks: &Masks, answers: &[Answer]) -> Result<()> {
    fs::create_dir_all(folder)?;
    let both: Vec<_> = script.commands.iter().zip(answers).collect();
    for chapter in both.chunk_by(|(one, _), (next, _)| one.chapter == next.chapter) {
        let Some((first, _)) = chapter.first() else { continue };
        let text: String = chapter
            .iter()
            .map(|(command, answer)| entry(command, masks, answer))
            .collect();
        let path = file(folder, &first.chapter);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn entry(command: &Command, masks: &Masks, answer: &Answer) -> String {
    let printed = match command.compared {
        Compared::Everything => masks.masked(&command.text, &answer.printed),
        Compared::Status => Vec::new(),
    };
    let printed: String = printed.iter().map(|line| format!("| {line}\n")).collect();
    format!("$ {}\n{printed}= {}\n", command.text, answer.status)
}

/// Reads the answers to all commands of the script.
pub fn read(folder: &Path, script: &Script) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for chapter in script.commands.chunk_by(|one, next| one.chapter == next.chapter) {
        let Some(first) = chapter.first() else { continue };
        let path = file(folder, &first.chapter);
        let context = || format!("{}: `cargo xtask compat --record` writes it", path.display());
        let text = fs::read_to_string(&path).with_context(context)?;
        answers.extend(of_chapter(&text, chapter).with_context(context)?);
    }
    Ok(answers)
}

fn of_chapter(text: &str, commands: &[Command]) -> Result<Vec<Answer>> {
    let mut wanted = commands.iter();
    let (mut answers, mut printed) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("$", command)) => ensure!(
                wanted.next().is_some_and(|wanted| wanted.text == command),
                "`{command}` is not what the script has there"
            ),
            Some(("|", line)) => printed.push(line.to_owned()),
            Some(("=", status)) => answers.push(Answer {
                printed: std::mem::take(&mut printed),
                status: status.parse()?,
            }),
            _ => bail!("a line is neither command, answer nor end: {line}"),
        }
    }
    ensure!(
        answers.len() == commands.len(),
        "it answers {} of {} commands",
        answers.len(),
        commands.len()
    );
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_while_the_script_is_the_same() {
        let command = |text: &str, compared| Command {
            chapter: "A domain's life".to_owned(),
            text: text.to_owned(),
            compared,
        };
        let answer = |line: &str, status| Answer {
            printed: vec![line.to_owned()],
            status,
        };
        let mut script = Script {
            commands: vec![
                command("xl list", Compared::Everything),
                command("xl dmesg", Compared::Status),
            ],
        };
        let masks: Masks = toml::from_str("").unwrap();
        let folder = std::env::temp_dir().join(format!("recording-{}", std::process::id()));
        write(
            &folder,
            &script,
            &masks,
            &[answer("Domain-0   0", 0), answer("(XEN)", 3)],
        )
        .unwrap();
        let read_back = read(&folder, &script).unwrap();
        assert!(folder.join("a-domain-s-life.txt").exists());
        script.commands[0].text.push_str(" -v");
        let refused = read(&folder, &script);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(
            read_back,
            [
                answer("Domain-0 0", 0),
                Answer {
                    printed: Vec::new(),
                    status: 3
                }
            ]
        );
        assert!(refused.is_err());
    }
}
