//! The OpenAPI document, the page to read it, and whether the server is up.

use axum::Json;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use serde::Serialize;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

use super::error::{ErrorDetail, ValidationErrors};

/// What is said of the API as a whole; the rest comes from the handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Dwell",
        description = "Interactive sessions on GPUs: a URL, a deadline and a true bill. \
            Clients of ComfyDeploy's session API work unchanged.\n\n\
            Every route exists under `/api` too.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/"), (url = "/api")),
    tags(
        (name = "sessions", description = "An app on a GPU, for a while"),
        (name = "machines", description = "Recipes for what sessions run"),
        (name = "logs", description = "What apps write"),
        (name = "platform", description = "Prices, usage and API keys"),
        (name = "server", description = "The server itself"),
    ),
    security(("bearer" = []), ("x-api-key" = []), ("cd_token" = []), ("session_cookie" = [])),
    components(schemas(ErrorDetail, ValidationErrors)),
    modifiers(&KeyPlaces),
)]
pub(super) struct Doc;

/// Where a key can be presented.
struct KeyPlaces;

impl Modify for KeyPlaces {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let places = [
            ("bearer", SecurityScheme::Http(bearer)),
            (
                "x-api-key",
                SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key"))),
            ),
            (
                "cd_token",
                SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::new("cd_token"))),
            ),
            (
                "session_cookie",
                SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::new("__session"))),
            ),
        ];
        let components = document.components.get_or_insert_default();
        for (name, place) in places {
            components.add_security_scheme(name, place);
        }
    }
}

/// The page to read the document.
pub(super) async fn page() -> impl IntoResponse {
    // It is one file and loads nothing but the document.
    const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
         style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";
    (
        [(header::CONTENT_SECURITY_POLICY, POLICY)],
        Html(include_str!("docs.html")),
    )
}

/// The server is up.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    status: &'static str,
}

/// Is the server up?
///
/// Needs no key.
#[utoipa::path(
    get, path = "/healthz", tag = "server",
    security(()),
    responses((status = 200, description = "It is.", body = Health)),
)]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}
