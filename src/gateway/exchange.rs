//! One request and its response.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use dwell_core::machine::Access;
use dwell_core::owner::Owner;
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CACHE_CONTROL, CONNECTION, HOST, HeaderValue, LOCATION, SET_COOKIE};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri, Version, upgrade};

use super::connection::Visit;
use super::page::{self, Page};
use super::pool::{Failure, Pool, RequestBody, ResponseBody};
use super::{RouteStatus, cors, credentials, headers};
use crate::keys::KeyRing;

/// A response's body: words of ours, or the app's as they come.
type Body = Either<Full<Bytes>, ResponseBody>;

/// The response to a visitor's request.
pub(super) async fn answer(visit: &Visit, request: Request<Incoming>) -> Response<Body> {
    let to_person = page::is_for_person(request.headers());
    let origin = cors::other_origin(request.headers());
    if let Some(preflight) = cors::preflight(&request) {
        return preflight.map(Either::Left);
    }
    let mut response = match route(visit, request, to_person).await {
        Ok(response) => response,
        Err(page) => page.respond(to_person).map(Either::Left),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        cors::allow(origin, response.headers_mut());
        if visit.gives_way() {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

/// The app's response, or what there is to say instead.
async fn route(
    visit: &Visit,
    request: Request<Incoming>,
    to_person: bool,
) -> Result<Response<Body>, Page> {
    headers::refuse(&request).map_err(|(status, sentence)| Page::refused(status, sentence))?;
    let backend = visit.current.borrow().clone();
    let Some(backend) = backend.filter(|backend| backend.route.session == visit.session) else {
        return Err(Page::over());
    };
    if backend.route.access == Access::Private {
        let query = request.uri().query();
        let (keys, owner) = (visit.keys(), &backend.route.owner);
        credentials::admit(keys, owner, visit.port(), query, request.headers())
            .map_err(Page::private)?;
        if to_person && let Some(entry) = keep_key(visit, owner, &request) {
            return Ok(entry.map(Either::Left));
        }
    }
    match (&backend.route.status, &backend.app) {
        (RouteStatus::Starting, _) => Err(Page::starting()),
        (RouteStatus::Stopping, _) => Err(Page::stopping()),
        (RouteStatus::Ended(ending), _) => Err(Page::ended(ending)),
        (RouteStatus::Running(_), None) => Err(Page::unreachable()),
        (RouteStatus::Running(_), Some(app)) => pass_on(visit, app, request).await,
    }
}

/// A person who opens a private session by `?cd_token=` gets the key as a cookie, for
/// all that the page will load, and an address without it.
fn keep_key(
    visit: &Visit,
    owner: &Owner,
    request: &Request<Incoming>,
) -> Option<Response<Full<Bytes>>> {
    let (path, query) = (request.uri().path(), request.uri().query()?);
    let key = credentials::in_query(Some(query))?;
    let fits_a_cookie = key
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    // The request may have passed by another key than this one.
    let opens = visit
        .keys()
        .check(&key)
        .is_ok_and(|key| key.owner() == *owner);
    // A path that begins with two slashes, of either kind, would name another host.
    let is_here = !path.starts_with("//") && !path.starts_with("/\\");
    if *request.method() != Method::GET || !(fits_a_cookie && opens && is_here) {
        return None;
    }
    let name = credentials::own_cookie(visit.port());
    let cookie = format!("{name}={key}; Path=/; HttpOnly; SameSite=Lax");
    let location = credentials::with_query(path, &credentials::strip_query(query)?);
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(SET_COOKIE, HeaderValue::try_from(cookie).ok()?);
    headers.insert(LOCATION, HeaderValue::try_from(location).ok()?);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}

async fn pass_on(
    visit: &Visit,
    app: &Arc<Pool>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Page> {
    let protocol = headers::wanted_protocol(request.headers());
    let visitor = protocol.is_some().then(|| upgrade::on(&mut request));
    let mut response = app
        .send(for_app(visit, app, request, protocol))
        .await
        .map_err(|failure| {
            tracing::debug!(session = %visit.session, "no response from the app: {failure}");
            match failure {
                Failure::Connect(_) => Page::unreachable(),
                Failure::Exchange(_) => Page::broken_off(),
            }
        })?;
    let status = response.status();
    headers::to_visitor(response.headers_mut(), status);
    // hyper makes of it what the visitor understands.
    *response.version_mut() = Version::HTTP_11;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        // An app that switches unasked speaks what its visitor does not.
        let visitor = visitor.ok_or_else(Page::broken_off)?;
        visit.upgrade(visitor, upgrade::on(&mut response));
        return Ok(response.map(|_| Either::Left(Full::default())));
    }
    Ok(response.map(Either::Right))
}

/// The visitor's request as its app is to see it.
fn for_app(
    visit: &Visit,
    app: &Pool,
    request: Request<Incoming>,
    protocol: Option<HeaderValue>,
) -> Request<RequestBody> {
    let (mut head, body) = request.into_parts();
    let from = visit.from.ip();
    head_for_app(&mut head, protocol, visit.keys(), from, app.app());
    let body = if body.is_end_stream() {
        Either::Right(Empty::new())
    } else {
        Either::Left(body)
    };
    Request::from_parts(head, body)
}

/// Make the head of a visitor's request the one that its app is to see: addressed to
/// it, and without keys of ours.
pub fn head_for_app(
    head: &mut Parts,
    protocol: Option<HeaderValue>,
    keys: &KeyRing,
    from: IpAddr,
    app: SocketAddr,
) {
    // Whoever takes us for a forward proxy says in its target whom it means.
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::try_from(authority.as_str())
    {
        head.headers.insert(HOST, host);
    }
    let target: Option<PathAndQuery> = match head.uri.query().and_then(credentials::strip_query) {
        Some(query) => credentials::with_query(head.uri.path(), &query)
            .parse()
            .ok(),
        None => head.uri.path_and_query().cloned(),
    };
    // `http://host` alone has an empty path, which no request line can say.
    head.uri = target
        .filter(|target| target.as_str() != "/")
        .map_or_else(Uri::default, Uri::from);
    credentials::strip(keys, &mut head.headers);
    headers::to_app(&mut head.headers, protocol, from, app);
    head.version = Version::HTTP_11;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_always_asked_for_a_path() {
        for (asked, told) in [
            ("http://other.test", "/"),
            ("http://other.test?a=1", "/?a=1"),
            ("http://other.test?cd_token=k", "/"),
            ("http://other.test/p?cd_token=k&a=1", "/p?a=1"),
            ("/", "/"),
            ("*", "*"),
        ] {
            let request = Request::builder().uri(asked).body(()).unwrap();
            let (mut head, ()) = request.into_parts();
            let app = SocketAddr::from(([127, 0, 0, 1], 9));
            head_for_app(&mut head, None, &KeyRing::default(), app.ip(), app);
            assert_eq!(head.uri.to_string(), told, "{asked}");
        }
    }
}
