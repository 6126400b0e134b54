//! What agent and server say to each other on the control channel.
//!
//! Every message says a whole, not a change: where the agent stands now, what the
//! session may have in total. Nothing in them goes back (phases advance, spans
//! grow), so a message that is lost, repeated or late does no harm; the next one
//! says it all again.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::session::Ending;
use crate::time::Millis;

/// What the protocol is called in `Upgrade:`; the number changes when either side
/// could misread the other.
pub const PROTOCOL: &str = "dwell-agent/1";

/// The longest message of either side, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Where an agent's session stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum AgentPhase {
    /// The app has not answered yet.
    Starting,
    /// The app answers.
    Running {
        /// For how long it has.
        running_ms: Millis,
        /// Where it listens, as seen from the agent's host.
        upstream: SocketAddr,
    },
    /// The app's processes are being ended.
    Stopping {
        /// Why.
        ending: Ending,
        /// For how long the app answered, if it ever did.
        running_ms: Option<Millis>,
    },
    /// The last process of the session is gone.
    Ended {
        /// Why.
        ending: Ending,
        /// For how long the app answered, if it ever did.
        running_ms: Option<Millis>,
    },
}

impl AgentPhase {
    /// Phases only advance; this is how far.
    #[must_use]
    pub const fn rank(&self) -> u8 {
        match self {
            Self::Starting => 0,
            Self::Running { .. } => 1,
            Self::Stopping { .. } => 2,
            Self::Ended { .. } => 3,
        }
    }
}

/// An agent's word on its session; also its proof of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// For how long the GPU has been held, by the agent's monotonic clock. It
    /// stops growing when the last process of the session is gone.
    pub held_ms: Millis,
    /// The total time that the agent knows to be granted.
    pub granted_ms: Millis,
    /// Where the session stands.
    #[serde(flatten)]
    pub phase: AgentPhase,
}

/// The server's word to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "message")]
pub enum ServerMessage {
    /// The session may run for this long in all, counted from when the app first
    /// answered. Never shortens what was granted before.
    Lease {
        /// The total.
        granted_ms: Millis,
    },
    /// End the session, for this reason.
    Stop {
        /// Why.
        ending: Ending,
    },
    /// The session's end is on record: nothing more is wanted of the agent.
    Forget,
}
