//! What an app wrote, as kept in its session's `log/`.
//!
//! Numbered segments of one JSON line each line. The agent writes ([`Writer`]) and
//! drops the oldest segment when there would be too much; the server reads
//! ([`Follower`]), while the session runs and after.

pub mod copying;
mod follower;
mod writer;

use serde::{Deserialize, Serialize};

pub use follower::Follower;
pub use writer::{LineSplitter, Writer};

/// One line of an app's output, or a remark of the agent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When, RFC 3339 in UTC with milliseconds.
    pub timestamp: String,
    /// How grave.
    pub level: LogLevel,
    /// What.
    pub message: String,
}

/// `info` is the app's standard output, `warning` its standard error, `error` a
/// remark of the agent's that something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For those who look for a fault.
    Debug,
    /// As usual.
    Info,
    /// Perhaps not as it should be.
    Warning,
    /// Not as it should be.
    Error,
}

/// Segment `number`'s file name. Names sort as the numbers do.
fn segment_name(number: u64) -> String {
    format!("{number:010}.jsonl")
}

/// The numbers of the segments in a directory, in order. None if it is not there.
fn segments(dir: &std::path::Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut numbers: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".jsonl")?
                .parse()
                .ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers
}
