//! Connections to one app, kept for its next request.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dwell_core::time::{Millis, Monotonic};
use dwell_core::upstream::Upstream;
use tokio::net::TcpStream;

use super::buffered::{Buffered, Stream};
use super::channels::Channels;
use super::listening::notice_dead_peers;
use super::traffic::{Meter, Sender, Traffic};
use super::workers::Workers;
use crate::clock;

/// How long a connection may wait for its next request. Less than the keep-alive
/// time of any app server in wide use (gunicorn has 2 s, uvicorn and Node 5 s): a
/// request must not be sent on a connection that the app is just closing.
const KEEP: Millis = Millis::from_seconds(1);
/// How many may wait, on each thread.
const KEEP_AT_MOST: usize = 1_024;
/// How long an app may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Connections to one app.
#[derive(Debug)]
pub(super) struct Pool {
    upstream: Upstream,
    /// By which it is reached, where it is by a tunnel.
    channels: Option<Arc<Channels>>,
    traffic: Arc<Traffic>,
    /// By the thread that they live on.
    idle: Vec<Mutex<Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    connection: Buffered,
    since: Monotonic,
}

impl Pool {
    /// Connections by these channels, or to the app itself.
    pub(super) fn new(
        upstream: Upstream,
        channels: Option<Arc<Channels>>,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            upstream,
            channels,
            traffic,
            idle: (0..Workers::count_max())
                .map(|_| Mutex::default())
                .collect(),
        }
    }

    pub(super) const fn upstream(&self) -> Upstream {
        self.upstream
    }

    pub(super) async fn connect(&self) -> io::Result<Buffered> {
        let stream = self.reach().await?;
        let meter = Meter::new(Arc::clone(&self.traffic), Sender::App);
        Ok(Buffered::new(stream, meter))
    }

    async fn reach(&self) -> io::Result<Stream> {
        if let Some(channels) = &self.channels {
            return channels.connect().await;
        }
        let connecting = TcpStream::connect(self.upstream.address());
        let stream = tokio::time::timeout(CONNECT_LIMIT, connecting)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        notice_dead_peers(&stream)?;
        Ok(Stream::Plain(stream))
    }

    /// The connection that was used last on this thread, if one can be used now.
    pub(super) fn take(&self) -> Option<Buffered> {
        let mut idle = self.idle_here()?;
        while let Some(mut last) = idle.pop() {
            if clock::monotonic().since(last.since) > KEEP {
                // So have all below it.
                idle.clear();
            } else if last.connection.stream.is_quiet() {
                return Some(last.connection);
            }
        }
        None
    }

    /// A connection on which nothing is under way.
    pub(super) fn keep(&self, connection: Buffered) {
        let Some(mut idle) = self.idle_here() else {
            return;
        };
        if idle.len() < KEEP_AT_MOST && connection.buffer.is_empty() {
            idle.push(Idle {
                connection,
                since: clock::monotonic(),
            });
        }
    }

    fn idle_here(&self) -> Option<std::sync::MutexGuard<'_, Vec<Idle>>> {
        let idle = self.idle.get(Workers::own_number())?;
        Some(idle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Close what has waited too long.
    pub(super) fn sweep(&self, now: Monotonic) {
        for idle in &self.idle {
            let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|idle| now.since(idle.since) <= KEEP);
        }
    }
}
