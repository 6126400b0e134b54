//! Scripts of other origins may use a session: a web app elsewhere probes its URL and
//! talks to it. What keeps strangers out is [`Access`](dwell_core::machine::Access):
//! a private session does not count the cookies that a browser sends along.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderName, HeaderValue, ORIGIN, VARY,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");
/// Seconds that a browser may remember the answer; no browser remembers longer.
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");

/// The answer to a browser that asks whether it may send a script's request.
pub fn preflight<B, R: Default>(request: &Request<B>) -> Option<Response<R>> {
    let asked = request.headers();
    if *request.method() != Method::OPTIONS {
        return None;
    }
    let (origin, method) = (
        asked.get(ORIGIN)?,
        asked.get(ACCESS_CONTROL_REQUEST_METHOD)?,
    );
    let mut response = Response::new(R::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    let yes = HeaderValue::from_static("true");
    answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    answer.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes.clone());
    answer.insert(ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    if let Some(headers) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
    }
    if asked.contains_key(REQUEST_PRIVATE_NETWORK) {
        answer.insert(ALLOW_PRIVATE_NETWORK, yes);
    }
    answer.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    answer.insert(
        VARY,
        HeaderValue::from_static(
            "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        ),
    );
    Some(response)
}

/// The origin of a request that comes from another one.
#[must_use]
pub fn other_origin(headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let host = headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    // The scheme is not compared: TLS may have been taken off on the way here.
    let authority = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"));
    let is_own =
        authority.is_some_and(|(_, authority)| authority.as_bytes().eq_ignore_ascii_case(host));
    (!is_own).then(|| origin.clone())
}

/// Let scripts of `origin` read the response, unless the app has said who may.
pub fn allow(origin: Option<HeaderValue>, headers: &mut HeaderMap) {
    if let Some(origin) = origin
        && !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)
    {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}
