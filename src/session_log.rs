//! What an app wrote, as kept in its session's `log/`. (Being written.)

use serde::{Deserialize, Serialize};

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
