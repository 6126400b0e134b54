//! A server among several that share their records: it follows the one that leads, or
//! leads itself.
//!
//! ```text
//!  follow ── the lease has run out, or is ours ──▶ lead
//!    ▲                                               │
//!    └── superseded, or not renewed for a lease ─────┘
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dwell_core::control_plane::{ControlPlane, Settings};
use dwell_core::leadership::{Held, LEASE, MayLead, RENEW_EVERY, good_until, may_lead};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::clock;
use crate::data_dir::{ServerFile, write_atomically};
use crate::driver::{Helm, Tenure};
use crate::store::postgres::{Candidate, Claim, Lease, News, Postgres};
use crate::store::{Store, StoreError};

/// How soon a database that did not answer is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What a member has.
pub struct Member {
    /// The records.
    pub store: Arc<Postgres>,
    /// Who it is.
    pub candidate: Candidate,
    /// How it has the driver know what it is.
    pub helm: Helm,
    /// By which it decides when it leads.
    pub settings: Settings,
    /// Where agents of whichever server read who leads. None if no other server can reach
    /// this one's sessions: then it takes nothing over from others.
    pub leader_file: Option<PathBuf>,
    /// Where the servers are that serve, once the one that leads knows.
    pub servers: watch::Sender<Option<Vec<String>>>,
}

/// What a member came by when it was not at work yet.
pub struct Won {
    lease: Lease,
    tenure: Tenure,
}

/// A member at work.
pub struct Membership {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Membership {
    /// Let another server lead at once.
    pub async fn leave(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }

    /// Lead no more, but leave it to whoever has the same data directory next.
    pub async fn give_way(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Lead if `candidate` may.
///
/// # Errors
/// When the database does not say.
pub async fn claim(
    store: &Postgres,
    candidate: &Candidate,
) -> Result<Result<Won, Held>, StoreError> {
    let asked_at = clock::monotonic();
    Ok(match store.claim(candidate).await? {
        Claim::Ours(lease) => Ok(Won {
            lease,
            tenure: Tenure::until(good_until(asked_at)),
        }),
        Claim::Theirs(held) => Err(held),
    })
}

impl Member {
    /// Go to work, with the lease if it was won already.
    #[must_use]
    pub fn start(self, won: Option<Won>) -> Membership {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut won = won;
            loop {
                let now_leads = match won.take() {
                    Some(won) => won,
                    None => tokio::select! {
                        won = self.follow() => won,
                        _ = &mut stopped => return,
                    },
                };
                let Won { mut lease, tenure } = now_leads;
                tokio::select! {
                    why = self.lead(&mut lease, &tenure) => {
                        tracing::warn!("this server leads no more: {why}");
                    }
                    _ = &mut stopped => {
                        tenure.end();
                        self.store.step_down();
                        if let Err(error) = lease.release().await {
                            tracing::debug!("the lease runs out by itself: {error}");
                        }
                        return;
                    }
                }
                tenure.end();
                self.store.step_down();
                self.helm.follow(None).await;
                // Whatever kept this one from leading may not keep another.
                let _ = lease.release().await;
                sleep(ASK_AGAIN_AFTER).await;
            }
        });
        Membership { stop, task }
    }

    /// Show what another server decides until this one leads.
    async fn follow(&self) -> Won {
        let mut said = false;
        loop {
            match self.try_follow().await {
                Ok(won) => return won,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!("what is new is not heard of: {error}");
                    }
                    self.helm.follow(None).await;
                    sleep(ASK_AGAIN_AFTER).await;
                }
            }
        }
    }

    async fn try_follow(&self) -> Result<Won, StoreError> {
        let mut listener = self.store.listen().await?;
        let mut shows_all = false;
        let mut look_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = sleep_until(look_at) => {
                    let looked = timeout(Duration::from(LEASE), listener.look(&self.candidate)).await;
                    let held = looked.map_err(|_| StoreError(format!(
                        "the database did not answer within {LEASE}"
                    )))??;
                    match self.candidacy(held).await? {
                        Ok(won) => return Ok(won),
                        Err(after) => look_at = Instant::now() + after,
                    }
                    if !shows_all {
                        self.show_all().await?;
                        self.helm.follows().await;
                        shows_all = true;
                    }
                }
                news = listener.next() => match news? {
                    News::Rows(ids) => self.helm.show(self.store.rows(ids).await?).await,
                    News::Leadership => look_at = Instant::now(),
                },
            }
        }
    }

    /// Whether it leads now, or when it may be worth a look.
    async fn candidacy(&self, held: Option<Held>) -> Result<Result<Won, Duration>, StoreError> {
        let held = match may_lead(&self.candidate.id, held.as_ref()) {
            MayLead::Now if self.may_take_over_from(held.as_ref()) => {
                match claim(&self.store, &self.candidate).await? {
                    Ok(won) => return Ok(Ok(won)),
                    Err(held) => Some(held),
                }
            }
            MayLead::Now | MayLead::LookAfter(_) => held,
        };
        let url = held.as_ref().filter(|held| held.left.0 > 0);
        self.helm.follow(url.map(|held| held.url.as_str())).await;
        Ok(Err(match may_lead(&self.candidate.id, held.as_ref()) {
            MayLead::LookAfter(span) => span.into(),
            MayLead::Now => RENEW_EVERY.into(),
        }))
    }

    /// Without the sessions of others it would take them for lost, and their GPUs for free.
    fn may_take_over_from(&self, held: Option<&Held>) -> bool {
        self.leader_file.is_some()
            || held.is_none_or(|held| held.holder == self.candidate.id || held.url.is_empty())
    }

    /// All that is on record is shown, and what has ended that was shown before.
    async fn show_all(&self) -> Result<(), StoreError> {
        let known = self.helm.shown().await;
        self.helm.show(self.store.all_rows(known).await?).await;
        Ok(())
    }

    /// Decide as long as the lease can be kept. Says why it could not.
    async fn lead(&self, lease: &mut Lease, tenure: &Tenure) -> StoreError {
        tokio::select! {
            why = self.keep(lease, tenure) => why,
            Err(why) = self.decide(tenure) => why,
        }
    }

    /// Renew the lease again and again. Says why it cannot be had any more.
    async fn keep(&self, lease: &mut Lease, tenure: &Tenure) -> StoreError {
        let mut ticks = interval(RENEW_EVERY.into());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_error = None;
        loop {
            ticks.tick().await;
            let asked_at = clock::monotonic();
            let left = Duration::from(tenure.ends_at().since(asked_at));
            let renewed = timeout(left, async {
                let is_ours = lease.renew().await?;
                if is_ours {
                    tenure.extend(good_until(asked_at));
                    let servers = Some(lease.servers(&self.candidate).await?);
                    self.servers.send_if_modified(|known| {
                        let is_new = *known != servers;
                        *known = servers;
                        is_new
                    });
                }
                Ok(is_ours)
            });
            match renewed.await {
                Ok(Ok(true)) | Err(_) => {}
                Ok(Ok(false)) => {
                    return StoreError("another server has taken the lease".to_owned());
                }
                Ok(Err(error)) => {
                    last_error = Some(error);
                    ticks.reset_after(ASK_AGAIN_AFTER);
                }
            }
            if !tenure.goes_on() {
                return last_error
                    .unwrap_or_else(|| StoreError("the lease has run out".to_owned()));
            }
        }
    }

    async fn decide(&self, tenure: &Tenure) -> Result<(), StoreError> {
        // What ended while another server led is not in what is loaded.
        if !self.helm.shown().await.is_empty() {
            self.show_all().await?;
        }
        let plane = load(&*self.store, self.settings.clone()).await?;
        if let Some(file) = &self.leader_file {
            self.say_where(file)?;
        }
        self.helm.lead(plane, tenure.clone()).await;
        tracing::info!("this server leads");
        std::future::pending().await
    }

    fn say_where(&self, file: &std::path::Path) -> Result<(), StoreError> {
        let server = ServerFile {
            url: self.candidate.url.clone(),
            pid: std::process::id(),
        };
        let written = serde_json::to_vec(&server)
            .map_err(std::io::Error::other)
            .and_then(|json| write_atomically(file, &json, 0o644));
        written.map_err(|error| StoreError(format!("cannot write {}: {error}", file.display())))
    }
}

/// The control plane as it is on record.
///
/// # Errors
/// When that cannot be read.
pub async fn load(store: &dyn Store, settings: Settings) -> Result<ControlPlane, StoreError> {
    let snapshot = store.load().await?;
    if !snapshot.sessions.is_empty() {
        tracing::info!("{} open sessions are taken up", snapshot.sessions.len());
    }
    let recover = move || ControlPlane::recover(settings, snapshot, clock::now());
    tokio::task::spawn_blocking(recover)
        .await
        .map_err(|error| StoreError(error.to_string()))
}
