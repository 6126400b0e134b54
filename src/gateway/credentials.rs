//! What visitors present to pass: who may, and that no app ever sees it.

use std::borrow::Cow;
use std::net::IpAddr;

use dwell_core::id::SessionId;
use dwell_core::owner::Owner;
use dwell_core::share::Scope;

use super::cors;
use super::head::{Line, Lines};
use crate::admission::{Admission, Admitted};
use crate::keys::KeyError;
use crate::session_urls::{Address, Scheme};

/// The query parameter that may carry a secret.
const PARAMETER: &str = "cd_token";
/// The cookie that may carry a key, for the API and for sessions.
const COOKIE_NAME: &str = "__session";
/// What the gateway's own cookies begin with: where visitors come in the clear, and where
/// they come by TLS. A browser takes the latter from nobody but this very host.
const OWN_COOKIE_PREFIXES: [&str; 2] = ["__dwell", "__Host-dwell"];

/// The cookie in which a browser keeps its pass for the session at `address`. It sends its
/// cookies to every port of a host.
pub(super) fn own_cookie(address: &Address, scheme: Scheme) -> String {
    let [clear, host_only] = OWN_COOKIE_PREFIXES;
    let prefix = match scheme {
        Scheme::Http => clear,
        Scheme::Https => host_only,
    };
    match address {
        Address::Port(port) => format!("{prefix}_{port}"),
        Address::Name(_) => prefix.to_owned(),
    }
}

/// Where somebody would pass.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    /// The session.
    pub session: SessionId,
    /// Whose it is.
    pub owner: &'a Owner,
    /// Its place.
    pub address: &'a Address,
    /// How visitors come there.
    pub scheme: Scheme,
    /// From where this one comes.
    pub from: IpAddr,
}

/// Who passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// By what.
    pub admitted: Admitted,
    /// That stands in the address.
    pub is_in_query: bool,
}

/// May a request that presents these pass there? Any secret that opens will do, and the one
/// that allows most; the error is about the one that comes first.
///
/// # Errors
/// When it may not: nothing that opens is among them.
pub fn admit(
    admission: &Admission,
    at: At<'_>,
    query: Option<&str>,
    lines: Lines<'_>,
) -> Result<Passage, KeyError> {
    let mut refused = None;
    let mut found: Option<Passage> = None;
    for (secret, is_in_query) in presented(at, query, lines) {
        match admission.check(&secret, at.session, at.owner, at.from) {
            Ok(admitted) => {
                let passage = Passage {
                    admitted,
                    is_in_query,
                };
                match admitted.scope {
                    Scope::Use => return Ok(passage),
                    Scope::View => found = found.or(Some(passage)),
                }
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    found.ok_or(refused.unwrap_or(KeyError::Missing))
}

/// The secrets that a request may carry, in the order in which they are looked for, and
/// whether each stands in the query. Cookies count only where no page of another origin can
/// have had the browser send them: another session of this host is one.
fn presented<'a>(
    at: At<'_>,
    query: Option<&'a str>,
    lines: Lines<'a>,
) -> impl Iterator<Item = (Cow<'a, str>, bool)> {
    let own = own_cookie(at.address, at.scheme);
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
    let elsewhere = in_cookies.chain(in_headers);
    in_query(query)
        .map(|secret| (secret, true))
        .into_iter()
        .chain(elsewhere.map(|secret| (secret, false)))
}

/// The secret in a query, if it carries one.
fn in_query(query: Option<&str>) -> Option<Cow<'_, str>> {
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
pub(super) fn without_ours(admission: &Admission, line: &Line<'_>) -> Theirs {
    let unless = |is_ours: bool| if is_ours { Theirs::None } else { Theirs::All };
    match line.name.len() {
        6 if line.name.eq_ignore_ascii_case("cookie") => without_our_cookies(line.value),
        7 if line.name.eq_ignore_ascii_case("referer") => without_our_query(line.value),
        9 if line.name.eq_ignore_ascii_case("x-api-key") => unless(admission.is_ours(line.value)),
        13 if line.name.eq_ignore_ascii_case("authorization") => {
            unless(bearer(line.value).is_some_and(|key| admission.is_ours(key)))
        }
        _ => Theirs::All,
    }
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

/// What of an app's `Set-Cookie` its visitor gets: a cookie of its own, for its own host. One
/// for a domain would reach other sessions, and the dashboard.
pub(super) fn cookie_for_visitor<'a>(line: &Line<'a>) -> Cow<'a, [u8]> {
    let is_domain = |attribute: &[u8]| {
        let name = attribute.split(|byte| *byte == b'=').next();
        name.is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(b"domain"))
    };
    let parts = || line.value.split(|byte| *byte == b';');
    if !parts().skip(1).any(is_domain) {
        return Cow::Borrowed(line.value);
    }
    let pair = parts().take(1);
    let attributes = parts().skip(1).filter(|attribute| !is_domain(attribute));
    let kept: Vec<&[u8]> = pair.chain(attributes).collect();
    Cow::Owned(kept.join(&b";"[..]))
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
    let begins = |prefix: &str| name.starts_with(prefix.as_bytes());
    name == COOKIE_NAME.as_bytes() || OWN_COOKIE_PREFIXES.into_iter().any(begins)
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
        let (admission, _) = Admission::new([7; 32]).unwrap();
        match without_ours(&admission, &Line { name, value }) {
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
            ("__Host-dwell=k; c=3", Some("c=3")),
            ("__session=k", None),
            ("my__session=k", Some("my__session=k")),
        ] {
            let after = after.map(|after| after.as_bytes().to_vec());
            assert_eq!(stripped("Cookie", before.as_bytes()), after, "{before}");
        }
    }

    #[test]
    fn a_cookie_is_for_its_own_host_alone() {
        for (before, after) in [
            ("a=1", "a=1"),
            ("a=Domain; Path=/", "a=Domain; Path=/"),
            ("a=1; Domain=gpu.test; Path=/", "a=1; Path=/"),
            ("a=1;DOMAIN = .gpu.test", "a=1"),
            ("a=1; domain", "a=1"),
            (
                "a=1; Secure;domain=x; domain=y;HttpOnly",
                "a=1; Secure;HttpOnly",
            ),
        ] {
            let (name, value) = ("set-cookie", before.as_bytes());
            let kept = cookie_for_visitor(&Line { name, value });
            assert_eq!(kept, after.as_bytes(), "{before}");
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
