//! The data directory: where everything is.
//!
//! ```text
//! DIR/
//!   lock            held by the server that has the directory
//!   server.json     where that server listens
//!   admin.key       the first key, mode 0600
//!   store.db        sessions, machines, keys, GPU events
//!   sessions/ID/    one session: see `SessionDir`
//! ```

use std::path::{Path, PathBuf};

use dwell_core::id::SessionId;
use serde::{Deserialize, Serialize};

/// A data directory.
#[derive(Clone, Debug)]
pub struct DataDir(pub PathBuf);

/// What `server.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFile {
    /// Where the server listens, as a program on this host reaches it: a bare origin.
    pub url: String,
    /// Its process.
    pub pid: u32,
}

impl DataDir {
    /// Held while a server runs.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Where the running server listens.
    #[must_use]
    pub fn server_file(&self) -> PathBuf {
        self.0.join("server.json")
    }

    /// The first key.
    #[must_use]
    pub fn admin_key(&self) -> PathBuf {
        self.0.join("admin.key")
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.0.join("store.db")
    }

    /// All sessions' directories.
    #[must_use]
    pub fn sessions(&self) -> PathBuf {
        self.0.join("sessions")
    }

    /// One session's directory.
    #[must_use]
    pub fn session(&self, id: SessionId) -> SessionDir {
        SessionDir(self.sessions().join(id.to_string()))
    }
}

/// One session's directory on its host.
///
/// ```text
/// sessions/ID/
///   agent.json      what its agent was told (mode 0600)
///   agent.lock      held by the agent that lives
///   journal.jsonl   what the agent did and when: its memory past its own death
///   agent.log       what the agent itself had to say
///   log/            what the app wrote, in numbered segments
///   work/           the app's private directory, removed at the end
/// ```
#[derive(Clone, Debug)]
pub struct SessionDir(pub PathBuf);

impl SessionDir {
    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the agent was told.
    #[must_use]
    pub fn agent_spec(&self) -> PathBuf {
        self.0.join("agent.json")
    }

    /// Held by the agent that lives.
    #[must_use]
    pub fn agent_lock(&self) -> PathBuf {
        self.0.join("agent.lock")
    }

    /// The agent's journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal.jsonl")
    }

    /// The agent's own words.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.0.join("agent.log")
    }

    /// The app's output.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The app's private directory.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }
}
