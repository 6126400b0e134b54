//! The agent's end of a tunnel: channels that are ready before the server needs them, so
//! that a visitor waits for none to be made. Each of several servers has its own.
//!
//! A thread of its own carries the bytes: however many there are, the session's time is
//! kept beside them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use dwell_core::protocol::{NOT_OPENED, OPEN, OPENED};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::{interval, timeout};

use super::dial::{Backoff, Call, CallError, Dialer, Link};
use super::relay::relay;
use super::spec::{AgentSpec, ServerAt};
use crate::keep_alive::wait_for_readers;

/// How many are ready when nobody comes. A browser opens up to six at once.
const READY_LEAST: usize = 6;
/// How many are ready when very many come.
const READY_MOST: usize = 256;
/// How often it is seen whether fewer would have done.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long channels are left open that the server may still take, when newer ones have
/// been made in their place.
const RETIRE_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take until a server says which others there are. Some of old say nothing.
const SAID_WITHIN: Duration = Duration::from_secs(2);
/// How long an app may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Where there are to be channels.
#[derive(Clone, Debug, Default)]
struct Wanted {
    /// At these servers; at the one that the agent was told of at first if there are none.
    /// `None` before it was said.
    servers: Option<Vec<String>>,
    /// Those of an earlier generation are to be replaced.
    generation: u64,
}

/// The channels of one session. They are closed when this is dropped.
pub(super) struct Channels {
    wanted: watch::Sender<Wanted>,
    _stop: oneshot::Sender<()>,
}

impl Channels {
    /// To the app that listens at `app`.
    pub(super) fn open(spec: AgentSpec, app: SocketAddr) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (wanted, watched) = watch::channel(Wanted::default());
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new()
            .name("tunnel".to_owned())
            .spawn(move || {
                let at_work = LocalSet::new();
                at_work.block_on(&runtime, async {
                    tokio::select! {
                        () = keep_at_each(spec, app, watched) => {}
                        // An error says that the session is over.
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            wanted,
            _stop: stop,
        })
    }

    /// Another server may have taken over: have new ones ready. Those that are in
    /// use are left alone.
    pub(super) fn renew(&self) {
        self.wanted.send_modify(|wanted| wanted.generation += 1);
    }

    /// These servers are to have some, each its own.
    pub(super) fn lead_to(&self, servers: Vec<String>) {
        let servers = Some(servers);
        self.wanted.send_if_modified(|wanted| {
            let is_new = wanted.servers != servers;
            wanted.servers = servers;
            is_new
        });
    }
}

/// Those at one server.
struct AtOne {
    generation: watch::Sender<u64>,
    keeping: AbortHandle,
}

impl Drop for AtOne {
    fn drop(&mut self) {
        // What is in use goes on.
        self.keeping.abort();
        self.generation.send_modify(|generation| *generation += 1);
    }
}

/// Have as many ready as are needed at each server that is wanted, for ever.
async fn keep_at_each(spec: AgentSpec, app: SocketAddr, mut wanted: watch::Receiver<Wanted>) {
    // Visitors who came through one that leads elsewhere would hang on what is in between.
    let is_said = wanted.wait_for(|wanted| wanted.servers.is_some());
    let _ = timeout(SAID_WITHIN, is_said).await;
    let mut at_work: HashMap<Option<String>, AtOne> = HashMap::new();
    loop {
        let Wanted {
            servers,
            generation,
        } = wanted.borrow_and_update().clone();
        let servers = servers.unwrap_or_default();
        let servers: HashSet<Option<String>> = match servers.len() {
            0 => [None].into(),
            _ => servers.into_iter().map(Some).collect(),
        };
        at_work.retain(|server, _| servers.contains(server));
        for server in servers {
            let there = at_work.entry(server).or_insert_with_key(|server| {
                let (sender, watched) = watch::channel(generation);
                let dialer = Rc::new(Dialer::new(at(&spec, server.as_deref())));
                let keeping = spawn_local(keep_ready(dialer, app, watched));
                AtOne {
                    generation: sender,
                    keeping: keeping.abort_handle(),
                }
            });
            there
                .generation
                .send_if_modified(|known| std::mem::replace(known, generation) != generation);
        }
        if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// What it takes to call that server.
fn at(spec: &AgentSpec, server: Option<&str>) -> AgentSpec {
    let mut spec = spec.clone();
    if let (Some(server), ServerAt::Elsewhere { url, .. }) = (server, &mut spec.server) {
        server.clone_into(url);
    }
    spec
}

/// What becomes of channels.
enum Event {
    Ready,
    /// The server has taken one.
    Taken,
    /// One that was ready is not any more.
    Lost,
    /// One could not be made.
    Failed(CallError),
}

/// Have as many ready as are needed, for ever.
async fn keep_ready(dialer: Rc<Dialer>, app: SocketAddr, generation: watch::Receiver<u64>) {
    let (report, mut events) = mpsc::unbounded_channel();
    let surplus = Rc::new(Semaphore::new(0));
    let mut reserve = Reserve::default();
    let mut backoff = Backoff::default();
    let mut look = interval(LOOK_EVERY);
    let mut has_failed = false;
    loop {
        if has_failed {
            backoff.wait().await;
            has_failed = false;
        }
        for _ in 0..reserve.missing() {
            reserve.dialing += 1;
            let channel = Channel {
                dialer: Rc::clone(&dialer),
                app,
                report: report.clone(),
                surplus: Rc::clone(&surplus),
                generation: generation.clone(),
            };
            spawn_local(channel.serve());
        }
        tokio::select! {
            Some(event) = events.recv() => match event {
                Event::Ready => {
                    reserve.dialed(true);
                    backoff = Backoff::default();
                }
                Event::Taken => reserve.taken(),
                Event::Lost => reserve.lost(),
                Event::Failed(why) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        eprintln!("a channel to the server cannot be opened: {why}");
                    }
                    reserve.dialed(false);
                }
            },
            _ = look.tick() => surplus.add_permits(reserve.look()),
        }
        // What has come meanwhile is seen before more are made.
        while has_failed && let Ok(event) = events.try_recv() {
            match event {
                Event::Ready => reserve.dialed(true),
                Event::Taken => reserve.taken(),
                Event::Lost => reserve.lost(),
                Event::Failed(_) => reserve.dialed(false),
            }
        }
    }
}

/// How many channels there are, and how many there should be.
#[derive(Debug, PartialEq, Eq)]
struct Reserve {
    wanted: usize,
    dialing: usize,
    ready: usize,
    /// The fewest that were ready since it was last looked at.
    fewest: usize,
}

impl Default for Reserve {
    fn default() -> Self {
        Self {
            wanted: READY_LEAST,
            dialing: 0,
            ready: 0,
            fewest: 0,
        }
    }
}

impl Reserve {
    fn missing(&self) -> usize {
        self.wanted.saturating_sub(self.ready + self.dialing)
    }

    fn dialed(&mut self, is_ready: bool) {
        self.dialing = self.dialing.saturating_sub(1);
        self.ready += usize::from(is_ready);
    }

    /// When few are left there should have been more.
    fn taken(&mut self) {
        self.lost();
        if self.ready < self.wanted / 4 {
            self.wanted = (self.wanted * 2).min(READY_MOST);
        }
    }

    fn lost(&mut self) {
        self.ready = self.ready.saturating_sub(1);
        self.fewest = self.fewest.min(self.ready);
    }

    /// If half of them were never needed since the last time, half are enough. Returns how
    /// many are to be closed.
    fn look(&mut self) -> usize {
        if self.fewest >= self.wanted / 2 {
            self.wanted = (self.wanted / 2).max(READY_LEAST);
        }
        self.fewest = self.ready;
        self.ready.saturating_sub(self.wanted)
    }
}

/// One channel.
struct Channel {
    dialer: Rc<Dialer>,
    app: SocketAddr,
    report: mpsc::UnboundedSender<Event>,
    surplus: Rc<Semaphore>,
    generation: watch::Receiver<u64>,
}

impl Channel {
    async fn serve(mut self) {
        self.generation.mark_unchanged();
        let called = self.dialer.call(Call::Channel).await;
        let opened = called.and_then(|upgraded| {
            taken_apart(upgraded).ok_or_else(|| CallError::Unreachable("it is no link".to_owned()))
        });
        let (mut link, said) = match opened {
            Ok(opened) => opened,
            Err(why) => return self.tell(Event::Failed(why)),
        };
        self.tell(Event::Ready);
        let is_wanted = match said.first() {
            Some(first) => {
                self.tell(Event::Taken);
                *first == OPEN
            }
            None => self.is_wanted(&mut link).await,
        };
        if is_wanted {
            // How it ends is between the app and who speaks to it.
            let _ = carry(link, self.app).await;
        }
    }

    /// Wait until the server takes it.
    async fn is_wanted(&mut self, link: &mut Link) -> bool {
        tokio::select! {
            biased;
            first = link.read_u8() => {
                let is_wanted = matches!(first, Ok(OPEN));
                self.tell(if is_wanted { Event::Taken } else { Event::Lost });
                return is_wanted;
            }
            Ok(permit) = self.surplus.acquire() => {
                permit.forget();
                self.tell(Event::Lost);
                return false;
            }
            Ok(()) = self.generation.changed() => self.tell(Event::Lost),
        }
        matches!(timeout(RETIRE_WITHIN, link.read_u8()).await, Ok(Ok(OPEN)))
    }

    fn tell(&self, event: Event) {
        // An error says that the session is over.
        let _ = self.report.send(event);
    }
}

/// The connection itself, and what the server has said on it already.
fn taken_apart(upgraded: Upgraded) -> Option<(Link, hyper::body::Bytes)> {
    let parts = upgraded.downcast::<TokioIo<Link>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

/// Connect it to the app, and carry what both say.
async fn carry(mut link: Link, app: SocketAddr) -> io::Result<()> {
    let connected = timeout(CONNECT_LIMIT, TcpStream::connect(app)).await;
    let Ok(Ok(app)) = connected else {
        link.write_all(&[NOT_OPENED]).await?;
        return link.shutdown().await;
    };
    app.set_nodelay(true)?;
    match &link {
        Link::Left(stream) => wait_for_readers(stream)?,
        Link::Right(stream) => wait_for_readers(stream.get_ref().0.get_ref())?,
    }
    link.write_all(&[OPENED]).await?;
    link.flush().await?;
    relay(link, app).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Reserve {
        let mut reserve = Reserve::default();
        refill(&mut reserve);
        reserve
    }

    fn refill(reserve: &mut Reserve) {
        for _ in 0..reserve.missing() {
            reserve.dialing += 1;
            reserve.dialed(true);
        }
    }

    #[test]
    fn one_that_is_taken_is_replaced_and_no_more_are_made_than_are_wanted() {
        let mut reserve = filled();
        assert_eq!((reserve.ready, reserve.missing()), (READY_LEAST, 0));
        reserve.taken();
        assert_eq!(reserve.missing(), 1);
        reserve.dialing += 1;
        assert_eq!(reserve.missing(), 0);
        reserve.dialed(false);
        assert_eq!(reserve.missing(), 1);
    }

    #[test]
    fn the_more_are_taken_at_once_the_more_are_ready_up_to_a_limit() {
        let mut reserve = filled();
        for _ in 0..20 {
            for _ in 0..reserve.ready {
                reserve.taken();
            }
            refill(&mut reserve);
        }
        assert_eq!(reserve.wanted, READY_MOST);
        assert_eq!(reserve.ready, READY_MOST);
    }

    #[test]
    fn what_nobody_needs_is_given_up_by_halves() {
        let mut reserve = filled();
        while reserve.wanted < 100 {
            for _ in 0..reserve.ready {
                reserve.taken();
            }
            refill(&mut reserve);
        }
        let most = reserve.wanted;
        // It was needed since the last look.
        assert_eq!(reserve.look(), 0);
        let surplus = reserve.look();
        assert_eq!(surplus, most - most / 2);
        for _ in 0..surplus {
            reserve.lost();
        }
        assert_eq!(reserve.missing(), 0);
        for _ in 0..20 {
            for _ in 0..reserve.look() {
                reserve.lost();
            }
        }
        assert_eq!(reserve.ready, READY_LEAST);
    }
}
