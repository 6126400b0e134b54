//! What the server says to whoever runs it: to stderr, as `DWELL_LOG` asks for; and on
//! request to stdout, who asked for what through the gateway.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing::Metadata;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

/// The variable that says what is logged: `debug`, or `info,dwell::driver=trace`.
pub const FILTER_VARIABLE: &str = "DWELL_LOG";

/// Events with this target are of the access log.
pub const ACCESS_TARGET: &str = "dwell::access";

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
/// not set. With `access_log`, the access log goes to stdout, one JSON object a line.
///
/// # Errors
/// When `DWELL_LOG` is not understood, or the process logs already.
pub fn start(
    format: LogFormat,
    default_filter: &str,
    access_log: bool,
) -> Result<(), TelemetryError> {
    let wanted = std::env::var(FILTER_VARIABLE).ok();
    let wanted = wanted.as_deref().filter(|filter| !filter.trim().is_empty());
    let filter = EnvFilter::builder()
        .parse(wanted.unwrap_or(default_filter))
        .map_err(|why| {
            TelemetryError(format!(
                "{FILTER_VARIABLE} is not understood ({why}); write it like info or dwell=debug"
            ))
        })?;
    let is_access = |event: &Metadata<'_>| event.target() == ACCESS_TARGET;
    let log = fmt::layer().with_writer(io::stderr);
    let log = match format {
        LogFormat::Text => log
            .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .boxed(),
        LogFormat::Json => log.json().flatten_event(true).boxed(),
    };
    let log = log.with_filter(filter.and(filter_fn(move |event| !is_access(event))));
    let access = access_log.then(|| {
        let lines = fmt::layer().with_writer(io::stdout).json();
        let lines = lines
            .flatten_event(true)
            .with_target(false)
            .with_level(false);
        lines.with_filter(filter_fn(is_access))
    });
    let started = registry().with(log).with(access).try_init();
    started.map_err(|why| TelemetryError(format!("the log cannot be set up: {why}")))
}
