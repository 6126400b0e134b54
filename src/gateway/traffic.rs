//! What passes through the gateway for one session, counted as it passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dwell_core::time::{Millis, Monotonic};

use crate::clock;

/// What has passed for one session since this server began to serve it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Visitors' connections that are open now.
    pub open_connections: u32,
    /// Requests that were made.
    pub requests: u64,
    /// Bytes that visitors sent, heads included.
    pub bytes_from_visitors: u64,
    /// Bytes that the app sent, heads included.
    pub bytes_from_app: u64,
    /// How long ago something was last sent, by either side. None if nothing was.
    pub idle_ms: Option<Millis>,
}

/// The counters of one session.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    open_connections: AtomicU32,
    requests: AtomicU64,
    bytes_from_visitors: AtomicU64,
    bytes_from_app: AtomicU64,
    /// By the host's monotonic clock; 0 if never.
    last_moved_ms: AtomicU64,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Visitor,
    App,
}

impl Traffic {
    pub(super) fn passed(&self, now: Monotonic) -> Passed {
        let last_moved = self.last_moved_ms.load(Ordering::Relaxed);
        Passed {
            open_connections: self.open_connections.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            bytes_from_visitors: self.bytes_from_visitors.load(Ordering::Relaxed),
            bytes_from_app: self.bytes_from_app.load(Ordering::Relaxed),
            idle_ms: (last_moved > 0).then(|| now.since(Monotonic(last_moved))),
        }
    }

    pub(super) fn requested(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts what one side of one connection sends.
#[derive(Debug)]
pub(super) struct Meter {
    traffic: Arc<Traffic>,
    sender: Sender,
}

impl Meter {
    pub(super) fn new(traffic: Arc<Traffic>, sender: Sender) -> Self {
        if sender == Sender::Visitor {
            traffic.open_connections.fetch_add(1, Ordering::Relaxed);
        }
        Self { traffic, sender }
    }

    pub(super) fn sent(&self, bytes: usize) {
        let counter = match self.sender {
            Sender::Visitor => &self.traffic.bytes_from_visitors,
            Sender::App => &self.traffic.bytes_from_app,
        };
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        let now = clock::monotonic();
        self.traffic.last_moved_ms.store(now.0, Ordering::Relaxed);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.sender == Sender::Visitor {
            let open = &self.traffic.open_connections;
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
