//! Progress for people: one line per step, alive on a terminal, plain elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// The steps of one verb, with the time that each took.
pub struct Steps {
    started: Instant,
    taken: Vec<(String, Duration)>,
}

/// The step that is under way.
pub struct Step {
    name: String,
    bar: Option<ProgressBar>,
}

impl Step {
    fn begin(name: &str) -> Self {
        const TICK: Duration = Duration::from_millis(120);
        if !std::io::stderr().is_terminal() {
            println!("{name} ...");
            return Self {
                name: name.to_owned(),
                bar: None,
            };
        }
        let bar = ProgressBar::new_spinner().with_message(name.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self {
            name: name.to_owned(),
            bar: Some(bar),
        }
    }

    /// Says how far the step is.
    pub fn say(&self, news: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {news}", self.name)),
            None => println!("  {news}"),
        }
    }

    fn end(&self, taken: Duration, verdict: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        println!("{} {verdict} ({:.1} s)", self.name, taken.as_secs_f64());
    }
}

impl Steps {
    /// Starts the clock.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            taken: Vec::new(),
        }
    }

    /// Does one step; a failure carries its name and `advice`: what a person can do about it.
    pub fn step<T>(&mut self, name: &str, advice: &str, act: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let step = Step::begin(name);
        let result = act(&step);
        let taken = began.elapsed();
        step.end(taken, if result.is_ok() { "ok" } else { "FAILED" });
        self.taken.push((name.to_owned(), taken));
        result.with_context(|| format!("step \"{name}\" failed; what to do: {advice}"))
    }

    /// Prints the times that the steps took.
    pub fn print_times(&self) {
        println!("\nTimes taken:");
        for (name, taken) in &self.taken {
            println!("  {:>7.1} s  {name}", taken.as_secs_f64());
        }
        println!("  {:>7.1} s  altogether", self.started.elapsed().as_secs_f64());
    }
}
