//! `GET /v2/stream-logs`: what a session's app writes, as server-sent events.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, Sse};
use dwell_core::id::SessionId;
use futures_util::future::{FusedFuture, FutureExt};
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use utoipa::{IntoParams, ToSchema};

use super::Shared;
use super::error::{ApiError, Denied, ErrorDetail, Unfit};
use super::extract::{Caller, Query};
use crate::session_log::{Follower, LogLevel, LogLine};

/// After this long without a line, one that says that nothing is wrong: below the
/// 15 seconds that clients count on.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);

/// How grave a line is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = LogLevel)]
pub(super) enum LevelName {
    /// For those who look for a fault.
    Debug,
    /// As usual: the app's standard output.
    #[default]
    Info,
    /// Perhaps not as it should be: the app's standard error.
    Warning,
    /// Not as it should be.
    Error,
}

impl From<LevelName> for LogLevel {
    fn from(name: LevelName) -> Self {
        match name {
            LevelName::Debug => Self::Debug,
            LevelName::Info => Self::Info,
            LevelName::Warning => Self::Warning,
            LevelName::Error => Self::Error,
        }
    }
}

/// Whose log.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// The session.
    session_id: String,
    /// This level and above.
    #[serde(default)]
    #[param(inline, required = false)]
    log_level: LevelName,
    /// Not read.
    #[serde(rename = "client_id")]
    _client_id: Option<String>,
}

/// Stream a session's log
///
/// From the first line on, and after the end too. Each event's data is JSON:
/// `{"message", "level", "timestamp"}`; `{"type": "keepalive"}` at least every 15
/// seconds; at the end `{"type": "stream_complete", "source": "session"}`.
#[utoipa::path(
    get, path = "/v2/stream-logs", tag = "logs",
    params(LogQuery),
    responses(
        (status = 200, description = "The lines.", body = String, content_type = "text/event-stream"),
        (status = 404, description = "`Session not found`", body = ErrorDetail),
        Denied, Unfit,
    ),
)]
pub(super) async fn stream_logs(
    caller: Caller,
    State(api): State<Shared>,
    Query(query): Query<LogQuery>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let not_found = || ApiError::not_found("Session not found");
    let id: SessionId = query.session_id.parse().map_err(|_| not_found())?;
    let record = api.store.session(&caller.owner(), id).await?;
    record.ok_or_else(not_found)?;

    let dir = api.sessions.of(id).log();
    let gate = api.gate.clone();
    let ended = async move {
        // A log whose end cannot be known is followed no further.
        let _ = api
            .come_to(&caller.owner(), id, |session| !session.is_open())
            .await;
    };
    let events = events(follow(dir, ended), query.log_level.into())
        // Broken off, and not complete: whoever reads it asks the next server.
        .take_until(async move { gate.left().await });
    Ok(Sse::new(events.map(|event| Ok(event.into_sse()))))
}

/// The lines of the log in `dir`: those that are there, then those that come, until
/// the session has ended and the last one was read.
fn follow(
    dir: PathBuf,
    ended: impl Future<Output = ()> + Send + 'static,
) -> impl Stream<Item = LogLine> + Send {
    let ended = Box::pin(ended.fuse());
    stream::unfold(
        (Follower::new(dir), ended),
        |(mut follower, mut ended)| async move {
            let is_over = || ended.is_terminated() || ended.as_mut().now_or_never().is_some();
            let line = follower.next(is_over).await?;
            Some((line, (follower, ended)))
        },
    )
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
enum LogEvent {
    /// A line.
    Line(LogLine),
    /// A sign of life.
    Keepalive {
        #[serde(rename = "type")]
        kind: &'static str,
    },
    /// The end.
    Complete {
        #[serde(rename = "type")]
        kind: &'static str,
        source: &'static str,
    },
}

impl LogEvent {
    const KEEPALIVE: Self = Self::Keepalive { kind: "keepalive" };
    const COMPLETE: Self = Self::Complete {
        kind: "stream_complete",
        source: "session",
    };

    fn into_sse(self) -> Event {
        // Strings in a fixed shape: there is nothing in it that JSON cannot say.
        Event::default().data(serde_json::to_string(&self).unwrap_or_default())
    }
}

/// The lines of this level and above, signs of life in between, and the end.
fn events(
    lines: impl Stream<Item = LogLine> + Send,
    least: LogLevel,
) -> impl Stream<Item = LogEvent> + Send {
    let lines = Some(Box::pin(lines));
    stream::unfold(lines, move |lines| async move {
        let mut lines = lines?;
        let mut keepalive = pin!(sleep(KEEPALIVE_AFTER));
        loop {
            // The sleep first: a flood of lines that are not wanted is silence too.
            tokio::select! {
                biased;
                () = &mut keepalive => return Some((LogEvent::KEEPALIVE, Some(lines))),
                line = lines.next() => match line {
                    Some(line) if line.level < least => {}
                    Some(line) => return Some((LogEvent::Line(line), Some(lines))),
                    None => return Some((LogEvent::COMPLETE, None)),
                },
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: LogLevel, message: &str) -> LogLine {
        LogLine {
            timestamp: "2026-11-23T12:00:00.000Z".to_owned(),
            level,
            message: message.to_owned(),
        }
    }

    #[tokio::test]
    async fn lines_below_the_level_are_left_out_and_the_end_is_said() {
        let lines = stream::iter([
            line(LogLevel::Debug, "detail"),
            line(LogLevel::Info, "hello"),
            line(LogLevel::Error, "alas"),
        ]);
        let sent: Vec<_> = events(lines, LogLevel::Info)
            .map(|event| serde_json::to_value(event).unwrap())
            .collect()
            .await;
        let at = "2026-11-23T12:00:00.000Z";
        assert_eq!(
            sent,
            [
                serde_json::json!({"message": "hello", "level": "info", "timestamp": at}),
                serde_json::json!({"message": "alas", "level": "error", "timestamp": at}),
                serde_json::json!({"type": "stream_complete", "source": "session"}),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_before_clients_give_up() {
        let begin = tokio::time::Instant::now();
        let mut sent = Box::pin(events(stream::pending(), LogLevel::Info));
        assert_eq!(sent.next().await, Some(LogEvent::KEEPALIVE));
        assert_eq!(sent.next().await, Some(LogEvent::KEEPALIVE));
        assert!(begin.elapsed() <= 2 * Duration::from_secs(15));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_unwanted_lines_is_silence_too() {
        let flood = stream::repeat_with(|| line(LogLevel::Debug, "noise")).then(|line| async {
            sleep(Duration::from_millis(1)).await;
            line
        });
        let mut sent = Box::pin(events(flood, LogLevel::Info));
        assert_eq!(sent.next().await, Some(LogEvent::KEEPALIVE));
    }
}
