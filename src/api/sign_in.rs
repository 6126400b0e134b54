//! Signing in by a browser: a key becomes a cookie of the server's own origin, and that a
//! ticket for each private session that is opened.

use axum::extract::{Form, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, COOKIE, LOCATION, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use dwell_core::id::SessionId;
use serde::Deserialize;

use super::error::ApiError;
use super::extract::{Caller, Query};
use super::session_wire::url;
use super::{Api, Shared};
use crate::gateway::cors;
use crate::gateway::page::{STYLE, escape};
use crate::session_urls::{Scheme, SessionUrls};

/// The cookie that clients of old have.
const COOKIE_NAME: &str = "__session";
/// The cookie that no other host can set, an app's under the same domain included.
const HOST_ONLY_NAME: &str = "__Host-dwell";

/// The key that a browser keeps for this server, if the request carries it and no page of
/// another origin can have had it sent.
pub(super) fn cookie(parts: &Parts, urls: &SessionUrls) -> Option<String> {
    if is_of_another_origin(&parts.headers) {
        return None;
    }
    let value_of = |wanted: &str| {
        let lines = parts.headers.get_all(COOKIE).iter();
        let mut pairs = lines
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='));
        pairs
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value.to_owned())
    };
    match (urls.scheme(), urls.domain()) {
        (Scheme::Http, _) => value_of(COOKIE_NAME),
        (Scheme::Https, None) => value_of(HOST_ONLY_NAME).or_else(|| value_of(COOKIE_NAME)),
        // A script of an app under our domain can set the other for all of the domain.
        (Scheme::Https, Some(_)) => value_of(HOST_ONLY_NAME),
    }
}

/// Scripts of other origins, apps at other ports and names among them, call with keys.
fn is_of_another_origin(headers: &HeaderMap) -> bool {
    let said = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    said("origin").is_some_and(|origin| !cors::is_own(origin, said("host").unwrap_or_default()))
}

/// Where somebody would go.
#[derive(Deserialize)]
pub(super) struct Destination {
    session: String,
    #[serde(default)]
    path: String,
}

/// What somebody signs in with.
#[derive(Deserialize)]
pub(super) struct Credentials {
    #[serde(flatten)]
    to: Destination,
    key: String,
}

/// Who is signed in goes on at once.
pub(super) async fn show(
    State(api): State<Shared>,
    Query(to): Query<Destination>,
    caller: Result<Caller, ApiError>,
) -> Response {
    match caller {
        Ok(caller) => match way_in(&api, &caller, &to).await {
            Ok(Some(location)) => on_to(&location, None),
            Ok(None) => form(&to, StatusCode::OK, Some(OTHERS)),
            Err(error) => error.into_response(),
        },
        Err(ApiError::Key(_)) => form(&to, StatusCode::OK, None),
        Err(error) => error.into_response(),
    }
}

/// Sign in, and go on.
pub(super) async fn submit(
    State(api): State<Shared>,
    headers: HeaderMap,
    Form(Credentials { to, key }): Form<Credentials>,
) -> Response {
    if is_of_another_origin(&headers) {
        let sentence = "Sign in at the page of this server itself";
        return form(&to, StatusCode::FORBIDDEN, Some(sentence));
    }
    let key = key.trim();
    let caller = match Caller::of(&api, key) {
        Ok(caller) => caller,
        Err(error) => return form(&to, StatusCode::UNAUTHORIZED, Some(&error.to_string())),
    };
    match way_in(&api, &caller, &to).await {
        Ok(Some(location)) => on_to(&location, Some(kept(key, &api.urls))),
        Ok(None) => form(&to, StatusCode::UNAUTHORIZED, Some(OTHERS)),
        Err(error) => error.into_response(),
    }
}

/// Said alike of a session that is somebody else's and of one that never was.
const OTHERS: &str = "This key opens no session at that address";

/// Where a caller gets in; None where it has no such session that is open.
async fn way_in(api: &Api, caller: &Caller, to: &Destination) -> Result<Option<String>, ApiError> {
    let Ok(id) = to.session.parse::<SessionId>() else {
        return Ok(None);
    };
    let Some(record) = api.store.session(&caller.owner(), id).await? else {
        return Ok(None);
    };
    let Some(url) = url(&record.session, &api.urls) else {
        return Ok(None);
    };
    let (ticket, _) = super::shares::ticket(api, id, caller)?;
    Ok(Some(entry(&url, &to.path, &ticket)))
}

/// The address that leads to `path` of the session at `url` by that ticket.
pub(super) fn entry(url: &str, path: &str, ticket: &str) -> String {
    let is_path = path.starts_with('/') && !path.starts_with("//") && !path.starts_with("/\\");
    let path = if is_path { path } else { "/" };
    // What stands behind it is for the page's own script and is not sent.
    let path = path.split('#').next().unwrap_or(path);
    let path: String = path.chars().filter(|it| it.is_ascii_graphic()).collect();
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{url}{path}{joint}cd_token={ticket}")
}

/// By TLS the cookie is kept in frames of other sites too, apart for each such site.
fn kept(key: &str, urls: &SessionUrls) -> String {
    match urls.scheme() {
        Scheme::Http => format!("{COOKIE_NAME}={key}; Path=/; HttpOnly; SameSite=Lax"),
        Scheme::Https => {
            format!("{HOST_ONLY_NAME}={key}; Path=/; HttpOnly; Secure; SameSite=None; Partitioned")
        }
    }
}

fn on_to(location: &str, cookie: Option<String>) -> Response {
    let mut headers = vec![
        (LOCATION, location.to_owned()),
        (CACHE_CONTROL, "no-store".to_owned()),
        (
            axum::http::header::REFERRER_POLICY,
            "no-referrer".to_owned(),
        ),
    ];
    headers.extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
    let mut response = StatusCode::SEE_OTHER.into_response();
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn form(to: &Destination, status: StatusCode, remark: Option<&str>) -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
    const MORE_STYLE: &str = "form{display:grid;gap:.75rem}input,button{font:inherit;\
        padding:.5rem .75rem;border-radius:.4rem;border:1px solid currentColor}\
        button{cursor:pointer;font-weight:600}";
    let remark = remark.map_or_else(String::new, |remark| {
        format!("<p role=\"alert\">{}.</p>", escape(remark))
    });
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>Sign in</title>\
         <style>{STYLE}{MORE_STYLE}</style></head>\n<body><main><h1>Sign in</h1>{remark}\
         <form method=\"post\" action=\"signin\">\
         <input type=\"hidden\" name=\"session\" value=\"{session}\">\
         <input type=\"hidden\" name=\"path\" value=\"{path}\">\
         <label for=\"key\">An API key of the session's owner</label>\
         <input id=\"key\" name=\"key\" type=\"password\" autocomplete=\"current-password\" \
         required autofocus><button>Sign in</button></form></main></body></html>\n",
        session = escape(&to.session),
        path = escape(&to.path),
    );
    let headers = [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
    ];
    (status, headers, Html(page)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_in_leads_to_the_session_and_nowhere_else() {
        let url = "https://a.gpu.test";
        for (path, location) in [
            ("/", "https://a.gpu.test/?cd_token=t"),
            ("/lab?x=1", "https://a.gpu.test/lab?x=1&cd_token=t"),
            ("/lab#cell", "https://a.gpu.test/lab?cd_token=t"),
            ("", "https://a.gpu.test/?cd_token=t"),
            (".evil.test/", "https://a.gpu.test/?cd_token=t"),
            ("@evil.test/", "https://a.gpu.test/?cd_token=t"),
            ("//evil.test/", "https://a.gpu.test/?cd_token=t"),
            ("/\\evil.test", "https://a.gpu.test/?cd_token=t"),
            ("/a\r\nb: c", "https://a.gpu.test/ab:c?cd_token=t"),
        ] {
            assert_eq!(entry(url, path, "t"), location, "{path}");
        }
    }
}
