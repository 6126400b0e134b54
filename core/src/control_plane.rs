//! The server's side: all open sessions, and what follows from each event.
//!
//! The driver calls a method, takes the [`Change`]s that follow
//! ([`ControlPlane::changes`]), has the store commit them, and only then asks for
//! the [`Command`]s ([`ControlPlane::commit`]); if the store refuses, it calls
//! [`ControlPlane::roll_back`] and nothing has happened.
//!
//! What is owed is never a list of its own that could differ from the state. It
//! follows from it: a session that is starting is owed an agent, one that is
//! stopping is owed a stop, an agent that knows of less time than was granted is
//! owed the lease. Each is harmless to do twice, and is done again until the agent
//! says that it is so. After a crash [`ControlPlane::recover`] owes the same.

mod jobs;
mod keys;
mod machines;
mod pending;
mod requests;
mod shares;
mod silence;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::gpu::{GpuId, GpuType};
use crate::id::{KeyId, MachineId, SessionId, ShareId};
use crate::job::{JobId, JobStatus, LauncherName};
use crate::key::Key;
use crate::lease::Terms;
use crate::limits::Limits;
use crate::machine::{Machine, MachineVersion, Recipe};
use crate::owner::Owner;
use crate::placement::{Floor, Places};
use crate::ports::PortPool;
use crate::pricing::Prices;
use crate::protocol::{AgentPhase, AgentStatus, ServerMessage};
use crate::session::{EndReason, Ending, Placement, Session, State};
use crate::share::Share;
use crate::time::{Millis, Moment, Monotonic, Timestamp};

pub use machines::{MachinePatch, NewMachine};
use pending::Pending;
pub use requests::{NewSession, Source};
pub use shares::NewShare;
use silence::{CALL_BACK_WITHIN, Contact};

/// What the server is configured to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it allows.
    pub limits: Limits,
    /// What it charges.
    pub prices: Prices,
    /// Where sessions are put.
    pub places: Places,
    /// Where session URLs are.
    pub ports: PortPool,
}

/// Everything that is on record and still matters.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Open sessions.
    pub sessions: Vec<Session>,
    /// Every machine.
    pub machines: Vec<Machine>,
    /// Every key, revoked ones included.
    pub keys: Vec<Key>,
    /// Every share link of an open session, revoked ones included.
    pub shares: Vec<Share>,
    /// When each GPU's last event ended.
    pub gpu_free_since: BTreeMap<GpuId, Timestamp>,
}

/// A row to write. All of one step are written together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The session is now so.
    Session(Box<Session>),
    /// The machine is now so.
    Machine(Box<Machine>),
    /// A machine has this version too.
    MachineVersion(MachineId, Box<MachineVersion>),
    /// The machine is gone.
    MachineDeleted(MachineId),
    /// The key is now so.
    Key(Key),
    /// The share link is now so.
    Share(Box<Share>),
    /// Sessions that ended before this are no longer kept.
    ForgetEndedBefore(Timestamp),
}

/// Something to do, now that what it follows from is on record. Each is harmless
/// to do twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// See to it that an agent runs for this session.
    Launch(Box<Launch>),
    /// Tell a session's agent this, if it is connected. If it is not, it will be
    /// told when it calls.
    Tell {
        /// Whose agent.
        session: SessionId,
        /// What.
        message: ServerMessage,
    },
    /// Have an engine end a job.
    CancelJob {
        /// Whose engine.
        launcher: LauncherName,
        /// Whose job.
        session: SessionId,
        /// Which.
        job: JobId,
    },
    /// Have an engine let a job run for this long in all.
    LimitJob {
        /// Whose engine.
        launcher: LauncherName,
        /// Whose job.
        session: SessionId,
        /// Which.
        job: JobId,
        /// From its start.
        time_limit: Millis,
    },
}

/// What an agent needs to know to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The session.
    pub session: SessionId,
    /// What to run.
    pub recipe: Recipe,
    /// Where.
    pub placement: Placement,
    /// On which type of GPU.
    pub gpu_type: GpuType,
    /// How long an engine lets its job run: longer than the agent will, so that it ends
    /// what nobody else has ended.
    pub time_limit: Millis,
    /// For how long.
    pub terms: Terms,
    /// Whether the app may be started. Not once an agent has been heard of: one that
    /// finds no trace of it then has lost it, and says so.
    pub may_begin: bool,
    /// Whether it may have been launched before: nobody needs to look when it was not.
    pub may_have_begun: bool,
}

/// What came of a [`Command::Launch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchOutcome {
    /// An agent was started; it will call.
    Started,
    /// An engine was asked for a job, and has it.
    Submitted(JobStatus),
    /// There is one already, and it lives.
    AlreadyRunning,
    /// None could be started; the sentence says why.
    Failed(String),
    /// Whether there is one is not known: an engine does not answer. The sentence says
    /// how.
    Unclear(String),
}

/// All that the server decides about.
#[derive(Debug)]
pub struct ControlPlane {
    settings: Settings,
    sessions: BTreeMap<SessionId, Session>,
    machines: BTreeMap<MachineId, Machine>,
    keys: BTreeMap<KeyId, Key>,
    shares: BTreeMap<(SessionId, ShareId), Share>,
    // What follows from the sessions; kept by `put` alone.
    floor: Floor,
    open_by_owner: BTreeMap<Owner, BTreeMap<SessionId, Option<MachineId>>>,
    gpu_free_since: BTreeMap<GpuId, Timestamp>,
    next_ticket: u64,
    // Not on record.
    /// Since when it decides.
    since: Monotonic,
    shuts_down: bool,
    /// Jobs that were there at the last look and are no open session's.
    strays: BTreeSet<(LauncherName, SessionId, JobId)>,
    /// Sessions that have ended before their engine said how their jobs did.
    parted: BTreeMap<SessionId, Session>,
    contacts: BTreeMap<SessionId, Contact>,
    alarms: BTreeSet<(Monotonic, SessionId)>,
    pending: Pending,
}

impl ControlPlane {
    /// The control plane as it was when `snapshot` was taken. What was owed then is
    /// owed now: ask for [`ControlPlane::commit`] after the first
    /// [`ControlPlane::advance`].
    #[must_use]
    pub fn recover(settings: Settings, snapshot: Snapshot, now: Moment) -> Self {
        let mut plane = Self {
            floor: Floor::new(&settings.places),
            settings,
            sessions: BTreeMap::new(),
            machines: snapshot.machines.into_iter().map(|m| (m.id, m)).collect(),
            keys: snapshot.keys.into_iter().map(|k| (k.id, k)).collect(),
            shares: snapshot
                .shares
                .into_iter()
                .map(|share| ((share.session, share.id), share))
                .collect(),
            open_by_owner: BTreeMap::new(),
            gpu_free_since: snapshot.gpu_free_since,
            next_ticket: 0,
            since: now.monotonic,
            shuts_down: false,
            strays: BTreeSet::new(),
            parted: BTreeMap::new(),
            contacts: BTreeMap::new(),
            alarms: BTreeSet::new(),
            pending: Pending::default(),
        };
        for session in snapshot.sessions {
            let id = session.id;
            // Whether a starting session's agent was ever sent is not known: send one.
            let wait = match session.state {
                State::Starting { .. } => Millis::ZERO,
                State::Queued { .. }
                | State::Running { .. }
                | State::Stopping { .. }
                | State::Ended { .. } => CALL_BACK_WITHIN,
            };
            let placed = session.placement().is_some();
            plane.replace(id, Some(session));
            if placed {
                plane.expect_call(id, now.monotonic, now.monotonic.plus(wait), true);
            }
        }
        plane
    }

    // --- What the world says ------------------------------------------------

    /// An agent says where its session stands.
    pub fn heard(&mut self, id: SessionId, status: &AgentStatus, now: Moment) {
        let Some(mut session) = self
            .sessions
            .get(&id)
            .filter(|s| s.placement().is_some())
            .cloned()
        else {
            let message = match status.phase {
                AgentPhase::Asks { .. } | AgentPhase::Ended { .. } => ServerMessage::Forget,
                AgentPhase::Starting | AgentPhase::Running { .. } | AgentPhase::Stopping { .. } => {
                    ServerMessage::Stop {
                        ending: Ending::plain(EndReason::Lost),
                    }
                }
            };
            self.pending.commands.push(Command::Tell {
                session: id,
                message,
            });
            return;
        };
        if let AgentPhase::Asks { agent } = &status.phase {
            return self.asked_to_begin(session, agent, now);
        }
        self.is_heard_of(id, now);
        let free_since = session
            .placement()
            .and_then(|placement| self.gpu_free_since.get(placement.gpu()?))
            .copied()
            .unwrap_or(session.created_at);
        let believed = AgentStatus {
            held_ms: status.held_ms.min(self.longest_hold(&session)),
            ..status.clone()
        };
        session.observe(&believed, now.wall, free_since);
        let reply = match (&session.state, &status.phase) {
            (State::Ended { .. }, _) => Some(ServerMessage::Forget),
            (
                State::Stopping { ending, .. },
                AgentPhase::Asks { .. } | AgentPhase::Starting | AgentPhase::Running { .. },
            ) => Some(ServerMessage::Stop {
                ending: ending.clone(),
            }),
            (State::Stopping { .. }, _) => None,
            _ if status.granted_ms < session.granted_ms => Some(ServerMessage::Lease {
                granted_ms: session.granted_ms,
            }),
            _ => None,
        };
        self.put(session);
        self.pending
            .commands
            .extend(reply.map(|message| Command::Tell {
                session: id,
                message,
            }));
        self.serve_queues(now);
    }

    /// Of all agents that may ask, one begins; and none once its session is to end.
    fn asked_to_begin(&mut self, mut session: Session, agent: &str, now: Moment) {
        let id = session.id;
        // It has begun since: this comes late, and what it tells now is not to be forgotten.
        if session.begun_by.as_deref() == Some(agent) && session.gpu_event.start().is_some() {
            return self.is_heard_of(id, now);
        }
        let is_starting = matches!(session.state, State::Starting { .. });
        // That it may was perhaps said, and not heard.
        let is_the_one = session
            .begun_by
            .as_ref()
            .is_none_or(|begun_by| begun_by == agent);
        let message = if is_starting && is_the_one {
            self.is_heard_of(id, now);
            session.begun_by = Some(agent.to_owned());
            self.put(session);
            ServerMessage::Begin
        } else {
            ServerMessage::Forget
        };
        self.pending.commands.push(Command::Tell {
            session: id,
            message,
        });
    }

    /// For how long a session can have held its GPU: all its lease allows, and a day for
    /// processes that could not be killed. What an agent says beyond is not believed.
    fn longest_hold(&self, session: &Session) -> Millis {
        const DAY: Millis = Millis::from_minutes(24 * 60);
        self.longest_lease(session.granted_ms).plus(DAY)
    }

    /// For how long an agent that may grant so much keeps its session at most.
    fn longest_lease(&self, granted: Millis) -> Millis {
        let limits = &self.settings.limits;
        limits
            .start_limit
            .plus(granted)
            .plus(limits.grace.max(limits.timeout_grace))
    }

    /// What came of a launch.
    pub fn launched(&mut self, id: SessionId, outcome: LaunchOutcome, now: Moment) {
        self.launch_is_over(id, now);
        match outcome {
            LaunchOutcome::Submitted(status) => self.submitted(id, &status, now),
            LaunchOutcome::Failed(why) if self.is_in_job(id) => self.job_refused(id, why, now),
            LaunchOutcome::Unclear(_) => {}
            LaunchOutcome::Started => {
                if let Some(contact) = self.contacts.get_mut(&id) {
                    contact.may_have_begun = true;
                    // Once: agents that start and never call are given up in the end.
                    contact.nobody_there = contact.started_since.then_some(now.monotonic);
                    if !std::mem::replace(&mut contact.started_since, true) {
                        contact.last_heard = now.monotonic;
                    }
                }
            }
            LaunchOutcome::AlreadyRunning => {
                // It lives, and keeps its lease; it may just not reach us.
                if let Some(contact) = self.contacts.get_mut(&id) {
                    contact.may_have_begun = true;
                    contact.nobody_there = None;
                    contact.last_heard = now.monotonic;
                }
            }
            LaunchOutcome::Failed(why) => {
                if let Some(contact) = self.contacts.get_mut(&id) {
                    contact.nobody_there = Some(now.monotonic);
                }
                // Another launch that is under way may yet succeed.
                let never_began = self
                    .contacts
                    .get(&id)
                    .is_some_and(|contact| !contact.may_have_begun && contact.launches == 0);
                match self.sessions.get(&id) {
                    Some(session) if never_began && session.gpu_event.start().is_none() => {
                        let ending = match &session.state {
                            State::Stopping { ending, .. } => ending.clone(),
                            State::Queued { .. }
                            | State::Starting { .. }
                            | State::Running { .. }
                            | State::Ended { .. } => Ending::failed(why),
                        };
                        self.end(id, ending, now);
                    }
                    Some(_) | None => {}
                }
            }
        }
    }

    /// Another program listens on a session's port: it gets another one.
    pub fn port_unusable(&mut self, id: SessionId, port: u16, now: Moment) {
        self.settings.ports.rule_out(port);
        let Some(mut session) = self
            .sessions
            .get(&id)
            .filter(|session| {
                session
                    .placement()
                    .is_some_and(|placement| placement.port == port)
            })
            .cloned()
        else {
            return;
        };
        match self.settings.ports.peek() {
            Some(other) => {
                session.move_port(other);
                self.put(session);
            }
            None => self.stop(
                session,
                Ending::failed("No port is left for the session's URL".to_owned()),
                now,
            ),
        }
    }

    /// Time has passed: agents that are silent are looked for, and given up.
    pub fn advance(&mut self, now: Moment) {
        while let Some((at, id)) = self
            .alarms
            .first()
            .copied()
            .filter(|(at, _)| *at <= now.monotonic)
        {
            self.alarms.remove(&(at, id));
            self.look_after(id, now);
        }
        self.serve_queues(now);
    }

    /// When [`ControlPlane::advance`] must be called next at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Monotonic> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Ended sessions that nobody needs any more may go.
    pub fn forget_old(&mut self, now: Moment) {
        self.pending.forget_before = Some(now.wall.minus(self.settings.limits.retention));
    }

    // --- What is so ---------------------------------------------------------

    /// Every open session.
    pub fn open_sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// One open session, whoever's it is.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    /// What the server is configured to be.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The terms that a session's agent is to keep.
    #[must_use]
    pub fn terms(&self, session: &Session) -> Terms {
        let limits = &self.settings.limits;
        Terms {
            granted_ms: session.granted_ms,
            start_limit_ms: limits.start_limit,
            grace_ms: limits.grace,
            timeout_grace_ms: limits.timeout_grace,
        }
    }

    // --- Within -------------------------------------------------------------

    fn stop(&mut self, mut session: Session, ending: Ending, now: Moment) {
        session.stop(ending, now.wall);
        let id = session.id;
        if let State::Stopping { ending, .. } = &session.state {
            let message = ServerMessage::Stop {
                ending: ending.clone(),
            };
            self.pending.commands.push(Command::Tell {
                session: id,
                message,
            });
        }
        self.put(session);
        self.cancel_job_that_has_no_agent(id);
    }

    fn end(&mut self, id: SessionId, ending: Ending, now: Moment) {
        if let Some(mut session) = self.sessions.get(&id).cloned() {
            session.end(ending, now.wall);
            self.put(session);
            self.serve_queues(now);
        }
    }

    fn serve_queues(&mut self, now: Moment) {
        while let Some((id, place)) = self.floor.next_match(&self.settings.places)
            && let Some(port) = self.settings.ports.peek()
            && let Some(mut session) = self.sessions.get(&id).cloned()
        {
            session.state = State::Starting {
                placement: Placement { place, port },
            };
            self.put(session);
            let alarm = now.monotonic.plus(self.settings.limits.relaunch_after);
            self.expect_call(id, now.monotonic, alarm, false);
            self.launch(id);
        }
    }

    fn launch(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let Some(placement) = session.placement() else {
            return;
        };
        let launch = Launch {
            session: id,
            recipe: session.recipe.clone(),
            placement: placement.clone(),
            gpu_type: session.gpu_type.clone(),
            time_limit: self.job_time_limit(session),
            terms: self.terms(session),
            may_begin: session.gpu_event.start().is_none(),
            may_have_begun: self
                .contacts
                .get(&id)
                .is_none_or(|contact| contact.may_have_begun || contact.launched_at.is_some()),
        };
        self.pending
            .commands
            .push(Command::Launch(Box::new(launch)));
        if let Some(contact) = self.contacts.get_mut(&id) {
            contact.launches += 1;
        }
    }

    fn launch_is_over(&mut self, id: SessionId, now: Moment) {
        if let Some(contact) = self.contacts.get_mut(&id) {
            contact.launched_at = Some(now.monotonic);
            contact.launches = contact.launches.saturating_sub(1);
        }
    }

    fn is_in_job(&self, id: SessionId) -> bool {
        let placement = self.sessions.get(&id).and_then(Session::placement);
        placement.and_then(Placement::launcher).is_some()
    }
}
