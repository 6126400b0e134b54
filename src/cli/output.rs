//! What commands say: tables and sentences for people, failures for everyone.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use dwell_core::time::{Millis, Timestamp};

use crate::client::ClientError;
use crate::client::find::NoServer;
use crate::config::ConfigError;
use crate::server::StartError;
use crate::telemetry::TelemetryError;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// One sentence.
    Sentence(String),
    /// All is said; only the exit code is left.
    Said,
    /// Whoever read our output stopped reading, as `head` does. Not our failure.
    NobodyReads,
}

impl Failure {
    /// A failure with this sentence.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self::Sentence(sentence.into())
    }

    /// Tell it, and the exit code that it comes to.
    pub fn tell(self) -> ExitCode {
        match self {
            Self::Sentence(sentence) => {
                note(&format!("error: {sentence}"));
                ExitCode::FAILURE
            }
            Self::Said => ExitCode::FAILURE,
            Self::NobodyReads => ExitCode::SUCCESS,
        }
    }
}

macro_rules! failure_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error.to_string())
            }
        }
    )*};
}

failure_from!(
    ClientError,
    ConfigError,
    NoServer,
    StartError,
    TelemetryError
);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            return Self::NobodyReads;
        }
        Self::new(format!("the output cannot be written: {error}"))
    }
}

/// Print `text` to stdout, with a line's end if it has none.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        stdout.write_all(b"\n")?;
    }
    Ok(stdout.flush()?)
}

/// Say something to the person, on stderr.
pub fn note(text: &str) {
    // If nobody hears it, there is nobody to tell.
    let _ = writeln!(io::stderr(), "{}", plain(text));
}

/// `text` without what could command a terminal: names and errors come from others.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '\n' => '\n',
            '\t' => ' ',
            char if char.is_control() => '\u{FFFD}',
            char => char,
        })
        .collect()
}

/// A table without lines; `rows` are as wide as `header`.
pub fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| plain(&cell).replace('\n', " ")));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Names and values, one pair a line.
pub fn pairs(pairs: impl IntoIterator<Item = (&'static str, Option<String>)>) -> String {
    let pairs: Vec<_> = pairs
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines = pairs
        .into_iter()
        .map(|(name, value)| format!("{name:width$}  {}", plain(&value)));
    lines.collect::<Vec<_>>().join("\n")
}

/// A span as roughly as a table needs it: `40 s`, `3 min`, `5 h`, `12 d`.
pub fn rough(span: Millis) -> String {
    let seconds = span.0 / 1_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long ago something was, roughly.
pub fn ago(moment: Option<Timestamp>, now: Timestamp) -> String {
    moment.map_or_else(String::new, |moment| {
        format!("{} ago", rough(now.since(moment)))
    })
}

/// An amount of money, to the cent and finer where it is small.
pub fn dollars(amount: f64) -> String {
    if amount == 0.0 || amount >= 0.1 {
        format!("${amount:.2}")
    } else {
        format!("${amount:.4}")
    }
}

/// The first characters of ids, as many as tell them apart and eight at least.
pub fn short_ids<'a>(ids: impl IntoIterator<Item = &'a str> + Clone) -> usize {
    const SHORTEST: usize = 8;
    let mut sorted: Vec<_> = ids.into_iter().collect();
    sorted.sort_unstable();
    let shared = sorted.windows(2).map(|pair| match pair {
        [a, b] => a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count(),
        _ => 0,
    });
    SHORTEST.max(shared.max().unwrap_or(0) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_apart_and_lines_have_no_tail() {
        let text = table(
            ["ID", "STATUS"],
            [
                ["abcdefgh".into(), "running".into()],
                ["b".into(), "x\u{1b}[31m".into()],
            ],
        );
        assert_eq!(
            text,
            "ID        STATUS\nabcdefgh  running\nb         x\u{FFFD}[31m"
        );
    }

    #[test]
    fn short_ids_tell_sessions_apart() {
        assert_eq!(short_ids(["aaaaaaaaaa", "bbbbbbbbbb"]), 8);
        assert_eq!(short_ids(["aaaaaaaaab", "aaaaaaaaac"]), 10);
        assert_eq!(short_ids([]), 8);
    }

    #[test]
    fn times_and_money_are_for_people() {
        assert_eq!(rough(Millis::from_seconds(59)), "59 s");
        assert_eq!(rough(Millis::from_minutes(119)), "1 h");
        assert_eq!(rough(Millis::from_minutes(60 * 72)), "3 d");
        assert_eq!(dollars(0.0), "$0.00");
        assert_eq!(dollars(0.0123), "$0.0123");
        assert_eq!(dollars(12.345), "$12.35");
    }
}
