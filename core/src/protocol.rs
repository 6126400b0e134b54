//! What agent and server say to each other.
//!
//! On the control channel every message is a line that says a whole, not a change: where
//! the agent stands now, what the session may have in total. Nothing in them goes back
//! (phases advance, spans grow), so a message that is lost, repeated or late does no harm;
//! the next one says it all again. An empty line of an agent asks whether the server is
//! there, an empty line of the server says that it is.

use serde::{Deserialize, Serialize};

use crate::session::Ending;
use crate::time::Millis;
use crate::upstream::Upstream;

/// What the protocol is called in `Upgrade:`; the number changes when either side
/// could misread the other.
pub const PROTOCOL: &str = "dwell-agent/1";

/// What a data channel is called in `Upgrade:`. The agent opens some ahead of need; on
/// each it waits for [`OPEN`], answers with [`OPENED`] or [`NOT_OPENED`], and from then on
/// the bytes of the app and of who speaks to it pass unchanged.
pub const CHANNEL_PROTOCOL: &str = "dwell-channel/1";

/// What a log's way to the server is called in `Upgrade:`. The server says first how far it
/// has it, the agent sends what follows.
pub const LOG_PROTOCOL: &str = "dwell-log/1";

/// The server has the agent connect this channel to the app.
pub const OPEN: u8 = b'o';

/// The channel is connected to the app.
pub const OPENED: u8 = b'O';

/// The app does not accept connections; the channel is closed.
pub const NOT_OPENED: u8 = b'x';

/// The longest message of either side, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Where an agent's session stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum AgentPhase {
    /// It asks for leave to begin, for it may not be the only one of its session: engines
    /// have started jobs twice. It holds a GPU by then.
    Asks {
        /// Which agent of the session it is: no two say the same.
        agent: String,
    },
    /// The app has not answered yet.
    Starting,
    /// The app answers.
    Running {
        /// For how long it has.
        running_ms: Millis,
        /// How it is reached.
        upstream: Upstream,
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
            Self::Asks { .. } | Self::Starting => 0,
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
    /// Begin. Said to one agent of a session alone; the others are told to [`Forget`].
    ///
    /// [`Forget`]: ServerMessage::Forget
    Begin,
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
    /// All servers that lead visitors to the app: each is to have channels of its own.
    /// Agents that do not know the word have them where they call.
    Servers {
        /// Where each is reached, as bare origins.
        urls: Vec<String>,
    },
}
