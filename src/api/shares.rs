//! Letting others into a private session: share links, its own token, a way in for once.

use axum::Json;
use axum::extract::State;
use dwell_core::control_plane::NewShare;
use dwell_core::id::{SessionId, ShareId};
use dwell_core::share::{Scope, Share};
use dwell_core::time::{Millis, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, Denied, ErrorDetail, Misfit, UnfitBody};
use super::extract::{Caller, Ids, OptionalBody};
use super::fields::{DateTime, Name};
use super::machines::Message;
use super::session_wire::url;
use super::{Api, Shared, sign_in};
use crate::admission::Admission;
use crate::keys;
use crate::store::SessionRecord;

/// For how long a share link is good when nobody says.
const GOOD_FOR_DEFAULT: Millis = Millis::from_minutes(24 * 60);
/// The longest that can be said.
const GOOD_FOR_MAX_MINUTES: u32 = 366 * 24 * 60;

/// What who comes by a share link may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ShareScope {
    /// Look: GET and HEAD, no WebSockets.
    View,
    /// Use the app as its owner does.
    Use,
}

impl From<ShareScope> for Scope {
    fn from(scope: ShareScope) -> Self {
        match scope {
            ShareScope::View => Self::View,
            ShareScope::Use => Self::Use,
        }
    }
}

impl From<Scope> for ShareScope {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::View => Self::View,
            Scope::Use => Self::Use,
        }
    }
}

/// A share link to make.
#[derive(Default, Deserialize, ToSchema)]
pub(super) struct CreateShareBody {
    /// What to call it.
    name: Option<Name>,
    /// What it is to allow.
    #[serde(default)]
    scope: Option<ShareScope>,
    /// For how many minutes it is good; a day when there is none. It is never good for
    /// longer than the session is there.
    #[schema(minimum = 1)]
    minutes: Option<u32>,
}

/// A visit by a share link.
#[derive(Serialize, ToSchema)]
struct VisitResponse {
    /// From which address.
    from: String,
    /// When it began.
    at: DateTime,
}

/// A share link, without its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct ShareResponse {
    /// The link's id.
    id: Uuid,
    /// The session that it opens.
    session_id: Uuid,
    /// What its maker called it.
    name: String,
    /// What it allows.
    scope: ShareScope,
    /// Who made it.
    created_by: String,
    /// When.
    created_at: DateTime,
    /// When it stops being good.
    expires_at: Option<DateTime>,
    /// When it was revoked.
    revoked_at: Option<DateTime>,
    /// By whom.
    revoked_by: Option<String>,
    /// Is it good now?
    good: bool,
    /// How often somebody came by it. Who comes from the same address within a minute is on
    /// the same visit.
    visits: u32,
    /// The last of them, newest first.
    recent_visits: Vec<VisitResponse>,
}

impl ShareResponse {
    fn new(share: &Share, now: Timestamp, is_open: bool) -> Self {
        let visits = share.recent_visits.iter().map(|visit| VisitResponse {
            from: visit.from.to_string(),
            at: DateTime(visit.at),
        });
        let revoked = share.revoked.as_ref();
        Self {
            id: share.id.0,
            session_id: share.session.0,
            name: share.name.clone(),
            scope: share.scope.into(),
            created_by: share.created_by.0.clone(),
            created_at: DateTime(share.created_at),
            expires_at: share.expires_at.map(DateTime),
            revoked_at: revoked.map(|revoked| DateTime(revoked.at)),
            revoked_by: revoked.map(|revoked| revoked.by.0.clone()),
            good: is_open && share.is_good(now),
            visits: share.visits,
            recent_visits: visits.collect(),
        }
    }
}

/// A share link that was just made.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedShareResponse {
    /// The link itself; null while the session has no URL yet.
    url: Option<String>,
    /// Its secret: what `cd_token` in the link says. It is not shown again.
    token: String,
    #[serde(flatten)]
    row: ShareResponse,
}

/// Create a share link
///
/// It opens this private session to whoever has it, until it expires, is revoked, or the
/// session ends. The link is shown once, in this answer.
#[utoipa::path(
    post, path = "/session/{session_id}/shares", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session.")),
    request_body = Option<CreateShareBody>,
    responses(
        (status = 200, description = "The link.", body = CreatedShareResponse),
        (status = 400, description = "Whoever has the session's address can use it already, \
            or there are too many links.", body = ErrorDetail),
        (status = 404, description = "`GPU event not found`", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn create_share(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
    OptionalBody(body): OptionalBody<CreateShareBody>,
) -> Result<Json<CreatedShareResponse>, ApiError> {
    let session = session_id(&id)?;
    let body = body.unwrap_or_default();
    let good_for = match body.minutes {
        None => GOOD_FOR_DEFAULT,
        Some(minutes @ 1..=GOOD_FOR_MAX_MINUTES) => Millis::from_minutes(minutes),
        Some(minutes) => {
            let sentence =
                format!("minutes must be from 1 to {GOOD_FOR_MAX_MINUTES}; {minutes} is not");
            return Err(Misfit::in_body("minutes", sentence).into());
        }
    };
    let secret = Admission::new_share_secret().map_err(|error| no_randomness(&error))?;
    let record = record(&api, &caller, session).await?;
    let new = NewShare {
        id: ShareId(Uuid::new_v4()),
        principal: caller.principal,
        session,
        name: body.name.map_or_else(|| "share".to_owned(), |name| name.0),
        hash: keys::hash(&secret),
        scope: body.scope.map_or(Scope::Use, Into::into),
        good_for: Some(good_for),
        default_access: api.default_access,
    };
    let made = api.driver.ask(move |plane, now| {
        let share = plane.create_share(new, now)?;
        Ok((share, now.wall))
    });
    let (share, now) = made.await?;
    let url = url(&record.session, &api.urls);
    Ok(Json(CreatedShareResponse {
        url: url.map(|url| sign_in::entry(&url, "/", &secret)),
        token: secret,
        row: ShareResponse::new(&share, now, true),
    }))
}

/// List share links
///
/// All that were made for this session, newest first, without their secrets: who made and
/// who revoked them, and who came by them.
#[utoipa::path(
    get, path = "/session/{session_id}/shares", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "The links.", body = Vec<ShareResponse>),
        (status = 404, description = "`GPU event not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn list_shares(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<Vec<ShareResponse>>, ApiError> {
    let session = session_id(&id)?;
    let record = record(&api, &caller, session).await?;
    let shares = api.store.shares(&caller.owner(), session).await?;
    let now = crate::clock::wall();
    let is_open = record.session.is_open();
    let rows = shares
        .iter()
        .map(|share| ShareResponse::new(share, now, is_open));
    Ok(Json(rows.collect()))
}

/// Revoke a share link
///
/// Who came by it is let in no more, at the next request; what is open by it, such as a
/// WebSocket, goes on until it is closed.
#[utoipa::path(
    delete, path = "/session/{session_id}/shares/{share_id}", tag = "sessions",
    params(
        ("session_id" = Uuid, Path, description = "The session."),
        ("share_id" = Uuid, Path, description = "The link's id."),
    ),
    responses(
        (status = 200, description = "It is no longer good.", body = Message),
        (status = 404, description = "`GPU event not found`, or `Share link not found`",
            body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn revoke_share(
    caller: Caller,
    State(api): State<Shared>,
    Ids((id, share)): Ids<(String, String)>,
) -> Result<Json<Message>, ApiError> {
    let session = session_id(&id)?;
    let not_found = |_| ApiError::not_found("Share link not found");
    let share: ShareId = share.parse().map_err(not_found)?;
    let revoking = api
        .driver
        .ask(move |plane, now| plane.revoke_share(&caller.principal, session, share, now));
    revoking.await?;
    Ok(Json(Message::new("Share link revoked successfully")))
}

/// A secret that opens a session.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenResponse {
    /// The secret.
    token: String,
    /// Where it opens; null while the session has no URL yet.
    url: Option<String>,
}

/// Get a session's token
///
/// For programs: `Authorization: Bearer TOKEN` opens this session's URL, and nothing else,
/// as long as the session is there.
#[utoipa::path(
    get, path = "/session/{session_id}/token", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session.")),
    responses(
        (status = 200, description = "The token.", body = TokenResponse),
        (status = 404, description = "`GPU event not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn get_token(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<TokenResponse>, ApiError> {
    let session = session_id(&id)?;
    let record = record(&api, &caller, session).await?;
    Ok(Json(TokenResponse {
        token: api.admission.token(session),
        url: url(&record.session, &api.urls),
    }))
}

/// Where to.
#[derive(Default, Deserialize, ToSchema)]
pub(super) struct EntryBody {
    /// The path to come to, with its query; `/` when there is none.
    path: Option<String>,
}

/// A way in.
#[derive(Serialize, ToSchema)]
pub(super) struct EntryResponse {
    /// Open this in a browser, or in a frame of your own page. It is good once.
    url: String,
    /// Until when it is good.
    expires_at: DateTime,
}

/// Create a way in
///
/// An address that signs a browser in to this session, once and within a minute: for the
/// page of yours that shows the session in a frame. The browser gets a cookie of the
/// session's own that is partitioned, so that it needs no third-party cookies.
#[utoipa::path(
    post, path = "/session/{session_id}/entry", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session.")),
    request_body = Option<EntryBody>,
    responses(
        (status = 200, description = "The way in.", body = EntryResponse),
        (status = 400, description = "`Session has not started yet`", body = ErrorDetail),
        (status = 404, description = "`GPU event not found`", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn create_entry(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
    OptionalBody(body): OptionalBody<EntryBody>,
) -> Result<Json<EntryResponse>, ApiError> {
    let session = session_id(&id)?;
    let record = record(&api, &caller, session).await?;
    let not_started = || {
        let sentence = dwell_core::refusal::Refusal::NotStarted.to_string();
        ApiError::Sentence(axum::http::StatusCode::BAD_REQUEST, sentence)
    };
    let url = url(&record.session, &api.urls).ok_or_else(not_started)?;
    let path = body.and_then(|body| body.path).unwrap_or_default();
    let (ticket, expires_at) = ticket(&api, session, &caller)?;
    Ok(Json(EntryResponse {
        url: sign_in::entry(&url, &path, &ticket),
        expires_at: DateTime(expires_at),
    }))
}

/// A ticket for the caller, and when it ends.
pub(super) fn ticket(
    api: &Api,
    session: SessionId,
    caller: &Caller,
) -> Result<(String, Timestamp), ApiError> {
    let made = api.admission.ticket(session, caller.key);
    made.map_err(|error| no_randomness(&error))
}

fn no_randomness(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::Unavailable(format!(
        "The system has no randomness for a secret: {error}"
    ))
}

const NOT_FOUND: &str = "GPU event not found";

fn session_id(text: &str) -> Result<SessionId, ApiError> {
    text.parse().map_err(|_| ApiError::not_found(NOT_FOUND))
}

async fn record(api: &Api, caller: &Caller, id: SessionId) -> Result<SessionRecord, ApiError> {
    let record = api.store.session(&caller.owner(), id).await?;
    record.ok_or_else(|| ApiError::not_found(NOT_FOUND))
}
