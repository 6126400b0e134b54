//! What goes wrong, as HTTP: the one place that turns errors into answers.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dwell_core::refusal::Refusal;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::driver::AskError;
use crate::keys::KeyError;
use crate::store::StoreError;

/// How soon to ask again when the store could not answer, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// What went wrong, in one sentence.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorDetail {
    /// The sentence.
    pub detail: String,
}

/// A request that does not fit.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HTTPValidationError)]
pub(super) struct ValidationErrors {
    /// Each thing that does not fit.
    pub detail: Vec<Misfit>,
}

/// One thing in a request that does not fit.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ValidationError)]
pub(super) struct Misfit {
    /// Where it is: `body`, `query`, then the way to it.
    pub loc: Vec<Loc>,
    /// What is wrong with it.
    pub msg: String,
    /// The kind of mistake, for programs.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// One step on the way to what does not fit.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Loc {
    /// A field.
    Field(String),
    /// A place in a list, or in the text of a malformed body.
    Index(usize),
}

impl Misfit {
    /// A field of the body whose value will not do.
    pub fn in_body(field: &str, msg: impl Into<String>) -> Self {
        Self {
            loc: vec![Loc::Field("body".to_owned()), Loc::Field(field.to_owned())],
            msg: msg.into(),
            kind: "value_error",
        }
    }
}

/// Why a request is not answered as asked.
#[derive(Debug)]
pub(super) enum ApiError {
    /// For this reason.
    Sentence(StatusCode, String),
    /// Its key is not good.
    Key(KeyError),
    /// It does not fit.
    Misfit(Misfit),
    /// Not now; the sentence says why.
    Unavailable(String),
}

impl ApiError {
    pub fn not_found(sentence: impl Into<String>) -> Self {
        Self::Sentence(StatusCode::NOT_FOUND, sentence.into())
    }

    pub fn not_built_yet(sentence: &str) -> Self {
        Self::Sentence(StatusCode::NOT_IMPLEMENTED, sentence.to_owned())
    }

    /// What the core or the driver said to a route that speaks so.
    pub fn from_ask(error: AskError, wording: Wording) -> Self {
        match error {
            AskError::Refused(refusal) => Self::from_refusal(&refusal, wording),
            AskError::Unavailable(why) => Self::Unavailable(why),
        }
    }

    fn from_refusal(refusal: &Refusal, wording: Wording) -> Self {
        let sentence = refusal.to_string();
        match refusal {
            Refusal::NoSuchSession => {
                Self::not_found(wording.no_session.unwrap_or_else(|| sentence.clone()))
            }
            Refusal::NoSuchMachine | Refusal::NoSuchKey | Refusal::NoSuchShare => {
                Self::not_found(sentence)
            }
            Refusal::NotPrivate
            | Refusal::NotStarted
            | Refusal::TooManySessions
            | Refusal::TooMany { .. } => Self::Sentence(StatusCode::BAD_REQUEST, sentence),
            Refusal::UnknownGpuType { .. } | Refusal::NoImages { .. } => {
                Self::Misfit(Misfit::in_body("gpu", sentence))
            }
            Refusal::TimeoutOutOfRange { .. } => {
                Self::Misfit(Misfit::in_body(wording.minutes_field, sentence))
            }
            Refusal::ShuttingDown => Self::Unavailable(sentence),
            Refusal::AdminOnly => Self::Sentence(StatusCode::FORBIDDEN, sentence),
        }
    }
}

/// How a route words a refusal, where the routes differ.
pub(super) struct Wording {
    /// What it says of a session that it does not know; the core's own words if
    /// there is nothing here.
    pub no_session: Option<String>,
    /// The field of its body that holds minutes.
    pub minutes_field: &'static str,
}

impl Default for Wording {
    fn default() -> Self {
        Self {
            no_session: None,
            minutes_field: "timeout",
        }
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        Self::from_ask(error, Wording::default())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!("the store could not be read: {error}");
        Self::Unavailable(error.0)
    }
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> Self {
        Self::Key(error)
    }
}

impl From<Misfit> for ApiError {
    fn from(misfit: Misfit) -> Self {
        Self::Misfit(misfit)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let sentence = |detail: String| Json(ErrorDetail { detail });
        match self {
            Self::Sentence(status, detail) => (status, sentence(detail)).into_response(),
            Self::Key(error) => (
                StatusCode::UNAUTHORIZED,
                [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))],
                sentence(error.to_string()),
            )
                .into_response(),
            Self::Misfit(misfit) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                Json(ValidationErrors {
                    detail: vec![misfit],
                }),
            )
                .into_response(),
            Self::Unavailable(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                [(header::RETRY_AFTER, RETRY_AFTER)],
                sentence(why),
            )
                .into_response(),
        }
    }
}

/// What every route with a key may answer, for the OpenAPI document.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described, never made")]
pub(super) enum Denied {
    /// No good key was presented: `Invalid or missing token`, `Invalid or expired
    /// token` or `Revoked token`.
    #[response(status = 401)]
    Key(ErrorDetail),
    /// Nothing can be read or put on record now. Nothing happened; ask again after
    /// `Retry-After` seconds.
    #[response(status = 503)]
    Unavailable(ErrorDetail),
}

/// What every route with a query may answer besides.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described, never made")]
pub(super) enum Unfit {
    /// The request does not fit.
    #[response(status = 422)]
    Misfit(ValidationErrors),
}

/// What every route with a body may answer besides.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described, never made")]
pub(super) enum UnfitBody {
    /// The body is larger than 1 MiB.
    #[response(status = 413)]
    TooLarge(ErrorDetail),
    /// The request does not fit.
    #[response(status = 422)]
    Misfit(ValidationErrors),
}
