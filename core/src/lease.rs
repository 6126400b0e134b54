//! The agent's side: one session, kept to its time by the agent alone.
//!
//! ```text
//!             app answered            TERM sent            KILL sent
//!   Starting ─────────────▶ Running ───────────▶ Stopping ──────────▶ Killing
//!      │  start limit,         │ deadline, stop,    │ grace is over     │
//!      │  stop, exit           │ exit               │                   │ tree gone
//!      └───────────────────────┴────────▶ ──────────┴─────────▶ Ended ◀─┘
//! ```
//!
//! The server can lengthen a lease and can end it. Once the end has begun nothing
//! that it says takes it back. With the server gone, everything here goes on.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

use crate::protocol::{AgentPhase, AgentStatus, ServerMessage};
use crate::session::{EndReason, Ending};
use crate::time::{Millis, Monotonic};
use crate::upstream::Upstream;

/// How often a tree that outlives its KILL (a process in uninterruptible sleep) is
/// killed again.
const KILL_AGAIN_AFTER: Millis = Millis(500);

/// What the agent may be late by before whoever watches over it acts in its place.
const WATCH_SLACK: Millis = Millis(100);

/// The times that a session was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Total time from when the app first answers.
    pub granted_ms: Millis,
    /// How long the app may take to answer.
    pub start_limit_ms: Millis,
    /// Between TERM and KILL when the session is stopped.
    pub grace_ms: Millis,
    /// Between TERM and KILL when its time is up.
    pub timeout_grace_ms: Millis,
}

/// How the app's own process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It exited with this status.
    Status(i32),
    /// This signal ended it.
    Signal(i32),
    /// It took more memory than it may, and was killed.
    OutOfMemory,
    /// Its container was removed by somebody else.
    Removed,
    /// Its container engine does not say how, or is gone.
    Unseen,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exited with status {status}"),
            Self::Signal(9) => {
                f.write_str("was killed by signal 9 (KILL, perhaps for want of memory)")
            }
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::OutOfMemory => f.write_str("was killed because it took more memory than it may"),
            Self::Removed => f.write_str("ended: somebody else removed its container"),
            Self::Unseen => f.write_str("ended, and its container engine does not say how"),
        }
    }
}

/// What the agent is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send TERM to every process of the session.
    TerminateTree,
    /// Send KILL to every process of the session, and say when the last is gone.
    KillTree,
    /// Tell the server where the session stands.
    Report,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// What the app needs is fetched.
    Preparing {
        limit: Millis,
    },
    Starting {
        since: Monotonic,
    },
    Running {
        since: Monotonic,
        upstream: Upstream,
    },
    Stopping {
        ending: Ending,
        running: Option<Millis>,
        kill_at: Monotonic,
    },
    Killing {
        ending: Ending,
        running: Option<Millis>,
        again_at: Monotonic,
    },
    Ended {
        ending: Ending,
        running: Option<Millis>,
        held: Millis,
    },
}

/// One session's lease, as its agent keeps it.
#[derive(Clone, Debug)]
pub struct Lease {
    terms: Terms,
    held_since: Monotonic,
    phase: Phase,
    commands: VecDeque<Command>,
}

impl Lease {
    /// A lease whose GPU is held from `now` on and whose app is being started.
    #[must_use]
    pub fn new(terms: Terms, now: Monotonic) -> Self {
        Self {
            terms,
            held_since: now,
            phase: Phase::Starting { since: now },
            commands: VecDeque::from([Command::Report]),
        }
    }

    /// Before the app can be started something has to be fetched, for which there is a
    /// limit of its own.
    pub fn prepares_within(&mut self, limit: Millis) {
        if matches!(self.phase, Phase::Starting { .. }) {
            self.phase = Phase::Preparing { limit };
        }
    }

    /// All is there: the app is started now.
    pub fn prepared(&mut self, now: Monotonic) {
        self.advance(now);
        if matches!(self.phase, Phase::Preparing { .. }) {
            self.phase = Phase::Starting { since: now };
        }
    }

    /// The app answered its ready probe at `upstream`. The time starts now.
    pub fn app_answered(&mut self, upstream: Upstream, now: Monotonic) {
        self.advance(now);
        if matches!(self.phase, Phase::Starting { .. }) {
            self.phase = Phase::Running {
                since: now,
                upstream,
            };
            self.commands.push_back(Command::Report);
        }
    }

    /// The app's own process ended; what it left behind ends with it. `last_words`
    /// is the last line it wrote, for the sentence that says why.
    pub fn app_exited(&mut self, exit: Exit, last_words: Option<&str>, now: Monotonic) {
        let quoted = last_words.map_or_else(String::new, |words| format!(": {words}"));
        let ending = match (&self.phase, exit) {
            (Phase::Preparing { .. } | Phase::Starting { .. }, _) => Ending::failed(format!(
                "The app {exit} before it answered on its port{quoted}"
            )),
            (Phase::Running { .. }, Exit::Status(0)) => Ending::plain(EndReason::Exited),
            (Phase::Running { .. }, _) => Ending {
                reason: EndReason::Exited,
                error: Some(format!("The app {exit}{quoted}")),
            },
            // It was told to.
            (Phase::Stopping { ending, .. }, _) => ending.clone(),
            (Phase::Killing { .. } | Phase::Ended { .. }, _) => return,
        };
        self.kill(ending, now);
    }

    /// The app could not be started at all.
    pub fn app_not_started(&mut self, why: &str, now: Monotonic) {
        if matches!(self.phase, Phase::Preparing { .. } | Phase::Starting { .. }) {
            self.kill(Ending::failed(why.to_owned()), now);
        }
    }

    /// The last process of the session is gone.
    pub fn tree_gone(&mut self, now: Monotonic) {
        if let Phase::Killing { again_at, .. } = &self.phase {
            let held = if now <= *again_at {
                now.since(self.held_since)
            } else {
                // An agent that is this late was paused. Proven is only that the
                // GPU was held when it last looked.
                again_at.since(self.held_since).minus(KILL_AGAIN_AFTER)
            };
            self.end(held);
        }
    }

    /// The server said something. Its `Forget` is for the agent's shell.
    pub fn heard(&mut self, message: &ServerMessage, now: Monotonic) {
        // A lease that has run out has run out, whether or not the timer that says so
        // has fired yet.
        self.advance(now);
        match message {
            ServerMessage::Lease { granted_ms } => {
                if self.goes_on() && self.terms.granted_ms < *granted_ms {
                    self.terms.granted_ms = *granted_ms;
                    self.commands.push_back(Command::Report);
                }
            }
            ServerMessage::Stop { ending } => {
                self.terminate(ending.clone(), self.terms.grace_ms, now)
            }
            ServerMessage::Begin | ServerMessage::Forget | ServerMessage::Servers { .. } => {}
        }
    }

    /// Time has passed. What was due counts from when it was due: an agent that was
    /// paused then has no more grace to give than one that was not.
    pub fn advance(&mut self, now: Monotonic) {
        while let Some(due) = self.deadline().filter(|due| *due <= now) {
            match &self.phase {
                Phase::Preparing { limit } => {
                    let sentence = format!("What the app needs was not fetched within {limit}");
                    self.terminate(Ending::failed(sentence), self.terms.timeout_grace_ms, due);
                }
                Phase::Starting { .. } => {
                    let limit = self.terms.start_limit_ms;
                    self.terminate(
                        Ending::failed(format!(
                            "The app did not answer on its port within {limit}"
                        )),
                        self.terms.timeout_grace_ms,
                        due,
                    );
                }
                Phase::Running { .. } => self.terminate(
                    Ending::plain(EndReason::TimedOut),
                    self.terms.timeout_grace_ms,
                    due,
                ),
                Phase::Stopping { ending, .. } => {
                    let ending = ending.clone();
                    return self.kill(ending, now);
                }
                Phase::Killing {
                    ending, running, ..
                } => {
                    self.phase = Phase::Killing {
                        ending: ending.clone(),
                        running: *running,
                        again_at: now.plus(KILL_AGAIN_AFTER),
                    };
                    return self.commands.push_back(Command::KillTree);
                }
                Phase::Ended { .. } => return,
            }
        }
    }

    /// When [`Lease::advance`] must be called next at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        match &self.phase {
            Phase::Preparing { limit } => Some(self.held_since.plus(*limit)),
            Phase::Starting { since } => Some(since.plus(self.terms.start_limit_ms)),
            Phase::Running { since, .. } => Some(since.plus(self.terms.granted_ms)),
            Phase::Stopping { kill_at, .. } => Some(*kill_at),
            Phase::Killing { again_at, .. } => Some(*again_at),
            Phase::Ended { .. } => None,
        }
    }

    /// When every process is to be killed at the latest although nothing more is heard
    /// of the agent (it may be paused): for whoever watches over it.
    #[must_use]
    pub fn kill_at_latest(&self) -> Option<Monotonic> {
        let grace = match &self.phase {
            Phase::Preparing { .. } | Phase::Starting { .. } | Phase::Running { .. } => {
                self.terms.timeout_grace_ms
            }
            Phase::Stopping { .. } | Phase::Killing { .. } | Phase::Ended { .. } => Millis::ZERO,
        };
        Some(self.deadline()?.plus(grace).plus(WATCH_SLACK))
    }

    /// Whoever watches over the agent killed every process in its place; the last was
    /// gone at `at`, which may be long past.
    pub fn ended_by_watch(&mut self, at: Monotonic) {
        self.advance(at);
        self.app_exited(Exit::Signal(9), None, at);
        self.end(at.since(self.held_since));
    }

    /// What is to be done next.
    pub fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The session as the server is told of it.
    #[must_use]
    pub fn status(&self, now: Monotonic) -> AgentStatus {
        let held_so_far = now.since(self.held_since);
        let (held_ms, phase) = match &self.phase {
            Phase::Preparing { .. } | Phase::Starting { .. } => (held_so_far, AgentPhase::Starting),
            Phase::Running { since, upstream } => (
                held_so_far,
                AgentPhase::Running {
                    running_ms: now.since(*since),
                    upstream: *upstream,
                },
            ),
            Phase::Stopping {
                ending, running, ..
            }
            | Phase::Killing {
                ending, running, ..
            } => (
                held_so_far,
                AgentPhase::Stopping {
                    ending: ending.clone(),
                    running_ms: *running,
                },
            ),
            Phase::Ended {
                ending,
                running,
                held,
            } => (
                *held,
                AgentPhase::Ended {
                    ending: ending.clone(),
                    running_ms: *running,
                },
            ),
        };
        AgentStatus {
            held_ms,
            granted_ms: self.terms.granted_ms,
            phase,
        }
    }

    /// Whether the last process is gone.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    /// Whether the end has not begun.
    #[must_use]
    pub const fn goes_on(&self) -> bool {
        matches!(
            self.phase,
            Phase::Preparing { .. } | Phase::Starting { .. } | Phase::Running { .. }
        )
    }

    fn running(&self, now: Monotonic) -> Option<Millis> {
        match &self.phase {
            Phase::Preparing { .. } | Phase::Starting { .. } => None,
            Phase::Running { since, .. } => Some(now.since(*since)),
            Phase::Stopping { running, .. }
            | Phase::Killing { running, .. }
            | Phase::Ended { running, .. } => *running,
        }
    }

    fn terminate(&mut self, ending: Ending, grace: Millis, now: Monotonic) {
        if self.goes_on() {
            self.phase = Phase::Stopping {
                ending,
                running: self.running(now),
                kill_at: now.plus(grace),
            };
            self.commands
                .extend([Command::TerminateTree, Command::Report]);
        }
    }

    fn kill(&mut self, ending: Ending, now: Monotonic) {
        let already_stopping = matches!(self.phase, Phase::Stopping { .. });
        self.phase = Phase::Killing {
            ending,
            running: self.running(now),
            again_at: now.plus(KILL_AGAIN_AFTER),
        };
        self.commands.push_back(Command::KillTree);
        if !already_stopping {
            self.commands.push_back(Command::Report);
        }
    }

    fn end(&mut self, held: Millis) {
        if let Phase::Killing {
            ending, running, ..
        } = &self.phase
        {
            self.phase = Phase::Ended {
                ending: ending.clone(),
                running: *running,
                held,
            };
            self.commands.push_back(Command::Report);
        }
    }
}
