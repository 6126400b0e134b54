//! Prices, usage and API keys.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use dwell_core::id::KeyId;
use dwell_core::key::Key;
use dwell_core::metering::{Period, usage_by_type};
use dwell_core::owner::{OrgId, Principal, UserId};
use dwell_core::pricing::MicroDollars;
use dwell_core::time::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Shared;
use super::error::{ApiError, Denied, ErrorDetail, Unfit, UnfitBody};
use super::extract::{Body, Caller, Ids, Query};
use super::fields::{DateTime, Name, moment, moment_schema};
use super::machines::Message;
use super::session_wire::GpuEventResponse;
use crate::keys;
use crate::store::EventQuery;

const SECONDS_IN_AN_HOUR: f64 = 3_600.0;

// --- Prices and usage -----------------------------------------------------------

/// GPU prices
///
/// What a second of each GPU type of this server costs, in dollars.
#[utoipa::path(
    get, path = "/platform/gpu-pricing", tag = "platform",
    responses(
        (status = 200, description = "Dollars a second, by GPU type.", body = BTreeMap<String, f64>),
        Denied,
    ),
)]
pub(super) async fn get_gpu_pricing(
    _: Caller,
    State(api): State<Shared>,
) -> Result<Json<BTreeMap<String, f64>>, ApiError> {
    let prices = api.places.gpu_types().into_iter().map(|gpu_type| {
        let an_hour = api.prices.rate(&gpu_type).0.dollars();
        (gpu_type.0, an_hour / SECONDS_IN_AN_HOUR)
    });
    Ok(Json(prices.collect()))
}

/// Which stretch of time.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PeriodQuery {
    /// Its first moment: RFC 3339, or seconds since 1970. From the first event on
    /// when there is none.
    #[serde(default, deserialize_with = "moment")]
    #[param(required = false, schema_with = moment_schema)]
    start_time: Option<Timestamp>,
    /// The first moment after it. Until now when there is none.
    #[serde(default, deserialize_with = "moment")]
    #[param(required = false, schema_with = moment_schema)]
    end_time: Option<Timestamp>,
}

impl PeriodQuery {
    const fn events(&self) -> EventQuery {
        EventQuery {
            machine: None,
            from: self.start_time,
            until: self.end_time,
        }
    }
}

/// GPU events
///
/// Those of which any part lies within the period, newest first.
#[utoipa::path(
    get, path = "/platform/usage-details", tag = "platform",
    params(PeriodQuery),
    responses(
        (status = 200, description = "The events.", body = Vec<GpuEventResponse>),
        Denied, Unfit,
    ),
)]
pub(super) async fn get_usage_details(
    caller: Caller,
    State(api): State<Shared>,
    Query(period): Query<PeriodQuery>,
) -> Result<Json<Vec<GpuEventResponse>>, ApiError> {
    let owner = caller.owner();
    let sessions = api.store.gpu_events(&owner, period.events()).await?;
    let events = sessions
        .iter()
        .map(|session| GpuEventResponse::new(session, &api.urls));
    Ok(Json(events.collect()))
}

/// What was used within a period.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageResponse {
    /// By GPU type.
    usage: Vec<UsageOfType>,
    /// All together, in dollars.
    total_cost: f64,
    /// The period.
    period: PeriodResponse,
}

/// What was used of one GPU type.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageOfType {
    /// The GPU type.
    gpu: String,
    /// For how long GPUs were held, in seconds.
    usage_in_sec: f64,
    /// What that cost, in dollars.
    cost: f64,
}

/// A stretch of time.
#[derive(Serialize, ToSchema)]
pub(super) struct PeriodResponse {
    /// Its first moment.
    start: Option<DateTime>,
    /// The first moment after it.
    end: Option<DateTime>,
}

/// Usage
///
/// Totals by GPU type. Of an event that reaches beyond the period, the part within
/// counts.
#[utoipa::path(
    get, path = "/platform/usage", tag = "platform",
    params(PeriodQuery),
    responses(
        (status = 200, description = "The totals.", body = UsageResponse),
        Denied, Unfit,
    ),
)]
pub(super) async fn get_usage(
    caller: Caller,
    State(api): State<Shared>,
    Query(query): Query<PeriodQuery>,
) -> Result<Json<UsageResponse>, ApiError> {
    let owner = caller.owner();
    let sessions = api.store.gpu_events(&owner, query.events()).await?;
    let events = sessions
        .iter()
        .map(|session| (&session.gpu_type, &session.gpu_event));
    let period = Period {
        from: query.start_time,
        until: query.end_time,
    };
    let totals = usage_by_type(events, period);
    let total_cost: MicroDollars = totals.values().map(|usage| usage.cost).sum();
    let usage = totals.into_iter().map(|(gpu_type, usage)| UsageOfType {
        gpu: gpu_type.0,
        usage_in_sec: std::time::Duration::from(usage.held).as_secs_f64(),
        cost: usage.cost.dollars(),
    });
    Ok(Json(UsageResponse {
        usage: usage.collect(),
        total_cost: total_cost.dollars(),
        period: PeriodResponse {
            start: query.start_time.map(DateTime),
            end: query.end_time.map(DateTime),
        },
    }))
}

// --- API keys -------------------------------------------------------------------

/// An API key, without its secret.
#[derive(Serialize, ToSchema)]
pub(super) struct ApiKeyResponse {
    /// The key's id; not the key.
    id: Uuid,
    /// What its maker called it.
    name: String,
    /// The user that it speaks for.
    user_id: String,
    /// The organisation that it acts in.
    org_id: Option<String>,
    /// May make keys for others.
    admin: bool,
    /// When it was made.
    created_at: DateTime,
}

impl ApiKeyResponse {
    fn new(key: &Key) -> Self {
        Self {
            id: key.id.0,
            name: key.name.clone(),
            user_id: key.principal.user.0.clone(),
            org_id: key.principal.org.as_ref().map(|org| org.0.clone()),
            admin: key.principal.admin,
            created_at: DateTime(key.created_at),
        }
    }
}

/// An API key that was just made.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedApiKeyResponse {
    /// The key itself. It is not shown again.
    key: String,
    #[serde(flatten)]
    row: ApiKeyResponse,
}

/// An API key to make.
#[derive(Deserialize, ToSchema)]
pub(super) struct CreateApiKeyBody {
    /// What to call it.
    name: Name,
    /// The user that it speaks for; the caller when there is none. Only an admin's
    /// key can name another.
    user: Option<Name>,
    /// The organisation that it acts in; the caller's when neither this nor `user`
    /// is there. Only an admin's key can name another.
    org: Option<Name>,
    /// May make keys for others. Only an admin's key can make one that may.
    #[serde(default)]
    admin: bool,
}

impl CreateApiKeyBody {
    fn principal(&self, caller: &Principal) -> Principal {
        let named = |name: &Option<Name>| name.as_ref().map(|name| name.0.clone());
        let org = match (&self.user, named(&self.org)) {
            (_, Some(org)) => Some(OrgId(org)),
            (Some(_), None) => None,
            (None, None) => caller.org.clone(),
        };
        Principal {
            user: named(&self.user).map_or_else(|| caller.user.clone(), UserId),
            org,
            admin: self.admin,
        }
    }
}

/// List API keys
///
/// Those that are good, newest first, without their secrets.
#[utoipa::path(
    get, path = "/platform/api-keys", tag = "platform",
    responses(
        (status = 200, description = "The keys.", body = Vec<ApiKeyResponse>),
        Denied,
    ),
)]
pub(super) async fn list_api_keys(
    caller: Caller,
    State(api): State<Shared>,
) -> Result<Json<Vec<ApiKeyResponse>>, ApiError> {
    let keys = api.store.keys(&caller.owner()).await?;
    let good = keys.iter().filter(|key| key.revoked_at.is_none());
    Ok(Json(good.map(ApiKeyResponse::new).collect()))
}

/// Create an API key
///
/// The key is shown once, in this answer.
#[utoipa::path(
    post, path = "/platform/api-keys", tag = "platform",
    request_body = CreateApiKeyBody,
    responses(
        (status = 200, description = "The key.", body = CreatedApiKeyResponse),
        (status = 400, description = "There are too many keys already.", body = ErrorDetail),
        (status = 403, description = "Only an admin's key may do this.", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn create_api_key(
    caller: Caller,
    State(api): State<Shared>,
    Body(body): Body<CreateApiKeyBody>,
) -> Result<Json<CreatedApiKeyResponse>, ApiError> {
    let secret = keys::new_secret().map_err(|error| {
        ApiError::Unavailable(format!("The system has no randomness for a key: {error}"))
    })?;
    let (id, hash) = (KeyId(Uuid::new_v4()), keys::hash(&secret));
    let principal = body.principal(&caller.principal);
    let key = api
        .driver
        .ask(move |plane, now| {
            let key = Key {
                id,
                name: body.name.0,
                hash,
                principal,
                created_at: now.wall,
                revoked_at: None,
            };
            plane
                .create_key(key.clone(), Some(&caller.principal))
                .map(|()| key)
        })
        .await?;
    Ok(Json(CreatedApiKeyResponse {
        key: secret,
        row: ApiKeyResponse::new(&key),
    }))
}

/// Revoke an API key
#[utoipa::path(
    delete, path = "/platform/api-keys/{key_id}", tag = "platform",
    params(("key_id" = Uuid, Path, description = "The key's id.")),
    responses(
        (status = 200, description = "It is no longer good.", body = Message),
        (status = 404, description = "`API key not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn revoke_api_key(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<Message>, ApiError> {
    let id: KeyId = id
        .parse()
        .map_err(|_| ApiError::not_found("API key not found"))?;
    api.driver
        .ask(move |plane, now| plane.revoke_key(&caller.owner(), id, now))
        .await?;
    Ok(Json(Message::new("API key revoked successfully")))
}
