//! What a request says: who asks, which thing, the query, the body.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use dwell_core::id::KeyId;
use dwell_core::owner::{Owner, Principal};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::error::{ApiError, Loc, Misfit};
use super::{Api, Shared, sign_in};
use crate::keys::KeyError;
use crate::session_urls::SessionUrls;

/// The longest body that is read, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;

// --- Who asks -------------------------------------------------------------------

/// Who the request's key speaks for.
pub(super) struct Caller {
    /// Who that is.
    pub principal: Principal,
    /// By which key.
    pub key: KeyId,
}

impl Caller {
    /// Whose rows the caller sees.
    pub fn owner(&self) -> Owner {
        self.principal.owner()
    }

    /// Whom this secret speaks for.
    pub fn of(api: &Api, secret: &str) -> Result<Self, KeyError> {
        let (key, principal) = api.admission.keys.check(secret)?;
        Ok(Self { principal, key })
    }
}

impl FromRequestParts<Shared> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, ApiError> {
        let secret = presented_key(parts, &api.urls).ok_or(KeyError::Missing)?;
        Ok(Self::of(api, &secret)?)
    }
}

/// The first key that is presented: cookie, query, bearer, `x-api-key`.
fn presented_key(parts: &Parts, urls: &SessionUrls) -> Option<String> {
    let header = |name: &str| parts.headers.get(name).and_then(|it| it.to_str().ok());
    let cookie = || sign_in::cookie(parts, urls);
    let query = || {
        form_urlencoded::parse(parts.uri.query()?.as_bytes())
            .find(|(name, _)| name == "cd_token")
            .map(|(_, value)| value.into_owned())
    };
    let bearer = || {
        let (scheme, key) = header(AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| key.trim().to_owned())
    };
    let api_key = || header("x-api-key").map(str::to_owned);
    let some = |key: Option<String>| key.filter(|key| !key.is_empty());
    some(cookie())
        .or_else(|| some(query()))
        .or_else(|| some(bearer()))
        .or_else(|| some(api_key()))
}

// --- Which thing ----------------------------------------------------------------

/// What stands in the path in the place of ids. Text, since what is no id names
/// nothing: that is a 404 in the route's own words, not a misfit.
pub(super) struct Ids<T>(pub T);

impl<T: DeserializeOwned + Default + Send> FromRequestParts<Shared> for Ids<T> {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Self::Rejection> {
        // What cannot even be decoded names nothing either.
        Ok(Path::from_request_parts(parts, api)
            .await
            .map_or_else(|_| Self(T::default()), |Path(ids)| Self(ids)))
    }
}

// --- The query ------------------------------------------------------------------

/// The query, if it fits.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, ApiError> {
        let pairs = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
        serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs))
            .map(Self)
            .map_err(|error| misfit("query", &error).into())
    }
}

// --- The body -------------------------------------------------------------------

/// The JSON body, if it fits. Whatever its content type says it is.
pub(super) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, ApiError> {
        let bytes = read(request, api).await?;
        if bytes.trim_ascii().is_empty() {
            return Err(in_whole_body("Field required", "missing").into());
        }
        parse(&bytes).map(Self)
    }
}

/// The JSON body, if there is one and it fits.
pub(super) struct OptionalBody<T>(pub Option<T>);

impl<T: DeserializeOwned> FromRequest<Shared> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Shared) -> Result<Self, ApiError> {
        let bytes = read(request, api).await?;
        if matches!(bytes.trim_ascii(), b"" | b"null") {
            return Ok(Self(None));
        }
        parse(&bytes).map(Some).map(Self)
    }
}

async fn read(request: Request, api: &Shared) -> Result<Bytes, ApiError> {
    Bytes::from_request(request, api).await.map_err(|rejected| {
        if rejected.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let sentence = "The body is larger than 1 MiB".to_owned();
            ApiError::Sentence(StatusCode::PAYLOAD_TOO_LARGE, sentence)
        } else {
            ApiError::Sentence(StatusCode::BAD_REQUEST, rejected.body_text())
        }
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| Misfit {
        loc: vec![
            Loc::Field("body".to_owned()),
            Loc::Index(offset(bytes, &error)),
        ],
        msg: format!("JSON decode error: {error}"),
        kind: "json_invalid",
    })?;
    // serde would take a list for an object whose fields come in order.
    if !value.is_object() {
        return Err(in_whole_body("Input should be an object", "type_error").into());
    }
    serde_path_to_error::deserialize(value).map_err(|error| misfit("body", &error).into())
}

fn in_whole_body(msg: &str, kind: &'static str) -> Misfit {
    Misfit {
        loc: vec![Loc::Field("body".to_owned())],
        msg: msg.to_owned(),
        kind,
    }
}

/// Where in the text, in bytes, the reader gave up.
fn offset(text: &[u8], error: &serde_json::Error) -> usize {
    let lines_before = error.line().saturating_sub(1);
    let line_start: usize = text
        .split_inclusive(|byte| *byte == b'\n')
        .take(lines_before)
        .map(<[u8]>::len)
        .sum();
    line_start + error.column().saturating_sub(1)
}

/// An error of serde's as FastAPI would put it.
fn misfit<E: std::fmt::Display>(place: &str, error: &serde_path_to_error::Error<E>) -> Misfit {
    let mut loc = vec![Loc::Field(place.to_owned())];
    loc.extend(error.path().iter().filter_map(|segment| match segment {
        Segment::Map { key } => Some(Loc::Field(key.clone())),
        Segment::Seq { index } => Some(Loc::Index(*index)),
        Segment::Enum { variant } => Some(Loc::Field(variant.clone())),
        Segment::Unknown => None,
    }));
    let said = error.inner().to_string();
    // serde names a missing field in its sentence, not in the path.
    let missing = said
        .strip_prefix("missing field `")
        .and_then(|rest| rest.strip_suffix('`'));
    if let Some(field) = missing {
        loc.push(Loc::Field(field.to_owned()));
        return Misfit {
            loc,
            msg: "Field required".to_owned(),
            kind: "missing",
        };
    }
    let kind = if said.starts_with("invalid type") {
        "type_error"
    } else {
        "value_error"
    };
    Misfit {
        loc,
        msg: said,
        kind,
    }
}
