//! The heads of a request and of its response, on their way through the gateway.
//!
//! An input is text: `METHOD TARGET VERSION`, header lines, an empty line, the status
//! of the response, its header lines. What is no header is left out: hyper refuses it.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use dwell::gateway::{cors, credentials, exchange, headers};
use dwell::keys::{self, KeyError, KeyRing};
use dwell_core::id::KeyId;
use dwell_core::key::Key;
use dwell_core::owner::{Principal, UserId};
use dwell_core::time::Timestamp;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Response, StatusCode, Version};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

const PORT: u16 = 20_000;
const FROM: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
const APP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9_000);
/// A good key, whose secret stands in the stored corpus too.
const SECRET: &str = "dwell_0123456789abcdef";
/// Hop-by-hop headers that never go on.
const NEVER: [&str; 4] = [
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
];
/// Headers that the gateway may change; all others pass as they are.
const OURS: [&str; 17] = [
    "expect",
    "connection",
    "upgrade",
    "te",
    "transfer-encoding",
    "host",
    "authorization",
    "x-api-key",
    "cookie",
    "referer",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "content-length",
    "access-control-allow-origin",
    "vary",
];

static KEYS: LazyLock<KeyRing> = LazyLock::new(|| {
    let ring = KeyRing::default();
    ring.publish(Key {
        id: KeyId(Uuid::nil()),
        name: "fuzz".into(),
        hash: keys::hash(SECRET),
        principal: ada(),
        created_at: Timestamp(0),
        revoked_at: None,
    });
    ring
});

fn ada() -> Principal {
    Principal {
        user: UserId("ada".into()),
        org: None,
        admin: false,
    }
}

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let Some(request) = request(lines.next().unwrap_or_default(), &mut lines) else {
        return;
    };
    let status = lines.next().unwrap_or_default();
    let status = StatusCode::from_bytes(status.trim_ascii()).unwrap_or(StatusCode::OK);
    let from_app = header_lines(&mut lines);
    let origin = cors::other_origin(request.headers());
    a_preflight_answers_what_was_asked(&request);
    if headers::refuse(&request).is_ok() {
        to_app(request);
    }
    to_visitor(from_app, status, origin);
});

fn request<'a>(first: &[u8], lines: &mut impl Iterator<Item = &'a [u8]>) -> Option<Request<()>> {
    let mut words = first.split(|byte| *byte == b' ');
    let mut request = Request::builder()
        .method(words.next()?)
        .uri(words.next()?)
        .version(match words.next() {
            Some(b"HTTP/1.0") => Version::HTTP_10,
            Some(_) | None => Version::HTTP_11,
        })
        .body(())
        .ok()?;
    *request.headers_mut() = header_lines(lines);
    Some(request)
}

/// The headers up to an empty line, as hyper would read them.
fn header_lines<'a>(lines: &mut impl Iterator<Item = &'a [u8]>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.take_while(|line| !line.trim_ascii().is_empty()) {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(halves.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(halves.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

// --- The way to the app -----------------------------------------------------------

fn to_app(request: Request<()>) {
    let protocol = headers::wanted_protocol(request.headers());
    let (mut head, ()) = request.into_parts();
    let visitor = head.headers.clone();
    exchange::head_for_app(&mut head, protocol.clone(), &KEYS, FROM, APP);
    let app = &head.headers;

    nothing_of_the_connection_goes_on(&visitor, app, &["host"]);
    assert_eq!(
        all(app, "connection"),
        protocol.as_ref().map_or(vec![], |_| vec![&b"upgrade"[..]])
    );
    assert_eq!(
        all(app, "upgrade"),
        protocol
            .iter()
            .map(HeaderValue::as_bytes)
            .collect::<Vec<_>>()
    );
    let protocols = all(app, "upgrade").into_iter();
    let mut protocols = protocols.flat_map(|line| line.split(|byte| *byte == b','));
    let is_http2 = |name: &[u8]| name.trim_ascii().to_ascii_lowercase().starts_with(b"h2c");
    assert!(
        !protocols.any(is_http2),
        "HTTP/2 is asked for, where nothing is seen to"
    );
    assert!(matches!(all(app, "te")[..], [] | [b"trailers"]));
    let is_chunked = visitor.contains_key("transfer-encoding");
    assert_eq!(
        all(app, "transfer-encoding"),
        if is_chunked {
            vec![&b"chunked"[..]]
        } else {
            vec![]
        }
    );
    assert!(!app.contains_key("expect"), "hyper has answered it");
    assert_eq!(all(app, "host").len(), 1, "an app is named one host");
    let target = head.uri.to_string();
    assert!(
        target.starts_with('/') || target == "*",
        "{target:?} is asked for"
    );

    no_key_of_ours_goes_on(app, head.uri.query());
    what_is_not_ours_passes(&visitor, app);
    cookies_of_the_app_pass(&visitor, app);
    where_it_comes_from_is_ours_to_say(&visitor, app);
}

fn no_key_of_ours_goes_on(app: &HeaderMap, query: Option<&str>) {
    for value in all(app, "authorization") {
        let mut words = value
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let is_bearer = words
            .next()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"));
        let is_ours = words
            .next()
            .is_some_and(|key| key.starts_with(keys::KEY_PREFIX.as_bytes()));
        assert!(!(is_bearer && is_ours), "a bearer key of ours goes on");
    }
    for value in all(app, "x-api-key") {
        assert!(
            !value.starts_with(keys::KEY_PREFIX.as_bytes()),
            "an API key of ours goes on"
        );
    }
    for pair in all(app, "cookie").into_iter().flat_map(cookie_pairs) {
        assert!(!is_our_cookie(pair), "a cookie of ours goes on");
    }
    let referers = all(app, "referer").into_iter();
    let their_queries = referers.filter_map(|page| page.splitn(2, |byte| *byte == b'?').nth(1));
    for query in their_queries.chain(query.map(str::as_bytes)) {
        let names_ours = query.split(|byte| *byte == b'&').any(|pair| {
            let name = pair.split(|byte| *byte == b'=').next().unwrap_or(pair);
            percent_decoded(name) == b"cd_token"
        });
        assert!(!names_ours, "a key in a query goes on");
    }
    let opens = credentials::admit(&KEYS, &ada().owner(), PORT, query, app);
    assert!(
        matches!(opens, Err(KeyError::Missing | KeyError::Unknown)),
        "what the app is told opens a private session"
    );
}

fn what_is_not_ours_passes(before: &HeaderMap, after: &HeaderMap) {
    let named = named_by_connection(before);
    let is_untouched = |name: &HeaderName| {
        !OURS.contains(&name.as_str()) && !NEVER.contains(&name.as_str()) && !named.contains(name)
    };
    for name in before.keys().filter(|name| is_untouched(name)) {
        assert_eq!(
            all(before, name.as_str()),
            all(after, name.as_str()),
            "{name} was changed"
        );
    }
    for name in after.keys().filter(|name| is_untouched(name)) {
        assert!(before.contains_key(name), "{name} was made up");
    }
}

fn cookies_of_the_app_pass(visitor: &HeaderMap, app: &HeaderMap) {
    if named_by_connection(visitor)
        .iter()
        .any(|name| name == "cookie")
    {
        return;
    }
    let wanted: Vec<_> = all(visitor, "cookie")
        .into_iter()
        .flat_map(cookie_pairs)
        .filter(|pair| !is_our_cookie(pair))
        .collect();
    let passed: Vec<_> = all(app, "cookie")
        .into_iter()
        .flat_map(cookie_pairs)
        .collect();
    assert_eq!(passed, wanted, "the app's own cookies were changed");
}

fn where_it_comes_from_is_ours_to_say(visitor: &HeaderMap, app: &HeaderMap) {
    assert_eq!(all(app, "x-forwarded-proto"), [b"http"]);
    let host = all(app, "host")[0];
    let is_of_the_visitor = visitor.contains_key("host");
    let forwarded_host = all(app, "x-forwarded-host");
    assert!(forwarded_host == [host] || (!is_of_the_visitor && forwarded_host.is_empty()));

    let [chain] = all(app, "x-forwarded-for")[..] else {
        panic!("the chain of addresses is one line");
    };
    let last = chain.rsplit(|byte| *byte == b',').next().unwrap_or(chain);
    assert_eq!(last.trim_ascii(), FROM.to_string().as_bytes());

    let [forwarded] = all(app, "forwarded")[..] else {
        panic!("Forwarded is one line");
    };
    let last = last_element(forwarded).expect("Forwarded cannot be read to its end");
    let last = String::from_utf8_lossy(last.trim_ascii()).into_owned();
    assert!(
        last.starts_with(&format!("for={FROM};")) && last.ends_with("proto=http"),
        "the last element of Forwarded is not ours: {last}"
    );
}

/// The last element of a list whose elements may have quoted strings in them (RFC
/// 7239, section 4); none if a quote is not closed.
fn last_element(list: &[u8]) -> Option<&[u8]> {
    let (mut begin, mut is_quoted, mut is_escaped) = (0, false, false);
    for (at, byte) in list.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => begin = at + 1,
            _ => {}
        }
    }
    (!is_quoted).then(|| &list[begin..])
}

// --- The way back -----------------------------------------------------------------

fn to_visitor(app: HeaderMap, status: StatusCode, origin: Option<HeaderValue>) {
    let mut visitor = app.clone();
    headers::to_visitor(&mut visitor, status);
    cors::allow(origin.clone(), &mut visitor);

    nothing_of_the_connection_goes_on(
        &app,
        &visitor,
        &["host", "access-control-allow-origin", "vary"],
    );
    let switches = status == StatusCode::SWITCHING_PROTOCOLS && app.contains_key("upgrade");
    assert_eq!(visitor.contains_key("connection"), switches);
    assert_eq!(visitor.contains_key("upgrade"), switches);
    assert!(!visitor.contains_key("te") && !visitor.contains_key("transfer-encoding"));
    assert!(
        !(app.contains_key("transfer-encoding") && visitor.contains_key("content-length")),
        "a chunked body has another length"
    );
    what_is_not_ours_passes(&app, &visitor);
    let named = named_by_connection(&app);
    let said_by_app = app.contains_key("access-control-allow-origin")
        && !named
            .iter()
            .any(|name| name == "access-control-allow-origin");
    let allowed = all(&visitor, "access-control-allow-origin");
    if said_by_app {
        assert_eq!(
            allowed,
            all(&app, "access-control-allow-origin"),
            "the app says who may read"
        );
    } else {
        assert_eq!(
            allowed,
            origin.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>()
        );
    }
}

fn a_preflight_answers_what_was_asked(request: &Request<()>) {
    let answer: Option<Response<()>> = cors::preflight(request);
    let asked = request.headers();
    let is_preflight = request.method() == "OPTIONS"
        && asked.contains_key("origin")
        && asked.contains_key("access-control-request-method");
    assert_eq!(answer.is_some(), is_preflight);
    if let Some(answer) = answer {
        let allowed = all(answer.headers(), "access-control-allow-origin");
        assert_eq!(
            allowed,
            [all(asked, "origin")[0]],
            "another origin is allowed"
        );
    }
}

// --- Both ways --------------------------------------------------------------------

/// What is about one connection stays on it. Of what `Connection` names, `ours` may be
/// there all the same: it is said anew.
fn nothing_of_the_connection_goes_on(before: &HeaderMap, after: &HeaderMap, ours: &[&str]) {
    for name in NEVER {
        assert!(!after.contains_key(name), "{name} goes on");
    }
    let said_anew = [
        "connection",
        "upgrade",
        "te",
        "transfer-encoding",
        "forwarded",
    ];
    for name in named_by_connection(before) {
        let is_said_anew = said_anew.contains(&name.as_str())
            || ours.contains(&name.as_str())
            || name.as_str().starts_with("x-forwarded-");
        assert!(
            is_said_anew || !after.contains_key(&name),
            "{name} goes on, though Connection names it"
        );
    }
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    all(headers, "connection")
        .into_iter()
        .flat_map(|line| line.split(|byte| *byte == b','))
        .filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
        .collect()
}

fn all<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect()
}

fn cookie_pairs(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b';')
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
}

fn is_our_cookie(pair: &[u8]) -> bool {
    let name = pair
        .split(|byte| *byte == b'=')
        .next()
        .unwrap_or(pair)
        .trim_ascii();
    name == b"__session" || name.starts_with(b"__dwell_")
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let hex = hex.filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                rest = &after[2..];
            }
            (byte, _) => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    decoded
}
