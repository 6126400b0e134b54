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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const TERMS: Terms = Terms {
        granted_ms: Millis(60_000),
        start_limit_ms: Millis(10_000),
        grace_ms: Millis(5_000),
        timeout_grace_ms: Millis(800),
    };

    fn upstream() -> Upstream {
        Upstream::Direct((Ipv4Addr::LOCALHOST, 9).into())
    }

    fn running_since(ready_at: u64) -> Lease {
        let mut lease = Lease::new(TERMS, Monotonic(0));
        lease.app_answered(upstream(), Monotonic(ready_at));
        while lease.next_command().is_some() {}
        lease
    }

    fn commands(lease: &mut Lease) -> Vec<Command> {
        std::iter::from_fn(|| lease.next_command()).collect()
    }

    fn ending(lease: &Lease) -> Ending {
        match lease.status(Monotonic(u64::MAX)).phase {
            AgentPhase::Stopping { ending, .. } | AgentPhase::Ended { ending, .. } => ending,
            phase @ (AgentPhase::Asks { .. }
            | AgentPhase::Starting
            | AgentPhase::Running { .. }) => {
                panic!("still {phase:?}")
            }
        }
    }

    #[test]
    fn a_cold_start_does_not_eat_the_users_time() {
        assert_eq!(running_since(9_000).deadline(), Some(Monotonic(69_000)));
    }

    #[test]
    fn time_up_means_term_then_kill_then_gone() {
        let mut lease = running_since(0);
        lease.advance(Monotonic(59_999));
        assert_eq!(commands(&mut lease), []);
        lease.advance(Monotonic(60_000));
        assert_eq!(
            commands(&mut lease),
            [Command::TerminateTree, Command::Report]
        );
        lease.advance(Monotonic(60_800));
        assert_eq!(commands(&mut lease), [Command::KillTree]);
        lease.tree_gone(Monotonic(60_801));
        assert!(lease.is_over());
        assert_eq!(ending(&lease).reason, EndReason::TimedOut);
        assert_eq!(lease.status(Monotonic(99_999)).held_ms, Millis(60_801));
    }

    #[test]
    fn an_agent_that_was_paused_at_the_last_moment_gives_no_more_grace() {
        let mut lease = running_since(0);
        lease.advance(Monotonic(60_700));
        assert_eq!(lease.deadline(), Some(Monotonic(60_800)));
        let mut never_answered = Lease::new(TERMS, Monotonic(0));
        never_answered.advance(Monotonic(10_700));
        assert_eq!(never_answered.deadline(), Some(Monotonic(10_800)));
    }

    #[test]
    fn an_agent_that_was_paused_past_the_grace_kills_at_once() {
        let mut lease = running_since(0);
        lease.advance(Monotonic(3_600_000));
        assert_eq!(
            commands(&mut lease),
            [Command::TerminateTree, Command::Report, Command::KillTree]
        );
        assert_eq!(ending(&lease).reason, EndReason::TimedOut);
    }

    #[test]
    fn nothing_said_later_can_un_end_a_session() {
        let mut lease = running_since(0);
        // The timer has not fired, and the word comes in a moment too late.
        lease.heard(
            &ServerMessage::Lease {
                granted_ms: Millis(600_000),
            },
            Monotonic(60_000),
        );
        assert_eq!(ending(&lease).reason, EndReason::TimedOut);
        lease.heard(
            &ServerMessage::Lease {
                granted_ms: Millis(700_000),
            },
            Monotonic(60_001),
        );
        lease.app_answered(upstream(), Monotonic(60_002));
        lease.heard(
            &ServerMessage::Stop {
                ending: Ending::plain(EndReason::Cancelled),
            },
            Monotonic(60_003),
        );
        assert_eq!(ending(&lease).reason, EndReason::TimedOut);
        assert_eq!(lease.deadline(), Some(Monotonic(60_800)));
    }

    #[test]
    fn what_comes_after_the_last_moment_comes_too_late_though_no_timer_has_fired() {
        let mut stopped = running_since(0);
        let ending_late = Ending::plain(EndReason::Cancelled);
        let stop = ServerMessage::Stop {
            ending: ending_late,
        };
        stopped.heard(&stop, Monotonic(60_000));
        assert_eq!(ending(&stopped).reason, EndReason::TimedOut);
        assert_eq!(stopped.deadline(), Some(Monotonic(60_800)));
        let mut answers = Lease::new(TERMS, Monotonic(0));
        answers.app_answered(upstream(), Monotonic(10_000));
        assert_eq!(ending(&answers).reason, EndReason::Failed);
    }

    #[test]
    fn a_late_lease_never_shortens_a_newer_one() {
        let mut lease = running_since(0);
        lease.heard(
            &ServerMessage::Lease {
                granted_ms: Millis(120_000),
            },
            Monotonic(1),
        );
        lease.heard(
            &ServerMessage::Lease {
                granted_ms: Millis(90_000),
            },
            Monotonic(2),
        );
        assert_eq!(lease.deadline(), Some(Monotonic(120_000)));
    }

    #[test]
    fn fetching_has_a_limit_of_its_own_and_takes_nothing_from_the_apps() {
        let fetching = || {
            let mut lease = Lease::new(TERMS, Monotonic(0));
            lease.prepares_within(Millis(90_000));
            lease
        };
        let mut in_time = fetching();
        assert_eq!(in_time.kill_at_latest(), Some(Monotonic(90_900)));
        in_time.prepared(Monotonic(80_000));
        assert_eq!(in_time.deadline(), Some(Monotonic(90_000)));
        in_time.app_answered(upstream(), Monotonic(85_000));
        assert_eq!(in_time.deadline(), Some(Monotonic(145_000)));
        let mut late = fetching();
        late.prepared(Monotonic(90_001));
        let sentence = "What the app needs was not fetched within 1 min 30 s";
        assert_eq!(ending(&late).error.as_deref(), Some(sentence));
        assert!(!late.goes_on());
    }

    #[test]
    fn an_app_that_never_answers_fails_with_a_sentence() {
        let mut lease = Lease::new(TERMS, Monotonic(0));
        lease.advance(Monotonic(10_000));
        assert_eq!(
            ending(&lease),
            Ending::failed("The app did not answer on its port within 10 s".into())
        );
    }

    #[test]
    fn whoever_watches_over_a_paused_agent_knows_when_to_act() {
        let mut lease = Lease::new(TERMS, Monotonic(0));
        assert_eq!(lease.kill_at_latest(), Some(Monotonic(10_900)));
        lease.app_answered(upstream(), Monotonic(1_000));
        assert_eq!(lease.kill_at_latest(), Some(Monotonic(61_900)));
        lease.advance(Monotonic(61_000));
        assert_eq!(lease.kill_at_latest(), Some(Monotonic(61_900)));
        let mut extended = running_since(0);
        let granted_ms = Millis(90_000);
        extended.heard(&ServerMessage::Lease { granted_ms }, Monotonic(7));
        assert_eq!(extended.kill_at_latest(), Some(Monotonic(90_900)));
        let ending = Ending::plain(EndReason::Cancelled);
        let mut stopped = running_since(0);
        stopped.heard(&ServerMessage::Stop { ending }, Monotonic(7));
        assert_eq!(stopped.kill_at_latest(), Some(Monotonic(5_107)));
    }

    #[test]
    fn what_was_ended_for_a_paused_agent_is_billed_to_when_it_was_gone() {
        let mut lease = running_since(0);
        lease.ended_by_watch(Monotonic(60_905));
        // It learns of it an hour later.
        let status = lease.status(Monotonic(3_600_000));
        assert_eq!(status.held_ms, Millis(60_905));
        assert_eq!(ending(&lease).reason, EndReason::TimedOut);
        assert!(lease.is_over());
    }

    #[test]
    fn an_agent_paused_while_its_tree_goes_bills_no_more_than_it_saw() {
        let killed_at_5 = || {
            let mut lease = running_since(0);
            lease.app_exited(Exit::Status(0), None, Monotonic(5));
            lease
        };
        let held = |lease: &Lease| lease.status(Monotonic(3_600_000)).held_ms;
        let mut in_time = killed_at_5();
        in_time.tree_gone(Monotonic(505));
        assert_eq!(held(&in_time), Millis(505));
        let mut late = killed_at_5();
        late.tree_gone(Monotonic(3_600_000));
        assert_eq!(held(&late), Millis(5));
        // Whoever killed it in the agent's place knows when.
        let mut watched = killed_at_5();
        watched.ended_by_watch(Monotonic(700));
        assert_eq!(held(&watched), Millis(700));
    }

    #[test]
    fn an_app_that_cannot_be_started_ends_with_its_sentence_and_one_that_was_does_not() {
        let mut lease = Lease::new(TERMS, Monotonic(0));
        commands(&mut lease);
        lease.app_not_started("There is no such program", Monotonic(3));
        assert_eq!(commands(&mut lease), [Command::KillTree, Command::Report]);
        assert_eq!(
            ending(&lease),
            Ending::failed("There is no such program".into())
        );
        let mut runs = running_since(0);
        runs.app_not_started("There is no such program", Monotonic(3));
        assert_eq!(commands(&mut runs), []);
    }

    #[test]
    fn the_end_tells_for_how_long_the_app_had_answered() {
        let running_ms = |lease: &Lease| match lease.status(Monotonic(99_999)).phase {
            AgentPhase::Stopping { running_ms, .. } | AgentPhase::Ended { running_ms, .. } => {
                running_ms
            }
            phase @ (AgentPhase::Asks { .. }
            | AgentPhase::Starting
            | AgentPhase::Running { .. }) => {
                panic!("still {phase:?}")
            }
        };
        let mut lease = running_since(1_000);
        lease.app_exited(Exit::Status(0), None, Monotonic(8_000));
        assert_eq!(running_ms(&lease), Some(Millis(7_000)));
        lease.tree_gone(Monotonic(8_001));
        assert_eq!(running_ms(&lease), Some(Millis(7_000)));
        let mut never_answered = Lease::new(TERMS, Monotonic(0));
        never_answered.advance(Monotonic(10_000));
        assert_eq!(running_ms(&never_answered), None);
    }

    #[test]
    fn a_lease_that_is_told_again_is_no_news() {
        let mut lease = running_since(0);
        let granted_ms = TERMS.granted_ms;
        lease.heard(&ServerMessage::Lease { granted_ms }, Monotonic(1));
        assert_eq!(commands(&mut lease), []);
    }

    #[test]
    fn an_exit_kills_what_the_app_left_behind() {
        let mut lease = running_since(0);
        lease.app_exited(Exit::Status(3), Some("out of cheese"), Monotonic(5));
        assert_eq!(commands(&mut lease), [Command::KillTree, Command::Report]);
        assert!(!lease.is_over());
        assert_eq!(
            ending(&lease),
            Ending {
                reason: EndReason::Exited,
                error: Some("The app exited with status 3: out of cheese".into())
            }
        );
    }

    #[test]
    fn a_tree_that_outlives_its_kill_is_killed_again() {
        let mut lease = running_since(0);
        lease.app_exited(Exit::Signal(9), None, Monotonic(0));
        commands(&mut lease);
        lease.advance(Monotonic(500));
        assert_eq!(commands(&mut lease), [Command::KillTree]);
        lease.advance(Monotonic(1_000));
        assert_eq!(commands(&mut lease), [Command::KillTree]);
    }
}
