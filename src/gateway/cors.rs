//! Scripts of other origins may use a session: a web app elsewhere probes its URL and
//! talks to it. What keeps strangers out is [`Access`](dwell_core::machine::Access):
//! a private session does not count the cookies that a browser sends along.

use super::answer::Answer;
use super::head::{Lines, RequestHead};
use super::headers::put;

/// Seconds that a browser may remember the answer; no browser remembers longer.
const MAX_AGE: &str = "86400";

/// The answer to a browser that asks whether it may send a script's request.
pub(super) fn preflight(request: &RequestHead<'_>) -> Option<Answer> {
    if request.method != "OPTIONS" {
        return None;
    }
    let asked = request.lines;
    let (origin, method) = (
        asked.first("origin")?,
        asked.first("access-control-request-method")?,
    );
    let mut answer = Answer::new(204);
    answer.line("access-control-allow-origin", origin);
    answer.line("access-control-allow-credentials", "true");
    answer.line("access-control-allow-methods", method);
    if let Some(headers) = asked.first("access-control-request-headers") {
        answer.line("access-control-allow-headers", headers);
    }
    if asked.has("access-control-request-private-network") {
        answer.line("access-control-allow-private-network", "true");
    }
    answer.line("access-control-max-age", MAX_AGE);
    answer.line(
        "vary",
        "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    );
    Some(answer)
}

/// The origin of a request that comes from another one.
#[must_use]
pub fn other_origin(lines: Lines<'_>) -> Option<&[u8]> {
    let origin = lines.first("origin")?;
    let host = lines.first("host").unwrap_or_default();
    (!is_own(origin, host)).then_some(origin)
}

/// Is `origin` that of the page at `host` itself?
#[must_use]
pub fn is_own(origin: &[u8], host: &[u8]) -> bool {
    // The scheme is not compared: TLS may have been taken off on the way here.
    let authority = std::str::from_utf8(origin)
        .ok()
        .and_then(|origin| origin.split_once("://"));
    authority.is_some_and(|(_, authority)| authority.as_bytes().eq_ignore_ascii_case(host))
}

/// Let scripts of `origin` read a response.
pub fn allow(origin: &[u8], out: &mut Vec<u8>) {
    put(out, "access-control-allow-origin", origin);
    put(out, "vary", b"Origin");
}

/// Has the app said who may read its response?
#[must_use]
pub fn is_settled(response: Lines<'_>) -> bool {
    response.has("access-control-allow-origin")
}
