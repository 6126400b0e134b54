//! Dwell's gateway: the server, and the upstream as a session of it, on its own host or
//! reached by a tunnel.

use std::path::Path;
use std::time::{Duration, Instant};

use super::certificate::Certificate;
use super::{Peer, upstream};
use crate::Result;
use crate::by_hand::free_address;
use crate::processes::families;
use crate::server::{Server, Session, data_dir};

/// Each takes so many connections only.
const SESSIONS: u32 = 2;

pub fn start(dwell: &Path) -> Result<Option<Peer>> {
    let server = Server::start(dwell, data_dir(dwell)?, SESSIONS)?;
    let running = Running::start(server, SESSIONS)?;
    let (pid, agents) = (running.server.pid(), running.server.agents()?);
    Peer::new("dwell", running.addresses(), &[pid], &agents, running).map(Some)
}

pub fn start_tunnel(dwell: &Path) -> Result<Option<Peer>> {
    let address = free_address().ok_or("no port is free")?;
    let config = format!("[[launcher]]\nkind = \"local\"\nserver_url = \"http://{address}\"\n");
    let server = Server::start_at(&address.to_string(), dwell, data_dir(dwell)?, 1, &config)?;
    elsewhere("dwell", Running::start(server, 1)?)
}

pub fn start_tunnel_with_tls(dwell: &Path) -> Result<Option<Peer>> {
    let address = free_address().ok_or("no port is free")?;
    let dir = data_dir(dwell)?;
    let Certificate { certificate, key } = Certificate::make(dir.path())?;
    let (certificate, key) = (certificate.display(), key.display());
    let config = format!(
        "[tls]\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n\
         [[launcher]]\nkind = \"local\"\nserver_url = \"https://{address}\"\n\
         server_certificate = \"{certificate}\"\n"
    );
    let server = Server::start_at(&address.to_string(), dwell, dir, 1, &config)?;
    elsewhere("dwell, TLS", Running::start(server, 1)?)
}

/// The agent is the tunnel's other end; what it has started is not.
fn elsewhere(name: &'static str, running: Running) -> Result<Option<Peer>> {
    let (pid, agents) = (running.server.pid(), running.server.agents()?);
    let mut apps = families(&agents)?;
    apps.retain(|pid| !agents.contains(pid));
    Peer::new(name, running.addresses(), &[pid], &apps, running).map(Some)
}

struct Running {
    server: Server,
    sessions: Vec<Session>,
}

impl Running {
    /// So many sessions of the upstream.
    fn start(server: Server, sessions: u32) -> Result<Self> {
        let mut running = Self {
            server,
            sessions: Vec::new(),
        };
        let mut api = running.server.connect()?;
        for _ in 0..sessions {
            let session = Session::create(&mut api, &upstream()?)?;
            running.sessions.push(session);
        }
        Ok(running)
    }

    fn addresses(&self) -> Vec<String> {
        let sessions = self.sessions.iter();
        sessions.map(|session| session.address.clone()).collect()
    }
}

impl Drop for Running {
    /// The sessions first: an agent without a server waits for one.
    fn drop(&mut self) {
        const LIMIT: Duration = Duration::from_secs(5);
        if let Ok(mut api) = self.server.connect() {
            for session in self.sessions.drain(..) {
                let _ = session.end(&mut api);
            }
        }
        let ended = Instant::now();
        while ended.elapsed() < LIMIT && self.server.agents().is_ok_and(|all| !all.is_empty()) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
