//! What an agent is told when it is launched.

use std::path::PathBuf;

use dwell_core::id::SessionId;
use dwell_core::lease::Terms;
use dwell_core::machine::Recipe;
use dwell_core::time::Millis;
use serde::{Deserialize, Serialize};

use crate::engine::EngineSettings;

/// `agent.json` in a session's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// The session.
    pub session: SessionId,
    /// By which the server knows this agent.
    pub secret: String,
    /// Where its server is.
    pub server: ServerAt,
    /// What to run.
    pub recipe: Recipe,
    /// `CUDA_VISIBLE_DEVICES`. None is as the job has it.
    pub visible_device: Option<String>,
    /// For how long.
    pub terms: Terms,
    /// Whether the app may be started. If not, what an earlier agent left is to be
    /// reported.
    pub may_begin: bool,
    /// How often to say that it lives.
    pub heartbeat: Millis,
    /// What the app may use.
    pub limits: AppLimits,
    /// What runs its container, where the recipe names one.
    #[serde(default)]
    pub engine: Option<EngineSettings>,
    /// Whether it is in a job of a cluster's engine: its environment is the session's own,
    /// its directory is nobody else's, and what the app writes is wanted by the server.
    #[serde(default)]
    pub is_in_job: bool,
}

/// Where an agent's server is, and with that how the app is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerAt {
    /// On the agent's own host; it connects to the app itself.
    ThisHost {
        /// Its `server.json`, read anew before each call: a server that was restarted
        /// may listen elsewhere.
        server_file: PathBuf,
        /// Whether another server may write that file while the one that it names lives.
        #[serde(default)]
        is_shared: bool,
    },
    /// On another; the agent opens the channels to the app.
    Elsewhere {
        /// A bare origin.
        url: String,
        /// Whom to trust, in PEM, where that is not who the web trusts.
        certificate: Option<PathBuf>,
    },
}

/// What an app may use. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppLimits {
    /// Memory, in MiB.
    pub memory_mib: Option<u64>,
    /// Processes and threads at once.
    pub pids: Option<u64>,
    /// Log kept on disk, in MiB; the oldest goes first.
    pub log_mib: u64,
}

impl Default for AppLimits {
    fn default() -> Self {
        Self {
            memory_mib: None,
            pids: Some(16_384),
            log_mib: 16,
        }
    }
}
