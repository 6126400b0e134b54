//! Sessions that exist: looking, giving more time, ending.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use dwell_core::id::{MachineId, SessionId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Shared;
use super::error::{ApiError, Denied, ErrorDetail, Unfit, UnfitBody, Wording};
use super::extract::{Body, Caller, Ids, Query};
use super::fields::{Count, MoreMinutes, flag};
use super::machines::Message;
use super::session_wire::{SessionListItem, SessionResponse};

/// What waiting for a session's end takes at most.
const SHUTDOWN_WAIT_MAX: Duration = Duration::from_secs(30);
/// How many sessions a list has when nobody says, ended ones included.
const LIST_DEFAULT: u32 = 100;

// --- Looking --------------------------------------------------------------------

/// Get a session
///
/// One session, open or ended.
#[utoipa::path(
    get, path = "/session/{session_id}", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "The session.", body = SessionResponse),
        (status = 404, description = "`GPUEvent not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn get_session(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<SessionResponse>, ApiError> {
    let not_found = || ApiError::not_found("GPUEvent not found");
    let id: SessionId = id.parse().map_err(|_| not_found())?;
    let record = api.store.session(&caller.owner(), id).await?;
    let record = record.ok_or_else(not_found)?;
    Ok(Json(SessionResponse::new(&record, &api.urls)))
}

/// Which sessions.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Sessions of this machine only.
    machine_id: Option<String>,
    /// Those that have ended too.
    #[serde(default, deserialize_with = "flag")]
    #[param(value_type = Option<bool>)]
    include_ended: bool,
    /// How many at most: all open ones when there is none, or 100 with
    /// `include_ended`.
    #[param(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    limit: Option<Count>,
}

/// List sessions
///
/// Open sessions, newest first.
#[utoipa::path(
    get, path = "/sessions", tag = "sessions",
    params(ListQuery),
    responses(
        (status = 200, description = "The sessions.", body = Vec<SessionListItem>),
        Denied, Unfit,
    ),
)]
pub(super) async fn list_sessions(
    caller: Caller,
    State(api): State<Shared>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<SessionListItem>>, ApiError> {
    let owner = caller.owner();
    let machine = match query.machine_id.as_deref() {
        None | Some("") => None,
        Some(id) => match id.parse::<MachineId>() {
            Ok(id) => Some(id),
            // What is no id has no sessions.
            Err(_) => return Ok(Json(Vec::new())),
        },
    };
    let limit = query.limit.map(|limit| limit.0);
    let mut records = if query.include_ended {
        let limit = limit.unwrap_or(LIST_DEFAULT);
        api.store.recent_sessions(&owner, machine, limit).await?
    } else {
        api.store.open_sessions(&owner, machine).await?
    };
    if let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) {
        records.truncate(limit);
    }
    let items = records
        .iter()
        .map(|record| SessionListItem::new(record, &api.urls))
        .collect();
    Ok(Json(items))
}

// --- Giving more time -----------------------------------------------------------

/// How much more time.
#[derive(Deserialize, ToSchema)]
pub(super) struct IncreaseTimeoutBody {
    /// The minutes to add.
    #[schema(value_type = u32, minimum = 1)]
    minutes: MoreMinutes,
}

/// How much more time, and for which session.
#[derive(Deserialize, ToSchema)]
pub(super) struct OldIncreaseTimeoutBody {
    /// The session.
    session_id: String,
    /// The minutes to add.
    #[schema(value_type = u32, minimum = 1)]
    timeout: MoreMinutes,
    /// Not read.
    #[serde(rename = "machine_id")]
    _machine_id: Option<String>,
    /// Not read.
    #[serde(rename = "gpu")]
    _gpu: Option<String>,
}

/// Increase a session's timeout
///
/// Adds minutes to a session that runs.
#[utoipa::path(
    post, path = "/session/{session_id}/increase-timeout", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session.")),
    request_body = IncreaseTimeoutBody,
    responses(
        (status = 200, description = "It has more time.", body = Message),
        (status = 400, description = "`Session has not started yet`", body = ErrorDetail),
        (status = 404, description = "`GPU event not found`", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn increase_timeout(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
    Body(body): Body<IncreaseTimeoutBody>,
) -> Result<Json<Message>, ApiError> {
    extend(&api, caller, &id, body.minutes, "minutes").await
}

/// Increase a session's timeout (old)
///
/// The same, `timeout` being the minutes to add.
#[utoipa::path(
    post, path = "/session/increase-timeout", tag = "sessions",
    request_body = OldIncreaseTimeoutBody,
    responses(
        (status = 200, description = "It has more time.", body = Message),
        (status = 400, description = "`Session has not started yet`", body = ErrorDetail),
        (status = 404, description = "`GPU event not found`", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
#[deprecated]
pub(super) async fn old_increase_timeout(
    caller: Caller,
    State(api): State<Shared>,
    Body(body): Body<OldIncreaseTimeoutBody>,
) -> Result<Json<Message>, ApiError> {
    extend(&api, caller, &body.session_id, body.timeout, "timeout").await
}

async fn extend(
    api: &Shared,
    caller: Caller,
    id: &str,
    minutes: MoreMinutes,
    minutes_field: &'static str,
) -> Result<Json<Message>, ApiError> {
    let id: SessionId = id
        .parse()
        .map_err(|_| ApiError::not_found("GPU event not found"))?;
    api.driver
        .ask(move |plane, _| plane.extend_session(&caller.owner(), id, minutes.0))
        .await
        .map_err(|error| {
            let wording = Wording {
                minutes_field,
                ..Wording::default()
            };
            ApiError::from_ask(error, wording)
        })?;
    Ok(Json(Message::new("Timeout increased successfully")))
}

// --- Ending ---------------------------------------------------------------------

/// How to end it.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteQuery {
    /// Answer only once the last process is gone, or after 30 seconds.
    #[serde(default, deserialize_with = "flag")]
    #[param(value_type = Option<bool>)]
    wait_for_shutdown: bool,
}

/// A session is being ended.
#[derive(Serialize, ToSchema)]
pub(super) struct DeleteSessionResponse {
    /// Always true.
    success: bool,
}

/// End a session
///
/// Its processes are told to end and then made to. The end is on record when this
/// answers, and is seen to however long it takes.
#[utoipa::path(
    delete, path = "/session/{session_id}", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session."), DeleteQuery),
    responses(
        (status = 200, description = "It is being ended.", body = DeleteSessionResponse),
        (status = 404, description = "`GPUEvent not found session_id: ID, the event might be already closed`", body = ErrorDetail),
        Denied, Unfit,
    ),
)]
pub(super) async fn delete_session(
    caller: Caller,
    State(api): State<Shared>,
    Ids(raw_id): Ids<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<Json<DeleteSessionResponse>, ApiError> {
    let sentence =
        format!("GPUEvent not found session_id: {raw_id}, the event might be already closed");
    let id: SessionId = raw_id
        .parse()
        .map_err(|_| ApiError::not_found(sentence.clone()))?;
    let owner = caller.owner();
    let whose = owner.clone();
    api.driver
        .ask(move |plane, now| plane.cancel_session(&whose, id, now))
        .await
        .map_err(|error| {
            let wording = Wording {
                no_session: Some(sentence),
                ..Wording::default()
            };
            ApiError::from_ask(error, wording)
        })?;
    if query.wait_for_shutdown {
        // That it takes longer is no failure: it is being ended either way.
        api.until(&owner, id, SHUTDOWN_WAIT_MAX, |session| !session.is_open())
            .await?;
    }
    Ok(Json(DeleteSessionResponse { success: true }))
}
