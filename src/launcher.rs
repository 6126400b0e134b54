//! Launchers: how an engine is asked to get `dwell agent` running somewhere.

pub mod cluster;
pub mod handout;
pub mod kubernetes;
pub mod local;
mod shared_answer;
pub mod slurm;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use dwell_core::control_plane::{Launch, LaunchOutcome};
use dwell_core::job::LauncherName;
use dwell_core::session::Place;

use cluster::ClusterLauncher;

/// An engine that can be asked for agents.
#[async_trait]
pub trait Launcher: Send + Sync + 'static {
    /// See to it that an agent runs for this session. Harmless to ask twice.
    async fn launch(&self, launch: Launch) -> LaunchOutcome;
}

/// All launchers of a server.
#[derive(Clone)]
pub struct Launchers {
    host: Arc<dyn Launcher>,
    clusters: BTreeMap<LauncherName, Arc<ClusterLauncher>>,
}

impl Launchers {
    /// One for this host, and those of clusters.
    #[must_use]
    pub fn new(
        host: Arc<dyn Launcher>,
        clusters: impl IntoIterator<Item = Arc<ClusterLauncher>>,
    ) -> Self {
        let by_name = |launcher: Arc<ClusterLauncher>| (launcher.name().clone(), launcher);
        Self {
            host,
            clusters: clusters.into_iter().map(by_name).collect(),
        }
    }

    /// That of a cluster.
    #[must_use]
    pub fn cluster(&self, name: &LauncherName) -> Option<Arc<ClusterLauncher>> {
        self.clusters.get(name).cloned()
    }

    /// Those of clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<ClusterLauncher>> {
        self.clusters.values()
    }

    /// See to it that an agent runs for this session. Harmless to ask twice.
    pub async fn launch(&self, launch: Launch) -> LaunchOutcome {
        match &launch.placement.place {
            Place::Host { .. } => self.host.launch(launch).await,
            Place::Job { launcher } => match self.clusters.get(launcher) {
                Some(cluster) => cluster.launch(launch).await,
                None => LaunchOutcome::Unclear(format!(
                    "the configuration names no launcher {launcher} any more"
                )),
            },
        }
    }
}
