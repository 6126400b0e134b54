//! What a host still has of sessions that are none (any more), and what is to be done
//! about it.
//!
//! The other way round, sessions that have no agent, is the control plane's own: it
//! looks after each open session all the time.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::SessionId;
use crate::time::Millis;

/// What was found of one session on its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// An agent of it lives.
    pub agent: bool,
    /// Processes of it are there.
    pub processes: bool,
    /// A cgroup of it is there.
    pub cgroup: bool,
    /// A container of it is there, whether it runs or not.
    pub container: bool,
    /// For how long nothing was written in its directory.
    pub untouched_for: Millis,
}

/// What is to be done about a session's remains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Ask its agent to end it.
    EndAgent,
    /// Kill its agent, which was asked before.
    KillAgent,
    /// Kill its processes, and remove its cgroup and its container.
    ClearAway,
    /// Remove its directory.
    RemoveDirectory,
}

/// Remembers from one sweep to the next whose agent was asked to end.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    asked: BTreeSet<SessionId>,
}

impl Sweep {
    /// What is to be done about what was `found`. A session that was open at any time
    /// since is not touched; a directory goes once nothing was written in it for longer
    /// than ended sessions are kept.
    pub fn compare(
        &mut self,
        found: &BTreeMap<SessionId, Remains>,
        open: &BTreeSet<SessionId>,
        retention: Millis,
    ) -> Vec<(SessionId, Remedy)> {
        let mut asked = BTreeSet::new();
        let mut remedies = Vec::new();
        for (id, remains) in found.iter().filter(|(id, _)| !open.contains(id)) {
            let remedy = if remains.agent {
                // It is the one who can end all properly; and it may just be about to go.
                asked.insert(*id);
                if self.asked.contains(id) {
                    Remedy::KillAgent
                } else {
                    Remedy::EndAgent
                }
            } else if remains.processes || remains.cgroup || remains.container {
                Remedy::ClearAway
            } else if remains.untouched_for > retention {
                Remedy::RemoveDirectory
            } else {
                continue;
            };
            remedies.push((*id, remedy));
        }
        self.asked = asked;
        remedies
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const RETENTION: Millis = Millis(1_000);

    fn id(number: u128) -> SessionId {
        SessionId(Uuid::from_u128(number))
    }

    fn sweep(sweep: &mut Sweep, remains: Remains, is_open: bool) -> Option<Remedy> {
        let open = is_open.then(|| id(1)).into_iter().collect();
        let remedies = sweep.compare(&[(id(1), remains)].into(), &open, RETENTION);
        remedies.first().map(|(_, remedy)| *remedy)
    }

    #[test]
    fn an_open_session_is_not_touched() {
        let everything = Remains {
            agent: true,
            processes: true,
            cgroup: true,
            container: true,
            untouched_for: Millis(9_000),
        };
        let without_agent = Remains {
            agent: false,
            ..everything
        };
        for remains in [everything, without_agent] {
            assert_eq!(sweep(&mut Sweep::default(), remains, true), None);
        }
    }

    #[test]
    fn an_agent_without_a_session_is_asked_and_then_made_to_go() {
        let mut sweeps = Sweep::default();
        let agent = Remains {
            agent: true,
            processes: true,
            ..Remains::default()
        };
        assert_eq!(sweep(&mut sweeps, agent, false), Some(Remedy::EndAgent));
        assert_eq!(sweep(&mut sweeps, agent, false), Some(Remedy::KillAgent));
        // Another one, later, is asked first again.
        assert_eq!(sweep(&mut sweeps, Remains::default(), false), None);
        assert_eq!(sweep(&mut sweeps, agent, false), Some(Remedy::EndAgent));
    }

    #[test]
    fn what_is_left_without_an_agent_is_cleared_away() {
        let processes = Remains {
            processes: true,
            ..Remains::default()
        };
        let cgroup = Remains {
            cgroup: true,
            container: true,
            ..Remains::default()
        };
        for remains in [processes, cgroup] {
            let remedy = sweep(&mut Sweep::default(), remains, false);
            assert_eq!(remedy, Some(Remedy::ClearAway));
        }
    }

    #[test]
    fn a_directory_is_kept_as_long_as_ended_sessions_are() {
        let untouched_for = |ms| Remains {
            untouched_for: Millis(ms),
            ..Remains::default()
        };
        let mut sweeps = Sweep::default();
        assert_eq!(sweep(&mut sweeps, untouched_for(1_000), false), None);
        assert_eq!(
            sweep(&mut sweeps, untouched_for(1_001), false),
            Some(Remedy::RemoveDirectory)
        );
    }
}
