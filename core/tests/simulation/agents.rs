//! Agents and their apps, as the real ones behave: the lease is the core's own; the
//! rest is what the agent's shell does with it.

use std::net::{Ipv4Addr, SocketAddr};

use dwell_core::gpu::GpuId;
use dwell_core::lease::{Command, Exit, Lease, Terms};
use dwell_core::protocol::{AgentPhase, AgentStatus, ServerMessage};
use dwell_core::session::Ending;
use dwell_core::time::{Millis, Monotonic};

/// After its agent is killed a tree is gone within this.
pub const ORPHAN_MS: u64 = 2_000;
/// An agent that nobody hears gives up after this; its journal stays.
const REPORT_FOR_MS: u64 = 60_000;

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
    pub starts: u32,
    pub journal: Option<Journal>,
    /// The app's processes, since this true moment; none when they are gone.
    pub tree_since: Option<u64>,
    pub partitioned_until: u64,
    /// What the agent's clock read at the true beginning of time.
    pub clock_base: u64,
    /// What the tree really held, once it is gone.
    pub truly_held_ms: Option<u64>,
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
}

#[derive(Debug)]
pub enum Mind {
    /// Keeps its session's lease.
    Keeps(Box<Lease>),
    /// Waits for what an earlier agent left to be gone.
    CleansUp,
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
    pub fn clock(&self, now: u64) -> Monotonic {
        Monotonic(self.clock_base + now)
    }

    fn upstream() -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 8_188).into()
    }

    /// A launcher starts an agent. Says whether it starts the app too.
    pub fn start_agent(&mut self, terms: Terms, now: u64) -> bool {
        self.incarnations += 1;
        let (mind, starts_app) = match &self.journal {
            None => {
                self.terms = terms;
                self.journal = Some(Journal {
                    began: now,
                    last_proof: now,
                    ..Journal::default()
                });
                self.starts += 1;
                self.tree_since = Some(now);
                (
                    Mind::Keeps(Box::new(Lease::new(terms, self.clock(now)))),
                    true,
                )
            }
            Some(Journal {
                ended: Some(status),
                ..
            }) => {
                let gives_up_at = now + REPORT_FOR_MS;
                (
                    Mind::Tells {
                        status: status.clone(),
                        gives_up_at,
                    },
                    false,
                )
            }
            Some(Journal { ended: None, .. }) => (Mind::CleansUp, false),
        };
        self.agent = Some(Agent {
            incarnation: self.incarnations,
            mind,
        });
        starts_app
    }

    /// Let the lease take something in, if there is one.
    pub fn with_lease(&mut self, now: u64, take_in: impl FnOnce(&mut Lease, Monotonic)) {
        let clock = self.clock(now);
        if let Some(Agent {
            mind: Mind::Keeps(lease),
            ..
        }) = &mut self.agent
        {
            take_in(lease, clock);
        }
    }

    pub fn app_answers(&mut self, now: u64) {
        if let Some(journal) = &mut self.journal {
            journal.answered.get_or_insert(now);
        }
        self.with_lease(now, |lease, clock| {
            lease.app_answered(Self::upstream(), clock)
        });
    }

    pub fn app_exits(&mut self, exit: Exit, now: u64) {
        self.with_lease(now, |lease, clock| lease.app_exited(exit, None, clock));
    }

    pub fn prove_life(&mut self, now: u64) {
        let keeps = matches!(
            &self.agent,
            Some(Agent {
                mind: Mind::Keeps(_),
                ..
            })
        );
        if let (true, Some(journal)) = (keeps, &mut self.journal) {
            journal.last_proof = now;
        }
    }

    /// The last process is gone; whoever is there takes note.
    pub fn tree_is_gone(&mut self, now: u64) {
        if let Some(since) = self.tree_since.take() {
            self.truly_held_ms = Some(now - since);
        }
        self.with_lease(now, |lease, clock| lease.tree_gone(clock));
        self.settle(now);
    }

    /// Put down an end that has come, and turn to telling it.
    pub fn settle(&mut self, now: u64) {
        let clock = self.clock(now);
        let Some(agent) = &mut self.agent else { return };
        let Some(journal) = &mut self.journal else {
            return;
        };
        let status = match &agent.mind {
            Mind::Keeps(lease) if lease.is_over() => lease.status(clock),
            Mind::CleansUp if self.tree_since.is_none() => AgentStatus {
                held_ms: Millis(journal.last_proof - journal.began),
                granted_ms: Millis::ZERO,
                phase: AgentPhase::Ended {
                    ending: Ending::failed("Its agent was killed, and the app with it".into()),
                    running_ms: journal
                        .answered
                        .map(|at| Millis(journal.last_proof.saturating_sub(at))),
                },
            },
            Mind::Keeps(_) | Mind::CleansUp | Mind::Tells { .. } => return,
        };
        journal.ended = Some(status.clone());
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
            Mind::Keeps(lease) => Some(lease.status(self.clock(now))),
            Mind::CleansUp => None,
            Mind::Tells { status, .. } => Some(status.clone()),
        }
    }

    /// When the lease must be looked at next.
    pub fn deadline(&self) -> Option<u64> {
        match &self.agent.as_ref()?.mind {
            Mind::Keeps(lease) => Some(lease.deadline()?.0.saturating_sub(self.clock_base)),
            Mind::CleansUp => None,
            Mind::Tells { gives_up_at, .. } => Some(*gives_up_at),
        }
    }

    /// The server says something; an agent that has told its end may go.
    pub fn hear(&mut self, message: &ServerMessage, now: u64) {
        self.with_lease(now, |lease, clock| lease.heard(message, clock));
        let tells = matches!(
            &self.agent,
            Some(Agent {
                mind: Mind::Tells { .. },
                ..
            })
        );
        if tells && *message == ServerMessage::Forget {
            self.agent = None;
        }
    }

    pub fn advance(&mut self, now: u64) {
        self.with_lease(now, |lease, clock| lease.advance(clock));
        if let Some(Agent {
            mind: Mind::Tells { gives_up_at, .. },
            ..
        }) = &self.agent
            && *gives_up_at <= now
        {
            self.agent = None;
        }
    }
}
