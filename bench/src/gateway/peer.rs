//! One of those that are compared: a proxy before an upstream of its own.

mod certificate;
mod configurable_http_proxy;
mod direct;
mod dwell;
mod haproxy;
mod nginx;
mod rathole;

use std::any::Any;
use std::path::Path;

use super::Reading;
use super::program::Program;
use crate::Result;
use crate::by_hand::ByHand;
use crate::http::until_it_answers;
use crate::processes::{cpu_s, families, resident_kib};
use crate::server::beside;

/// How a peer comes to stand; `None`, and a sentence said, where it cannot be had.
type Start = fn(dwell: &Path) -> Result<Option<Peer>>;

/// All of them, in the order of the table. Another one is a file and a line here.
pub const PEERS: [Start; 5] = [
    direct::start,
    dwell::start,
    nginx::start,
    haproxy::start,
    configurable_http_proxy::start,
];

/// Those that reach an app on another host.
pub const TUNNELS: [Start; 5] = [
    direct::start,
    dwell::start_tunnel,
    rathole::start,
    dwell::start_tunnel_with_tls,
    rathole::start_with_tls,
];

/// A peer that answers. All of it ends when this is dropped.
pub struct Peer {
    pub name: &'static str,
    /// `host:port`; more than one where one takes only so many connections.
    pub addresses: Vec<String>,
    /// The proxy's processes, if there is a proxy.
    proxy: Vec<u32>,
    upstream: Vec<u32>,
    _running: Box<dyn Any>,
}

/// CPU time, up to now.
#[derive(Clone, Copy)]
pub struct Cpu {
    /// The proxy's alone, if there is one.
    pub proxy_s: Option<f64>,
    /// That, the upstream's and the client's.
    pub all_s: f64,
}

impl Cpu {
    /// What was used since then, times `scale`.
    pub fn since(self, before: Self, scale: f64, figure: &str) -> [Reading; 2] {
        let proxy_s = self.proxy_s.zip(before.proxy_s);
        let proxy_s = proxy_s.map(|(now_s, before_s)| (now_s - before_s) * scale);
        let all_s = (self.all_s - before.all_s) * scale;
        [
            Reading::new(&format!("{figure}, proxy alone"), proxy_s),
            Reading::new(&format!("{figure}, all"), all_s),
        ]
    }
}

impl Peer {
    /// Of processes that run until `running` is dropped: those given and their
    /// descendants, once it answers.
    fn new(
        name: &'static str,
        addresses: Vec<String>,
        proxy: &[u32],
        upstream: &[u32],
        running: impl Any,
    ) -> Result<Self> {
        for address in &addresses {
            until_it_answers(address)?;
        }
        let upstream = families(upstream)?;
        let mut proxy = families(proxy)?;
        // A session descends from the server that started it.
        proxy.retain(|pid| !upstream.contains(pid));
        Ok(Self {
            name,
            addresses,
            proxy,
            upstream,
            _running: Box::new(running),
        })
    }

    /// A proxy that listens there before that upstream.
    fn before(
        upstream: ByHand,
        name: &'static str,
        address: String,
        proxy: Program,
    ) -> Result<Option<Self>> {
        let (proxy_pid, upstream_pid) = (proxy.pid(), upstream.pid());
        let running = (proxy, upstream);
        Self::new(name, vec![address], &[proxy_pid], &[upstream_pid], running).map(Some)
    }

    /// Where most of what is measured goes.
    pub fn address(&self) -> Result<&str> {
        Ok(self.addresses.first().ok_or("it has no address")?)
    }

    pub fn cpu(&self) -> Result<Cpu> {
        let proxy_s = cpu_s(&self.proxy)?;
        Ok(Cpu {
            proxy_s: (!self.proxy.is_empty()).then_some(proxy_s),
            all_s: proxy_s + cpu_s(&self.upstream)? + cpu_s(&[std::process::id()])?,
        })
    }

    /// Resident memory of the proxy, if there is one.
    pub fn resident_kib(&self) -> Result<Option<f64>> {
        match self.proxy.as_slice() {
            [] => Ok(None),
            proxy => resident_kib(proxy).map(Some),
        }
    }
}

/// How the upstream is started.
fn upstream() -> Result<[String; 2]> {
    let program = beside("upstream")?.display().to_string();
    Ok([program, "{port}".to_owned()])
}

/// An upstream of one's own that answers.
fn start_upstream() -> Result<ByHand> {
    let upstream = ByHand::start(&upstream()?)?;
    until_it_answers(&upstream.address)?;
    Ok(upstream)
}
