//! What the agent has going while its session runs: the app, its output, its server.

use std::net::SocketAddr;
use std::time::Duration;

use dwell_core::lease::{Exit, Lease};
use dwell_core::protocol::{AgentStatus, ServerMessage};
use dwell_core::upstream::Upstream;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::channels::Channels;
use super::container::{Container, Course, Stage};
use super::control::{self, Event};
use super::init::Word;
use super::log::{Log, capture};
use super::port::AppPort;
use super::processes::{Outputs, Processes};
use super::spec::ServerAt;
use super::tree::Tree;
use super::{AgentSpec, probe};
use crate::clock;
use crate::session_log::LogLevel;

/// How often a tree that is being killed is looked at.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(5);
/// How often an ended session's agent says so.
const REPORT_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long an ended session's agent tries to be heard; its journal keeps the end.
const REPORT_FOR: Duration = Duration::from_secs(60);
/// How long the app's last words may take to be read while its descendants may still hold its
/// output open.
const EXIT_WORDS_WITHIN: Duration = Duration::from_millis(50);

/// An app that was started as processes of the host's.
pub(super) struct StartedProcesses {
    pub processes: Processes,
    pub outputs: Outputs,
    pub port: AppPort,
}

/// Something that the lease must know of.
pub(super) enum Happening {
    Answered(SocketAddr),
    Word(Word),
    Stage(Stage),
    Reap,
    Server(Event),
    HostStops,
}

impl Happening {
    /// How the app ended, if that is what happened.
    pub(super) const fn exit(&self) -> Option<Exit> {
        match self {
            Self::Word(Word::AppExited(exit)) | Self::Stage(Stage::Exited(exit)) => Some(*exit),
            Self::Answered(_)
            | Self::Word(_)
            | Self::Stage(_)
            | Self::Reap
            | Self::Server(_)
            | Self::HostStops => None,
        }
    }
}

/// What the agent has going while its session runs.
pub(super) struct AtWork {
    pub(super) tree: Option<Tree>,
    pub(super) killing: bool,
    pub(super) words: Option<Lines<BufReader<UnixStream>>>,
    stages: Option<mpsc::UnboundedReceiver<Stage>>,
    answered: Option<JoinHandle<SocketAddr>>,
    readers: Vec<JoinHandle<()>>,
    pub(super) status: watch::Sender<AgentStatus>,
    pub(super) events: mpsc::Receiver<Event>,
    children: Option<tokio::signal::unix::Signal>,
    pub(super) terminations: Option<tokio::signal::unix::Signal>,
    /// To the app, where the server is on another host.
    pub(super) channels: Option<Channels>,
    /// Which servers are to have some, once it was said.
    pub(super) servers: Option<Vec<String>>,
    _port: Option<AppPort>,
}

impl AtWork {
    pub(super) fn new(spec: &AgentSpec, status: AgentStatus) -> Self {
        let (status, published) = watch::channel(status);
        let (said, events) = mpsc::channel(16);
        spawn_local(control::keep(spec.clone(), published, said));
        Self {
            tree: None,
            killing: false,
            words: None,
            stages: None,
            answered: None,
            readers: Vec::new(),
            status,
            events,
            children: signal(SignalKind::child()).ok(),
            terminations: signal(SignalKind::terminate()).ok(),
            channels: None,
            servers: None,
            _port: None,
        }
    }

    pub(super) fn take_over(&mut self, started: StartedProcesses, spec: &AgentSpec, log: &Log) {
        let StartedProcesses {
            processes,
            outputs,
            port,
        } = started;
        self.probe(probe::on_this_host(port.port), spec);
        self.words = words(outputs.words).ok();
        self.readers = [
            (outputs.stdout, LogLevel::Info),
            (outputs.stderr, LogLevel::Warning),
        ]
        .into_iter()
        .map(|(pipe, level)| spawn_local(capture(pipe, level, log.clone())))
        .collect();
        self.tree = Some(Tree::Processes(processes));
        self._port = Some(port);
    }

    pub(super) fn take_over_container(&mut self, container: Container, course: Course) {
        let (told, stages) = mpsc::unbounded_channel();
        spawn_local(course.run(told));
        self.stages = Some(stages);
        self.tree = Some(Tree::Container(container));
    }

    pub(super) fn probe(&mut self, places: Vec<SocketAddr>, spec: &AgentSpec) {
        let path = spec.recipe.ready_path.clone();
        self.answered = Some(spawn_local(
            async move { probe::answered(&places, &path).await },
        ));
    }

    /// How the server reaches the app that listens at `address`.
    pub(super) fn reach(
        &mut self,
        address: SocketAddr,
        spec: &AgentSpec,
    ) -> std::io::Result<Upstream> {
        Ok(match spec.server {
            ServerAt::ThisHost { .. } => Upstream::Direct(address),
            ServerAt::Elsewhere { .. } => {
                let channels = Channels::open(spec.clone(), address)?;
                if let Some(servers) = self.servers.clone() {
                    channels.lead_to(servers);
                }
                self.channels = Some(channels);
                Upstream::Tunnel(address)
            }
        })
    }

    /// The first process's next word, in place of all else.
    pub(super) async fn next_word(&mut self) -> Option<Word> {
        next_word(&mut self.words).await
    }

    pub(super) fn report(&self, lease: &Lease) {
        self.status.send_replace(lease.status(clock::monotonic()));
    }

    /// The next thing that happens.
    pub(super) async fn next(&mut self) -> Happening {
        let look_again = tokio::time::sleep(LOOK_AGAIN_AFTER);
        tokio::select! {
            biased;
            () = signalled(&mut self.terminations) => Happening::HostStops,
            Some(address) = joined(&mut self.answered) => {
                self.answered = None;
                Happening::Answered(address)
            }
            word = next_word(&mut self.words) => match word {
                Some(word) => Happening::Word(word),
                None => {
                    self.words = None;
                    Happening::Reap
                }
            },
            stage = next_stage(&mut self.stages) => match stage {
                Some(stage) => Happening::Stage(stage),
                None => {
                    self.stages = None;
                    Happening::Reap
                }
            },
            () = signalled(&mut self.children) => Happening::Reap,
            () = look_again, if self.killing => Happening::Reap,
            Some(event) = self.events.recv() => Happening::Server(event),
        }
    }

    /// What an app that has exited wrote, and whether it answered, may not be known yet; nor,
    /// if it perhaps was told to go, that we are as well.
    pub(super) async fn finish_app(&mut self, was_told: bool) -> Vec<Happening> {
        let (mut answered, mut terminations) = (self.answered.take(), self.terminations.take());
        let answer = async {
            match &mut answered {
                Some(_) => joined(&mut answered).await,
                None => None,
            }
        };
        let told = async {
            if was_told {
                signalled(&mut terminations).await;
            }
            was_told.then_some(Happening::HostStops)
        };
        let (answer, told, ()) = tokio::join!(
            timeout(EXIT_WORDS_WITHIN, answer),
            timeout(EXIT_WORDS_WITHIN, told),
            self.finish_log(EXIT_WORDS_WITHIN)
        );
        if let Some(probe) = answered {
            probe.abort();
        }
        self.terminations = terminations;
        let answer = answer.ok().flatten().map(Happening::Answered);
        answer.into_iter().chain(told.ok().flatten()).collect()
    }

    /// Wait until the first process is gone too, if it ended all others by itself.
    pub(super) async fn see_off(&mut self) {
        while let Some(tree) = &mut self.tree
            && !tree.is_gone()
        {
            if let Tree::Container(container) = tree {
                // It may have begun to run only now.
                container.kill();
            }
            tree.reap();
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }

    /// Read what the app last wrote, as long as somebody could still write.
    pub(super) async fn finish_log(&mut self, limit: Duration) {
        let all_read = async {
            while let Some(reader) = self.readers.last_mut() {
                let _ = reader.await;
                self.readers.pop();
            }
        };
        let _ = timeout(limit, all_read).await;
    }

    /// Say how it ended until the server has it on record, or long enough. Where the
    /// end could not be put down, nobody else would know it: `put_down` tries again,
    /// and until it could there is no "long enough".
    pub(super) async fn report_until_heard(
        &mut self,
        status: AgentStatus,
        mut put_down: impl FnMut(&AgentStatus) -> bool,
    ) {
        let mut again = every(REPORT_AGAIN_AFTER);
        let gives_up_at = Instant::now() + REPORT_FOR;
        let mut is_put_down = false;
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(Event::Connected) => again.reset_immediately(),
                    Some(Event::Said(ServerMessage::Forget) | Event::Refused) | None => return,
                    Some(Event::Said(
                        ServerMessage::Begin
                        | ServerMessage::Lease { .. }
                        | ServerMessage::Stop { .. }
                        | ServerMessage::Servers { .. },
                    )) => {}
                },
                // A server whose store refuses has heard it and could not keep it.
                _ = again.tick() => {
                    is_put_down = is_put_down || put_down(&status);
                    if is_put_down && Instant::now() >= gives_up_at {
                        return;
                    }
                    self.status.send_replace(status.clone());
                }
            }
        }
    }
}

/// What the first process, or the keeper of a container, says.
pub(super) fn words(
    socket: std::os::unix::net::UnixStream,
) -> std::io::Result<Lines<BufReader<UnixStream>>> {
    socket.set_nonblocking(true)?;
    Ok(BufReader::with_capacity(1_024, UnixStream::from_std(socket)?).lines())
}

/// The first process's next word; `None` when it has gone. Waits for ever when that
/// is known already.
async fn next_word(words: &mut Option<Lines<BufReader<UnixStream>>>) -> Option<Word> {
    match words {
        Some(words) => match words.next_line().await {
            Ok(Some(line)) => serde_json::from_str(&line).ok(),
            Ok(None) | Err(_) => None,
        },
        None => std::future::pending().await,
    }
}

/// The container's next step. Waits for ever when there is none to come.
async fn next_stage(stages: &mut Option<mpsc::UnboundedReceiver<Stage>>) -> Option<Stage> {
    match stages {
        Some(stages) => stages.recv().await,
        None => std::future::pending().await,
    }
}

async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> Option<T> {
    match task {
        Some(task) => task.await.ok(),
        None => std::future::pending().await,
    }
}

pub(super) async fn signalled(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

pub(super) fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
