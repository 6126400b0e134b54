//! How the gateway reaches an app.

use std::fmt;
use std::net::{AddrParseError, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a tunnelled address is written with, before the address.
const TUNNEL: &str = "tunnel:";

/// How the gateway reaches an app; written `127.0.0.1:8188`, or `tunnel:127.0.0.1:8188`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Upstream {
    /// It connects to this address itself.
    Direct(SocketAddr),
    /// By the channels that the session's agent opens. The address is the app's on the
    /// agent's host.
    Tunnel(SocketAddr),
}

impl Upstream {
    /// Where the app listens, on whichever host it runs.
    #[must_use]
    pub const fn address(self) -> SocketAddr {
        match self {
            Self::Direct(address) | Self::Tunnel(address) => address,
        }
    }
}

impl From<SocketAddr> for Upstream {
    fn from(address: SocketAddr) -> Self {
        Self::Direct(address)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(address) => write!(f, "{address}"),
            Self::Tunnel(address) => write!(f, "{TUNNEL}{address}"),
        }
    }
}

impl FromStr for Upstream {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        match text.strip_prefix(TUNNEL) {
            Some(address) => address.parse().map(Self::Tunnel),
            None => text.parse().map(Self::Direct),
        }
    }
}

impl From<Upstream> for String {
    fn from(upstream: Upstream) -> Self {
        upstream.to_string()
    }
}

impl TryFrom<String> for Upstream {
    type Error = AddrParseError;

    fn try_from(text: String) -> Result<Self, AddrParseError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_it_is_read_and_an_address_alone_is_direct() {
        for text in ["127.0.0.1:8188", "tunnel:127.0.0.1:8188", "tunnel:[::1]:80"] {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!(upstream.to_string(), text);
            assert_eq!(
                matches!(upstream, Upstream::Tunnel(_)),
                text.contains("tunnel")
            );
        }
        assert!("tunnel:".parse::<Upstream>().is_err());
        assert!("gpu-host:80".parse::<Upstream>().is_err());
    }
}
