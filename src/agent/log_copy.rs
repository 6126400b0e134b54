//! What the app writes, on its way to a server that does not see this host's disk.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

use super::dial::{Backoff, Call, Dialer};
use super::spec::AgentSpec;
use crate::session_log::copying;

/// How long the last of it may take to arrive.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// A log that is brought to the server while it grows.
pub(super) struct LogCopy {
    finish: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl LogCopy {
    /// Of the log in `dir`.
    pub(super) fn start(spec: &AgentSpec, dir: PathBuf) -> Self {
        let (finish, finished) = watch::channel(false);
        let dialer = Dialer::new(spec.clone());
        let task = spawn_local(keep_copying(dialer, dir, finished));
        Self { finish, task }
    }

    /// Nothing is written any more: see to it that all has arrived, but not for long.
    pub(super) async fn finish(self) {
        self.finish.send_replace(true);
        let task = self.task;
        let abort = task.abort_handle();
        if timeout(FINISH_WITHIN, task).await.is_err() {
            abort.abort();
        }
    }
}

async fn keep_copying(dialer: Dialer, dir: PathBuf, finished: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    loop {
        if let Ok(upgraded) = dialer.call(Call::Log).await {
            let sent = copying::send(&dir, TokioIo::new(upgraded), finished.clone()).await;
            if sent.is_ok() {
                return;
            }
        }
        backoff.wait().await;
    }
}
