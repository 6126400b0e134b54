//! The heads of a request and of its response, on their way through the gateway, and a
//! body in chunks.
//!
//! An input is text: `METHOD TARGET VERSION`, header lines, an empty line, the status
//! of the response, its header lines, an empty line, chunks. What the gateway writes is
//! read again by another reader than its own.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

use dwell::admission::Admission;
use dwell::gateway::framing::{Framing, Kind};
use dwell::gateway::head::{Lines, RequestHead, ResponseHead, storage};
use dwell::gateway::headers::{self, Target, Terms, Way};
use dwell::gateway::{cors, credentials};
use dwell::keys::{self, KeyError};
use dwell::session_urls::{Address, Scheme};
use dwell_core::id::{KeyId, SessionId};
use dwell_core::key::Key;
use dwell_core::owner::{Principal, UserId};
use dwell_core::time::Timestamp;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
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
const OURS: [&str; 18] = [
    "set-cookie",
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

static ADMISSION: LazyLock<Admission> = LazyLock::new(|| {
    let (admission, _) = Admission::new([7; 32]).expect("there is randomness");
    admission.keys.publish(Key {
        id: KeyId(Uuid::nil()),
        name: "fuzz".into(),
        hash: keys::hash(SECRET),
        principal: ada(),
        created_at: Timestamp(0),
        revoked_at: None,
    });
    admission
});

fn ada() -> Principal {
    Principal {
        user: UserId("ada".into()),
        org: None,
        admin: false,
    }
}

fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    let request = section(&mut rest);
    let status = line(&mut rest);
    let response = [b"HTTP/1.1 ", status, b"\r\n", &section(&mut rest)].concat();
    let mut request_storage = storage();
    let visitor = RequestHead::parse(&request, &mut request_storage).ok();
    if let Some(visitor) = &visitor {
        to_app(visitor);
    }
    let mut response_storage = storage();
    if let Ok(app) = ResponseHead::parse(&response, &mut response_storage) {
        to_visitor(&app, visitor.and_then(|it| cors::other_origin(it.lines)));
    }
    chunks(rest);
});

/// The next line of the input.
fn line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.iter().position(|byte| *byte == b'\n');
    let (line, behind) = rest.split_at(end.unwrap_or(rest.len()));
    *rest = behind.get(1..).unwrap_or_default();
    line
}

/// The lines up to an empty one, as they come over the wire.
fn section(rest: &mut &[u8]) -> Vec<u8> {
    let mut section = Vec::new();
    while !rest.is_empty() {
        let line = line(rest);
        if line.trim_ascii().is_empty() {
            break;
        }
        section.extend_from_slice(line);
        section.extend_from_slice(b"\r\n");
    }
    section.extend_from_slice(b"\r\n");
    section
}

/// What another reader sees: it holds each line to be what lies between two CRLF.
fn read(head: &[u8]) -> (String, HeaderMap) {
    let text = head.strip_suffix(b"\r\n\r\n").expect("a head has an end");
    let mut lines = text
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut headers = HeaderMap::new();
    for line in lines {
        assert!(!line.contains(&b'\r'), "a line has a CR in it");
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.expect("a header line has a colon"));
        headers.append(
            HeaderName::from_bytes(name).expect("a name is one"),
            HeaderValue::from_bytes(value[1..].trim_ascii()).expect("a value is one"),
        );
    }
    let line_ends = text.windows(2).filter(|two| two == b"\r\n").count();
    let line_feeds = text.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(line_ends, line_feeds, "a line ends otherwise");
    (first, headers)
}

fn map(lines: Lines<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let value = HeaderValue::from_bytes(line.value.trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

// --- The way to the app -----------------------------------------------------------

fn to_app(visitor: &RequestHead<'_>) {
    let (Ok(target), Ok(body)) = (Target::of(visitor), Framing::of_request(visitor)) else {
        return;
    };
    let hosts = visitor.lines.all("host").count();
    if hosts > 1 || visitor.method == "CONNECT" {
        return;
    }
    let way = Way {
        from: FROM,
        app: APP,
        scheme: "http",
    };
    let mut written = Vec::new();
    headers::for_app(visitor, target, &ADMISSION, way, &body, &mut written);
    let (first, app) = read(&written);
    let mut again = storage();
    let again = RequestHead::parse(&written, &mut again).expect("an app can read it");
    assert_eq!(
        Framing::of_request(&again),
        Ok(body.clone()),
        "the body ends elsewhere"
    );
    assert!(again.is_1_1 && again.method == visitor.method);
    assert_eq!(again.lines.all("content-length").count().max(1), 1);

    let protocol = headers::wanted_protocol(visitor.lines);
    let app_target = first.split(' ').nth(1).expect("a target");
    let visitor = map(visitor.lines);
    nothing_of_the_connection_goes_on(&visitor, &app, &["host", "content-length"]);
    assert_eq!(
        all(&app, "connection"),
        protocol.map_or(vec![], |_| vec![&b"upgrade"[..]])
    );
    assert_eq!(
        all(&app, "upgrade"),
        protocol
            .into_iter()
            .map(<[u8]>::trim_ascii)
            .collect::<Vec<_>>()
    );
    let protocols = all(&app, "upgrade").into_iter();
    let mut protocols = protocols.flat_map(|line| line.split(|byte| *byte == b','));
    let is_http2 = |name: &[u8]| name.trim_ascii().to_ascii_lowercase().starts_with(b"h2c");
    assert!(
        !protocols.any(is_http2),
        "HTTP/2 is asked for, where nothing is seen to"
    );
    assert!(matches!(all(&app, "te")[..], [] | [b"trailers"]));
    let is_chunked = matches!(body, Framing::Chunked(_));
    assert_eq!(
        all(&app, "transfer-encoding"),
        if is_chunked {
            vec![&b"chunked"[..]]
        } else {
            vec![]
        }
    );
    assert!(!app.contains_key("expect"), "the gateway answers it");
    assert_eq!(all(&app, "host").len(), 1, "an app is named one host");
    assert!(
        app_target.starts_with('/') || app_target == "*",
        "{app_target:?} is asked for"
    );
    let query = app_target.split_once('?').map(|(_, query)| query);
    no_key_of_ours_goes_on(&app, again.lines, query);
    what_is_not_ours_passes(&visitor, &app);
    cookies_of_the_app_pass(&visitor, &app);
    where_it_comes_from_is_ours_to_say(hosts == 1 || target.authority.is_some(), &app);
}

fn no_key_of_ours_goes_on(app: &HeaderMap, lines: Lines<'_>, query: Option<&str>) {
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
    let at = credentials::At {
        session: SessionId(Uuid::nil()),
        owner: &ada().owner(),
        address: &Address::Port(PORT),
        scheme: Scheme::Http,
        from: FROM,
    };
    let opens = credentials::admit(&ADMISSION, at, query, lines);
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

fn where_it_comes_from_is_ours_to_say(names_a_host: bool, app: &HeaderMap) {
    assert_eq!(all(app, "x-forwarded-proto"), [b"http"]);
    let host = all(app, "host")[0];
    let forwarded_host = all(app, "x-forwarded-host");
    assert!(forwarded_host == [host] || (!names_a_host && forwarded_host.is_empty()));

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

fn to_visitor(app: &ResponseHead<'_>, origin: Option<&[u8]>) {
    let Ok(body) = Framing::of_response(app, false) else {
        return;
    };
    let switches = app.status == 101;
    let terms = Terms {
        is_1_1: true,
        keeps_alive: true,
        is_chunked: !matches!(body, Framing::Length(_)),
        switches,
    };
    let mut written = Vec::new();
    headers::for_visitor(app, terms, &mut written);
    if let Some(origin) = origin.filter(|_| !cors::is_settled(app.lines)) {
        cors::allow(origin, &mut written);
    }
    written.extend_from_slice(b"\r\n");
    let (_, visitor) = read(&written);
    let mut again = storage();
    let again = ResponseHead::parse(&written, &mut again).expect("a visitor can read it");
    assert_eq!(again.status, app.status);
    let ends = match body {
        Framing::ToEnd => Framing::chunked(),
        body => body,
    };
    assert_eq!(
        Framing::of_response(&again, false),
        Ok(ends),
        "the body ends elsewhere"
    );

    let said_anew = [
        "host",
        "content-length",
        "access-control-allow-origin",
        "vary",
    ];
    let (app_lines, app) = (app.lines, map(app.lines));
    nothing_of_the_connection_goes_on(&app, &visitor, &said_anew);
    let is_upgraded = switches && app.contains_key("upgrade");
    assert_eq!(visitor.contains_key("connection"), is_upgraded);
    assert_eq!(visitor.contains_key("upgrade"), is_upgraded);
    assert!(!visitor.contains_key("te"));
    assert!(
        !(visitor.contains_key("transfer-encoding") && visitor.contains_key("content-length")),
        "a chunked body has another length"
    );
    what_is_not_ours_passes(&app, &visitor);
    let names_cookies = named_by_connection(&app)
        .iter()
        .any(|name| name == "set-cookie");
    let theirs = all(&app, "set-cookie").into_iter().filter(|cookie| {
        let pair = cookie.split(|byte| *byte == b';').next().unwrap_or(cookie);
        !names_cookies && !is_our_cookie(pair)
    });
    assert_eq!(all(&visitor, "set-cookie"), theirs.collect::<Vec<_>>());
    if !cors::is_settled(app_lines) {
        assert_eq!(
            all(&visitor, "access-control-allow-origin"),
            origin
                .into_iter()
                .map(<[u8]>::trim_ascii)
                .collect::<Vec<_>>()
        );
    }
}

// --- A body in chunks -------------------------------------------------------------

/// It is the same whatever pieces it comes in, and what is passed on as it came is read
/// the same again.
fn chunks(bytes: &[u8]) {
    let whole = content(bytes, bytes.len().max(1));
    for piece in [1, 2, 7] {
        assert_eq!(content(bytes, piece), whole, "it depends on the pieces");
    }
    if let Some((_, length)) = &whole {
        assert_eq!(content(&bytes[..*length], 3), whole);
    }
}

/// The content of a body in chunks, and how long it is with all that frames it.
fn content(bytes: &[u8], piece: usize) -> Option<(Vec<u8>, usize)> {
    let (mut framing, mut content, mut length) = (Framing::chunked(), Vec::new(), 0);
    for mut rest in bytes.chunks(piece) {
        while let Some(part) = framing.next(rest).ok()? {
            assert!(part.length > 0, "nothing was read");
            let (these, others) = rest.split_at(part.length);
            if part.kind == Kind::Data {
                content.extend_from_slice(these);
            }
            length += part.length;
            rest = others;
        }
    }
    framing.is_done().then_some((content, length))
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
    name == b"__session" || name.starts_with(b"__dwell") || name.starts_with(b"__Host-dwell")
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
