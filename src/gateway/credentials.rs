//! Keys of ours that visitors present: who may pass, and that no app ever sees one.

use std::borrow::Cow;

use dwell_core::owner::Owner;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue, REFERER};

use super::cors;
use crate::keys::{KEY_PREFIX, KeyError, KeyRing};

/// The query parameter that may carry a key.
const PARAMETER: &str = "cd_token";
/// The cookie that may carry a key, for the API and for sessions.
const COOKIE_NAME: &str = "__session";
/// What the gateway's own cookies begin with. A port's follows: a browser sends its
/// cookies to every port of a host.
const OWN_COOKIE_PREFIX: &str = "__dwell_";
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The cookie that the gateway itself sets to keep a key for `port`.
pub(super) fn own_cookie(port: u16) -> String {
    format!("{OWN_COOKIE_PREFIX}{port}")
}

/// May a request with these keys pass to what is `owner`'s? Any key of the owner's
/// will do; the error is about the one that comes first.
///
/// # Errors
/// When it may not: no key of the owner's is among them.
pub fn admit(
    keys: &KeyRing,
    owner: &Owner,
    port: u16,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), KeyError> {
    let mut refused = None;
    for key in presented(port, query, headers) {
        match keys.check(&key) {
            Ok(principal) if principal.owner() == *owner => return Ok(()),
            // That it is good elsewhere is nobody's business here.
            Ok(_) => refused = refused.or(Some(KeyError::Unknown)),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or(KeyError::Missing))
}

/// The keys that a request may carry, in the order in which they are looked for.
/// Cookies count only where no page of another origin can have had the browser send
/// them: another session of this host is one.
fn presented<'a>(
    port: u16,
    query: Option<&'a str>,
    headers: &'a HeaderMap,
) -> impl Iterator<Item = Cow<'a, str>> {
    let own = own_cookie(port);
    let counts_cookies = cors::other_origin(headers).is_none();
    let in_cookies = headers
        .get_all(COOKIE)
        .iter()
        .filter(move |_| counts_cookies)
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(name, _)| *name == COOKIE_NAME || *name == own)
        .map(|(_, key)| Cow::Borrowed(key));
    let bearer = headers.get(AUTHORIZATION).and_then(bearer);
    let api_key = headers.get(API_KEY).map(HeaderValue::as_bytes);
    let in_headers = bearer
        .into_iter()
        .chain(api_key)
        .filter_map(|key| std::str::from_utf8(key).ok())
        .map(Cow::Borrowed);
    in_cookies.chain(in_query(query)).chain(in_headers)
}

/// The key in a query, if it carries one.
pub(super) fn in_query(query: Option<&str>) -> Option<Cow<'_, str>> {
    form_urlencoded::parse(query?.as_bytes())
        .find(|(name, _)| name == PARAMETER)
        .map(|(_, key)| key)
}

fn bearer(authorization: &HeaderValue) -> Option<&[u8]> {
    let words = authorization.as_bytes().trim_ascii();
    let (scheme, key) = words.split_at(words.iter().position(u8::is_ascii_whitespace)?);
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then_some(key.trim_ascii_start())
}

/// Take out what is ours. What an app has agreed with its users passes unchanged.
pub(super) fn strip(keys: &KeyRing, headers: &mut HeaderMap) {
    strip_cookies(headers);
    map_lines(headers, &AUTHORIZATION, |line| {
        let is_ours = bearer(&line).is_some_and(|key| is_ours(keys, key));
        (!is_ours).then_some(line)
    });
    map_lines(headers, &API_KEY, |line| {
        let is_ours = is_ours(keys, line.as_bytes());
        (!is_ours).then_some(line)
    });
    map_lines(headers, &REFERER, strip_referer);
}

/// Also what only looks like one of ours: it may have been one.
fn is_ours(keys: &KeyRing, key: &[u8]) -> bool {
    let is_known = |key: &str| keys.check(key) != Err(KeyError::Unknown);
    key.starts_with(KEY_PREFIX.as_bytes()) || std::str::from_utf8(key).is_ok_and(is_known)
}

/// A browser repeats the whole address of the page that it comes from. Not all that is
/// there need be ASCII.
fn strip_referer(line: HeaderValue) -> Option<HeaderValue> {
    let address = String::from_utf8_lossy(line.as_bytes());
    let clean = address
        .split_once('?')
        .and_then(|(page, query)| Some(with_query(page, &strip_query(query)?)));
    match clean {
        Some(clean) => HeaderValue::from_bytes(clean.as_bytes()).ok(),
        None => Some(line),
    }
}

/// Each line of a header, as there may be several: an app may read any of them.
fn map_lines(
    headers: &mut HeaderMap,
    name: &HeaderName,
    map: impl Fn(HeaderValue) -> Option<HeaderValue>,
) {
    let lines: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
    headers.remove(name);
    for line in lines.into_iter().filter_map(map) {
        headers.append(name, line);
    }
}

fn strip_cookies(headers: &mut HeaderMap) {
    let is_ours = |pair: &[u8]| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or(pair);
        let name = name.trim_ascii();
        name == COOKIE_NAME.as_bytes() || name.starts_with(OWN_COOKIE_PREFIX.as_bytes())
    };
    let pairs = |line: &HeaderValue| line.as_bytes().split(|byte| *byte == b';').any(is_ours);
    if !headers.get_all(COOKIE).iter().any(pairs) {
        return;
    }
    let kept: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
        .filter(|pair| !is_ours(pair))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
        .collect();
    let kept = HeaderValue::from_bytes(&kept.join(&b"; "[..]));
    match kept {
        Ok(kept) if !kept.is_empty() => headers.insert(COOKIE, kept),
        Ok(_) | Err(_) => headers.remove(COOKIE),
    };
}

/// `query` without our parameter, all else as it was; `None` if it has none.
pub(super) fn strip_query(query: &str) -> Option<String> {
    let is_ours = |pair: &str| {
        form_urlencoded::parse(pair.as_bytes())
            .next()
            .is_some_and(|(name, _)| name == PARAMETER)
    };
    query.split('&').any(is_ours).then(|| {
        let kept: Vec<&str> = query.split('&').filter(|pair| !is_ours(pair)).collect();
        kept.join("&")
    })
}

/// `path` and its query, if there is any left.
pub(super) fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(name: HeaderName, values: &[&'static str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_static(value));
        }
        strip(&KeyRing::default(), &mut headers);
        let left = headers.get_all(&name).iter();
        left.map(|value| value.to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn our_parameter_leaves_the_query_however_it_is_written() {
        assert_eq!(strip_query("a=1&b=%20+"), None);
        assert_eq!(strip_query("cd_token=k").as_deref(), Some(""));
        assert_eq!(
            strip_query("a=%20&cd%5Ftoken=k&b&cd_token").as_deref(),
            Some("a=%20&b")
        );
        assert_eq!(strip_query("cd_tokens=k"), None);
    }

    #[test]
    fn only_our_cookies_leave() {
        assert_eq!(stripped(COOKIE, &["a=1;b=2"]), ["a=1;b=2"]);
        assert_eq!(
            stripped(COOKIE, &["a=1; __session=k; b=\"2\"", "__dwell_80=k; c=3"]),
            ["a=1; b=\"2\"; c=3"]
        );
        assert!(stripped(COOKIE, &["__session=k"]).is_empty());
        assert_eq!(stripped(COOKIE, &["my__session=k"]), ["my__session=k"]);
    }

    #[test]
    fn only_our_keys_leave_the_headers() {
        assert!(stripped(AUTHORIZATION, &["bearer  dwell_00"]).is_empty());
        assert_eq!(stripped(AUTHORIZATION, &["token abc"]), ["token abc"]);
        assert_eq!(stripped(AUTHORIZATION, &["Bearer sk-1"]), ["Bearer sk-1"]);
        assert!(stripped(API_KEY, &["dwell_00"]).is_empty());
        assert_eq!(stripped(API_KEY, &["sk-1"]), ["sk-1"]);
        assert_eq!(
            stripped(REFERER, &["http://h:1/p?cd_token=k&x=1"]),
            ["http://h:1/p?x=1"]
        );
    }

    #[test]
    fn a_key_leaves_whichever_line_it_stands_in_and_whatever_stands_beside_it() {
        assert_eq!(
            stripped(AUTHORIZATION, &["Basic YTpi", "Bearer dwell_00"]),
            ["Basic YTpi"]
        );
        assert!(stripped(AUTHORIZATION, &["Bearer\tdwell_00"]).is_empty());
        assert_eq!(stripped(API_KEY, &["theirs", "dwell_00"]), ["theirs"]);
        assert_eq!(
            stripped(REFERER, &["http://h:1/", "http://h:1/?cd_token=k"]),
            ["http://h:1/", "http://h:1/"]
        );
        let page = HeaderValue::from_bytes("http://h:1/é?cd_token=k".as_bytes()).unwrap();
        let mut headers = HeaderMap::from_iter([(REFERER, page)]);
        strip(&KeyRing::default(), &mut headers);
        assert_eq!(headers[REFERER].as_bytes(), "http://h:1/é".as_bytes());
    }
}
