//! Dwell's gateway: the server, and the upstream as a session of it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Peer, upstream};
use crate::Result;
use crate::server::{Server, Session, data_dir};

/// Each takes so many connections only.
const SESSIONS: u32 = 2;

pub fn start(dwell: &Path) -> Result<Option<Peer>> {
    let server = Server::start(dwell, data_dir(dwell)?, SESSIONS)?;
    let mut running = Running {
        server,
        sessions: Vec::new(),
    };
    let mut api = running.server.connect()?;
    for _ in 0..SESSIONS {
        let session = Session::create(&mut api, &upstream()?)?;
        running.sessions.push(session);
    }
    let sessions = running.sessions.iter();
    let addresses = sessions.map(|session| session.address.clone()).collect();
    let (pid, agents) = (running.server.pid(), running.server.agents()?);
    Peer::new("dwell", addresses, &[pid], &agents, running).map(Some)
}

struct Running {
    server: Server,
    sessions: Vec<Session>,
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
