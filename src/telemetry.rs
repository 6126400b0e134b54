//! What the server says to whoever runs it: to stderr, as `DWELL_LOG` asks for.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// The variable that says what is logged: `debug`, or `info,dwell::driver=trace`.
pub const FILTER_VARIABLE: &str = "DWELL_LOG";

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The log cannot be set up; the sentence says why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct TelemetryError(String);

/// Log to stderr from now on. `default_filter` is what `DWELL_LOG` says when it is
/// not set.
///
/// # Errors
/// When `DWELL_LOG` is not understood, or the process logs already.
pub fn start(format: LogFormat, default_filter: &str) -> Result<(), TelemetryError> {
    let wanted = std::env::var(FILTER_VARIABLE).ok();
    let wanted = wanted.as_deref().filter(|filter| !filter.trim().is_empty());
    let filter = EnvFilter::builder()
        .parse(wanted.unwrap_or(default_filter))
        .map_err(|why| {
            TelemetryError(format!(
                "{FILTER_VARIABLE} is not understood ({why}); write it like info or dwell=debug"
            ))
        })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match format {
        LogFormat::Text => log
            .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|why| TelemetryError(format!("the log cannot be set up: {why}")))
}
