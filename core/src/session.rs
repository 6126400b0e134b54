//! A session's life.
//!
//! ```text
//!            ┌──────────────── cancel ────────────────┐
//!            │                                        ▼
//!   create ▶ Queued ▶ Starting ▶ Running ▶ Stopping ▶ Ended
//!                        │          │                 ▲
//!                        └──────────┴── the agent ────┘
//!                             says so, or is silent
//! ```
//!
//! Each state carries what is true in it and nothing else. States only advance.

use serde::{Deserialize, Serialize};

use crate::gpu::{GpuId, GpuType};
use crate::id::{MachineId, MachineVersionId, SessionId};
use crate::job::{Job, JobState, LauncherName};
use crate::machine::Recipe;
use crate::metering::GpuEvent;
use crate::owner::{Owner, UserId};
use crate::protocol::{AgentPhase, AgentStatus};
use crate::time::{Millis, Timestamp};
use crate::upstream::Upstream;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// Someone asked for it.
    Cancelled,
    /// Its time was up.
    TimedOut,
    /// Nobody used it.
    Idle,
    /// Its app exited by itself.
    Exited,
    /// It never ran, or was broken.
    Failed,
    /// Its host was not heard of any more.
    Lost,
    /// Its owner's money was spent.
    OverBudget,
}

/// An end: the reason, and the sentence for a person where there is more to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Why.
    pub reason: EndReason,
    /// What happened, for a person.
    pub error: Option<String>,
}

impl Ending {
    /// An end that needs no explaining.
    #[must_use]
    pub const fn plain(reason: EndReason) -> Self {
        Self {
            reason,
            error: None,
        }
    }

    /// A failure and its sentence.
    #[must_use]
    pub const fn failed(error: String) -> Self {
        Self {
            reason: EndReason::Failed,
            error: Some(error),
        }
    }
}

/// Where a session was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Where its agent runs.
    #[serde(flatten)]
    pub place: Place,
    /// The port of its URL.
    pub port: u16,
}

/// Where a session's agent runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Place {
    /// On this host.
    Host {
        /// The GPU that is its own.
        gpu: GpuId,
        /// What `CUDA_VISIBLE_DEVICES` says in it.
        visible_device: String,
    },
    /// In a job, on a GPU that the job's engine chooses.
    Job {
        /// By which launcher.
        launcher: LauncherName,
    },
}

impl Placement {
    /// The GPU of this host that it has.
    #[must_use]
    pub const fn gpu(&self) -> Option<&GpuId> {
        match &self.place {
            Place::Host { gpu, .. } => Some(gpu),
            Place::Job { .. } => None,
        }
    }

    /// The launcher of its job.
    #[must_use]
    pub const fn launcher(&self) -> Option<&LauncherName> {
        match &self.place {
            Place::Host { .. } => None,
            Place::Job { launcher } => Some(launcher),
        }
    }
}

/// How far a session is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// No GPU of its type is free.
    Queued {
        /// First come, first served: lower goes first.
        ticket: u64,
    },
    /// An agent was asked for.
    Starting {
        /// Where.
        placement: Placement,
    },
    /// The app answers.
    Running {
        /// Where.
        placement: Placement,
        /// How the app is reached.
        upstream: Upstream,
        /// Since when it answers.
        started_at: Timestamp,
        /// Until when it may run.
        timeout_end: Timestamp,
    },
    /// Its processes are being ended.
    Stopping {
        /// Where.
        placement: Placement,
        /// Since when the app answered, if it did.
        started_at: Option<Timestamp>,
        /// Why.
        ending: Ending,
    },
    /// Its last process is gone, or its host is.
    Ended {
        /// Since when the app answered, if it did.
        started_at: Option<Timestamp>,
        /// When.
        ended_at: Timestamp,
        /// Why.
        ending: Ending,
    },
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub owner: Owner,
    /// Who made it.
    pub user_id: UserId,
    /// The machine it was made from, if any.
    pub machine_id: Option<MachineId>,
    /// The machine's version at that time.
    pub machine_version_id: Option<MachineVersionId>,
    /// What it runs.
    pub recipe: Recipe,
    /// The GPU type it asked for.
    pub gpu_type: GpuType,
    /// When it was made.
    pub created_at: Timestamp,
    /// The total time granted, extensions included.
    pub granted_ms: Millis,
    /// How far it is.
    #[serde(flatten)]
    pub state: State,
    /// Its job, if it is in one and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// The agent that was given leave to begin, where there may be several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_by: Option<String>,
    /// What it held, and what that costs.
    pub gpu_event: GpuEvent,
}

impl Session {
    /// Has it not ended?
    #[must_use]
    pub const fn is_open(&self) -> bool {
        !matches!(self.state, State::Ended { .. })
    }

    /// Where it was put, while it is anywhere.
    #[must_use]
    pub const fn placement(&self) -> Option<&Placement> {
        match &self.state {
            State::Queued { .. } | State::Ended { .. } => None,
            State::Starting { placement }
            | State::Running { placement, .. }
            | State::Stopping { placement, .. } => Some(placement),
        }
    }

    /// Does it wait for a GPU, in our queue or in its engine's?
    #[must_use]
    pub fn is_queued(&self) -> bool {
        match (&self.state, &self.job) {
            (State::Queued { .. }, _) => true,
            (State::Starting { .. }, Some(job)) => job.state == JobState::Pending,
            _ => false,
        }
    }

    /// Since when its app answers, or did.
    #[must_use]
    pub const fn started_at(&self) -> Option<Timestamp> {
        match &self.state {
            State::Queued { .. } | State::Starting { .. } => None,
            State::Running { started_at, .. } => Some(*started_at),
            State::Stopping { started_at, .. } | State::Ended { started_at, .. } => *started_at,
        }
    }

    /// Its URL's port is another one from now on.
    pub(crate) fn move_port(&mut self, to: u16) {
        match &mut self.state {
            State::Queued { .. } | State::Ended { .. } => {}
            State::Starting { placement }
            | State::Running { placement, .. }
            | State::Stopping { placement, .. } => placement.port = to,
        }
    }

    /// More time. The caller has checked that it runs and may have more.
    pub(crate) fn extend(&mut self, by: Millis) {
        if let State::Running { timeout_end, .. } = &mut self.state {
            *timeout_end = timeout_end.plus(by);
            self.granted_ms = self.granted_ms.plus(by);
        }
    }

    /// It is to end: at once when it is nowhere, else as soon as its tree is gone.
    pub(crate) fn stop(&mut self, ending: Ending, now: Timestamp) {
        match &self.state {
            State::Queued { .. } => {
                self.state = State::Ended {
                    started_at: None,
                    ended_at: now,
                    ending,
                };
            }
            State::Starting { placement } | State::Running { placement, .. } => {
                self.state = State::Stopping {
                    placement: placement.clone(),
                    started_at: self.started_at(),
                    ending,
                };
            }
            State::Stopping { .. } | State::Ended { .. } => {}
        }
    }

    /// It has ended, whatever it was in.
    pub(crate) fn end(&mut self, ending: Ending, now: Timestamp) {
        if self.is_open() {
            self.gpu_event.close();
            // A wall clock that was stepped back never ends a session before its start.
            let ended_at = now.max(self.started_at().unwrap_or(self.created_at));
            self.state = State::Ended {
                started_at: self.started_at(),
                ended_at,
                ending,
            };
        }
    }

    /// Its agent says where it stands.
    pub(crate) fn observe(
        &mut self,
        status: &AgentStatus,
        now: Timestamp,
        gpu_free_since: Timestamp,
    ) {
        let Some(placement) = self.placement().cloned() else {
            return;
        };
        self.gpu_event.prove(
            placement.gpu(),
            status.held_ms,
            now,
            gpu_free_since.max(self.created_at),
        );
        match &status.phase {
            AgentPhase::Asks { .. } | AgentPhase::Starting => {}
            AgentPhase::Running {
                running_ms,
                upstream,
            } => self.is_running(*running_ms, *upstream, now),
            AgentPhase::Stopping { ending, running_ms } => {
                self.is_stopping(ending, *running_ms, now);
            }
            AgentPhase::Ended { ending, running_ms } => {
                self.is_stopping(ending, *running_ms, now);
                // What was decided first, and perhaps acknowledged, is the reason.
                let ending = match &self.state {
                    State::Stopping { ending, .. } => ending.clone(),
                    State::Queued { .. }
                    | State::Starting { .. }
                    | State::Running { .. }
                    | State::Ended { .. } => ending.clone(),
                };
                self.end(ending, now);
            }
        }
    }

    fn is_running(&mut self, running_ms: Millis, at: Upstream, now: Timestamp) {
        /// A deadline on record that is too late by less is left alone.
        const DRIFT: Millis = Millis(1_000);
        /// And one that is too early by less: what was that long under way says too late a one.
        const UNDER_WAY: Millis = Millis(15_000);
        let timeout_end_now = now.plus(self.granted_ms.minus(running_ms));
        let began = now.minus(running_ms);
        match &mut self.state {
            State::Starting { placement } => {
                self.state = State::Running {
                    placement: placement.clone(),
                    upstream: at,
                    started_at: began.max(self.created_at),
                    timeout_end: timeout_end_now,
                };
            }
            // The agent's clock decides. If ours was stepped, the record follows.
            State::Running {
                timeout_end,
                started_at,
                ..
            } => {
                let is_off = timeout_end.since(timeout_end_now) > DRIFT
                    || timeout_end_now.since(*timeout_end) > UNDER_WAY;
                if is_off {
                    *timeout_end = timeout_end_now;
                    // Or else the first news of it was long under way.
                    if (self.created_at..*started_at).contains(&began) {
                        *started_at = began;
                    }
                }
            }
            State::Queued { .. } | State::Stopping { .. } | State::Ended { .. } => {}
        }
    }

    /// The end has begun; that the app answered may be news too.
    fn is_stopping(&mut self, ending: &Ending, running_ms: Option<Millis>, now: Timestamp) {
        self.stop(ending.clone(), now);
        if let (
            State::Stopping {
                started_at: began @ None,
                ..
            },
            Some(running_ms),
        ) = (&mut self.state, running_ms)
        {
            *began = Some(now.minus(running_ms).max(self.created_at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GpuEventId;
    use crate::machine::AppCommand;
    use crate::pricing::HourlyRate;
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;
    use uuid::Uuid;

    const CREATED: Timestamp = Timestamp(1_000_000);

    /// A session of one minute whose agent was asked for at once.
    fn starting() -> Session {
        let user = UserId("ada".into());
        Session {
            id: SessionId(Uuid::nil()),
            owner: Owner::User(user.clone()),
            user_id: user,
            machine_id: None,
            machine_version_id: None,
            recipe: Recipe {
                command: AppCommand::Shell("app".into()),
                port: None,
                workdir: None,
                environment: BTreeMap::new(),
                gpu: GpuType::cpu(),
                timeout_minutes: 1,
                ready_path: "/".into(),
                access: None,
                container: None,
            },
            gpu_type: GpuType::cpu(),
            created_at: CREATED,
            granted_ms: Millis(60_000),
            state: State::Starting {
                placement: Placement {
                    place: Place::Host {
                        gpu: GpuId("CPU/0000".into()),
                        visible_device: String::new(),
                    },
                    port: 20_000,
                },
            },
            job: None,
            begun_by: None,
            gpu_event: GpuEvent::new(GpuEventId(Uuid::nil()), HourlyRate::default()),
        }
    }

    /// Its agent says, when the server's clock is at `at_ms` after its creation, that
    /// the app has answered for `running_ms`.
    fn says_running(session: &mut Session, at_ms: i64, running_ms: u64) {
        let status = AgentStatus {
            held_ms: Millis(running_ms),
            granted_ms: session.granted_ms,
            phase: AgentPhase::Running {
                running_ms: Millis(running_ms),
                upstream: Upstream::Direct((Ipv4Addr::LOCALHOST, 9).into()),
            },
        };
        session.observe(&status, Timestamp(CREATED.0 + at_ms), CREATED);
    }

    fn timeout_end(session: &Session) -> i64 {
        let State::Running { timeout_end, .. } = session.state else {
            panic!("not running but {:?}", session.state)
        };
        timeout_end.0 - CREATED.0
    }

    #[test]
    fn the_deadline_on_record_follows_the_agents_clock_and_not_every_delay() {
        let mut session = starting();
        says_running(&mut session, 5_000, 0);
        assert_eq!(timeout_end(&session), 65_000);
        // A message took long, for the server was paused; then one was quick.
        says_running(&mut session, 25_000, 5_000);
        assert_eq!(timeout_end(&session), 65_000);
        says_running(&mut session, 9_000, 5_000);
        assert_eq!(timeout_end(&session), 65_000);
        // The server's clock was stepped, forward and back.
        says_running(&mut session, 25_001, 5_000);
        assert_eq!(timeout_end(&session), 80_001);
        says_running(&mut session, -900_000, 6_000);
        assert_eq!(timeout_end(&session), -846_000);
    }

    #[test]
    fn news_that_was_long_under_way_is_put_right_by_the_next() {
        let mut session = starting();
        let began = |at_ms: i64| Some(Timestamp(CREATED.0 + at_ms));
        // It took five seconds, for the server was paused.
        says_running(&mut session, 10_000, 0);
        assert_eq!(session.started_at(), began(10_000));
        says_running(&mut session, 12_000, 7_000);
        assert_eq!(session.started_at(), began(5_000));
        assert_eq!(timeout_end(&session), 65_000);
        // The server's clock was stepped: it began no later, and not before it was created.
        says_running(&mut session, 30_000, 8_000);
        assert_eq!(session.started_at(), began(5_000));
        says_running(&mut session, 3_000, 9_000);
        assert_eq!(session.started_at(), began(5_000));
    }

    #[test]
    fn when_the_app_began_to_answer_is_known_to_the_end_and_never_after_it() {
        let mut session = starting();
        assert_eq!(session.started_at(), None);
        says_running(&mut session, 5_000, 0);
        let began = Some(Timestamp(CREATED.0 + 5_000));
        assert_eq!(session.started_at(), began);
        let ending = Ending::plain(EndReason::Cancelled);
        session.stop(ending.clone(), Timestamp(CREATED.0 + 6_000));
        assert_eq!(session.started_at(), began);
        // The server's clock was stepped back.
        session.end(ending, CREATED);
        assert_eq!(session.started_at(), began);
        let State::Ended { ended_at, .. } = session.state else {
            panic!("not ended but {:?}", session.state)
        };
        assert_eq!(Some(ended_at), began);
    }

    #[test]
    fn an_end_that_is_the_first_word_heard_tells_that_the_app_had_answered() {
        let ending = Ending::plain(EndReason::TimedOut);
        let running_ms = Some(Millis(60_000));
        for phase in [
            AgentPhase::Stopping {
                ending: ending.clone(),
                running_ms,
            },
            AgentPhase::Ended { ending, running_ms },
        ] {
            let mut session = starting();
            let status = AgentStatus {
                held_ms: Millis(65_000),
                granted_ms: session.granted_ms,
                phase,
            };
            session.observe(&status, Timestamp(CREATED.0 + 65_000), CREATED);
            assert_eq!(session.placement().is_some(), session.is_open());
            assert!(!matches!(session.state, State::Starting { .. }));
            let answered = Timestamp(CREATED.0 + 5_000);
            assert_eq!(session.started_at(), Some(answered));
        }
    }
}
