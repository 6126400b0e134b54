//! What a proxy does to headers.

use std::net::{IpAddr, SocketAddr};

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, Entry, FORWARDED, HOST, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::{HeaderMap, Method, Request, StatusCode, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What of a request cannot be passed on without guessing at its meaning. hyper has
/// refused what cannot be parsed, and has dropped the length of a chunked body.
///
/// # Errors
/// The status to refuse it with, and why.
pub fn refuse<B>(request: &Request<B>) -> Result<(), (StatusCode, &'static str)> {
    if *request.method() == Method::CONNECT {
        let sentence = "This is no forward proxy: CONNECT is not possible here.";
        return Err((StatusCode::METHOD_NOT_ALLOWED, sentence));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let may_lack_one = request.version() < Version::HTTP_11;
    match (hosts.next(), hosts.next()) {
        (Some(_), None) => {}
        (None, None) if may_lack_one => {}
        (None, _) | (Some(_), Some(_)) => {
            let sentence = "A request must have exactly one Host header.";
            return Err((StatusCode::BAD_REQUEST, sentence));
        }
    }
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        (Some(_), _) => Err((
            StatusCode::NOT_IMPLEMENTED,
            "The only transfer coding that is understood here is chunked.",
        )),
    }
}

/// The other protocol that a request asks for. HTTP/2 is not passed on: inside it,
/// nothing here could be seen to.
#[must_use]
pub fn wanted_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let wanted = headers.get(UPGRADE)?;
    let is_asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let is_http2 = tokens(headers, &UPGRADE).any(is_http2);
    (is_asked && !is_http2).then(|| wanted.clone())
}

fn is_http2(protocol: &[u8]) -> bool {
    let protocol = protocol.to_ascii_lowercase();
    protocol.starts_with(b"h2c") || protocol.starts_with(b"http/2")
}

/// Make a visitor's headers the ones that its app is to see.
pub(super) fn to_app(
    headers: &mut HeaderMap,
    protocol: Option<HeaderValue>,
    from: IpAddr,
    app: SocketAddr,
) {
    let is_chunked = headers.contains_key(TRANSFER_ENCODING);
    let wants_trailers = tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case(b"trailers"));
    remove_hop_by_hop(headers);
    // hyper answers it when the app's connection begins to take the body.
    headers.remove(EXPECT);
    if is_chunked {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    forward(headers, from);
    // An HTTP/1.0 visitor need not name one, but to the app this is HTTP/1.1.
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&app.to_string())
    {
        headers.insert(HOST, host);
    }
}

/// Make an app's headers the ones that its visitor is to see.
pub fn to_visitor(headers: &mut HeaderMap, status: StatusCode) {
    // A chunked body has no other length, whatever the app says beside it.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    let protocol = headers.get(UPGRADE).cloned();
    remove_hop_by_hop(headers);
    if let Some(protocol) = protocol
        && status == StatusCode::SWITCHING_PROTOCOLS
    {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

/// Headers that are about one connection, and what `Connection` says is.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter(|token| {
            !["keep-alive", "close", "upgrade", "te", "host"]
                .iter()
                .any(|known| token.eq_ignore_ascii_case(known.as_bytes()))
        })
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    for name in named.iter().chain(&[
        CONNECTION,
        KEEP_ALIVE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ]) {
        headers.remove(name);
    }
}

/// Say where the request comes from. The visitor is nobody we trust, so of what it
/// says of itself only the chain of addresses is kept, and ours put at its end.
fn forward(headers: &mut HeaderMap, from: IpAddr) {
    append(headers, FORWARDED_FOR, &from.to_string());
    // A quote that is left open would swallow what is put after it.
    if !headers.get_all(FORWARDED).iter().all(closes_its_quotes) {
        headers.remove(FORWARDED);
    }
    let for_from = match from {
        IpAddr::V4(from) => format!("for={from}"),
        IpAddr::V6(from) => format!("for=\"[{from}]\""),
    };
    let host = headers.get(HOST).cloned();
    let safe_host = host
        .as_ref()
        .and_then(|host| host.to_str().ok())
        .filter(|host| !host.contains(['"', '\\']));
    match safe_host {
        Some(host) => {
            let element = format!("{for_from};host=\"{host}\";proto=http");
            append(headers, FORWARDED, &element);
        }
        None => append(headers, FORWARDED, &format!("{for_from};proto=http")),
    }
    match host {
        Some(host) => headers.insert(FORWARDED_HOST, host),
        None => headers.remove(FORWARDED_HOST),
    };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
}

fn closes_its_quotes(line: &HeaderValue) -> bool {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for byte in line.as_bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
    }
    !is_quoted
}

/// Put `element` at the end of a list that may be spread over several lines.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    let Ok(element) = HeaderValue::from_str(element) else {
        return;
    };
    match headers.entry(name) {
        Entry::Vacant(entry) => {
            entry.insert(element);
        }
        Entry::Occupied(mut entry) => {
            let mut lines: Vec<&[u8]> = entry.iter().map(HeaderValue::as_bytes).collect();
            lines.push(element.as_bytes());
            if let Ok(list) = HeaderValue::from_bytes(&lines.join(&b", "[..])) {
                entry.insert(list);
            }
        }
    }
}

/// Bytes, since what is no ASCII in one token does not unsay the others.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_connection_names_goes_no_further_but_what_we_say_does() {
        let mut visitor = headers(&[
            ("host", "h:1"),
            ("connection", "close, X-Secret, x-forwarded-for, Host"),
            ("x-secret", "1"),
            ("x-forwarded-for", "9.9.9.9"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("x-kept", "1"),
        ]);
        to_app(
            &mut visitor,
            None,
            IpAddr::from([1, 2, 3, 4]),
            SocketAddr::from(([127, 0, 0, 1], 9)),
        );
        assert_eq!(
            visitor,
            headers(&[
                ("host", "h:1"),
                ("x-kept", "1"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-host", "h:1"),
                ("x-forwarded-proto", "http"),
                ("forwarded", "for=1.2.3.4;host=\"h:1\";proto=http"),
            ])
        );
    }

    #[test]
    fn the_chain_of_addresses_grows_at_its_end() {
        let mut visitor = headers(&[("x-forwarded-for", "a"), ("x-forwarded-for", "b, c")]);
        forward(&mut visitor, "::1".parse().unwrap());
        assert_eq!(visitor["x-forwarded-for"], "a, b, c, ::1");
        assert_eq!(visitor["forwarded"], "for=\"[::1]\";proto=http");
    }

    #[test]
    fn an_upgrade_is_one_only_when_connection_says_so() {
        let wanted = |lines: &[_]| wanted_protocol(&headers(lines));
        assert_eq!(wanted(&[("upgrade", "websocket")]), None);
        assert_eq!(
            wanted(&[
                ("upgrade", "h2c"),
                ("connection", "Upgrade, HTTP2-Settings")
            ]),
            None
        );
        for second in ["websocket, h2c", "x , H2C/1", "HTTP/2.0"] {
            let lines = [("upgrade", second), ("connection", "Upgrade")];
            assert_eq!(wanted(&lines), None, "{second}");
        }
        assert_eq!(
            wanted(&[
                ("upgrade", "websocket"),
                ("connection", "keep-alive, Upgrade")
            ]),
            Some(HeaderValue::from_static("websocket"))
        );
    }

    #[test]
    fn what_is_no_ascii_in_connection_does_not_unsay_the_rest() {
        let mut visitor = headers(&[("host", "h:1"), ("x-secret", "1")]);
        let line = HeaderValue::from_bytes(b"X-Secret, \xff").unwrap();
        visitor.insert(CONNECTION, line);
        remove_hop_by_hop(&mut visitor);
        assert_eq!(visitor, headers(&[("host", "h:1")]));
    }

    #[test]
    fn a_quote_that_a_visitor_leaves_open_does_not_swallow_our_word() {
        for open in ["for=\"1.1.1.1", "for=\"a\\\""] {
            let mut visitor = headers(&[("forwarded", "for=a"), ("forwarded", open)]);
            forward(&mut visitor, IpAddr::from([1, 2, 3, 4]));
            assert_eq!(visitor["forwarded"], "for=1.2.3.4;proto=http");
        }
        let mut visitor = headers(&[("forwarded", "for=\"a, \\\"b\"")]);
        forward(&mut visitor, IpAddr::from([1, 2, 3, 4]));
        assert_eq!(
            visitor["forwarded"],
            "for=\"a, \\\"b\", for=1.2.3.4;proto=http"
        );
    }
}
