//! What a serial line said, and waiting for it to say more.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The bytes a machine has said, shared with the thread that listens.
#[derive(Debug, Default, Clone)]
pub struct Transcript {
    shared: Arc<(Mutex<Said>, Condvar)>,
}

#[derive(Debug, Default)]
struct Said {
    bytes: Vec<u8>,
    is_closed: bool,
}

impl Transcript {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was just said.
    pub fn add(&self, bytes: &[u8]) {
        self.said().bytes.extend_from_slice(bytes);
        self.shared.1.notify_all();
    }

    /// Notes that nothing more will come.
    pub fn close(&self) {
        self.said().is_closed = true;
        self.shared.1.notify_all();
    }

    /// Returns how many bytes were said.
    pub fn len(&self) -> usize {
        self.said().bytes.len()
    }

    /// Tells whether the machine has ended.
    pub fn is_closed(&self) -> bool {
        self.said().is_closed
    }

    /// Tells whether nothing was said yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns everything said, as text.
    pub fn text(&self) -> String {
        self.text_from(0)
    }

    /// Returns what was said from byte `from` on, as text.
    pub fn text_from(&self, from: usize) -> String {
        let said = self.said();
        String::from_utf8_lossy(said.bytes.get(from..).unwrap_or_default()).into_owned()
    }

    /// Returns the bytes from `from` on.
    pub fn bytes_from(&self, from: usize) -> Vec<u8> {
        self.said().bytes.get(from..).unwrap_or_default().to_vec()
    }

    /// Waits until `length` bytes were said or `patience` is over.
    pub fn wait_for_length(&self, length: usize, patience: Duration) {
        let said = self.said();
        let _ = self
            .shared
            .1
            .wait_timeout_while(said, patience, |now| now.bytes.len() < length && !now.is_closed);
    }

    /// Waits until something is said or `patience` is over.
    pub fn wait_for_change(&self, patience: Duration) {
        let said = self.said();
        let before = said.bytes.len();
        let _ = self
            .shared
            .1
            .wait_timeout_while(said, patience, |now| now.bytes.len() == before && !now.is_closed);
    }

    /// Waits for `wanted` after byte `from`; returns where it ends.
    ///
    /// Fails when `patience` is over, when the machine ends, or when it says one of `doom` first.
    pub fn wait_for(&self, wanted: &str, from: usize, doom: &[&str], patience: Duration) -> Result<usize> {
        let end = Instant::now() + patience;
        let mut said = self.said();
        let mut searched = from;
        loop {
            let fresh = said.bytes.get(searched..).unwrap_or_default();
            if let Some(at) = find(fresh, wanted.as_bytes()) {
                return Ok(searched + at + wanted.len());
            }
            let doomed = |word: &&str| find(fresh, word.as_bytes()).map(|at| (word.to_string(), searched + at));
            if let Some((word, at)) = doom.iter().find_map(doomed) {
                drop(said);
                self.wait_for_line_end(at);
                bail!("the machine said {word:?} instead of {wanted:?}");
            }
            if said.is_closed {
                bail!("the machine ended before it said {wanted:?}");
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the machine did not say {wanted:?} within {} s", patience.as_secs());
            }
            let longest = doom.iter().map(|word| word.len()).max().unwrap_or(0).max(wanted.len());
            searched = said.bytes.len().saturating_sub(longest).max(searched);
            said = match self.shared.1.wait_timeout(said, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Transcript {
    /// Lets the line around byte `at` be said to its end: whoever reports it wants the reason, too.
    fn wait_for_line_end(&self, at: usize) {
        const LINE_PATIENCE: Duration = Duration::from_secs(2);
        let said = self.said();
        let is_open = |now: &mut Said| !now.bytes.get(at..).unwrap_or_default().contains(&b'\n') && !now.is_closed;
        let _ = self.shared.1.wait_timeout_while(said, LINE_PATIENCE, is_open);
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len().max(1))
        .position(|window| window == needle)
}

/// Drops what the hypervisor and the kernel said in between, and terminal colours and carriage returns.
pub fn without_chatter(text: &str) -> String {
    let plain = without_escapes(text).replace('\r', "");
    let kept = plain.lines().filter(|line| !line.starts_with("(XEN)"));
    kept.collect::<Vec<_>>().join("\n")
}

fn without_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '\x1b' {
            out.push(character);
            continue;
        }
        if characters.next_if_eq(&'[').is_some() {
            // A control sequence ends with a letter.
            for next in characters.by_ref() {
                if next.is_ascii_alphabetic() {
                    break;
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_comes_in_two_pieces_is_found() {
        let transcript = Transcript::default();
        let late = transcript.clone();
        transcript.add(b"lo");
        let speaker = std::thread::spawn(move || late.add(b"gin: "));
        let end = transcript.wait_for("login:", 0, &[], Duration::from_secs(5)).unwrap();
        speaker.join().unwrap();
        assert_eq!(end, 6);
    }

    #[test]
    fn a_wait_ends_when_the_machine_does() {
        let transcript = Transcript::default();
        transcript.close();
        let refusal = transcript
            .wait_for("login:", 0, &[], Duration::from_secs(60))
            .unwrap_err();
        assert!(refusal.to_string().contains("ended"), "{refusal}");
    }

    #[test]
    fn a_panic_ends_the_wait_at_once() {
        let transcript = Transcript::default();
        transcript.add(b"Kernel panic - not syncing\n");
        let wait = transcript.wait_for("login:", 0, &["Kernel panic"], Duration::from_secs(60));
        assert!(wait.unwrap_err().to_string().contains("Kernel panic"));
    }

    #[test]
    fn a_panic_is_heard_out_to_the_end_of_its_line() {
        let transcript = Transcript::default();
        let late = transcript.clone();
        transcript.add(b"Kernel panic");
        let speaker = std::thread::spawn(move || {
            late.add(b" - not");
            late.add(b" syncing\r\n");
        });
        let wait = transcript.wait_for("login:", 0, &["Kernel panic"], Duration::from_secs(60));
        assert!(wait.is_err() && transcript.text().contains("syncing\r\n"));
        speaker.join().unwrap();
    }

    #[test]
    fn the_hypervisors_lines_are_no_part_of_an_answer() {
        assert_eq!(without_chatter("one\r\n(XEN) d1: odd\r\n\x1b[1mtwo\x1b[0m"), "one\ntwo");
    }
}
