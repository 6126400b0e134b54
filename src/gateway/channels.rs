//! Channels that an agent on another host keeps ready for its session's app: a tunnel.
//! Each carries one connection to the app, as if it had been made from here.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dwell_core::id::SessionId;
use dwell_core::protocol::{NOT_OPENED, OPEN, OPENED};
use dwell_core::time::{Millis, Monotonic};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::buffered::Stream;
use super::workers::Workers;
use crate::clock;
use crate::keep_alive::{CHANNEL, expect_answers};

/// How many may be ready for one session. An agent needs far fewer.
const READY_MAX: usize = 512;
/// How long a visitor waits for one that is ready. An agent that has lost its server
/// notices within ten seconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
/// How long the first may take to be opened until another is tried. What stands in between
/// may have forgotten it, and then it has forgotten those before it too. The next may
/// take twice as long.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
/// How long channels are kept for a session that is not known yet: a server that has just
/// started may hear from an agent before it has read of its session.
const KEEP_UNKNOWN: Millis = Millis::from_minutes(1);

/// How many stay when another process takes over: who is here may ask for more meanwhile.
const LEFT_FOR_WHO_IS_HERE: usize = 2;

/// The tunnels of all sessions.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    by_session: Mutex<HashMap<SessionId, Arc<Channels>>>,
}

impl Tunnels {
    pub(super) fn of(&self, session: SessionId) -> Arc<Channels> {
        let mut by_session = self.lock();
        let channels = by_session
            .entry(session)
            .or_insert_with(|| Arc::new(Channels::new(clock::monotonic())));
        Arc::clone(channels)
    }

    /// Have agents make theirs anew, at the process that accepts connections now.
    pub(super) fn give_way(&self) {
        for channels in self.lock().values() {
            channels.give_way();
        }
    }

    /// Close those of sessions that are not among the `open`.
    pub(super) fn sweep(&self, open: &HashSet<SessionId>, now: Monotonic) {
        let is_new = |channels: &Channels| now.since(channels.since) < KEEP_UNKNOWN;
        self.lock()
            .retain(|session, channels| open.contains(session) || is_new(channels));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Channels>>> {
        self.by_session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The channels to one app that are ready.
#[derive(Debug)]
pub(super) struct Channels {
    since: Monotonic,
    gives_way: AtomicBool,
    /// By the thread that they came to; the newest last.
    ready: Mutex<Vec<Vec<Ready>>>,
    /// As many permits as there are ready; who waits for one is served in turn.
    count: Semaphore,
}

#[derive(Debug)]
struct Ready {
    stream: Stream,
    since: Monotonic,
}

impl Channels {
    fn new(since: Monotonic) -> Self {
        let ready = (0..Workers::count_max()).map(|_| Vec::new()).collect();
        Self {
            since,
            gives_way: AtomicBool::new(false),
            ready: Mutex::new(ready),
            count: Semaphore::new(0),
        }
    }

    /// One more, which came to this thread.
    pub(super) fn offer(&self, stream: Stream, worker: usize) {
        let kept_alive = stream.socket().map(|it| expect_answers(it, CHANNEL));
        if !matches!(kept_alive, Some(Ok(()))) {
            return;
        }
        let mut ready = self.lock();
        if count(&ready) >= READY_MAX {
            self.keep_only(&mut ready, |channel| channel.stream.is_quiet());
        }
        // Seen under the lock that they are given up under.
        let is_wanted = !self.gives_way.load(Ordering::Relaxed);
        let has_room = is_wanted && count(&ready) < READY_MAX;
        if let Some(channels) = ready.get_mut(worker).filter(|_| has_room) {
            let since = clock::monotonic();
            channels.push(Ready { stream, since });
            self.count.add_permits(1);
        }
    }

    fn give_way(&self) {
        self.gives_way.store(true, Ordering::Relaxed);
        let mut ready = self.lock();
        let mut left = LEFT_FOR_WHO_IS_HERE;
        let before = count(&ready);
        for channels in ready.iter_mut() {
            channels.truncate(left);
            left -= channels.len();
        }
        self.count.forget_permits(before - count(&ready));
    }

    fn keep_only(&self, ready: &mut [Vec<Ready>], is_kept: impl FnMut(&mut Ready) -> bool + Copy) {
        let before = count(ready);
        for channels in ready.iter_mut() {
            channels.retain_mut(is_kept);
        }
        self.count.forget_permits(before - count(ready));
    }

    /// A connection to the app.
    ///
    /// # Errors
    /// When the app does not accept it, or its agent is not heard of.
    pub(super) async fn connect(&self) -> io::Result<Stream> {
        let connected = timeout(CONNECT_LIMIT, self.connect_patiently()).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn connect_patiently(&self) -> io::Result<Stream> {
        let mut patience = FIRST_PATIENCE;
        loop {
            let Ready { stream, since } = self.next().await?;
            match timeout(patience, open(stream)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return Err(error);
                }
                // It was gone, as the agent may be at any time.
                Ok(Err(_)) => {}
                Err(_) => {
                    patience *= 2;
                    self.keep_only(&mut self.lock(), |channel| channel.since > since);
                }
            }
        }
    }

    /// The next that is ready, of this thread's own if there is one.
    async fn next(&self) -> io::Result<Ready> {
        loop {
            let permit = self.count.acquire().await.map_err(io::Error::other)?;
            permit.forget();
            let mut ready = self.lock();
            let own = Workers::own_number();
            let from = match ready.get(own) {
                Some(channels) if !channels.is_empty() => Some(own),
                Some(_) | None => ready.iter().position(|channels| !channels.is_empty()),
            };
            let channel = from.and_then(|from| ready.get_mut(from)?.pop());
            drop(ready);
            if let Some(mut channel) = channel
                && channel.stream.is_quiet()
            {
                return Ok(channel);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Ready>>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(ready: &[Vec<Ready>]) -> usize {
    ready.iter().map(Vec::len).sum()
}

/// Have the agent connect it to the app.
async fn open(mut stream: Stream) -> io::Result<Stream> {
    stream.write_all(&[OPEN]).await?;
    stream.flush().await?;
    match stream.read_u8().await? {
        OPENED => Ok(stream),
        NOT_OPENED => Err(io::ErrorKind::ConnectionRefused.into()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
