//! What a proxy does to heads.

use std::net::{IpAddr, SocketAddr};

use super::credentials;
use super::framing::Framing;
use super::head::{Lines, RequestHead, ResponseHead};
use crate::admission::Admission;

/// The other protocol that a request asks for. HTTP/2 is not passed on: inside it,
/// nothing here could be seen to.
#[must_use]
pub fn wanted_protocol<'h>(lines: Lines<'h>) -> Option<&'h [u8]> {
    let wanted = lines.first("upgrade")?;
    let is_http2 = |protocol: &[u8]| {
        let protocol = protocol.to_ascii_lowercase();
        protocol.starts_with(b"h2c") || protocol.starts_with(b"http/2")
    };
    let is_asked = lines.has_token("connection", "upgrade");
    (is_asked && !lines.tokens("upgrade").any(is_http2)).then_some(wanted)
}

/// Between whom a request passes.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The visitor.
    pub from: IpAddr,
    /// Where its app listens.
    pub app: SocketAddr,
    /// The scheme that the visitor used: `http` or `https`.
    pub scheme: &'a str,
}

/// Write the head of a visitor's request as its app is to see it: addressed to it, and
/// without keys of ours. `target` is the request's, and `body` where it ends.
pub fn for_app(
    head: &RequestHead<'_>,
    target: Target<'_>,
    admission: &Admission,
    way: Way<'_>,
    body: &Framing,
    out: &mut Vec<u8>,
) {
    let lines = head.lines;
    out.extend_from_slice(head.method.as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.path.as_bytes());
    if let Some(query) = target.query {
        let stripped = credentials::strip_query(query);
        let is_all_ours = stripped.as_ref().is_some_and(String::is_empty);
        if !is_all_ours {
            out.push(b'?');
            out.extend_from_slice(stripped.as_deref().unwrap_or(query).as_bytes());
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");

    // Whoever takes us for a forward proxy says in its target whom it means.
    let named = target.authority.map(str::as_bytes);
    let host = named.or_else(|| lines.first("host"));
    match host {
        Some(host) => put(out, "host", host),
        // Who speaks HTTP/1.0 need not name one, but to the app this is HTTP/1.1.
        None => put(out, "host", way.app.to_string().as_bytes()),
    }
    let about_connection = AboutConnection::of(lines);
    for line in lines.iter() {
        if about_connection.covers(line.name) || is_said_anew(line.name) {
            continue;
        }
        match credentials::without_ours(admission, line) {
            credentials::Theirs::All => put(out, line.name, line.value),
            credentials::Theirs::Some(value) => put(out, line.name, &value),
            credentials::Theirs::None => {}
        }
    }
    match body {
        Framing::Chunked(_) => put(out, "transfer-encoding", b"chunked"),
        Framing::Length(_) | Framing::ToEnd => {
            if let Some(length) = lines.first("content-length") {
                put(out, "content-length", length);
            }
        }
    }
    if lines.has_token("te", "trailers") {
        put(out, "te", b"trailers");
    }
    if let Some(protocol) = wanted_protocol(lines) {
        put(out, "connection", b"upgrade");
        put(out, "upgrade", protocol);
    }
    forward(lines, &about_connection, host, way, out);
    out.extend_from_slice(b"\r\n");
}

/// The target is neither a path nor the address of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it asks for is no path")]
pub struct NoTarget;

/// Would everybody read one host in this, and no other (RFC 9110, section 7.2)?
pub(super) fn is_one_host(value: &[u8]) -> bool {
    !value.iter().any(|byte| b" \t,@/?#\\".contains(byte))
}

/// What a request asks for (RFC 9112, section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'h> {
    /// Whom it names, in place of the Host header.
    pub authority: Option<&'h str>,
    /// The path.
    pub path: &'h str,
    /// What follows the path's `?`.
    pub query: Option<&'h str>,
}

impl<'h> Target<'h> {
    /// That of this request.
    ///
    /// # Errors
    /// When it is no path, nor the address of one.
    pub fn of(head: &RequestHead<'h>) -> Result<Self, NoTarget> {
        let (authority, rest) = match head.target.split_once("://") {
            _ if head.target.starts_with('/') => (None, head.target),
            _ if head.target == "*" && head.method == "OPTIONS" => (None, head.target),
            Some((scheme, rest))
                if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
            {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                if authority.is_empty() || !is_one_host(authority.as_bytes()) {
                    return Err(NoTarget);
                }
                (Some(authority), path)
            }
            Some(_) | None => return Err(NoTarget),
        };
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        // `http://host` alone has an empty path, which no request line can say.
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self {
            authority,
            path,
            query,
        })
    }
}

/// How the visitor is to understand a response.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// It speaks HTTP/1.1, and not 1.0.
    pub is_1_1: bool,
    /// Its connection is kept after the response.
    pub keeps_alive: bool,
    /// The app's chunks are passed on as they are.
    pub is_chunked: bool,
    /// The connection speaks another protocol from now on.
    pub switches: bool,
}

/// Write the head of an app's response as its visitor is to see it, up to the last
/// line: more may follow before [`close`].
pub fn for_visitor(head: &ResponseHead<'_>, terms: Terms, out: &mut Vec<u8>) {
    status_line(out, terms.is_1_1, head.status, head.reason);
    let lines = head.lines;
    let about_connection = AboutConnection::of(lines);
    // A chunked body has no other length, whatever the app says beside it.
    let has_other_length = lines.has("transfer-encoding");
    for line in lines.iter() {
        let is_overruled = has_other_length && line.name.eq_ignore_ascii_case("content-length");
        let stays = is_overruled || credentials::sets_our_cookie(line);
        if stays || about_connection.covers(line.name) {
            continue;
        }
        if line.name.eq_ignore_ascii_case("set-cookie") {
            put(out, line.name, &credentials::cookie_for_visitor(line));
        } else {
            put(out, line.name, line.value);
        }
    }
    if terms.switches
        && let Some(protocol) = lines.first("upgrade")
    {
        put(out, "connection", b"upgrade");
        put(out, "upgrade", protocol);
        return;
    }
    if terms.is_chunked {
        put(out, "transfer-encoding", b"chunked");
    }
    connection(out, terms.is_1_1, terms.keeps_alive);
}

/// The first line of a response.
pub(super) fn status_line(out: &mut Vec<u8>, is_1_1: bool, status: u16, reason: &str) {
    let version: &[u8] = if is_1_1 { b"HTTP/1.1 " } else { b"HTTP/1.0 " };
    out.extend_from_slice(version);
    let digit = |power: u16| b'0' + u8::try_from(status / power % 10).unwrap_or(0);
    out.extend_from_slice(&[digit(100), digit(10), digit(1), b' ']);
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Say what becomes of the connection, where that is not what the visitor expects.
pub(super) fn connection(out: &mut Vec<u8>, is_1_1: bool, keeps_alive: bool) {
    match (is_1_1, keeps_alive) {
        (true, true) | (false, false) => {}
        (true, false) => put(out, "connection", b"close"),
        (false, true) => put(out, "connection", b"keep-alive"),
    }
}

/// Put a header line.
pub(super) fn put(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What goes no further than this connection: what is always about it, and what the
/// lines of `Connection` name.
struct AboutConnection<'h> {
    named: Vec<&'h [u8]>,
}

impl<'h> AboutConnection<'h> {
    fn of(lines: Lines<'h>) -> Self {
        // Without its length a message would end elsewhere for who reads it next.
        let known = [
            "keep-alive",
            "close",
            "upgrade",
            "te",
            "host",
            "content-length",
        ];
        let named = lines
            .tokens("connection")
            .filter(|token| {
                let is_known = |known: &&str| token.eq_ignore_ascii_case(known.as_bytes());
                !token.is_empty() && !known.iter().any(is_known)
            })
            .collect();
        Self { named }
    }

    fn covers(&self, name: &str) -> bool {
        let is_always = match name.len() {
            2 => name.eq_ignore_ascii_case("te"),
            7 => name.eq_ignore_ascii_case("upgrade"),
            10 => {
                name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("keep-alive")
            }
            16 => name.eq_ignore_ascii_case("proxy-connection"),
            17 => name.eq_ignore_ascii_case("transfer-encoding"),
            18 => name.eq_ignore_ascii_case("proxy-authenticate"),
            19 => name.eq_ignore_ascii_case("proxy-authorization"),
            _ => false,
        };
        is_always
            || self
                .named
                .iter()
                .any(|named| named.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Lines of a request that we write ourselves.
fn is_said_anew(name: &str) -> bool {
    match name.len() {
        4 => name.eq_ignore_ascii_case("host"),
        // The gateway answers it.
        6 => name.eq_ignore_ascii_case("expect"),
        9 => name.eq_ignore_ascii_case("forwarded"),
        14 => name.eq_ignore_ascii_case("content-length"),
        15 => name.eq_ignore_ascii_case("x-forwarded-for"),
        16 => name.eq_ignore_ascii_case("x-forwarded-host"),
        17 => name.eq_ignore_ascii_case("x-forwarded-proto"),
        _ => false,
    }
}

/// Say where the request comes from. The visitor is nobody we trust, so of what it
/// says of itself only the chain of addresses is kept, and ours put at its end.
fn forward(
    lines: Lines<'_>,
    about_connection: &AboutConnection<'_>,
    host: Option<&[u8]>,
    way: Way<'_>,
    out: &mut Vec<u8>,
) {
    let chain = |name: &'static str| {
        let is_theirs = !about_connection.covers(name);
        lines.all(name).filter(move |_| is_theirs)
    };
    let from = way.from;
    put_list(
        out,
        "x-forwarded-for",
        chain("x-forwarded-for"),
        from.to_string().as_bytes(),
    );
    let mut element = match from {
        IpAddr::V4(from) => format!("for={from}"),
        IpAddr::V6(from) => format!("for=\"[{from}]\""),
    }
    .into_bytes();
    // No `host=`: one with a port has to stand in quotes, and apps are there (code-server)
    // that take those for a part of it. `Host` itself says it, and `X-Forwarded-Host`.
    element.extend_from_slice(b";proto=");
    element.extend_from_slice(way.scheme.as_bytes());
    // A quote that is left open would swallow what is put after it.
    let is_whole = chain("forwarded").all(closes_its_quotes);
    let theirs = chain("forwarded").filter(|_| is_whole);
    put_list(out, "forwarded", theirs, &element);
    if let Some(host) = host {
        put(out, "x-forwarded-host", host);
    }
    put(out, "x-forwarded-proto", way.scheme.as_bytes());
}

fn put_list<'h>(
    out: &mut Vec<u8>,
    name: &str,
    before: impl Iterator<Item = &'h [u8]>,
    last: &[u8],
) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    for line in before {
        out.extend_from_slice(line);
        out.extend_from_slice(b", ");
    }
    out.extend_from_slice(last);
    out.extend_from_slice(b"\r\n");
}

fn closes_its_quotes(line: &[u8]) -> bool {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for byte in line {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
    }
    !is_quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::head::{Line, storage};

    /// What the app sees of these lines, after the request line.
    fn seen_by_app(lines: &[(&str, &str)], from: &str) -> String {
        let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
        for (name, value) in lines {
            put(&mut bytes, name, value.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        let mut storage = storage();
        let head = RequestHead::parse(&bytes, &mut storage).unwrap();
        let way = Way {
            from: from.parse().unwrap(),
            app: SocketAddr::from(([127, 0, 0, 1], 9)),
            scheme: "http",
        };
        let mut out = Vec::new();
        let target = Target::of(&head).unwrap();
        let (admission, _) = Admission::new([7; 32]).unwrap();
        for_app(&head, target, &admission, way, &Framing::NONE, &mut out);
        let text = String::from_utf8_lossy(&out);
        text.strip_prefix("GET / HTTP/1.1\r\n").unwrap().to_owned()
    }

    #[test]
    fn what_connection_names_goes_no_further_but_what_we_say_does() {
        let seen = seen_by_app(
            &[
                ("host", "h:1"),
                ("connection", "close, X-Secret, x-forwarded-for, Host"),
                ("x-secret", "1"),
                ("x-forwarded-for", "9.9.9.9"),
                ("keep-alive", "timeout=5"),
                ("te", "gzip"),
                ("X-Kept", "1"),
            ],
            "1.2.3.4",
        );
        assert_eq!(
            seen,
            "host: h:1\r\nX-Kept: 1\r\nx-forwarded-for: 1.2.3.4\r\n\
             forwarded: for=1.2.3.4;proto=http\r\n\
             x-forwarded-host: h:1\r\nx-forwarded-proto: http\r\n\r\n"
        );
    }

    #[test]
    fn the_chain_of_addresses_grows_at_its_end() {
        let seen = seen_by_app(
            &[("x-forwarded-for", "a"), ("x-forwarded-for", "b, c")],
            "::1",
        );
        assert!(seen.contains("x-forwarded-for: a, b, c, ::1\r\n"), "{seen}");
        assert!(
            seen.contains("forwarded: for=\"[::1]\";proto=http\r\n"),
            "{seen}"
        );
    }

    #[test]
    fn an_upgrade_is_one_only_when_connection_says_so() {
        let wanted = |lines: &[(&'static str, &'static str)]| {
            let lines: Vec<_> = lines
                .iter()
                .map(|(name, value)| Line {
                    name,
                    value: value.as_bytes(),
                })
                .collect();
            wanted_protocol(Lines::new(&lines)).map(<[u8]>::to_vec)
        };
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
            Some(b"websocket".to_vec())
        );
    }

    #[test]
    fn what_is_no_ascii_in_connection_does_not_unsay_the_rest() {
        let named = [Line {
            name: "connection",
            value: b"X-Secret, \xff",
        }];
        let about_connection = AboutConnection::of(Lines::new(&named));
        assert!(about_connection.covers("x-secret") && !about_connection.covers("host"));
    }

    #[test]
    fn connection_cannot_take_the_length_from_a_message() {
        let bytes = b"HTTP/1.1 200 OK\r\nconnection: content-length\r\ncontent-length: 5\r\n\r\n";
        let mut storage = storage();
        let head = ResponseHead::parse(bytes, &mut storage).unwrap();
        let terms = Terms {
            is_1_1: true,
            keeps_alive: true,
            is_chunked: false,
            switches: false,
        };
        let mut out = Vec::new();
        for_visitor(&head, terms, &mut out);
        assert_eq!(out, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n");
    }

    #[test]
    fn a_quote_that_a_visitor_leaves_open_does_not_swallow_our_word() {
        for open in ["for=\"1.1.1.1", "for=\"a\\\""] {
            let seen = seen_by_app(&[("forwarded", "for=a"), ("forwarded", open)], "1.2.3.4");
            let ours = "\r\nforwarded: for=1.2.3.4;proto=http\r\n";
            assert!(seen.contains(ours), "{seen}");
        }
        let seen = seen_by_app(&[("forwarded", "for=\"a, \\\"b\"")], "1.2.3.4");
        assert!(
            seen.contains("forwarded: for=\"a, \\\"b\", for=1.2.3.4;proto=http\r\n"),
            "{seen}"
        );
    }

    #[test]
    fn an_app_is_always_asked_for_a_path() {
        for (asked, told) in [
            ("http://other.test", "/"),
            ("http://other.test?a=1", "/?a=1"),
            ("http://other.test?cd_token=k", "/"),
            ("http://other.test/p?cd_token=k&a=1", "/p?a=1"),
            ("/", "/"),
            ("/?", "/?"),
            ("/p?", "/p?"),
        ] {
            let bytes = format!("GET {asked} HTTP/1.1\r\nhost: h\r\n\r\n");
            let mut storage = storage();
            let head = RequestHead::parse(bytes.as_bytes(), &mut storage).unwrap();
            let way = Way {
                from: [127, 0, 0, 1].into(),
                app: SocketAddr::from(([127, 0, 0, 1], 9)),
                scheme: "http",
            };
            let mut out = Vec::new();
            let target = Target::of(&head).unwrap();
            let (admission, _) = Admission::new([7; 32]).unwrap();
            for_app(&head, target, &admission, way, &Framing::NONE, &mut out);
            let line = format!("GET {told} HTTP/1.1\r\n");
            assert!(out.starts_with(line.as_bytes()), "{asked}");
        }
        for asked in [
            "*",
            "p",
            "other.test:80",
            "http://",
            "http://a@b/",
            "ftp://a/",
        ] {
            let bytes = format!("GET {asked} HTTP/1.1\r\nhost: h\r\n\r\n");
            let mut storage = storage();
            let head = RequestHead::parse(bytes.as_bytes(), &mut storage).unwrap();
            assert_eq!(Target::of(&head), Err(NoTarget), "{asked}");
        }
    }
}
