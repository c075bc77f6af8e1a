//! Long work, shown: a bar on a terminal, plain lines anywhere else.
//!
//! Short work shows nothing: a bar appears only after a moment, and a step of `create` is worth a line only if it is
//! large.

use ferroxen_domains::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// What takes less than this is not shown on a terminal.
const MOMENT: Duration = Duration::from_millis(400);
/// A step with fewer bytes is not worth a line of its own.
const LARGE: u64 = 256 << 20;
const BYTES: &str = "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}";
const UNKNOWN: &str = "{msg} {spinner} {elapsed}";

/// The way that suits standard error; `who` stands before plain lines.
pub fn for_people(who: &'static str) -> Box<dyn Progress> {
    match std::io::stderr().is_terminal() {
        true => Box::new(Bars::of(who)),
        false => Box::new(Lines(who)),
    }
}

/// A line for each large step.
#[derive(Debug)]
struct Lines(&'static str);

impl Progress for Lines {
    fn begin(&self, what: &str, bytes: u64) {
        if let Some(line) = line(self.0, what, bytes) {
            eprintln!("{line}");
        }
    }
    fn advance(&self, _bytes: u64) {}
    fn end(&self) {}
    fn tell(&self, what: &str) {
        eprintln!("{}: {what}", self.0);
    }
}

fn line(who: &str, what: &str, bytes: u64) -> Option<String> {
    match bytes {
        0 => Some(format!("{who}: {what} ...")),
        LARGE.. => Some(format!("{who}: {what}, {} MiB ...", bytes >> 20)),
        _ => None,
    }
}

/// One bar, for the step that goes on.
#[derive(Debug)]
struct Bars {
    who: &'static str,
    bar: RefCell<Option<(ProgressBar, Instant)>>,
}

impl Bars {
    fn of(who: &'static str) -> Bars {
        Bars {
            who,
            bar: RefCell::default(),
        }
    }
}

impl Progress for Bars {
    fn begin(&self, what: &str, bytes: u64) {
        self.end();
        let (bar, style) = match bytes {
            0 => (ProgressBar::no_length(), UNKNOWN),
            bytes => (ProgressBar::new(bytes), BYTES),
        };
        // Both are right as they stand.
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        match bytes {
            // Other programs do the work: it turns by itself.
            0 => bar.enable_steady_tick(Duration::from_millis(120)),
            _ => bar.set_draw_target(ProgressDrawTarget::hidden()),
        }
        *self.bar.borrow_mut() = Some((bar, Instant::now()));
    }

    fn advance(&self, bytes: u64) {
        if let Some((bar, since)) = &*self.bar.borrow() {
            if bar.is_hidden() && since.elapsed() > MOMENT {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            bar.inc(bytes);
        }
    }

    fn end(&self) {
        if let Some((bar, _)) = self.bar.borrow_mut().take() {
            // Waits for the thread that turns it: `create` goes on as one that can be copied.
            bar.disable_steady_tick();
            bar.finish_and_clear();
        }
    }

    fn tell(&self, what: &str) {
        self.end();
        eprintln!("{}: {what}", self.who);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_steps_and_those_of_unknown_size_are_worth_a_line() {
        assert_eq!(line("image", "copying", 0).as_deref(), Some("image: copying ..."));
        let memory = line("create", "allocating memory", 1 << 30);
        assert_eq!(memory.as_deref(), Some("create: allocating memory, 1024 MiB ..."));
        assert_eq!(line("create", "allocating memory", 64 << 20), None);
    }

    #[test]
    fn both_styles_are_templates() {
        for style in [BYTES, UNKNOWN] {
            assert!(ProgressStyle::with_template(style).is_ok(), "{style}");
        }
    }

    #[test]
    fn a_bar_goes_from_step_to_step_and_away() {
        let bars = Bars::of("test");
        bars.begin("first", 10);
        bars.advance(4);
        assert_eq!(bars.bar.borrow().as_ref().map(|(bar, _)| bar.position()), Some(4));
        bars.begin("second", 0);
        assert!(
            bars.bar
                .borrow()
                .as_ref()
                .is_some_and(|(bar, _)| bar.length().is_none())
        );
        bars.end();
        assert!(bars.bar.borrow().is_none());
    }
}
