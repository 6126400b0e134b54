//! What passes through sessions' URLs: for their owners, and for who watches the server.

use std::fmt::Write as _;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use dwell_core::id::SessionId;
use dwell_core::time::{Millis, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use super::Shared;
use super::error::{ApiError, Denied, ErrorDetail};
use super::extract::{Caller, Ids};
use super::fields::DateTime;
use crate::clock;
use crate::gateway::Passed;

/// What has passed through a session's URL since this server began to serve it. A
/// session that has no URL, or none any more, has nothing.
#[derive(Serialize, ToSchema)]
pub(super) struct TrafficResponse {
    /// Visitors' connections that are open now.
    open_connections: u32,
    /// Requests that were made.
    requests: u64,
    /// Bytes that visitors sent, heads included.
    bytes_from_visitors: u64,
    /// Bytes that the app sent, heads included.
    bytes_from_app: u64,
    /// When something was last sent, by either side.
    last_activity: Option<DateTime>,
}

impl TrafficResponse {
    fn new(passed: Passed, now: Timestamp) -> Self {
        Self {
            open_connections: passed.open_connections,
            requests: passed.requests,
            bytes_from_visitors: passed.bytes_from_visitors,
            bytes_from_app: passed.bytes_from_app,
            last_activity: passed.idle_ms.map(|idle| DateTime(now.minus(idle))),
        }
    }
}

/// Get a session's traffic
#[utoipa::path(
    get, path = "/session/{session_id}/traffic", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "What has passed.", body = TrafficResponse),
        (status = 404, description = "`GPUEvent not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn get_traffic(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<TrafficResponse>, ApiError> {
    let not_found = || ApiError::not_found("GPUEvent not found");
    let id: SessionId = id.parse().map_err(|_| not_found())?;
    let record = api.store.session(&caller.owner(), id).await?;
    let record = record.ok_or_else(not_found)?;
    let passed = match record.session.placement() {
        Some(placement) => api.gateway.passed(placement.port, id).await,
        None => None,
    };
    let now = clock::now().wall;
    Ok(Json(TrafficResponse::new(passed.unwrap_or_default(), now)))
}

/// Get metrics
///
/// What passes through every session's URL, in Prometheus' text format. Only an admin's
/// key may.
#[utoipa::path(
    get, path = "/metrics", tag = "server",
    responses(
        (status = 200, description = "The metrics.", body = String, content_type = "text/plain"),
        (status = 403, description = "Only an admin's key may do this.", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn get_metrics(
    caller: Caller,
    State(api): State<Shared>,
) -> Result<impl IntoResponse, ApiError> {
    if !caller.principal.admin {
        let sentence = "Only an admin's key may see the metrics of all sessions";
        return Err(ApiError::Sentence(
            StatusCode::FORBIDDEN,
            sentence.to_owned(),
        ));
    }
    let passed = api.gateway.all_passed().await;
    const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
    Ok(([(CONTENT_TYPE, TYPE)], metrics(&passed)))
}

/// One value of a session's.
type Value = fn(&Passed) -> Option<u64>;

const METRICS: [(&str, &str, &str, Value); 5] = [
    (
        "dwell_session_open_connections",
        "gauge",
        "Visitors' connections that are open now.",
        |passed| Some(passed.open_connections.into()),
    ),
    (
        "dwell_session_requests_total",
        "counter",
        "Requests that were made.",
        |passed| Some(passed.requests),
    ),
    (
        "dwell_session_bytes_from_visitors_total",
        "counter",
        "Bytes that visitors sent.",
        |passed| Some(passed.bytes_from_visitors),
    ),
    (
        "dwell_session_bytes_from_app_total",
        "counter",
        "Bytes that the app sent.",
        |passed| Some(passed.bytes_from_app),
    ),
    (
        "dwell_session_idle_milliseconds",
        "gauge",
        "How long ago something was last sent.",
        |passed| passed.idle_ms.map(|Millis(idle_ms)| idle_ms),
    ),
];

fn metrics(sessions: &[(SessionId, Passed)]) -> String {
    let mut text = String::new();
    for (name, kind, help, value) in METRICS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (session, passed) in sessions {
            if let Some(value) = value(passed) {
                let _ = writeln!(text, "{name}{{session=\"{session}\"}} {value}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn each_session_has_each_metric_that_it_can_have() {
        let quiet = (SessionId(Uuid::from_u128(1)), Passed::default());
        let busy = Passed {
            open_connections: 2,
            requests: 3,
            bytes_from_visitors: 4,
            bytes_from_app: 5,
            idle_ms: Some(Millis(6)),
        };
        let busy = (SessionId(Uuid::from_u128(2)), busy);
        let text = metrics(&[quiet, busy]);
        let of = |number: u128| format!("{{session=\"{}\"}}", Uuid::from_u128(number));
        for (name, value) in [
            ("dwell_session_open_connections", 2),
            ("dwell_session_requests_total", 3),
            ("dwell_session_bytes_from_visitors_total", 4),
            ("dwell_session_bytes_from_app_total", 5),
            ("dwell_session_idle_milliseconds", 6),
        ] {
            assert!(
                text.contains(&format!("\n{name}{} {value}\n", of(2))),
                "{text}"
            );
        }
        assert!(text.contains(&format!("dwell_session_requests_total{} 0\n", of(1))));
        assert!(!text.contains(&format!("idle_milliseconds{}", of(1))));
    }
}
