//! HAProxy with one thread.

use std::path::Path;

use super::{Peer, start_upstream};
use crate::Result;
use crate::by_hand::free_address;
use crate::gateway::install::from_debian;
use crate::gateway::program::Program;

/// Connections are kept on both sides, and buffers are of the size with which it is at
/// its fastest.
const CONFIG: &str = "
global
    nbthread 1
    maxconn 4096
    tune.bufsize 65536
defaults
    mode http
    option splice-auto
    timeout connect 10s
    timeout http-request 1h
    timeout http-keep-alive 1h
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
frontend all
    bind {address} backlog 4096
    default_backend app
backend app
    http-reuse always
    server app {upstream}
";

pub fn start(_: &Path) -> Result<Option<Peer>> {
    let Some(haproxy) = from_debian("haproxy")? else {
        return Ok(None);
    };
    let upstream = start_upstream()?;
    let address = free_address().ok_or("no port is free")?.to_string();
    let config = CONFIG
        .replace("{upstream}", &upstream.address)
        .replace("{address}", &address);
    let arguments = ["-db", "-q", "-f", "{config}"];
    let proxy = Program::start(&haproxy, &arguments, &config, &address)?;
    Peer::before(upstream, "haproxy", address, proxy)
}
