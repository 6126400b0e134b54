//! What a session's app runs as, as the agent has it: told, killed, proven gone.

use dwell_core::time::Monotonic;

use super::container::Container;
use super::processes::Processes;

/// All that runs of a session, whatever it runs as.
pub enum Tree {
    /// Processes of this host.
    Processes(Processes),
    /// A container.
    Container(Container),
}

impl Tree {
    /// TERM to every process.
    pub fn terminate(&self) {
        match self {
            Self::Processes(processes) => processes.terminate(),
            Self::Container(container) => container.terminate(),
        }
    }

    /// KILL to every process at this moment, should we be paused or stuck then.
    pub fn kill_at_latest(&mut self, moment: Option<Monotonic>) {
        match self {
            Self::Processes(processes) => processes.kill_at_latest(moment),
            Self::Container(container) => container.kill_at_latest(moment),
        }
    }

    /// KILL to every process.
    pub fn kill(&mut self) {
        match self {
            Self::Processes(processes) => processes.kill(),
            Self::Container(container) => container.kill(),
        }
    }

    /// Take note of what has ended. Says whether the process that watches over us just
    /// did.
    pub fn reap(&mut self) -> bool {
        match self {
            Self::Processes(processes) => processes.reap(),
            Self::Container(container) => container.reap(),
        }
    }

    /// Is the last process gone?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Processes(processes) => processes.is_gone(),
            Self::Container(container) => container.is_gone(),
        }
    }

    /// Leave nothing of it on the host.
    pub async fn remove(&self) {
        match self {
            Self::Processes(processes) => processes.remove(),
            Self::Container(container) => container.remove().await,
        }
    }
}
