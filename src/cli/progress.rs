//! How a session's way is shown: a line that lives on a terminal, plain lines else.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{Failure, note, plain, print};

/// Shows how far a session is, on stderr.
pub struct Progress {
    lines: Lines,
    said: String,
}

/// Lines that stay, above the one that lives.
#[derive(Clone)]
pub struct Lines {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// As lively as stderr allows.
    pub fn new() -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            lines: Lines { bar },
            said: String::new(),
        }
    }

    /// It is at `stage` now; `live` is what changes from moment to moment, and is
    /// for terminals only.
    pub fn show(&mut self, stage: &str, live: &str) {
        match &self.lines.bar {
            Some(bar) if live.is_empty() => bar.set_message(plain(stage)),
            Some(bar) => bar.set_message(plain(&format!("{stage} · {live}"))),
            None if self.said != stage => {
                note(stage);
                stage.clone_into(&mut self.said);
            }
            None => {}
        }
    }

    /// Where lines that stay go.
    pub const fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Nothing lives any more.
    pub fn finish(&self) {
        if let Some(bar) = &self.lines.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Lines {
    /// A line on stderr.
    pub fn note(&self, line: &str) {
        self.apart(|| note(line));
    }

    /// A line on stderr as an app wrote it, colours included.
    pub fn app(&self, line: &str) {
        // If nobody hears it, there is nobody to tell.
        self.apart(|| drop(writeln!(stderr(), "{line}")));
    }

    /// A line for scripts, on stdout.
    pub fn print(&self, line: &str) -> Result<(), Failure> {
        self.apart(|| print(line))
    }

    fn apart<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}
