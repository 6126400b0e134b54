//! Where sessions are reached: each at a port of its own, or by a name of its own under
//! one domain.

use dwell_core::id::SessionId;

use crate::keys::SlugSecret;

/// A session's own place among all that the gateway serves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// This port.
    Port(u16),
    /// This label under the domain.
    Name(String),
}

/// How URLs begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// By TLS.
    Https,
}

impl Scheme {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that need not be written.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The domain under which sessions have names, as their visitors write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// The domain, in lower case.
    pub name: String,
    /// What its URLs begin with. None where the server's own listener decides.
    pub origin: Option<Origin>,
}

/// What is in front of this server and takes the visitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// How visitors speak to it.
    pub scheme: Scheme,
    /// Where.
    pub port: u16,
}

/// Where each session is reached, and its URL. Clones are alike.
#[derive(Clone, Debug)]
pub struct SessionUrls {
    scheme: Scheme,
    places: Places,
}

#[derive(Clone, Debug)]
enum Places {
    Ports {
        host: String,
        /// The server's own.
        home: u16,
    },
    Names {
        domain: String,
        port: String,
        slugs: SlugSecret,
    },
}

/// Can this, in lower case, be the name of a host or a domain?
#[must_use]
pub fn is_domain_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

impl SessionUrls {
    /// Each session at its own port of `host`, the server itself being at `home`.
    #[must_use]
    pub const fn ports(scheme: Scheme, host: String, home: u16) -> Self {
        let places = Places::Ports { host, home };
        Self { scheme, places }
    }

    /// Each by a name under `domain`, which visitors reach at `origin`.
    #[must_use]
    pub fn names(domain: &str, origin: Origin, slugs: SlugSecret) -> Self {
        let Origin { scheme, port } = origin;
        let places = Places::Names {
            domain: domain.to_ascii_lowercase(),
            port: if port == scheme.default_port() {
                String::new()
            } else {
                format!(":{port}")
            },
            slugs,
        };
        Self { scheme, places }
    }

    /// How visitors are spoken to.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The domain under which sessions have names, if they have.
    #[must_use]
    pub fn domain(&self) -> Option<&str> {
        match &self.places {
            Places::Ports { .. } => None,
            Places::Names { domain, .. } => Some(domain),
        }
    }

    /// The server's own origin, as its visitors reach it.
    #[must_use]
    pub fn home(&self) -> String {
        let scheme = self.scheme.as_str();
        match &self.places {
            Places::Ports { host, home } => format!("{scheme}://{host}:{home}"),
            Places::Names { domain, port, .. } => format!("{scheme}://{domain}{port}"),
        }
    }

    /// The session's place, `port` being the one that it was given.
    #[must_use]
    pub fn address(&self, session: SessionId, port: u16) -> Address {
        match &self.places {
            Places::Ports { .. } => Address::Port(port),
            Places::Names { slugs, .. } => Address::Name(slugs.of(session)),
        }
    }

    /// The session's URL: a bare origin.
    #[must_use]
    pub fn url(&self, session: SessionId, port: u16) -> String {
        let scheme = self.scheme.as_str();
        match &self.places {
            Places::Ports { host, .. } => format!("{scheme}://{host}:{port}"),
            Places::Names {
                domain,
                port,
                slugs,
            } => {
                let slug = slugs.of(session);
                format!("{scheme}://{slug}.{domain}{port}")
            }
        }
    }
}

/// Where a person signs in to come to `path` of `session`, at the server at `home`.
#[must_use]
pub fn sign_in(home: &str, session: SessionId, path: &str) -> String {
    let path: String = form_urlencoded::byte_serialize(path.as_bytes()).collect();
    format!("{home}/signin?session={session}&path={path}")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_session_has_its_port_or_a_name_that_cannot_be_guessed() {
        let (one, two) = (SessionId(Uuid::from_u128(1)), SessionId(Uuid::from_u128(2)));
        let ports = SessionUrls::ports(Scheme::Http, "gpu.test".to_owned(), 8080);
        assert_eq!(ports.url(one, 20_001), "http://gpu.test:20001");
        assert_eq!(ports.home(), "http://gpu.test:8080");
        let names = |port| {
            let origin = Origin {
                scheme: Scheme::Https,
                port,
            };
            SessionUrls::names("gpu.test", origin, SlugSecret::new([7; 32]))
        };
        let (url, other) = (names(443).url(one, 20_001), names(443).url(two, 20_001));
        assert_ne!(url, other);
        assert_eq!(names(443).home(), "https://gpu.test");
        let slug = url.strip_prefix("https://").unwrap();
        let slug = slug.strip_suffix(".gpu.test").unwrap();
        assert_eq!(slug.len(), 32, "128 bits");
        assert_eq!(
            names(8443).url(one, 20_001),
            format!("https://{slug}.gpu.test:8443")
        );
        assert_eq!(
            names(443).address(one, 20_001),
            Address::Name(slug.to_owned())
        );
        let elsewhere = SlugSecret::new([8; 32]);
        assert_ne!(elsewhere.of(one), slug);
    }
}
