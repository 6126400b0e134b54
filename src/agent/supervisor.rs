//! The loop around the lease: what happens goes in, what is decided gets done.

use std::time::Duration;

use dwell_core::lease::{Command, Exit, Lease, Terms};
use dwell_core::protocol::{AgentStatus, ServerMessage};
use dwell_core::session::Ending;
use dwell_core::time::Millis;
use nix::sys::signal::Signal;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep_until, timeout};

use super::at_work::{AtWork, Happening, StartedProcesses, every, words};
use super::cgroup::Cgroups;
use super::container::{self, Container, Course, Stage};
use super::control::Event;
use super::environment::{environment, find_program};
use super::init::{App, Word};
use super::leave;
use super::log::Log;
use super::log_copy::LogCopy;
use super::port::AppPort;
use super::processes::Processes;
use super::tree::Tree;
use super::{AgentPhase, AgentSpec, Entry, Journal, Lock, Monotonic, SessionDir, memory, remains};
use crate::clock;
use crate::failpoint::{self, Point};
use crate::session_log::LogLevel;

/// How often the agent puts down that it lives.
const PROOF_EVERY: Duration = Duration::from_secs(1);
/// How long the first process may take to say what it did in our place.
const WORD_WITHIN: Duration = Duration::from_secs(1);
/// How long the app's last words may take to be read once it is gone.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);

/// One session under supervision.
pub(super) struct Supervisor {
    dir: SessionDir,
    spec: AgentSpec,
    lock: Lock,
    journal: Journal,
    has_put_down_end: bool,
    log: Log,
}

impl Supervisor {
    pub(super) fn new(dir: SessionDir, spec: AgentSpec, lock: Lock, journal: Journal) -> Self {
        let log = Log::new(&dir, spec.limits);
        Self {
            dir,
            spec,
            lock,
            journal,
            has_put_down_end: false,
            log,
        }
    }

    /// Run the session to its end and report it.
    pub(super) async fn run(mut self) {
        // A job has its GPU already.
        let began = clock::monotonic();
        LocalSet::new()
            .run_until(async move {
                let asked = if self.spec.is_in_job {
                    match self.ask_to_begin(began).await {
                        Some(at_work) => Some(at_work),
                        None => return,
                    }
                } else {
                    None
                };
                let mut lease = Lease::new(self.spec.terms, began);
                self.note(&Entry::Began { at: began });
                failpoint::cross(Point::AgentAfterBegan);
                let _ = self.lock.prove_life(began);
                let started = self.start();
                failpoint::cross(Point::AgentAfterStart);
                let is_in_job = asked.is_some();
                let mut at_work =
                    asked.unwrap_or_else(|| AtWork::new(&self.spec, lease.status(began)));
                let log_copy = is_in_job.then(|| LogCopy::start(&self.spec, self.dir.log()));
                at_work.report(&lease);
                match started {
                    Ok(Started::Processes(started)) => {
                        at_work.take_over(started, &self.spec, &self.log)
                    }
                    Ok(Started::Container(container)) => {
                        let (container, course) = *container;
                        lease.prepares_within(course.prepare_limit());
                        at_work.take_over_container(container, course);
                    }
                    Err(why) => {
                        self.remark(&why);
                        lease.app_not_started(&why, clock::monotonic());
                    }
                }
                self.supervise(&mut lease, &mut at_work).await;
                let status = lease.status(clock::monotonic());
                at_work.see_off().await;
                at_work.finish_log(LAST_WORDS_WITHIN).await;
                if let Some(copy) = log_copy {
                    // Whoever follows the log stops when the session has ended.
                    copy.finish().await;
                }
                let tree = at_work.tree.take();
                let is_container = matches!(tree, Some(Tree::Container(_)));
                let dir = self.dir.clone();
                let mut cleaning = spawn_local(async move { clean_up(tree, &dir).await });
                if !is_container {
                    let _ = (&mut cleaning).await;
                }
                failpoint::cross(Point::AgentBeforeReport);
                let put_down = |status: &AgentStatus| self.put_down_end(status);
                at_work.report_until_heard(status, put_down).await;
                if is_container {
                    // Nobody waited for the engine to do it.
                    let _ = cleaning.await;
                }
                failpoint::cross(Point::AgentAfterForget);
                self.lock.retire(&self.dir);
            })
            .await;
    }

    /// What is at work once the server lets this agent begin; none if it does not.
    async fn ask_to_begin(&self, began: Monotonic) -> Option<AtWork> {
        let Terms {
            granted_ms,
            start_limit_ms,
            ..
        } = self.spec.terms;
        let asks = leave::asks(granted_ms).ok()?;
        let mut at_work = AtWork::new(&self.spec, asks);
        let is_given = leave::is_given(&mut at_work, began, start_limit_ms).await;
        is_given.then_some(at_work)
    }

    /// An earlier agent's session is over: make sure of it, and report it.
    pub(super) async fn report_past(mut self, status: AgentStatus) {
        remains::clear_away(self.spec.session).await;
        container::remove_left(&self.spec, &self.dir).await;
        self.put_down_end(&status);
        clean_up(None, &self.dir).await;
        LocalSet::new()
            .run_until(async move {
                let mut at_work = AtWork::new(&self.spec, status.clone());
                let put_down = |status: &AgentStatus| self.put_down_end(status);
                at_work.report_until_heard(status, put_down).await;
                self.lock.retire(&self.dir);
            })
            .await;
    }

    fn start(&self) -> Result<Started, String> {
        match (&self.spec.recipe.container, &self.spec.engine) {
            (None, _) => self.start_processes().map(Started::Processes),
            (Some(container), Some(engine)) => {
                // In a container the app may be any user; nobody else gets as far as here.
                make_dir(&self.dir.work(), 0o777)?;
                let container = Container::new(&self.spec, engine, container, &self.dir, &self.log);
                Ok(Started::Container(Box::new(container)))
            }
            (Some(_), None) => Err("Its server has no container engine".to_owned()),
        }
    }

    fn start_processes(&self) -> Result<StartedProcesses, String> {
        let port = match self.spec.recipe.port {
            Some(port) => AppPort::fixed(port),
            None => AppPort::any(),
        }?;
        let words = self.spec.recipe.command.words(port.port);
        let directory = match &self.spec.recipe.workdir {
            Some(directory) => directory.into(),
            None => self.dir.work(),
        };
        if self.spec.recipe.workdir.is_none() {
            make_dir(&directory, 0o700)?;
        }
        if !directory.is_dir() {
            return Err(format!(
                "The directory {} is not there",
                directory.display()
            ));
        }
        let environment = environment(&self.spec, port.port);
        let name = words.first().map_or("", String::as_str);
        let program = find_program(name, &environment, &directory)?;
        let cgroups = Cgroups::create(self.spec.session, self.spec.limits);
        let app = App {
            session: self.spec.session,
            program,
            words,
            environment,
            directory,
            cgroup_doors: Vec::new(),
        };
        let (processes, outputs) = Processes::start(app, cgroups)
            .map_err(|error| format!("No process could be started: {error}"))?;
        for missing in processes.missing() {
            self.log.write(LogLevel::Info, missing);
        }
        Ok(StartedProcesses {
            processes,
            outputs,
            port,
        })
    }

    async fn supervise(&mut self, lease: &mut Lease, at_work: &mut AtWork) {
        let mut proofs = every(PROOF_EVERY);
        let mut heartbeats = every(self.spec.heartbeat.into());
        let mut trimmed = false;
        loop {
            self.obey(lease, at_work);
            if lease.is_over() {
                return;
            }
            let deadline = lease.deadline().map_or_else(Instant::now, instant);
            let next = tokio::select! {
                biased;
                happening = at_work.next() => Next::Happening(happening),
                () = sleep_until(deadline) => Next::Deadline,
                _ = proofs.tick() => Next::Proof,
                _ = heartbeats.tick() => Next::Heartbeat,
            };
            self.catch_up(lease, at_work).await;
            match next {
                Next::Happening(happening) => {
                    if let Some(exit) = happening.exit() {
                        // Who ends a job tells every process of it, in any order.
                        let was_told =
                            self.spec.is_in_job || exit == Exit::Signal(Signal::SIGTERM as i32);
                        for before in at_work.finish_app(was_told).await {
                            self.take_in(before, lease, at_work);
                        }
                    }
                    self.take_in(happening, lease, at_work);
                }
                Next::Deadline => lease.advance(clock::monotonic()),
                Next::Proof => {
                    let _ = self.lock.prove_life(clock::monotonic());
                    let runs = lease.status(clock::monotonic()).phase.rank() == 1;
                    if runs && !std::mem::replace(&mut trimmed, true) {
                        memory::trim();
                    }
                }
                Next::Heartbeat => at_work.report(lease),
            }
        }
    }

    /// If we were paused past the last moment, what was done in our place comes before
    /// anything that we would do or say now, and before what was said until then.
    async fn catch_up(&mut self, lease: &mut Lease, at_work: &mut AtWork) {
        let overslept = |moment| moment < clock::monotonic();
        if !lease.kill_at_latest().is_some_and(overslept) {
            return;
        }
        let mut said = Vec::new();
        while let Ok(Some(word)) = timeout(WORD_WITHIN, at_work.next_word()).await {
            if let Word::KilledInYourPlace { gone_at } = word {
                return lease.ended_by_watch(gone_at);
            }
            said.push(word);
        }
        for word in said {
            self.take_in(Happening::Word(word), lease, at_work);
        }
    }

    /// Do what the lease decided.
    fn obey(&mut self, lease: &mut Lease, at_work: &mut AtWork) {
        if let Some(tree) = &mut at_work.tree {
            tree.kill_at_latest(lease.kill_at_latest());
        }
        while let Some(command) = lease.next_command() {
            match (command, &mut at_work.tree) {
                (Command::TerminateTree, Some(tree)) => tree.terminate(),
                (Command::KillTree, Some(tree)) => {
                    at_work.killing = true;
                    tree.kill();
                }
                (Command::TerminateTree, None) => {}
                (Command::KillTree, None) => lease.tree_gone(clock::monotonic()),
                (Command::Report, _) => {
                    let status = lease.status(clock::monotonic());
                    if matches!(status.phase, AgentPhase::Ended { .. }) {
                        // The server is told when nothing is left to be read or removed.
                        failpoint::cross(Point::AgentBeforeEnded);
                        self.put_down_end(&status);
                        failpoint::cross(Point::AgentAfterEnded);
                    } else {
                        at_work.report(lease);
                    }
                }
            }
        }
    }

    fn take_in(&mut self, happening: Happening, lease: &mut Lease, at_work: &mut AtWork) {
        let now = clock::monotonic();
        match happening {
            Happening::Answered(address) => {
                self.note(&Entry::Answered { at: now });
                failpoint::cross(Point::AgentAfterAnswered);
                match at_work.reach(address, &self.spec) {
                    Ok(upstream) => lease.app_answered(upstream, now),
                    Err(error) => {
                        let why = format!("No tunnel could be started: {error}");
                        self.remark(&why);
                        lease.app_not_started(&why, now);
                    }
                }
            }
            Happening::Word(Word::AppExited(exit)) => {
                lease.app_exited(exit, self.log.last_line().as_deref(), now);
            }
            Happening::Word(Word::NotStarted(why)) => {
                self.remark(&why);
                lease.app_not_started(&why, now);
            }
            Happening::Word(Word::KilledInYourPlace { gone_at }) => lease.ended_by_watch(gone_at),
            Happening::Word(Word::Missing(what)) => self.log.write(LogLevel::Info, &what),
            Happening::Stage(stage) => self.go_on(stage, lease, at_work),
            Happening::Reap => {
                let Some(tree) = &mut at_work.tree else {
                    return;
                };
                if tree.reap() && !at_work.killing {
                    // Not by us: the app cannot be relied on to be there.
                    lease.app_not_started("The session's first process was killed", now);
                    lease.app_exited(Exit::Signal(9), None, now);
                }
                if at_work.killing && tree.is_gone() {
                    at_work.killing = false;
                    lease.tree_gone(now);
                }
            }
            Happening::Server(Event::Connected) => {
                if let Some(channels) = &at_work.channels {
                    channels.renew();
                }
                at_work.report(lease);
            }
            Happening::Server(Event::Said(ServerMessage::Servers { urls })) => {
                at_work.servers = Some(urls.clone());
                if let Some(channels) = &at_work.channels {
                    channels.lead_to(urls);
                }
            }
            Happening::Server(Event::Said(message)) => lease.heard(&message, now),
            Happening::Server(Event::Refused) => {}
            Happening::HostStops => {
                let why = if self.spec.is_in_job {
                    "Its job was told to end: it was cancelled or preempted, or its host is \
                     shutting down"
                } else {
                    "Its host is shutting down"
                };
                let ending = Ending::failed(why.to_owned());
                lease.heard(&ServerMessage::Stop { ending }, now);
            }
        }
    }

    /// The container is so far.
    fn go_on(&self, stage: Stage, lease: &mut Lease, at_work: &mut AtWork) {
        let now = clock::monotonic();
        let Some(Tree::Container(container)) = &mut at_work.tree else {
            return;
        };
        match stage {
            Stage::Prepared => {
                lease.prepared(now);
                if !lease.goes_on() {
                    return;
                }
                container.kill_at_latest(lease.kill_at_latest());
                let heard = container.go_ahead().and_then(words);
                at_work.words = heard
                    .inspect_err(|error| {
                        let why = format!("Nobody could be set to watch over it: {error}");
                        self.remark(&why);
                        lease.app_not_started(&why, now);
                    })
                    .ok();
            }
            Stage::Runs(inside, address) => {
                container.runs(inside);
                at_work.probe(vec![address], &self.spec);
            }
            Stage::Failed(why) => {
                container.was_not_started();
                self.remark(&why);
                lease.app_not_started(&why, now);
            }
            Stage::Exited(exit) => {
                container.has_ended();
                lease.app_exited(exit, self.log.last_line().as_deref(), now);
            }
        }
    }

    /// Put down the end, once. Says whether it is.
    fn put_down_end(&mut self, status: &AgentStatus) -> bool {
        let ended = Entry::Ended {
            status: status.clone(),
        };
        self.has_put_down_end = self.has_put_down_end || self.note(&ended);
        self.has_put_down_end
    }

    fn note(&mut self, entry: &Entry) -> bool {
        let written = self.journal.write(entry);
        if let Err(error) = &written {
            eprintln!(
                "{} the journal cannot be written: {error}",
                clock::rfc3339(clock::wall())
            );
        }
        written.is_ok()
    }

    fn remark(&self, sentence: &str) {
        self.log.write(LogLevel::Error, sentence);
    }
}

/// An app that was started, or is about to be.
enum Started {
    Processes(StartedProcesses),
    Container(Box<(Container, Course)>),
}

/// Why the loop went on.
enum Next {
    Happening(Happening),
    Deadline,
    Proof,
    Heartbeat,
}

/// The same moment by tokio's clock. That one may stand still while the host
/// sleeps, so nobody waits for long at a time.
fn instant(moment: Monotonic) -> Instant {
    const LOOK_AT_LEAST_EVERY: Millis = Millis(1_000);
    Instant::now() + Duration::from(moment.since(clock::monotonic()).min(LOOK_AT_LEAST_EVERY))
}

fn make_dir(path: &std::path::Path, mode: u32) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)))
        .map_err(|error| format!("{} could not be made: {error}", path.display()))
}

async fn clean_up(tree: Option<Tree>, dir: &SessionDir) {
    if let Some(tree) = tree {
        tree.remove().await;
    }
    let _ = std::fs::remove_dir_all(dir.work());
}
