//! Keys of ours that visitors present: who may pass, and that no app ever sees one.

use std::borrow::Cow;

use dwell_core::owner::Owner;

use super::cors;
use super::head::{Line, Lines};
use crate::keys::{KEY_PREFIX, KeyError, KeyRing};
use crate::session_urls::Address;

/// The query parameter that may carry a key.
const PARAMETER: &str = "cd_token";
/// The cookie that may carry a key, for the API and for sessions.
const COOKIE_NAME: &str = "__session";
/// What the gateway's own cookies begin with.
const OWN_COOKIE_PREFIX: &str = "__dwell_";

/// The cookie that the gateway itself sets to keep a key for the session at `address`.
/// A browser sends its cookies to every port of a host.
pub(super) fn own_cookie(address: &Address) -> String {
    match address {
        Address::Port(port) => format!("{OWN_COOKIE_PREFIX}{port}"),
        Address::Name(_) => format!("{OWN_COOKIE_PREFIX}key"),
    }
}

/// May a request with these keys pass to what is `owner`'s? Any key of the owner's
/// will do; the error is about the one that comes first.
///
/// # Errors
/// When it may not: no key of the owner's is among them.
pub fn admit(
    keys: &KeyRing,
    owner: &Owner,
    address: &Address,
    query: Option<&str>,
    lines: Lines<'_>,
) -> Result<(), KeyError> {
    let mut refused = None;
    for key in presented(address, query, lines) {
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
    address: &Address,
    query: Option<&'a str>,
    lines: Lines<'a>,
) -> impl Iterator<Item = Cow<'a, str>> {
    let own = own_cookie(address);
    let counts_cookies = cors::other_origin(lines).is_none();
    let in_cookies = lines
        .all("cookie")
        .filter(move |_| counts_cookies)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(name, _)| *name == COOKIE_NAME || *name == own)
        .map(|(_, key)| Cow::Borrowed(key));
    let bearer = lines.first("authorization").and_then(bearer);
    let api_key = lines.first("x-api-key");
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

fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let words = authorization.trim_ascii();
    let (scheme, key) = words.split_at(words.iter().position(u8::is_ascii_whitespace)?);
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then_some(key.trim_ascii_start())
}

/// What of a header line is not ours.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Theirs {
    /// The whole line.
    All,
    /// This much of its value.
    Some(Vec<u8>),
    /// Nothing.
    None,
}

/// Take out what is ours. What an app has agreed with its users passes unchanged.
pub(super) fn without_ours(keys: &KeyRing, line: &Line<'_>) -> Theirs {
    let unless = |is_ours: bool| if is_ours { Theirs::None } else { Theirs::All };
    match line.name.len() {
        6 if line.name.eq_ignore_ascii_case("cookie") => without_our_cookies(line.value),
        7 if line.name.eq_ignore_ascii_case("referer") => without_our_query(line.value),
        9 if line.name.eq_ignore_ascii_case("x-api-key") => unless(is_ours(keys, line.value)),
        13 if line.name.eq_ignore_ascii_case("authorization") => {
            unless(bearer(line.value).is_some_and(|key| is_ours(keys, key)))
        }
        _ => Theirs::All,
    }
}

/// Also what only looks like one of ours: it may have been one.
fn is_ours(keys: &KeyRing, key: &[u8]) -> bool {
    let is_known = |key: &str| keys.check(key) != Err(KeyError::Unknown);
    key.starts_with(KEY_PREFIX.as_bytes()) || std::str::from_utf8(key).is_ok_and(is_known)
}

/// A browser repeats the whole address of the page that it comes from. Not all that is
/// there need be ASCII.
fn without_our_query(referer: &[u8]) -> Theirs {
    let address = String::from_utf8_lossy(referer);
    let clean = address
        .split_once('?')
        .and_then(|(page, query)| Some(with_query(page, &strip_query(query)?)));
    clean.map_or(Theirs::All, |clean| Theirs::Some(clean.into_bytes()))
}

/// Would this line of an app's set a cookie of ours? Whoever visits it would then speak
/// to us, or to another session, with a key that the app has chosen.
pub(super) fn sets_our_cookie(line: &Line<'_>) -> bool {
    line.name.eq_ignore_ascii_case("set-cookie") && is_our_cookie(line.value)
}

fn is_our_cookie(pair: &[u8]) -> bool {
    let pair = pair.split(|byte| *byte == b';').next().unwrap_or(pair);
    let name = pair.split(|byte| *byte == b'=').next().unwrap_or(pair);
    let name = name.trim_ascii();
    name == COOKIE_NAME.as_bytes() || name.starts_with(OWN_COOKIE_PREFIX.as_bytes())
}

fn without_our_cookies(line: &[u8]) -> Theirs {
    let pairs = || line.split(|byte| *byte == b';');
    if !pairs().any(is_our_cookie) {
        return Theirs::All;
    }
    let kept: Vec<&[u8]> = pairs()
        .filter(|pair| !is_our_cookie(pair))
        .map(<[u8]>::trim_ascii)
        .filter(|pair| !pair.is_empty())
        .collect();
    if kept.is_empty() {
        Theirs::None
    } else {
        Theirs::Some(kept.join(&b"; "[..]))
    }
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

    fn stripped(name: &str, value: &[u8]) -> Option<Vec<u8>> {
        match without_ours(&KeyRing::default(), &Line { name, value }) {
            Theirs::All => Some(value.to_vec()),
            Theirs::Some(value) => Some(value),
            Theirs::None => None,
        }
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
        for (before, after) in [
            ("a=1;b=2", Some("a=1;b=2")),
            ("a=1; __session=k; b=\"2\"", Some("a=1; b=\"2\"")),
            ("__dwell_80=k; c=3", Some("c=3")),
            ("__session=k", None),
            ("my__session=k", Some("my__session=k")),
        ] {
            let after = after.map(|after| after.as_bytes().to_vec());
            assert_eq!(stripped("Cookie", before.as_bytes()), after, "{before}");
        }
    }

    #[test]
    fn only_our_keys_leave_the_headers() {
        for (name, before, after) in [
            ("Authorization", "bearer  dwell_00", None),
            ("authorization", "Bearer\tdwell_00", None),
            ("authorization", "token abc", Some("token abc")),
            ("authorization", "Bearer sk-1", Some("Bearer sk-1")),
            ("authorization", "Basic YTpi", Some("Basic YTpi")),
            ("x-api-key", "dwell_00", None),
            ("x-api-key", "sk-1", Some("sk-1")),
            (
                "referer",
                "http://h:1/p?cd_token=k&x=1",
                Some("http://h:1/p?x=1"),
            ),
            ("referer", "http://h:1/?cd_token=k", Some("http://h:1/")),
            ("referer", "http://h:1/é?cd_token=k", Some("http://h:1/é")),
            ("referer", "http://h:1/", Some("http://h:1/")),
            ("x-other", "dwell_00", Some("dwell_00")),
        ] {
            let after = after.map(|after| after.as_bytes().to_vec());
            assert_eq!(stripped(name, before.as_bytes()), after, "{name}: {before}");
        }
    }
}
