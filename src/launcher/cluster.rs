//! Agents in jobs of a cluster's engine, whichever that is.
//!
//! An engine's own part is [`Cluster`]: submit, all jobs of ours at once, cancel, move the
//! time limit. What is the same for all is here: nothing is submitted twice, whatever
//! became of an answer; the engine is asked for all jobs in one question, however many
//! sessions there are; and how an agent is told what to do so far from its server.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dwell_core::control_plane::{Launch, LaunchOutcome};
use dwell_core::gpu::GpuType;
use dwell_core::id::SessionId;
use dwell_core::job::{JobId, JobState, JobStatus, Jobs, LauncherName};
use dwell_core::machine::Container;
use dwell_core::time::Millis;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::Launcher;
use super::handout::Handout;
use super::kubernetes::{Kubernetes, KubernetesSettings};
use super::shared_answer::{Answer, SharedAnswer};
use super::slurm::{Slurm, SlurmSettings};
use crate::agent::job::Assignment;
use crate::agent::spec::{AgentSpec, AppLimits, ServerAt};
use crate::driver::{Driver, Role};
use crate::keys::AgentSecrets;

/// So many requests are under way at an engine at once.
const AT_ONCE_MAX: usize = 8;
/// Linux has no variable of an environment be longer than 128 KiB, its name included.
const ASSIGNMENT_BYTES_MAX: usize = 128 * 1024 - 64;
/// What changes within this is looked at together.
const TOGETHER: Duration = Duration::from_millis(100);
/// The longest pause between two questions to an engine that does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What an engine must be able to do. All of it is harmless to do twice.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    /// Ask for a job. It is not called while the engine says that it has one.
    ///
    /// # Errors
    /// See [`SubmitError`].
    async fn submit(&self, order: &Order) -> Result<JobStatus, SubmitError>;

    /// Every job of ours, those that ended included as long as the engine knows them:
    /// one question, however many there are.
    ///
    /// # Errors
    /// A sentence, when the engine does not answer. No answer is not "none".
    async fn jobs(&self) -> Result<Jobs, String>;

    /// Until something of the jobs has changed, if the engine tells. It is asked again and
    /// again all the same.
    async fn changed(&self) {
        std::future::pending().await
    }

    /// End this session's job of that id; some engines use ids again. One that is gone is
    /// ended.
    ///
    /// # Errors
    /// A sentence. It is asked again.
    async fn cancel(&self, session: SessionId, job: &JobId) -> Result<(), String>;

    /// Let this session's job run for `time_limit` in all, from its start. Never called for
    /// clusters that do not move limits.
    ///
    /// # Errors
    /// A sentence. It is asked again.
    async fn limit(
        &self,
        session: SessionId,
        job: &JobId,
        time_limit: Millis,
    ) -> Result<(), String>;

    /// What there is of each GPU type, whoever uses it.
    ///
    /// # Errors
    /// A sentence, when the engine does not answer.
    async fn capacity(&self) -> Result<BTreeMap<GpuType, Capacity>, String>;
}

/// What an engine has of one GPU type, as far as it tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// GPUs on nodes that are up.
    pub total: Option<u32>,
    /// Those that nobody uses.
    pub free: Option<u32>,
    /// Jobs that wait for one, anybody's.
    pub waiting: Option<u32>,
}

/// A job to be submitted.
#[derive(Clone, Debug)]
pub struct Order {
    /// Whose.
    pub session: SessionId,
    /// Ours among all jobs of the engine: `dwell-INSTALLATION-SESSION`.
    pub name: String,
    /// The type of GPU that it is to have.
    pub gpu_type: GpuType,
    /// The image that it runs in, if the machine names one.
    pub container: Option<Container>,
    /// How long it may run, from its start.
    pub time_limit: Millis,
    /// How long its agent may take to end all when it is told to.
    pub grace: Millis,
    /// What the app may use.
    pub limits: AppLimits,
    /// Where its server is: a bare origin.
    pub server_url: String,
    /// The agent that it is promised: see [`super::handout::script`].
    pub agent: Handout,
    /// What its agent finds in its environment, by the name of
    /// [`crate::agent::job::ASSIGNMENT`].
    pub assignment: String,
}

/// Why there is no job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// The engine refuses, and would again; the sentence has its words.
    Refused(String),
    /// It is not known whether there is one; the sentence says what happened.
    Unclear(String),
}

/// What the configuration says of a cluster, whichever engine it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// What its launcher is called.
    pub name: LauncherName,
    /// Our types of GPU, and the engine's word for each.
    pub gpus: BTreeMap<GpuType, String>,
    /// So many jobs of ours it may have at once.
    pub jobs_max: Option<u32>,
    /// Where its nodes reach the server: a bare origin. Where it listens if none.
    pub server_url: Option<String>,
    /// Whom the agents trust at `server_url`, in PEM, where that is not who the web trusts.
    pub server_certificate: Option<String>,
    /// How often the engine is asked for all jobs.
    pub look_every: Millis,
}

/// Which engine a cluster has, and what the configuration says of it.
#[derive(Clone, Debug, PartialEq)]
pub enum ClusterEngine {
    /// Slurm.
    Slurm(Box<SlurmSettings>),
    /// Kubernetes.
    Kubernetes(Box<KubernetesSettings>),
}

impl ClusterEngine {
    /// The engine, of a cluster with these settings; `installation` is what our jobs are
    /// known by.
    #[must_use]
    pub fn connect(&self, cluster: &ClusterSettings, installation: &str) -> Arc<dyn Cluster> {
        match self {
            Self::Slurm(settings) => {
                let settings = (**settings).clone();
                Arc::new(Slurm::new(settings, cluster, installation))
            }
            Self::Kubernetes(settings) => {
                let settings = (**settings).clone();
                Arc::new(Kubernetes::new(settings, cluster, installation))
            }
        }
    }

    /// Whether its jobs can run in images.
    #[must_use]
    pub const fn runs_images(&self) -> bool {
        match self {
            Self::Slurm(settings) => settings.containers.is_some(),
            Self::Kubernetes(_) => true,
        }
    }

    /// Whether the limit on a job's time can be moved once it was given.
    #[must_use]
    pub const fn moves_time_limits(&self) -> bool {
        match self {
            Self::Slurm(settings) => settings.moves_time_limits,
            Self::Kubernetes(_) => false,
        }
    }
}

/// The part of a cluster's launcher that is the same for every engine.
pub struct ClusterLauncher {
    settings: ClusterSettings,
    server_url: String,
    cluster: Arc<dyn Cluster>,
    secrets: AgentSecrets,
    heartbeat: Millis,
    limits: AppLimits,
    agent: Handout,
    at_once: Semaphore,
    looks: SharedAnswer<Jobs>,
    capacities: SharedAnswer<BTreeMap<GpuType, Capacity>>,
    /// Jobs about which a request is under way.
    busy_with: SyncMutex<HashSet<JobId>>,
}

/// The name of a session's job at an installation: what `jobs` knows ours by.
#[must_use]
pub fn job_name(installation: &str, session: SessionId) -> String {
    format!("dwell-{installation}-{session}")
}

/// The session of a job of that name, if it is one of this installation's.
#[must_use]
pub fn session_of_job(installation: &str, name: &str) -> Option<SessionId> {
    let session = name.strip_prefix("dwell-")?.strip_prefix(installation)?;
    session.strip_prefix('-')?.parse().ok()
}

impl ClusterLauncher {
    /// Of an engine whose nodes reach the server at `server_url`, and fetch from it the agent
    /// with the hash `agent`.
    #[must_use]
    pub fn new(
        settings: ClusterSettings,
        server_url: String,
        cluster: Arc<dyn Cluster>,
        secrets: AgentSecrets,
        heartbeat: Millis,
        limits: AppLimits,
        agent: &str,
    ) -> Self {
        Self {
            agent: Handout::of(&server_url, agent),
            settings,
            server_url,
            cluster,
            secrets,
            heartbeat,
            limits,
            at_once: Semaphore::new(AT_ONCE_MAX),
            looks: SharedAnswer::default(),
            capacities: SharedAnswer::default(),
            busy_with: SyncMutex::default(),
        }
    }

    /// What it is called.
    #[must_use]
    pub const fn name(&self) -> &LauncherName {
        &self.settings.name
    }

    /// What there is of each GPU type.
    ///
    /// # Errors
    /// A sentence, when the engine does not answer.
    pub async fn capacity(&self) -> Result<BTreeMap<GpuType, Capacity>, String> {
        let answer = self.capacities.get(self.cluster.capacity()).await?;
        Ok(answer.said)
    }

    /// Have a job ended. What becomes of it shows at the next look.
    pub async fn cancel(&self, session: SessionId, job: JobId) {
        let cancelled = self.cluster.cancel(session, &job);
        self.ask_about(&job, "cancelled", cancelled).await;
    }

    /// Have a job's time limit moved. What becomes of it shows at the next look.
    pub async fn limit(&self, session: SessionId, job: JobId, time_limit: Millis) {
        let limited = self.cluster.limit(session, &job, time_limit);
        self.ask_about(&job, "given more time", limited).await;
    }

    async fn ask_about(
        &self,
        job: &JobId,
        what: &str,
        asking: impl Future<Output = Result<(), String>>,
    ) {
        if !self.busy_with().insert(job.clone()) {
            return;
        }
        let asked = match self.at_once.acquire().await {
            Ok(_permit) => asking.await,
            Err(_) => Ok(()),
        };
        self.busy_with().remove(job);
        if let Err(why) = asked {
            tracing::warn!(launcher = %self.name(), %job, "a job could not be {what}: {why}");
        }
    }

    fn busy_with(&self) -> std::sync::MutexGuard<'_, HashSet<JobId>> {
        self.busy_with
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// All jobs.
    async fn look(&self) -> Result<Answer<Jobs>, String> {
        self.looks.get(self.cluster.jobs()).await
    }

    /// Tell `driver`, as long as it decides, again and again what jobs there are.
    pub async fn keep_looking(self: Arc<Self>, driver: Driver) {
        let pause = Duration::from(self.settings.look_every);
        let mut failures = 0_u32;
        let mut role = driver.role();
        loop {
            if role.wait_for(|role| *role == Role::Leads).await.is_err() {
                return;
            }
            match self.look().await {
                Ok(look) => {
                    if failures > 0 {
                        tracing::info!(launcher = %self.name(), "its engine answers again");
                    }
                    failures = 0;
                    driver
                        .jobs_are(self.name().clone(), look.said, look.asked_at)
                        .await;
                }
                Err(why) => {
                    if failures == 0 {
                        tracing::warn!(launcher = %self.name(), "its engine does not answer: {why}");
                    }
                    failures = failures.saturating_add(1);
                }
            }
            let longer = pause.saturating_mul(1 << failures.min(10));
            tokio::select! {
                () = sleep(longer.min(PAUSE_MAX.max(pause))) => {}
                () = self.cluster.changed() => sleep(TOGETHER).await,
            }
        }
    }

    /// The session's job that is not over, if the engine has one.
    async fn present(&self, session: SessionId) -> Result<Option<JobStatus>, String> {
        let Jobs(jobs) = self.look().await?.said;
        let of_session = jobs.into_iter().filter(|(of, _)| *of == session);
        // One that is over shows that it was had: there is no second.
        Ok(of_session
            .map(|(_, status)| status)
            .min_by_key(|status| status.state == JobState::Ended))
    }

    fn order(&self, launch: Launch) -> Result<Order, String> {
        let mut recipe = launch.recipe;
        // The job is in the image; its agent starts plain processes there.
        let container = recipe.container.take();
        let spec = AgentSpec {
            session: launch.session,
            secret: self.secrets.of(launch.session),
            server: ServerAt::Elsewhere {
                url: self.server_url.clone(),
                certificate: None,
            },
            recipe,
            visible_device: None,
            terms: launch.terms,
            may_begin: launch.may_begin,
            heartbeat: self.heartbeat,
            limits: self.limits,
            engine: None,
            is_in_job: true,
        };
        let assignment = Assignment {
            spec,
            server_certificate: self.settings.server_certificate.clone(),
        };
        let assignment = serde_json::to_string(&assignment).map_err(|error| error.to_string())?;
        if assignment.len() > ASSIGNMENT_BYTES_MAX {
            return Err(format!(
                "The machine's command and environment are too large for a job: with what else its \
                 agent is told they are {} bytes, and may be {ASSIGNMENT_BYTES_MAX}",
                assignment.len()
            ));
        }
        Ok(Order {
            session: launch.session,
            name: job_name(&self.secrets.installation(), launch.session),
            gpu_type: launch.gpu_type,
            container,
            time_limit: launch.time_limit,
            grace: launch.terms.grace_ms.max(launch.terms.timeout_grace_ms),
            limits: self.limits,
            server_url: self.server_url.clone(),
            agent: self.agent.clone(),
            assignment,
        })
    }
}

#[async_trait]
impl Launcher for ClusterLauncher {
    async fn launch(&self, launch: Launch) -> LaunchOutcome {
        if launch.may_have_begun {
            match self.present(launch.session).await {
                Ok(Some(status)) => return LaunchOutcome::Submitted(status),
                Ok(None) => {}
                Err(why) => return LaunchOutcome::Unclear(why),
            }
        }
        let order = match self.order(launch) {
            Ok(order) => order,
            Err(why) => return LaunchOutcome::Failed(why),
        };
        let submitted = match self.at_once.acquire().await {
            Ok(_permit) => self.cluster.submit(&order).await,
            Err(error) => return LaunchOutcome::Unclear(error.to_string()),
        };
        match submitted {
            Ok(status) => LaunchOutcome::Submitted(status),
            Err(SubmitError::Refused(why)) => LaunchOutcome::Failed(why),
            Err(SubmitError::Unclear(why)) => LaunchOutcome::Unclear(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_jobs_name_says_whose_installation_and_which_session_it_is() {
        let session = SessionId(Uuid::from_u128(7));
        let name = job_name("a1b2c3d4", session);
        assert_eq!(session_of_job("a1b2c3d4", &name), Some(session));
        for other in ["a1b2c3d5", "a1b2c3d", "", "a1b2c3d4-"] {
            assert_eq!(session_of_job(other, &name), None, "{other}");
        }
        assert_eq!(session_of_job("a1b2c3d4", "dwell-a1b2c3d4-x"), None);
    }
}
