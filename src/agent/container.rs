//! A session's app in a container, supervised from outside.
//!
//! Images are anything, so that nothing of ours can be relied upon inside; and what ends
//! a session must not depend on the engine's daemon. So the engine is asked to make,
//! start and remove the container and for what it wrote, and everything else goes by the
//! kernel: the agent holds the container's first process, and so does its keeper
//! ([`super::keeper`]).

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use dwell_core::id::SessionId;
use dwell_core::lease::Exit;
use dwell_core::machine;
use dwell_core::time::{Millis, Monotonic};
use futures_util::FutureExt;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::apart;
use super::init::{self, Order};
use super::inside::Inside;
use super::log::Log;
use super::remains;
use super::spec::AgentSpec;
use crate::clock;
use crate::data_dir::SessionDir;
use crate::engine::{Engine, EngineSettings, Network, Parts};
use crate::failpoint::{self, Point};
use crate::session_log::LogLevel;

/// The port of an app that was given none: it has all ports to itself.
pub const DEFAULT_PORT: u16 = 8080;
/// How long what the app last wrote may take to be read once it is gone.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);
/// How long an engine that does not answer is asked to remove a container. What it then
/// still has, the sweep removes.
const REMOVE_WITHIN: Duration = Duration::from_secs(10);
const REMOVE_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// The container of a session.
pub struct Container {
    session: SessionId,
    settings: EngineSettings,
    shared: Rc<Shared>,
    keeper: Option<Keeper>,
    inside: Option<Rc<Inside>>,
    kill_at: Option<Monotonic>,
    go: Option<oneshot::Sender<()>>,
}

struct Keeper {
    pid: Pid,
    socket: UnixStream,
    was_asked_to_kill: bool,
}

/// What is known of the container both here and on its [`Course`].
#[derive(Default)]
struct Shared {
    id: RefCell<Option<String>>,
    /// The engine was asked to start it and has not answered.
    awaited: Cell<bool>,
    /// The session is over: what starts now is killed.
    over: Cell<bool>,
    last_moment: Cell<Option<Monotonic>>,
}

/// A step of a container's course.
pub enum Stage {
    /// Everything is there; nothing was started.
    Prepared,
    /// It runs, with its app at this address.
    Runs(Rc<Inside>, std::net::SocketAddr),
    /// It could not be started.
    Failed(String),
    /// Its first process ended, and with it all others.
    Exited(Exit),
}

impl Container {
    /// A container, of which nothing is there, and the course that it is to take.
    #[must_use]
    pub fn new(
        spec: &AgentSpec,
        settings: &EngineSettings,
        container: &machine::Container,
        dir: &SessionDir,
        log: &Log,
    ) -> (Self, Course) {
        let shared = Rc::new(Shared::default());
        let (go, may_go) = oneshot::channel();
        let course = Course {
            spec: spec.clone(),
            settings: settings.clone(),
            container: container.clone(),
            dir: dir.clone(),
            log: log.clone(),
            shared: Rc::clone(&shared),
            may_go,
        };
        let this = Self {
            session: spec.session,
            settings: settings.clone(),
            shared,
            keeper: None,
            inside: None,
            kill_at: None,
            go: Some(go),
        };
        (this, course)
    }

    /// Have it started, now that all is prepared, with a keeper beside it. Returned is
    /// where that one speaks.
    ///
    /// # Errors
    /// When there can be no keeper: then nothing is started.
    pub fn go_ahead(&mut self) -> io::Result<UnixStream> {
        let (socket, theirs) = UnixStream::pair()?;
        let id = self.shared.id.borrow().clone().unwrap_or_default();
        let keeper = Command::new("/proc/self/exe")
            .arg0("dwell")
            .args(["agent", "keep", &id])
            .env(init::MARK, self.session.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pid = i32::try_from(keeper.id()).map_err(io::Error::other)?;
        let words = socket.try_clone()?;
        self.keeper = Some(Keeper {
            pid: Pid::from_raw(pid),
            socket,
            was_asked_to_kill: false,
        });
        if let Some(moment) = self.kill_at {
            self.say(Order::KillAt(moment));
        }
        self.say(Order::ContainerIsAwaited);
        self.shared.awaited.set(true);
        if let Some(go) = self.go.take() {
            let _ = go.send(());
        }
        Ok(words)
    }

    /// It runs.
    pub fn runs(&mut self, inside: Rc<Inside>) {
        self.say(Order::ContainerRuns(inside.pid.as_raw()));
        self.inside = Some(inside);
    }

    /// It was not started.
    pub fn was_not_started(&self) {
        self.say(Order::ContainerIsNotThere);
    }

    /// It ran to its end, perhaps before we could see it run.
    pub fn has_ended(&self) {
        if self.inside.is_none() {
            self.say(Order::ContainerIsNotThere);
        }
    }

    /// TERM to every process.
    pub fn terminate(&self) {
        failpoint::cross(Point::AgentBeforeTerminate);
        match &self.inside {
            Some(inside) => inside.terminate(),
            // Nothing has begun that could be let end by itself.
            None => self.shared.over.set(true),
        }
    }

    /// KILL to every process at this moment, should we be paused or stuck then.
    pub fn kill_at_latest(&mut self, moment: Option<Monotonic>) {
        if self.kill_at != moment {
            self.kill_at = moment;
            self.shared.last_moment.set(moment);
            self.say(Order::KillAt(moment.unwrap_or(Monotonic(u64::MAX))));
        }
    }

    /// KILL to every process.
    pub fn kill(&mut self) {
        failpoint::cross(Point::AgentBeforeKill);
        self.shared.over.set(true);
        if let Some(inside) = &self.inside {
            inside.kill();
        }
        if let Some(keeper) = &mut self.keeper
            && !std::mem::replace(&mut keeper.was_asked_to_kill, true)
        {
            self.say(Order::Kill);
        } else if !self.shared.awaited.get() {
            // The keeper, too: it was asked before, and is paused, or there is none.
            for pid in remains::strays(self.session) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }

    /// Take note of what has ended. Says whether the keeper just did.
    pub fn reap(&mut self) -> bool {
        let Some(keeper) = &self.keeper else {
            return false;
        };
        match waitpid(keeper.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                self.keeper = None;
                true
            }
            Ok(
                WaitStatus::StillAlive
                | WaitStatus::Stopped(..)
                | WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_)
                | WaitStatus::Continued(_),
            )
            | Err(_) => false,
        }
    }

    /// Is the last process gone?
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let inside_is_gone = match &self.inside {
            Some(inside) => inside.is_gone(),
            None => remains::strays(self.session).is_empty(),
        };
        self.keeper.is_none() && !self.shared.awaited.get() && inside_is_gone
    }

    /// Have the engine remove what it has of it.
    pub async fn remove(&self) {
        let id = self.shared.id.borrow().clone();
        if let Some(id) = id {
            remove(&self.settings.host, &id).await;
        }
    }

    fn say(&self, order: Order) {
        if let Some(keeper) = &self.keeper {
            // It goes in whole: there is never much in the socket.
            let _ = nix::unistd::write(keeper.socket.as_fd(), &order.to_bytes());
        }
    }
}

/// Have the engine at `host` remove a container, as soon as it answers.
async fn remove(host: &str, id: &str) {
    let removed = async {
        loop {
            match Engine::connect(host).await {
                Ok(engine) if engine.remove(id).await.is_ok() => return,
                Ok(_) | Err(_) => tokio::time::sleep(REMOVE_AGAIN_AFTER).await,
            }
        }
    };
    let _ = timeout(REMOVE_WITHIN, removed).await;
}

/// Remove what an earlier agent of the session left in its engine. Its processes are gone.
pub async fn remove_left(spec: &AgentSpec, dir: &SessionDir) {
    let Some(settings) = &spec.engine else { return };
    let Ok(engine) = Engine::connect(&settings.host).await else {
        // The sweep will.
        return;
    };
    let all = engine.containers(&dir.sessions()).await.unwrap_or_default();
    for left in all.iter().filter(|left| left.session == spec.session) {
        let _ = engine.remove(&left.id).await;
    }
}

/// What becomes of a container, from its image to its end.
pub struct Course {
    spec: AgentSpec,
    settings: EngineSettings,
    container: machine::Container,
    dir: SessionDir,
    log: Log,
    shared: Rc<Shared>,
    may_go: oneshot::Receiver<()>,
}

impl Course {
    /// How long it may take until the app can be started.
    #[must_use]
    pub const fn prepare_limit(&self) -> Millis {
        self.settings.pull_limit
    }

    /// Take it. Each step is told.
    pub async fn run(mut self, stages: mpsc::UnboundedSender<Stage>) {
        let (engine, id, network) = match self.prepare().await {
            Ok(prepared) => prepared,
            Err(why) => {
                let _ = stages.send(Stage::Failed(why));
                return;
            }
        };
        let _ = stages.send(Stage::Prepared);
        if (&mut self.may_go).await.is_err() {
            return;
        }
        failpoint::cross(Point::AgentBeforeContainer);
        let started = self.start(&engine, &id, &network).await;
        failpoint::cross(Point::AgentAfterContainer);
        self.shared.awaited.set(false);
        let inside = match started {
            Ok(Some((inside, address))) => {
                let inside = Rc::new(inside);
                if self.shared.over.get() {
                    inside.kill();
                }
                let _ = stages.send(Stage::Runs(Rc::clone(&inside), address));
                Some(inside)
            }
            Ok(None) => None,
            Err(why) => {
                let _ = stages.send(Stage::Failed(why));
                return;
            }
        };
        let exit = self.follow(&engine, &id, inside.as_deref()).await;
        let _ = stages.send(Stage::Exited(exit));
    }

    /// Read what it writes until it ends. Says how.
    async fn follow(&self, engine: &Engine, id: &str, inside: Option<&Inside>) -> Exit {
        let wrote = engine.follow(id, |level, line| self.log.app_wrote(level, line));
        let wrote = wrote.fuse();
        tokio::pin!(wrote);
        let mut was_out_of_memory = false;
        if let Some(inside) = inside {
            tokio::select! {
                () = ended(inside) => {}
                () = async { wrote.as_mut().await; ended(inside).await } => {}
            }
            // Before anything else: its cgroup is about to go.
            was_out_of_memory = inside.was_out_of_memory();
        }
        let (exit, _) = tokio::join!(engine.exit(id), timeout(LAST_WORDS_WITHIN, wrote));
        if was_out_of_memory && exit == Exit::Signal(9) {
            return Exit::OutOfMemory;
        }
        exit
    }

    /// An engine, a container in it, and a network for that. Nothing runs yet.
    async fn prepare(&self) -> Result<(Engine, String, Network), String> {
        let engine = Engine::connect(&self.settings.host).await?;
        let says = |sentence: String| self.log.write(LogLevel::Info, &sentence);
        engine.fetch(&self.container.image, says).await?;
        apart::keep_apart(self.settings.subnets)
            .map_err(|why| format!("It could not be kept from other sessions: {why}"))?;
        let network = engine.claim_network(&self.settings).await?;
        let recipe = &self.spec.recipe;
        let port = recipe.port.unwrap_or(DEFAULT_PORT);
        let mut environment = recipe.environment.clone();
        environment.extend(super::environment::of_session(&self.spec, port));
        let environment = environment.into_iter();
        let parts = Parts {
            session: self.spec.session,
            sessions: &self.dir.sessions(),
            container: &self.container,
            words: recipe.command.words(port),
            environment: environment
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            workdir: recipe.workdir.as_deref(),
            files: &self.dir.work(),
            visible_device: self.spec.visible_device.as_deref().unwrap_or_default(),
            network: &network,
            limits: self.spec.limits,
        };
        let (id, missing) = engine.create(&parts, &self.settings).await?;
        self.shared.id.replace(Some(id.clone()));
        for missing in missing {
            self.log.write(LogLevel::Info, &missing);
        }
        Ok((engine, id, network))
    }

    async fn start(
        &self,
        engine: &Engine,
        id: &str,
        network: &Network,
    ) -> Result<Option<(Inside, std::net::SocketAddr)>, String> {
        let last_moment = self.shared.last_moment.get();
        let is_late = last_moment.is_some_and(|moment| moment <= clock::monotonic());
        if is_late || self.shared.over.get() {
            return Err("The session was over before its app was started".to_owned());
        }
        let Some(started) = engine.start(id, network).await? else {
            return Ok(None);
        };
        let inside = match Inside::open(started.pid, id) {
            Ok(inside) => inside,
            // The engine may notice later than we that it has ended.
            Err(_) if engine.exit(id).await != Exit::Unseen => return Ok(None),
            Err(why) => {
                return Err(format!(
                    "The container engine at {} does not run on the agent's own host, as it must, \
                     or the agent may not see what it runs ({why})",
                    self.settings.host
                ));
            }
        };
        let port = self.spec.recipe.port.unwrap_or(DEFAULT_PORT);
        Ok(Some((inside, (started.address, port).into())))
    }
}

/// Waits until the last process is gone.
async fn ended(inside: &Inside) {
    let end = inside.end().try_clone_to_owned();
    // SAFETY: the descriptor is its owner's own, and the same for as long as that lives.
    let register = |end| unsafe { AsyncFd::register_with_interest(end, Interest::READABLE) };
    let end = end.and_then(|end| register(end).map_err(io::Error::from));
    match end {
        Ok(end) => {
            let _ = end.readable().await;
        }
        Err(_) => {
            while !inside.is_gone() {
                tokio::time::sleep(REMOVE_AGAIN_AFTER).await;
            }
        }
    }
}
