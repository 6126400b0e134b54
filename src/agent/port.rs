//! A port for the app: one that no other agent of the host will choose too.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below what the kernel gives to outgoing connections, and apart from the ports
/// of session URLs.
const RANGE: Range<u16> = 10_000..20_000;

/// A port and the claim to it.
pub struct AppPort {
    /// The port.
    pub port: u16,
    /// Abstract sockets live in the network namespace, as ports do, and go with the
    /// process that holds them: a lock that cannot be left behind.
    _claim: Option<UnixListener>,
}

impl AppPort {
    /// The port that an app insists on.
    ///
    /// # Errors
    /// A sentence, when another program listens there.
    pub fn fixed(port: u16) -> Result<Self, String> {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => Ok(Self { port, _claim: None }),
            Err(error) => Err(format!(
                "Port {port}, which the app insists on, cannot be had: {error}"
            )),
        }
    }

    /// Any port that nobody listens on and no other agent has claimed.
    ///
    /// # Errors
    /// A sentence, when there is none.
    pub fn any() -> Result<Self, String> {
        let width = RANGE.end - RANGE.start;
        let mut bits = [0; 2];
        // Where the search begins matters little; without randomness, at the start.
        let _ = getrandom::fill(&mut bits);
        let first = u16::from_ne_bytes(bits) % width;
        (0..width)
            .map(|step| RANGE.start + (first + step) % width)
            .find_map(|port| {
                let claim = claim(port).ok()?;
                TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
                Some(Self {
                    port,
                    _claim: Some(claim),
                })
            })
            .ok_or_else(|| format!("No port from {} to {} is free", RANGE.start, RANGE.end - 1))
    }
}

fn claim(port: u16) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!(
        "dwell-app-port-{port}"
    ))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_agents_choose_the_same_port() {
        let ports: Vec<_> = (0..200).map(|_| AppPort::any().unwrap()).collect();
        let distinct: std::collections::BTreeSet<_> =
            ports.iter().map(|claimed| claimed.port).collect();
        assert_eq!(distinct.len(), ports.len());
    }

    #[test]
    fn a_fixed_port_that_is_taken_gives_a_sentence() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let sentence = AppPort::fixed(port).err().unwrap();
        assert!(
            sentence.starts_with(&format!("Port {port}, which the app insists on")),
            "{sentence}"
        );
    }
}
