//! The HTTP API: every route on one screen.
//!
//! `API.md`'s contract, so that clients of ComfyDeploy's session API work
//! unchanged. A handler reads a request, asks the [`Driver`] to change something or
//! the [`Store`] what is on record, and writes the answer; it decides nothing.
//! Errors become answers in [`error`] alone, and what a field may be is said in
//! [`fields`] alone.

mod create;
mod docs;
mod error;
mod extract;
mod fields;
mod gpus;
mod logs;
mod machine_wire;
mod machines;
mod platform;
mod session_wire;
mod sessions;
mod shares;
mod sign_in;
mod snapshot;
#[cfg(test)]
mod tests;
mod traffic;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use crate::launcher::Launchers;
use axum::body::HttpBody;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use dwell_core::limits::Limits;
use dwell_core::machine::Access;
use dwell_core::placement::Places;
use dwell_core::pricing::Prices;
use tower_http::cors::{AllowHeaders, Any, CorsLayer};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::error::ApiError;
pub(crate) use self::extract::BODY_BYTES_MAX;
use crate::admission::Admission;
use crate::data_dir::SessionsDir;
use crate::driver::Driver;
use crate::engine::EngineSettings;
use crate::gate::{self, Gate};
use crate::gateway::Gateway;
use crate::session_urls::SessionUrls;
use crate::store::Store;

/// All that the API can reach.
#[derive(Clone)]
pub struct Api {
    /// Who changes things.
    pub driver: Driver,
    /// What is on record.
    pub store: Arc<dyn Store>,
    /// Whether it still answers, or another server does.
    pub gate: Gate,
    /// What stands behind sessions' URLs, and counts what passes.
    pub gateway: Gateway,
    /// By which callers and visitors are known.
    pub admission: Admission,
    /// Where sessions' logs are.
    pub sessions: SessionsDir,
    /// Where each session is reached.
    pub urls: SessionUrls,
    /// Who may use the URL of a session whose recipe does not say.
    pub default_access: Access,
    /// What the server allows.
    pub limits: Limits,
    /// Where sessions are put.
    pub places: Places,
    /// By which clusters are asked what they have.
    pub launchers: Launchers,
    /// What the server charges.
    pub prices: Prices,
    /// What runs containers, if anything does.
    pub engine: Option<EngineSettings>,
}

/// What every handler is given.
type Shared = Arc<Api>;

#[expect(deprecated, reason = "old clients still call the old route")]
fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(docs::Doc::openapi())
        // POST /session
        .routes(routes!(create::create_session))
        // POST /session/dynamic
        .routes(routes!(create::create_dynamic_session))
        // GET, DELETE /session/{session_id}
        .routes(routes!(sessions::get_session, sessions::delete_session))
        // GET /session/{session_id}/traffic
        .routes(routes!(traffic::get_traffic))
        // GET /sessions
        .routes(routes!(sessions::list_sessions))
        // POST /session/{session_id}/increase-timeout
        .routes(routes!(sessions::increase_timeout))
        // POST /session/increase-timeout
        .routes(routes!(sessions::old_increase_timeout))
        // POST /session/{session_id}/snapshot
        .routes(routes!(snapshot::snapshot_session))
        // GET, POST /session/{session_id}/shares
        .routes(routes!(shares::list_shares, shares::create_share))
        // DELETE /session/{session_id}/shares/{share_id}
        .routes(routes!(shares::revoke_share))
        // GET /session/{session_id}/token
        .routes(routes!(shares::get_token))
        // POST /session/{session_id}/entry
        .routes(routes!(shares::create_entry))
        // GET /v2/stream-logs
        .routes(routes!(logs::stream_logs))
        // GET /machines
        .routes(routes!(machines::list_machines))
        // GET, DELETE /machine/{machine_id}
        .routes(routes!(machines::get_machine, machines::delete_machine))
        // GET /machine/{machine_id}/events
        .routes(routes!(machines::list_machine_events))
        // POST /machine/serverless
        .routes(routes!(machines::create_machine))
        // PATCH /machine/serverless/{machine_id}
        .routes(routes!(machines::update_machine))
        // GET /machine/serverless/{machine_id}/versions
        .routes(routes!(machines::list_machine_versions))
        // GET /machine/serverless/{machine_id}/versions/{version_id}
        .routes(routes!(machines::get_machine_version))
        // POST /machine/serverless/{machine_id}/rollback
        .routes(routes!(machines::rollback_machine))
        // GET /platform/gpu-pricing
        .routes(routes!(platform::get_gpu_pricing))
        // GET /platform/gpus
        .routes(routes!(gpus::list_gpus))
        // GET /platform/usage-details
        .routes(routes!(platform::get_usage_details))
        // GET /platform/usage
        .routes(routes!(platform::get_usage))
        // GET, POST /platform/api-keys
        .routes(routes!(platform::list_api_keys, platform::create_api_key))
        // DELETE /platform/api-keys/{key_id}
        .routes(routes!(platform::revoke_api_key))
        // GET /metrics
        .routes(routes!(traffic::get_metrics))
        // GET /healthz
        .routes(routes!(docs::healthz))
}

/// The API at `/` and under `/api`, with its document at `/openapi.json` and a page
/// to read it at `/docs`. What it does not know it answers with a 404 in JSON.
pub fn router(api: Api) -> Router {
    let (routes, document) = routes().split_for_parts();
    let gate = api.gate.clone();
    let document = Arc::new(document);
    let routes = routes
        .route(
            "/openapi.json",
            get(move || async move { Json(Document::clone(&document)) }),
        )
        .route("/docs", get(docs::page))
        .route("/signin", get(sign_in::show).post(sign_in::submit));
    Router::new()
        .merge(routes.clone())
        .nest("/api", routes)
        .fallback(async || ApiError::not_found("Not Found"))
        .method_not_allowed_fallback(async || {
            ApiError::Sentence(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method Not Allowed".to_owned(),
            )
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(close_after_refusal))
        .layer(cross_origin())
        .with_state(Arc::new(api))
        .layer(from_fn_with_state(gate, gate::pass))
}

/// What is left of a large body that was refused is not read: its connection ends, and
/// the answer says so, lest the next request be sent on it.
async fn close_after_refusal(request: Request, next: Next) -> Response {
    /// So much is read off a connection in any case.
    const SMALL_BYTES: u64 = 4_096;
    let is_small = request
        .body()
        .size_hint()
        .upper()
        .is_some_and(|bytes| bytes <= SMALL_BYTES);
    let mut response = next.run(request).await;
    if !is_small && response.status().is_client_error() {
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Not now: the sentence says why.
pub(crate) fn unavailable(sentence: &str) -> impl IntoResponse {
    ApiError::Unavailable(sentence.to_owned())
}

/// The OpenAPI document, generated from the handlers.
#[must_use]
pub fn openapi() -> Document {
    routes().into_openapi()
}

/// Web apps of any origin may call with a key of their user's. No credentials of
/// the browser's own are ever allowed, so that a page gets nothing that whoever
/// wrote it could not get with `curl`; there is no list of origins to keep.
fn cross_origin() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        // `*` would not cover `Authorization`.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
        .max_age(Duration::from_secs(3_600))
}
