//! The loop around the core: decide, commit, act.
//!
//! One task owns the control plane. It takes all that waits, has the core decide
//! it, has the store commit what follows in one transaction, and only then does
//! what is owed and answers. While a commit is under way the next inputs gather,
//! so that the more there is to do, the more one commit carries.
//!
//! Of several servers one has a control plane ([`helm`]); the drivers of the others show
//! what that one has put on record.

mod effects;
mod helm;
mod live;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use dwell_core::control_plane::{ControlPlane, LaunchOutcome};
use dwell_core::id::SessionId;
use dwell_core::job::{Jobs, LauncherName};
use dwell_core::protocol::AgentStatus;
use dwell_core::refusal::Refusal;
use dwell_core::session::Session;
use dwell_core::time::{Millis, Moment, Monotonic};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::admission::ShareVisit;
use crate::clock;
use crate::failpoint::{self, Point};
use crate::store::Store;

pub use effects::Effects;
use helm::Order;
pub use helm::{Helm, Role, Tenure};
pub use live::Live;

/// Inputs that may wait; past this, whoever sends more waits too.
const INBOX_MAX: usize = 4_096;
/// Inputs that one commit carries at most.
const BATCH_MAX: usize = 512;
/// Who asks is not kept waiting longer than this.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// How soon to try again after the store refused.
const RETRY_AFTER: Millis = Millis(1_000);
/// What is said to who asked a server that may not decide.
const DECIDES_NOT: &str = "This server does not decide any more; ask again";
/// How often old sessions are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(3_600);

/// Why something that was asked was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    /// The core refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be put on record, or the server is shutting down. Nothing
    /// happened, unless the sentence, which says why, says that this is not known.
    #[error("{0}")]
    Unavailable(String),
}

/// Decides, and returns what answers once the commit has succeeded or failed.
type Decide = Box<dyn FnOnce(&mut ControlPlane, Moment) -> Answer + Send>;
type Answer = Box<dyn FnOnce(Result<(), &str>) + Send>;

enum Input {
    Ask(Decide),
    Heard(SessionId, AgentStatus),
    HungUp(SessionId),
    Launched(SessionId, LaunchOutcome),
    PortUnusable(SessionId, u16),
    ShareVisited(ShareVisit),
    Jobs(LauncherName, Jobs, Monotonic),
}

/// A handle to the driver.
#[derive(Clone)]
pub struct Driver {
    inbox: mpsc::Sender<Input>,
    live: Live,
    loaded: watch::Receiver<Loaded>,
    role: watch::Receiver<Role>,
}

/// What came of loading, once something has: the sentence says why it failed.
type Loaded = Option<Result<(), String>>;

impl Driver {
    /// Drive what `load` gives until every handle is gone. What it owed when it was
    /// last stopped is done first. Whatever is asked meanwhile waits.
    #[must_use]
    pub fn start<L>(load: L, store: Arc<dyn Store>, effects: Effects) -> (Self, Running)
    where
        L: Future<Output = Result<ControlPlane, String>> + Send + 'static,
    {
        let (driver, helm, running) = Self::under_helm(Role::Leads, store, effects);
        tokio::spawn(async move {
            match load.await {
                Ok(plane) => {
                    helm.lead(plane, Tenure::for_ever()).await;
                    helm.driver_is_gone().await;
                }
                Err(why) => helm.fails(why),
            }
        });
        (driver, running)
    }

    /// A driver that is told by what is returned whether it decides, and what it shows.
    /// `role` is what it is going to be; until it is told, whatever is asked waits.
    #[must_use]
    pub fn under_helm(
        role: Role,
        store: Arc<dyn Store>,
        effects: Effects,
    ) -> (Self, Helm, Running) {
        let (inbox, inputs) = mpsc::channel(INBOX_MAX);
        let (helm, orders) = Helm::new(role);
        let driver = Self {
            inbox: inbox.clone(),
            live: effects.live().clone(),
            loaded: helm.loaded(),
            role: helm.role(),
        };
        let (stop, stopped) = oneshot::channel();
        let the_loop = Loop {
            duty: Duty::Waits,
            store,
            effects,
            inbox: inbox.downgrade(),
            retry_at: None,
        };
        let task = tokio::spawn(the_loop.run(inputs, orders, stopped));
        (driver, helm, Running { stop, task })
    }

    /// Whether this server decides, or another.
    #[must_use]
    pub fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// Wait until all that is on record has been taken up.
    ///
    /// # Errors
    /// When it cannot be; the sentence says why.
    pub async fn loaded(&self) -> Result<(), String> {
        let mut loaded = self.loaded.clone();
        let gone = || Err("The server is shutting down".to_owned());
        match loaded.wait_for(Option::is_some).await {
            Ok(loaded) => loaded.clone().unwrap_or_else(gone),
            Err(_) => gone(),
        }
    }

    /// Have the core decide; when this returns `Ok`, what follows is on record.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut ControlPlane, Moment) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, AskError> {
        let (reply, answer) = oneshot::channel();
        let decide: Decide = Box::new(move |plane, now| {
            let decided = decide(plane, now);
            Box::new(move |committed| {
                let _ = reply.send(match (decided, committed) {
                    (Err(refusal), _) => Err(AskError::Refused(refusal)),
                    (Ok(value), Ok(())) => Ok(value),
                    (Ok(_), Err(why)) => Err(AskError::Unavailable(why.to_owned())),
                });
            })
        });
        let unavailable = |why: &str| AskError::Unavailable(why.to_owned());
        self.inbox
            .send(Input::Ask(decide))
            .await
            .map_err(|_| unavailable("The server is shutting down"))?;
        match timeout(ANSWER_MAX, answer).await {
            Ok(answer) => answer.map_err(|_| unavailable(DECIDES_NOT))?,
            Err(_) => Err(AskError::Unavailable(
                "The store does not answer, and it is not known yet whether this is on record; \
                 look before you ask again"
                    .to_owned(),
            )),
        }
    }

    /// An open session as it goes on, each state after its commit. The last state
    /// seen is `Ended`; `None` when it has ended before or never was.
    /// The channel closes without it when the driver stops.
    pub async fn watch(&self, id: SessionId) -> Option<watch::Receiver<Arc<Session>>> {
        // Before that, one that is open might be taken for one that has ended.
        let _ = self.loaded().await;
        self.live.watch(id)
    }

    /// All open sessions, each as it was committed last.
    #[must_use]
    pub fn open_sessions(&self) -> Vec<Arc<Session>> {
        self.live.all()
    }

    /// An agent says where its session stands.
    pub async fn heard(&self, session: SessionId, status: AgentStatus) {
        let _ = self.inbox.send(Input::Heard(session, status)).await;
    }

    /// Somebody came by a share link.
    pub async fn share_visited(&self, visit: ShareVisit) {
        let _ = self.inbox.send(Input::ShareVisited(visit)).await;
    }

    /// These are all jobs that a cluster's engine has of ours; it was asked at `asked_at`.
    pub async fn jobs_are(&self, launcher: LauncherName, jobs: Jobs, asked_at: Monotonic) {
        let _ = self.inbox.send(Input::Jobs(launcher, jobs, asked_at)).await;
    }

    /// An agent's connection broke.
    pub async fn hung_up(&self, session: SessionId) {
        let _ = self.inbox.send(Input::HungUp(session)).await;
    }
}

/// The driver at work.
pub struct Running {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Answer what waits, then stop. Sessions go on.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// What the driver is to do.
enum Duty {
    /// It is not known yet.
    Waits,
    /// Decide.
    Leads(Box<ControlPlane>, Tenure),
    /// Show what another server decides.
    Follows,
}

struct Loop {
    duty: Duty,
    store: Arc<dyn Store>,
    effects: Effects,
    inbox: mpsc::WeakSender<Input>,
    retry_at: Option<Instant>,
}

impl Loop {
    async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut orders: mpsc::Receiver<Order>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut forget = interval(FORGET_EVERY);
        forget.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let mut nobody_orders = false;
        loop {
            let deadline = self.next_wake();
            let waits = matches!(self.duty, Duty::Waits);
            let leads = matches!(self.duty, Duty::Leads(..));
            tokio::select! {
                biased;
                _ = &mut stopped, if !inputs.is_closed() => inputs.close(),
                order = orders.recv(), if !nobody_orders => match order {
                    Some(order) => self.obey(order).await,
                    // Nobody is left who could say what to do.
                    None if waits => break,
                    None => nobody_orders = true,
                },
                taken = inputs.recv_many(&mut batch, BATCH_MAX), if !waits => {
                    if taken == 0 {
                        break;
                    }
                }
                () = sleep_until(deadline), if !waits => {}
                // One that comes to lead does so at once.
                _ = forget.tick(), if leads => if let Duty::Leads(plane, _) = &mut self.duty {
                    plane.forget_old(clock::now());
                },
            }
            self.step(&mut batch).await;
        }
        // Whoever watches a session is to look elsewhere.
        self.effects.live().clear();
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Lead(plane, tenure, at_work) => {
                self.republish(&plane).await;
                self.duty = Duty::Leads(plane, tenure);
                self.retry_at = None;
                let _ = at_work.send(());
            }
            Order::Follow => self.duty = Duty::Follows,
            Order::Show(changes) => {
                self.duty = Duty::Follows;
                for (session, port) in self.effects.publish(changes).await {
                    tracing::warn!(%session, port, "another program listens on the port");
                }
            }
            Order::Shown(reply) => {
                let _ = reply.send(self.effects.shown());
            }
        }
    }

    /// When something is due although nobody says anything.
    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(60);
        let Duty::Leads(plane, _) = &self.duty else {
            return far;
        };
        let due = plane.deadline().map_or(far, |deadline| {
            Instant::now() + Duration::from(deadline.since(clock::monotonic()))
        });
        // A store that refuses is not asked again at once.
        self.retry_at
            .map_or(due.min(far), |retry_at| retry_at.max(due.min(retry_at)))
    }

    /// Decide all of `batch`, commit it, act on it, answer it.
    async fn step(&mut self, batch: &mut Vec<Input>) {
        let (plane, tenure) = match &mut self.duty {
            Duty::Leads(plane, tenure) if tenure.goes_on() => (plane, tenure.clone()),
            // Who asked is told to ask again; agents say again where they stand.
            Duty::Leads(..) => {
                self.retry_at = Some(Instant::now() + Duration::from(RETRY_AFTER));
                return batch.clear();
            }
            Duty::Follows => return batch.clear(),
            Duty::Waits => return,
        };
        let now = clock::now();
        plane.advance(now);
        let answers: Vec<Answer> = batch
            .drain(..)
            .filter_map(|input| decide(plane, input, now))
            .collect();
        let changes = plane.changes();
        // What is on record need not be so any more if another server decides.
        if changes.is_empty() && !tenure.goes_on() {
            return;
        }
        let committed = if changes.is_empty() {
            Ok(())
        } else {
            failpoint::cross(Point::DriverBeforeCommit);
            self.store.commit(changes.clone()).await
        };
        match &committed {
            Ok(()) => {
                failpoint::cross(Point::DriverAfterCommit);
                self.retry_at = None;
                let commands = plane.commit();
                for (session, port) in self.effects.publish(changes).await {
                    self.later(Input::PortUnusable(session, port));
                }
                failpoint::cross(Point::DriverAfterPublish);
                for command in commands {
                    self.perform(command, &tenure);
                }
                failpoint::cross(Point::DriverAfterEffects);
            }
            Err(error) => {
                tracing::error!("nothing can be put on record: {error}");
                plane.roll_back(clock::now());
                self.retry_at = Some(Instant::now() + Duration::from(RETRY_AFTER));
            }
        }
        for answer in answers {
            answer(
                committed
                    .as_ref()
                    .map_err(|error| error.0.as_str())
                    .copied(),
            );
        }
    }

    fn perform(&self, command: dwell_core::control_plane::Command, tenure: &Tenure) {
        use dwell_core::control_plane::Command;
        match command {
            Command::Launch(launch) => {
                let (launchers, inbox) = (self.effects.launchers().clone(), self.inbox.clone());
                let tenure = tenure.clone();
                tokio::spawn(async move {
                    let session = launch.session;
                    // By now another server may have, and ended the session too.
                    if !tenure.goes_on() {
                        return;
                    }
                    let outcome = launchers.launch(*launch).await;
                    if let Some(inbox) = inbox.upgrade() {
                        let _ = inbox.send(Input::Launched(session, outcome)).await;
                    }
                });
            }
            Command::Tell { session, message } => self.effects.tell(session, message),
            Command::CancelJob {
                launcher,
                session,
                job,
            } => {
                if let Some(cluster) = self.effects.launchers().cluster(&launcher) {
                    tokio::spawn(async move { cluster.cancel(session, job).await });
                }
            }
            Command::LimitJob {
                launcher,
                session,
                job,
                time_limit,
            } => {
                if let Some(cluster) = self.effects.launchers().cluster(&launcher) {
                    tokio::spawn(async move { cluster.limit(session, job, time_limit).await });
                }
            }
        }
    }

    /// What is open is reachable again before anything else is done.
    async fn republish(&mut self, plane: &ControlPlane) {
        // Before the doors that they open.
        for share in plane.shares() {
            self.effects.publish_share(share.clone());
        }
        let open: Vec<_> = plane.open_sessions().cloned().collect();
        for (session, port) in self.effects.publish_sessions(open).await {
            self.later(Input::PortUnusable(session, port));
        }
        for key in plane.keys() {
            self.effects.publish_key(key.clone());
        }
    }

    /// An input of our own. Never waits: the inbox is ours to empty.
    fn later(&self, input: Input) {
        if let Some(inbox) = self.inbox.upgrade() {
            tokio::spawn(async move {
                let _ = inbox.send(input).await;
            });
        }
    }
}

fn decide(plane: &mut ControlPlane, input: Input, now: Moment) -> Option<Answer> {
    match input {
        Input::Ask(decide) => return Some(decide(plane, now)),
        Input::Heard(session, status) => plane.heard(session, &status, now),
        Input::HungUp(session) => plane.hung_up(session, now),
        Input::Launched(session, outcome) => {
            match &outcome {
                LaunchOutcome::Failed(why) => {
                    tracing::warn!(%session, "no agent could be started: {why}");
                }
                LaunchOutcome::Unclear(why) => {
                    tracing::warn!(%session, "it is not known whether an agent was started: {why}");
                }
                LaunchOutcome::Started
                | LaunchOutcome::Submitted(_)
                | LaunchOutcome::AlreadyRunning => {}
            }
            plane.launched(session, outcome, now);
        }
        Input::Jobs(launcher, jobs, asked_at) => {
            plane.jobs_are(&launcher, &jobs, asked_at, now);
        }
        Input::ShareVisited((session, share, visit)) => {
            plane.share_visited(session, share, visit);
        }
        Input::PortUnusable(session, port) => {
            tracing::info!(%session, port, "another program listens on the port; taking another");
            plane.port_unusable(session, port, now);
        }
    }
    None
}
