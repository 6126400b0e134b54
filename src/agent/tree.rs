//! What a session's app runs as, as the agent has it: told, killed, proven gone.

use dwell_core::time::Monotonic;

use super::processes::Processes;

/// All that runs of a session, whatever it runs as.
pub enum Tree {
    /// Processes of this host.
    Processes(Processes),
}

impl Tree {
    /// TERM to every process.
    pub fn terminate(&self) {
        match self {
            Self::Processes(processes) => processes.terminate(),
        }
    }

    /// KILL to every process at this moment, should we be paused or stuck then.
    pub fn kill_at_latest(&mut self, moment: Option<Monotonic>) {
        match self {
            Self::Processes(processes) => processes.kill_at_latest(moment),
        }
    }

    /// KILL to every process.
    pub fn kill(&mut self) {
        match self {
            Self::Processes(processes) => processes.kill(),
        }
    }

    /// Take note of what has ended. Says whether the process that watches over us just
    /// did.
    pub fn reap(&mut self) -> bool {
        match self {
            Self::Processes(processes) => processes.reap(),
        }
    }

    /// Is the last process gone?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Processes(processes) => processes.is_gone(),
        }
    }

    /// Leave nothing of it on the host.
    pub fn remove(&self) {
        match self {
            Self::Processes(processes) => processes.remove(),
        }
    }
}
