//! Whether this server decides, and who tells the driver so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dwell_core::control_plane::{Change, ControlPlane};
use dwell_core::id::SessionId;
use dwell_core::time::Monotonic;
use tokio::sync::{mpsc, oneshot, watch};

use super::Loaded;
use crate::clock;

/// Orders that may wait for a driver that is busy.
const ORDERS_MAX: usize = 64;

/// What a server is among those that share its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It decides.
    Leads,
    /// Another does, which is reached there, if it is known.
    Follows(Option<Arc<str>>),
}

/// For how long this server may decide. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Tenure(Arc<AtomicU64>);

impl Tenure {
    /// Until then, by this host's monotonic clock.
    #[must_use]
    pub fn until(end: Monotonic) -> Self {
        Self(Arc::new(AtomicU64::new(end.0)))
    }

    /// Of a server that has no others beside it.
    #[must_use]
    pub fn for_ever() -> Self {
        Self::until(Monotonic(u64::MAX))
    }

    /// It goes on until then.
    pub fn extend(&self, end: Monotonic) {
        self.0.fetch_max(end.0, Ordering::Relaxed);
    }

    /// It is over.
    pub fn end(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Until when.
    #[must_use]
    pub fn ends_at(&self) -> Monotonic {
        Monotonic(self.0.load(Ordering::Relaxed))
    }

    /// Does it go on?
    #[must_use]
    pub fn goes_on(&self) -> bool {
        clock::monotonic() < self.ends_at()
    }
}

/// What the driver is told.
pub(super) enum Order {
    /// Decide, from here on. Said when it does.
    Lead(Box<ControlPlane>, Tenure, oneshot::Sender<()>),
    /// Decide no more.
    Follow,
    /// Show what another server has put on record.
    Show(Vec<Change>),
    /// Which sessions are shown as open?
    Shown(oneshot::Sender<Vec<SessionId>>),
}

/// Tells the driver whether to decide.
pub struct Helm {
    orders: mpsc::Sender<Order>,
    role: watch::Sender<Role>,
    loaded: watch::Sender<Loaded>,
}

impl Helm {
    pub(super) fn new(role: Role) -> (Self, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let helm = Self {
            orders,
            role: watch::Sender::new(role),
            loaded: watch::Sender::default(),
        };
        (helm, receiver)
    }

    pub(super) fn loaded(&self) -> watch::Receiver<Loaded> {
        self.loaded.subscribe()
    }

    pub(super) fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }

    /// Decide from `plane` on, as long as `tenure` goes on.
    pub async fn lead(&self, plane: ControlPlane, tenure: Tenure) {
        let (at_work, is_at_work) = oneshot::channel();
        let _ = self
            .orders
            .send(Order::Lead(Box::new(plane), tenure, at_work))
            .await;
        if is_at_work.await.is_ok() {
            self.role.send_replace(Role::Leads);
            self.loaded.send_replace(Some(Ok(())));
        }
    }

    /// Decide no more; `leader` does, if that is known.
    pub async fn follow(&self, leader: Option<&str>) {
        let role = Role::Follows(leader.map(Arc::from));
        let before = self.role.send_replace(role.clone());
        if before == Role::Leads {
            let _ = self.orders.send(Order::Follow).await;
        }
    }

    /// What another server has put on record.
    pub async fn show(&self, changes: Vec<Change>) {
        let _ = self.orders.send(Order::Show(changes)).await;
    }

    /// All that another server has put on record was given to [`Self::show`].
    pub async fn follows(&self) {
        // Orders are obeyed one by one: once this one is, what came before is shown.
        self.shown().await;
        self.loaded.send_replace(Some(Ok(())));
    }

    /// The sessions that are shown as open.
    pub async fn shown(&self) -> Vec<SessionId> {
        let (reply, shown) = oneshot::channel();
        let _ = self.orders.send(Order::Shown(reply)).await;
        shown.await.unwrap_or_default()
    }

    /// Until there is no driver to be told anything. As long as this is waited for, what it
    /// was told last holds.
    pub async fn driver_is_gone(&self) {
        self.orders.closed().await;
    }

    /// What is on record cannot be had; the sentence says why.
    pub fn fails(&self, why: String) {
        self.loaded.send_replace(Some(Err(why)));
    }
}
