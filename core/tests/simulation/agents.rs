//! Agents and their apps, as the real ones behave: the lease is the core's own; the
//! rest is what the agent's shell and the session's first process do with it.

use std::net::Ipv4Addr;

use dwell_core::gpu::GpuId;
use dwell_core::id::SessionId;
use dwell_core::lease::{Command, Exit, Lease, Terms};
use dwell_core::protocol::{AgentPhase, AgentStatus, ServerMessage};
use dwell_core::session::Ending;
use dwell_core::time::{Millis, Monotonic};
use dwell_core::upstream::Upstream;

use crate::promise::Promise;

/// After its agent is killed a tree is gone within this.
pub const ORPHAN_MS: u64 = 2_000;
/// An agent that nobody hears gives up after this; its journal stays.
const REPORT_FOR_MS: u64 = 60_000;

/// Where one agent of a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Post {
    pub session: SessionId,
    /// Its engine's number of the job that it is in, if it is in one.
    pub job: Option<u32>,
}

impl From<SessionId> for Post {
    /// On the host whose GPU the session has.
    fn from(session: SessionId) -> Self {
        Self { session, job: None }
    }
}

impl std::fmt::Display for Post {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "s{}", self.session.0.as_u128())?;
        self.job.map_or(Ok(()), |job| write!(f, " in job {job}"))
    }
}

/// How an app behaves.
#[derive(Clone, Copy, Debug)]
pub struct AppNature {
    /// Answers this long after its start, if ever.
    pub answers_after_ms: Option<u64>,
    /// Exits by itself this long after its start, with this status.
    pub exits_after_ms: Option<(u64, i32)>,
    /// Exits this long after TERM, if it heeds it.
    pub heeds_term_ms: Option<u64>,
}

/// One session's place on its host: what is there whether an agent lives or not.
#[derive(Debug)]
pub struct Site {
    pub gpu: GpuId,
    pub terms: Terms,
    pub nature: AppNature,
    pub agent: Option<Agent>,
    pub incarnations: u32,
    pub journal: Option<Journal>,
    /// How many trees were begun here; also the last one's number.
    pub trees: u32,
    pub tree: Option<Tree>,
    pub partitioned_until: u64,
    /// What the agent's clock read at the true beginning of time.
    pub clock_base: u64,
    /// What all trees that are gone truly held, together.
    pub truly_held_ms: u64,
    /// What the last of them did.
    pub last_held_ms: u64,
    /// The agent could see when that was.
    pub last_end_was_seen: bool,
    /// What the launcher said last: that the host cannot be reached.
    pub host_was_away: bool,
    /// Its session was given up while the tree was on a host that could not be
    /// reached: the GPU counts as gone with the host.
    pub is_given_up: bool,
}

/// An app's processes.
#[derive(Debug)]
pub struct Tree {
    pub since: u64,
    pub promise: Promise,
    /// When the first process kills all the others, as last told by the agent.
    pub watch_at: Option<u64>,
    pub watch_wakes_at: Option<u64>,
    pub killed_by_watch: bool,
    /// Its agent or its host did not run for a while.
    pub stood_still: bool,
}

/// What an agent put down.
#[derive(Debug, Default)]
pub struct Journal {
    began: u64,
    answered: Option<u64>,
    last_proof: u64,
    ended: Option<AgentStatus>,
}

#[derive(Debug)]
pub struct Agent {
    pub incarnation: u32,
    pub mind: Mind,
    pub wakes_at: Option<u64>,
    pub is_paused: bool,
    /// The tree went while the agent was paused.
    missed: Option<Missed>,
}

impl Agent {
    const fn keeps_a_lease(&self) -> bool {
        matches!(self.mind, Mind::Keeps(_))
    }
}

#[derive(Clone, Copy, Debug)]
struct Missed {
    gone_at: u64,
    by_watch: bool,
}

#[derive(Debug)]
pub enum Mind {
    /// In a job, where it may not be the only one: asks whether it is to begin.
    Asks { since: u64 },
    /// Keeps its session's lease.
    Keeps(Box<Lease>),
    /// Waits for what an earlier agent left to be gone; then this is told.
    CleansUp { status: AgentStatus },
    /// Tells the end until it is heard.
    Tells {
        status: AgentStatus,
        gives_up_at: u64,
    },
}

/// What the world is to do for an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Report,
    TermToApp,
    KillTree,
}

impl Site {
    pub fn new(gpu: GpuId, terms: Terms, nature: AppNature, clock_base: u64) -> Self {
        Self {
            gpu,
            terms,
            nature,
            agent: None,
            incarnations: 0,
            journal: None,
            trees: 0,
            tree: None,
            partitioned_until: 0,
            clock_base,
            truly_held_ms: 0,
            last_held_ms: 0,
            last_end_was_seen: false,
            host_was_away: false,
            is_given_up: false,
        }
    }

    pub fn clock(&self, now: u64) -> Monotonic {
        Monotonic(self.clock_base + now)
    }

    fn upstream() -> Upstream {
        Upstream::Direct((Ipv4Addr::LOCALHOST, 8_188).into())
    }

    /// An engine starts an agent in a job.
    pub fn start_agent_in_job(&mut self, now: u64) {
        self.incarnations += 1;
        self.agent = Some(Agent {
            incarnation: self.incarnations,
            mind: Mind::Asks { since: now },
            wakes_at: None,
            is_paused: false,
            missed: None,
        });
    }

    pub fn asks(&self) -> bool {
        let asks = |agent: &Agent| matches!(agent.mind, Mind::Asks { .. });
        self.agent.as_ref().is_some_and(asks)
    }

    /// A launcher starts an agent, or one in a job begins. Says whether it starts the app too.
    pub fn start_agent(&mut self, terms: Terms, may_begin: bool, now: u64) -> bool {
        // What it asked for is its own time, and its GPU's.
        let now = match self.agent.as_ref().map(|agent| &agent.mind) {
            Some(Mind::Asks { since }) => *since,
            _ => now,
        };
        let begins = self.journal.is_none() && may_begin;
        let mind = match &self.journal {
            None if may_begin => {
                self.terms = terms;
                self.journal = Some(Journal {
                    began: now,
                    last_proof: now,
                    ..Journal::default()
                });
                self.trees += 1;
                self.tree = Some(Tree {
                    since: now,
                    promise: Promise::new(terms, now),
                    watch_at: None,
                    watch_wakes_at: None,
                    killed_by_watch: false,
                    stood_still: false,
                });
                Mind::Keeps(Box::new(Lease::new(terms, self.clock(now))))
            }
            None => Mind::CleansUp {
                status: ended(Millis::ZERO, None, "What its host kept of it was lost"),
            },
            Some(Journal {
                ended: Some(status),
                ..
            }) => Mind::Tells {
                status: status.clone(),
                gives_up_at: now + REPORT_FOR_MS,
            },
            Some(journal) => Mind::CleansUp {
                status: ended(
                    Millis(journal.last_proof - journal.began),
                    journal
                        .answered
                        .map(|at| Millis(journal.last_proof.saturating_sub(at))),
                    "Its agent was killed, and the app with it",
                ),
            },
        };
        self.incarnations += 1;
        self.agent = Some(Agent {
            incarnation: self.incarnations,
            mind,
            wakes_at: None,
            is_paused: false,
            missed: None,
        });
        begins
    }

    /// Does the agent neither hear nor do anything now? It is paused; or it is past
    /// the last moment and waits for what was done in its place.
    pub fn agent_stands_still(&self, now: u64) -> bool {
        let catches_up = self
            .tree
            .as_ref()
            .and_then(|tree| tree.watch_at)
            .is_some_and(|at| at < now);
        self.agent
            .as_ref()
            .is_some_and(|agent| agent.is_paused || catches_up)
    }

    /// Let the lease take something in, if there is one.
    fn with_lease(&mut self, now: u64, take_in: impl FnOnce(&mut Lease, Monotonic)) {
        let clock = self.clock(now);
        if let Some(Agent {
            mind: Mind::Keeps(lease),
            ..
        }) = &mut self.agent
        {
            take_in(lease, clock);
        }
    }

    /// What an agent that keeps a lease is told or sees changes what its tree was
    /// promised.
    fn with_promise(&mut self, change: impl FnOnce(&mut Promise)) {
        if let Some(tree) = &mut self.tree
            && self.agent.as_ref().is_some_and(Agent::keeps_a_lease)
        {
            change(&mut tree.promise);
        }
    }

    pub fn app_answers(&mut self, now: u64) {
        if let Some(journal) = &mut self.journal {
            journal.answered.get_or_insert(now);
        }
        self.with_promise(|promise| promise.app_answered(now));
        self.with_lease(now, |lease, clock| {
            lease.app_answered(Self::upstream(), clock)
        });
    }

    pub fn app_exits(&mut self, exit: Exit, now: u64) {
        self.with_promise(|promise| promise.app_exited(now));
        self.with_lease(now, |lease, clock| lease.app_exited(exit, None, clock));
    }

    pub fn prove_life(&mut self, now: u64) {
        if let Some(journal) = &mut self.journal
            && self.agent.as_ref().is_some_and(Agent::keeps_a_lease)
        {
            journal.last_proof = now;
        }
    }

    /// Somebody stops the agent's process.
    pub fn pause(&mut self) {
        if let Some(agent) = &mut self.agent {
            agent.is_paused = true;
        }
        if let Some(tree) = &mut self.tree {
            tree.stood_still = true;
        }
    }

    pub fn host_goes_on(&mut self, now: u64) {
        if let Some(tree) = &mut self.tree {
            tree.stood_still = true;
            tree.promise.host_went_on(now);
        }
    }

    /// The agent's process goes on; what it missed comes before all else.
    pub fn go_on(&mut self, now: u64) {
        let Some(agent) = &mut self.agent else { return };
        agent.is_paused = false;
        if let Some(missed) = agent.missed.take() {
            self.see_the_end(missed, now);
        }
    }

    /// The last process is gone; whoever is there takes note.
    pub fn tree_is_gone(&mut self, now: u64) {
        let Some(tree) = self.tree.take() else { return };
        self.last_held_ms = now - tree.since;
        self.truly_held_ms += self.last_held_ms;
        self.last_end_was_seen = tree.killed_by_watch || !tree.stood_still;
        let missed = Missed {
            gone_at: now,
            by_watch: tree.killed_by_watch,
        };
        match &mut self.agent {
            Some(agent) if agent.is_paused => agent.missed = Some(missed),
            Some(_) => self.see_the_end(missed, now),
            None => {}
        }
    }

    fn see_the_end(&mut self, missed: Missed, now: u64) {
        let gone_at = self.clock(missed.gone_at);
        self.with_lease(now, |lease, clock| {
            if missed.by_watch {
                lease.ended_by_watch(gone_at);
            } else {
                lease.tree_gone(clock);
            }
        });
    }

    /// The agent dies; its app is gone soon after.
    pub fn kill_agent(&mut self, now: u64) {
        self.with_promise(|promise| promise.agent_killed(now));
        self.agent = None;
    }

    /// Put down an end that has come, and turn to telling it.
    pub fn settle(&mut self, now: u64) {
        let clock = self.clock(now);
        let Some(agent) = &mut self.agent else { return };
        let status = match &agent.mind {
            _ if agent.is_paused => return,
            Mind::Keeps(lease) if lease.is_over() => lease.status(clock),
            Mind::CleansUp { status } if self.tree.is_none() => status.clone(),
            Mind::Asks { .. } | Mind::Keeps(_) | Mind::CleansUp { .. } | Mind::Tells { .. } => {
                return;
            }
        };
        self.journal.get_or_insert_default().ended = Some(status.clone());
        agent.mind = Mind::Tells {
            status,
            gives_up_at: now + REPORT_FOR_MS,
        };
    }

    /// What the lease wants done now.
    pub fn wishes(&mut self) -> Vec<Wish> {
        let mut wishes = Vec::new();
        if let Some(Agent {
            mind: Mind::Keeps(lease),
            ..
        }) = &mut self.agent
        {
            while let Some(command) = lease.next_command() {
                wishes.push(match command {
                    Command::Report => Wish::Report,
                    Command::TerminateTree => Wish::TermToApp,
                    Command::KillTree => Wish::KillTree,
                });
            }
        }
        wishes
    }

    /// What the agent would tell the server now.
    pub fn status(&self, now: u64) -> Option<AgentStatus> {
        match &self.agent.as_ref()?.mind {
            Mind::Asks { since } => Some(AgentStatus {
                held_ms: Millis(now - since),
                granted_ms: self.terms.granted_ms,
                phase: AgentPhase::Asks {
                    agent: self.gpu.0.clone() + &self.clock_base.to_string(),
                },
            }),
            Mind::Keeps(lease) => Some(lease.status(self.clock(now))),
            Mind::CleansUp { .. } => None,
            Mind::Tells { status, .. } => Some(status.clone()),
        }
    }

    /// When the agent must look at its clock next, unless it knows already.
    pub fn next_wake(&mut self) -> Option<u64> {
        let clock_base = self.clock_base;
        let agent = self.agent.as_mut()?;
        let at = match &agent.mind {
            Mind::Keeps(lease) => lease.deadline()?.0.saturating_sub(clock_base),
            Mind::CleansUp { .. } => return None,
            Mind::Asks { since } => since + self.terms.start_limit_ms.0,
            Mind::Tells { gives_up_at, .. } => *gives_up_at,
        };
        is_sooner(&mut agent.wakes_at, at)
    }

    /// The agent tells the first process its last moment. When must that look at its
    /// clock next, unless it knows already?
    pub fn next_watch(&mut self) -> Option<u64> {
        let clock_base = self.clock_base;
        if let (
            Some(tree),
            Some(Agent {
                mind: Mind::Keeps(lease),
                is_paused: false,
                ..
            }),
        ) = (&mut self.tree, &self.agent)
        {
            tree.watch_at = lease
                .kill_at_latest()
                .map(|moment| moment.0.saturating_sub(clock_base));
            return is_sooner(&mut tree.watch_wakes_at, tree.watch_at?);
        }
        None
    }

    /// The server says something; an agent that has told its end may go.
    pub fn hear(&mut self, message: &ServerMessage, now: u64) {
        self.with_promise(|promise| promise.told(message, now));
        self.with_lease(now, |lease, clock| lease.heard(message, clock));
        let tells = matches!(
            &self.agent,
            Some(Agent {
                mind: Mind::Tells { .. },
                ..
            })
        );
        let may_go = match message {
            ServerMessage::Forget => tells || self.asks(),
            ServerMessage::Stop { .. } => self.asks(),
            _ => false,
        };
        if may_go {
            self.agent = None;
        }
    }

    pub fn advance(&mut self, now: u64) {
        if let Some(agent) = &mut self.agent {
            agent.wakes_at = None;
        }
        self.with_lease(now, |lease, clock| lease.advance(clock));
        let gives_up_at = match self.agent.as_ref().map(|agent| &agent.mind) {
            Some(Mind::Asks { since }) => since + self.terms.start_limit_ms.0,
            Some(Mind::Tells { gives_up_at, .. }) => *gives_up_at,
            _ => return,
        };
        if gives_up_at <= now {
            self.agent = None;
        }
    }
}

fn ended(held_ms: Millis, running_ms: Option<Millis>, why: &str) -> AgentStatus {
    AgentStatus {
        held_ms,
        granted_ms: Millis::ZERO,
        phase: AgentPhase::Ended {
            ending: Ending::failed(why.to_owned()),
            running_ms,
        },
    }
}

/// `at`, if nothing is set for as early as that; then it is set.
pub fn is_sooner(set: &mut Option<u64>, at: u64) -> Option<u64> {
    if set.is_some_and(|set| set <= at) {
        return None;
    }
    *set = Some(at);
    Some(at)
}
