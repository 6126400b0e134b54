//! Launchers: how an engine is asked to get `dwell agent` running somewhere.

pub mod local;

use async_trait::async_trait;
use dwell_core::control_plane::{Launch, LaunchOutcome};

/// An engine that can be asked for agents.
#[async_trait]
pub trait Launcher: Send + Sync + 'static {
    /// See to it that an agent runs for this session. Harmless to ask twice.
    async fn launch(&self, launch: Launch) -> LaunchOutcome;
}
