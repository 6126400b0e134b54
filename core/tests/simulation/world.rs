//! The world of one seed: a server that crashes, a store that refuses, hosts, a
//! network and a clock that steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use dwell_core::control_plane::{
    Change, Command, ControlPlane, Launch, LaunchOutcome, MachinePatch, NewMachine, NewSession,
    NewShare, Settings, Snapshot, Source,
};
use dwell_core::gpu::{GpuId, GpuType, Inventory};
use dwell_core::id::{GpuEventId, KeyId, MachineId, MachineVersionId, SessionId, ShareId};
use dwell_core::job::{JobId, JobState, Jobs, Offer};
use dwell_core::key::{Key, KeyHash};
use dwell_core::lease::{Exit, Terms};
use dwell_core::limits::Limits;
use dwell_core::machine::{Access, AppCommand, Machine, Recipe};
use dwell_core::owner::{OrgId, Owner, Principal, UserId};
use dwell_core::placement::Places;
use dwell_core::ports::PortPool;
use dwell_core::pricing::{HourlyRate, MicroDollars, Prices};
use dwell_core::protocol::{AgentPhase, AgentStatus, ServerMessage};
use dwell_core::refusal::Refusal;
use dwell_core::session::{Ending, Session, State};
use dwell_core::share::{Scope, Share, Visit};
use dwell_core::time::{Millis, Moment, Monotonic, Timestamp};
use uuid::Uuid;

use crate::agents::{AppNature, ORPHAN_MS, Post, Site, Wish, is_sooner};
use crate::engine::Engine;
use crate::invariants;

mod clients;
mod faults;
mod hosts;
mod jobs;
mod server;

pub const PORTS: RangeInclusive<u16> = 20_000..=20_099;
pub const LIMITS: Limits = Limits {
    sessions_per_machine: 2,
    sessions_per_owner: 4,
    machines_per_owner: 4,
    keys_per_owner: 5,
    shares_per_session: 2,
    timeout_max_minutes: 30,
    timeout_default_minutes: 2,
    start_limit: Millis(60_000),
    grace: Millis(5_000),
    timeout_grace: Millis(800),
    heartbeat: Millis(10_000),
    relaunch_after: Millis(25_000),
    lost_after: Millis(60_000),
    retention: Millis(3_600_000_000),
};

/// What a client was told has happened.
pub struct Acknowledged {
    pub owner: Owner,
    pub granted: Millis,
    pub cancelled: bool,
    pub cancelled_in_queue: bool,
}

/// What is on record.
#[derive(Default)]
pub struct Stored {
    pub sessions: BTreeMap<SessionId, Session>,
    open: BTreeSet<SessionId>,
    pub machines: BTreeMap<MachineId, Machine>,
    pub versions: BTreeSet<(MachineId, MachineVersionId)>,
    pub keys: BTreeMap<KeyId, Key>,
    pub shares: BTreeMap<(SessionId, ShareId), Share>,
}

enum Event {
    Client,
    Fault,
    ServerWakes,
    ServerStarts,
    StoreRecovers,
    ServerStops {
        process: u32,
    },
    ServerGoesOn {
        process: u32,
    },
    ToServer(Post, AgentStatus),
    ToAgent(Post, ServerMessage),
    HangsUp(SessionId),
    Launch(LaunchUnderWay),
    /// A job is asked of its engine.
    Submit(LaunchUnderWay),
    Launched {
        by: u32,
        id: SessionId,
        outcome: LaunchOutcome,
    },
    PortTaken(SessionId, u16),
    Heartbeat(Post, u32),
    AgentWakes(Post, u32),
    AgentGoesOn(Post, u32),
    AppAnswers {
        post: Post,
        tree: u32,
    },
    AppExits {
        post: Post,
        tree: u32,
        status: i32,
    },
    WatchWakes {
        post: Post,
        tree: u32,
    },
    TreeGone {
        post: Post,
        tree: u32,
    },
    HostGoesOn(GpuId),
    Look {
        by: u32,
    },
    Looked {
        by: u32,
        asked_at: Monotonic,
        jobs: Jobs,
    },
    /// A job's engine is asked to end it, or to let it run for longer.
    JobAsked {
        number: u32,
        time_limit: Option<Millis>,
    },
    EngineSchedules,
    JobAgent(u32),
    JobLimit(u32),
    JobKill(u32),
    JobPurged(u32),
    NodeFails(GpuId),
    NodeReturns(GpuId),
}

impl Stored {
    fn put(&mut self, session: Session) {
        if session.is_open() {
            self.open.insert(session.id);
        } else {
            self.open.remove(&session.id);
        }
        self.sessions.insert(session.id, session);
    }

    pub fn open(&self) -> impl Iterator<Item = &Session> {
        self.open.iter().map(|id| &self.sessions[id])
    }

    pub fn open_shares(&self) -> impl Iterator<Item = &Share> {
        let of_open = |share: &&Share| self.open.contains(&share.session);
        self.shares.values().filter(of_open)
    }
}

/// A launcher is at work.
struct LaunchUnderWay {
    /// The server process that asked.
    by: u32,
    launch: Box<Launch>,
    /// An agent of the session had been heard of, on record, when it was asked for.
    was_heard_of: bool,
}

impl Event {
    /// Whose agent does this or takes it in.
    const fn of_agent(&self) -> Option<Post> {
        match self {
            Self::ToAgent(post, _)
            | Self::Heartbeat(post, _)
            | Self::AgentWakes(post, _)
            | Self::AppAnswers { post, .. }
            | Self::AppExits { post, .. } => Some(*post),
            _ => None,
        }
    }

    /// Does the server take this in?
    const fn of_server(&self) -> bool {
        matches!(
            self,
            Self::ServerWakes
                | Self::ServerStops { .. }
                | Self::ToServer(..)
                | Self::HangsUp(_)
                | Self::Launched { .. }
                | Self::Looked { .. }
        )
    }

    /// The one on whose host this happens.
    const fn on_host(&self) -> Option<Post> {
        match self {
            Self::AgentGoesOn(post, _)
            | Self::WatchWakes { post, .. }
            | Self::TreeGone { post, .. } => Some(*post),
            _ => self.of_agent(),
        }
    }
}

pub struct World {
    random: fastrand::Rng,
    pub now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    next_id: u128,
    wall_offset: i64,
    pub calm: bool,
    pub inventory: Inventory,
    /// The cluster that some servers have.
    pub engine: Option<Engine>,
    /// Whether it is preferred to the host's own GPUs.
    cluster_comes_first: bool,
    /// Sessions that may have two jobs: whether there is one was not to be known.
    pub may_double: BTreeSet<SessionId>,
    /// Jobs whose time limit was to be moved after the last look.
    pub limited: BTreeSet<JobId>,
    pub plane: Option<ControlPlane>,
    pub store: Stored,
    /// The server's processes, one after the other.
    process: u32,
    server_wakes_at: Option<u64>,
    /// Its process is paused, or its host sleeps; this waits for it.
    server_missed: Option<Vec<Event>>,
    /// It was told to end its sessions and grants none from now on.
    shuts_down: bool,
    store_refuses: bool,
    launcher_broken_until: u64,
    /// Hosts that stand still or cannot be reached, by their GPU.
    pub away: BTreeSet<GpuId>,
    /// What happens when what stands still goes on.
    put_off: BTreeMap<Post, Vec<Event>>,
    /// The server decided something in this step.
    served: bool,
    /// The server has nothing undecided: what it waits for is not its doing.
    pub at_rest: bool,
    pub sites: BTreeMap<Post, Site>,
    pub acknowledged: BTreeMap<SessionId, Acknowledged>,
    pub acknowledged_versions: BTreeSet<(MachineId, MachineVersionId)>,
    pub acknowledged_keys: BTreeSet<KeyId>,
    /// Share links that were granted, and whether their end was.
    pub acknowledged_shares: BTreeMap<(SessionId, ShareId), bool>,
    pub last_events: BTreeMap<GpuId, (SessionId, Timestamp)>,
    /// When something of a session's agent was last taken in.
    pub last_heard: BTreeMap<SessionId, u64>,
    /// Who spoke last of each session's agents.
    speaks: BTreeMap<SessionId, Post>,
    /// For how long each session's GPU is proven, on record, to have been held.
    pub proven: BTreeMap<SessionId, Millis>,
    /// How much faster than at the least clients ask for things and things fail.
    haste: u64,
    steps: usize,
    commands: u64,
    history: String,
    broken: Option<String>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let (a10g, cpu) = (GpuType("A10G".into()), GpuType::cpu());
        let mut random = fastrand::Rng::with_seed(seed);
        let haste = [1, 4, 16][random.usize(0..3)];
        let engine = random.bool().then(|| {
            let jobs_max = [None, Some(1), Some(4)][random.usize(0..3)];
            let look_every = [5_000, 20_000][random.usize(0..2)];
            // As Slurm does it, and Kubernetes.
            let grain_ms = [60_000, 1_000][random.usize(0..2)];
            Engine::new(random.bool(), jobs_max, look_every, grain_ms)
        });
        let gpus = if engine.is_some() { 1 } else { 3 };
        let cluster_comes_first = random.bool();
        let mut world = Self {
            random,
            now: 0,
            events: BTreeMap::new(),
            next_event: 0,
            next_id: 1,
            wall_offset: 1_795_435_200_000,
            calm: false,
            inventory: Inventory::declared([(&a10g, gpus), (&cpu, 2)]),
            engine,
            cluster_comes_first,
            may_double: BTreeSet::new(),
            limited: BTreeSet::new(),
            plane: None,
            store: Stored::default(),
            process: 0,
            server_wakes_at: None,
            server_missed: None,
            shuts_down: false,
            store_refuses: false,
            launcher_broken_until: 0,
            away: BTreeSet::new(),
            put_off: BTreeMap::new(),
            served: false,
            at_rest: false,
            sites: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            acknowledged_versions: BTreeSet::new(),
            acknowledged_keys: BTreeSet::new(),
            acknowledged_shares: BTreeMap::new(),
            last_events: BTreeMap::new(),
            last_heard: BTreeMap::new(),
            speaks: BTreeMap::new(),
            proven: BTreeMap::new(),
            haste,
            steps: 0,
            commands: 0,
            history: String::new(),
            broken: None,
        };
        world.at(0, Event::ServerStarts);
        world.at(10, Event::Client);
        world.at(1_000, Event::Fault);
        world
    }

    pub fn history(&self) -> String {
        self.history.clone()
    }

    /// `steps` events with faults; then none, until all has come to rest.
    pub fn run(&mut self, steps: usize) -> Result<(), String> {
        while self.steps < steps {
            self.step()?;
        }
        self.calm_down();
        let (end, commands) = (self.now + 4 * 3_600_000, self.commands);
        while self.now < end && self.events.keys().next().is_some() {
            self.step()?;
            if self.is_idle() {
                break;
            }
        }
        self.everything_came_to_rest(commands)
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(((at, _), event)) = self.events.pop_first() else {
            return Err("nothing happens any more".into());
        };
        self.now = at;
        self.served = false;
        // Looks come all the time and mostly change nothing.
        self.steps += usize::from(!matches!(event, Event::Look { .. } | Event::Looked { .. }));
        self.happen(event);
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        // All else is checked where it changes.
        if self.served {
            invariants::check(self)?;
        }
        Ok(())
    }

    fn check(&mut self, checked: Result<(), String>) {
        self.broken = self.broken.take().or(checked.err());
    }

    fn everything_came_to_rest(&mut self, commands_before: u64) -> Result<(), String> {
        for session in self.store.sessions.values() {
            if session.is_open() {
                return Err(format!("{} never ended: {:?}", session.id, session.state));
            }
        }
        for (post, site) in &self.sites {
            if site.tree.is_some() || site.agent.is_some() {
                return Err(format!("something of {post} is left: {:?}", site.agent));
            }
        }
        if let Some(engine) = &self.engine
            && let Some((number, job)) = engine.jobs.iter().find(|(job, _)| !engine.is_over(**job))
        {
            return Err(format!("job {number} of {} is left", job.session));
        }
        invariants::everything_acknowledged_is_there(self)?;
        invariants::the_bill_adds_up(self)?;
        let allowed = 200 * (self.store.sessions.len() as u64 + 1);
        let commands = self.commands - commands_before;
        if commands > allowed {
            return Err(format!(
                "{commands} commands for {} sessions",
                self.store.sessions.len()
            ));
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.store
            .sessions
            .values()
            .all(|session| !session.is_open())
            && self
                .sites
                .values()
                .all(|site| site.tree.is_none() && site.agent.is_none())
            && self
                .engine
                .as_ref()
                .is_none_or(|engine| engine.jobs.keys().all(|job| engine.is_over(*job)))
    }

    /// From now on nothing fails any more, and nobody asks for anything.
    fn calm_down(&mut self) {
        self.say("the faults stop");
        self.calm = true;
        self.store_refuses = false;
        if let Some(engine) = &mut self.engine {
            engine.unreachable_until = 0;
        }
        for gpu in std::mem::take(&mut self.away) {
            self.host_goes_on(&gpu);
        }
        let posts: Vec<_> = self.sites.keys().copied().collect();
        for post in posts {
            if let Some(site) = self.sites.get_mut(&post) {
                site.partitioned_until = 0;
            }
            self.wake_agent(post);
        }
        self.server_goes_on();
        if self.plane.is_none() {
            self.at(1, Event::ServerStarts);
        }
        self.wake_server(2);
    }

    fn happen(&mut self, event: Event) {
        if let Some(post) = self.stands_still(&event) {
            self.put_off.entry(post).or_default().push(event);
            return;
        }
        if let Some(missed) = &mut self.server_missed
            && event.of_server()
        {
            missed.push(event);
            return;
        }
        match event {
            Event::Client => self.client(),
            Event::Fault => self.fault(),
            Event::ServerWakes => {
                self.server_wakes_at = None;
                self.serve(|_, _| ());
            }
            Event::ServerStarts => self.server_starts(),
            Event::ServerStops { process } => {
                if self.plane.is_some() && process == self.process {
                    self.server_stops();
                }
            }
            Event::ServerGoesOn { process } => {
                if process == self.process {
                    self.server_goes_on();
                }
            }
            Event::StoreRecovers => {
                self.store_refuses = false;
                self.say("the store takes writes again");
                self.serve(|_, _| ());
            }
            Event::ToServer(post, status) => self.server_hears(post, &status),
            Event::ToAgent(post, message) => {
                if post.job.is_some() {
                    self.agent_is_answered(post, &message);
                }
                self.with_site(post, |site, now| site.hear(&message, now));
                self.check(invariants::nothing_told_is_taken_back(self, post));
            }
            Event::HangsUp(id) => {
                self.serve(|plane, now| plane.hung_up(id, now));
            }
            Event::Launch(asked) if asked.launch.placement.launcher().is_some() => {
                self.launch_job(asked);
            }
            Event::Launch(launch) => self.launch(&launch),
            Event::Submit(asked) => self.submit(asked),
            Event::Launched { by, id, outcome } => {
                if by == self.process {
                    self.serve(|plane, now| plane.launched(id, outcome, now));
                }
            }
            Event::PortTaken(id, port) => {
                self.say(&format!("port is taken: {port} of {}", short(id)));
                self.serve(|plane, now| plane.port_unusable(id, port, now));
            }
            Event::Heartbeat(post, incarnation) => {
                if self.is_alive(post, incarnation) {
                    self.with_site(post, Site::prove_life);
                    self.report(post);
                    self.at(LIMITS.heartbeat.0, Event::Heartbeat(post, incarnation));
                }
            }
            Event::AgentWakes(post, incarnation) => {
                if self.is_alive(post, incarnation) {
                    self.with_site(post, Site::advance);
                }
            }
            Event::AgentGoesOn(post, incarnation) => {
                if self.is_alive(post, incarnation) {
                    self.wake_agent(post);
                }
            }
            Event::AppAnswers { post, tree } => {
                if self.has_tree(post, tree) {
                    self.with_site(post, Site::app_answers);
                }
            }
            Event::AppExits { post, tree, status } => {
                if self.has_tree(post, tree) {
                    self.with_site(post, |site, now| site.app_exits(Exit::Status(status), now));
                }
            }
            Event::WatchWakes { post, tree } => {
                if self.has_tree(post, tree) {
                    self.watch(post);
                }
            }
            Event::TreeGone { post, tree } => {
                if self.has_tree(post, tree) {
                    self.tree_gone(post);
                }
            }
            Event::HostGoesOn(gpu) => {
                if self.away.remove(&gpu) {
                    self.host_goes_on(&gpu);
                }
            }
            Event::Look { by } => self.look(by),
            Event::Looked { by, asked_at, jobs } => self.looked(by, asked_at, &jobs),
            Event::JobAsked { number, time_limit } => self.job_is_asked(number, time_limit),
            Event::EngineSchedules => self.engine_schedules(),
            Event::JobAgent(number) => self.job_agent(number),
            Event::JobLimit(number) => self.job_is_at_its_limit(number),
            Event::JobKill(number) => self.kill_job(number),
            Event::JobPurged(number) => {
                if let Some(engine) = &mut self.engine {
                    engine.jobs.remove(&number);
                }
            }
            Event::NodeFails(gpu) => {
                if self.away.contains(&gpu) {
                    self.node_fails(&gpu);
                }
            }
            Event::NodeReturns(gpu) => self.node_returns(&gpu),
        }
    }

    /// Who it is about, if this cannot happen now because their host or agent stands still.
    fn stands_still(&self, event: &Event) -> Option<Post> {
        let post = event.on_host()?;
        let site = self.sites.get(&post)?;
        let stands_still = self.away.contains(&site.gpu)
            || event.of_agent().is_some() && site.agent_stands_still(self.now);
        stands_still.then_some(post)
    }

    // --- Small things -----------------------------------------------------------

    fn at(&mut self, wait: u64, event: Event) {
        self.events
            .insert((self.now + wait, self.next_event), event);
        self.next_event += 1;
    }

    fn moment(&self) -> Moment {
        Moment {
            wall: Timestamp(self.wall_offset + self.now as i64),
            monotonic: Monotonic(7_000_000 + self.now),
        }
    }

    fn new_id(&mut self) -> Uuid {
        self.next_id += 1;
        Uuid::from_u128(self.next_id)
    }

    /// All of a session's agents, and what they left.
    pub fn sites_of(&self, session: SessionId) -> impl Iterator<Item = (&Post, &Site)> {
        self.sites.range(posts_of(session))
    }

    fn chance(&mut self, of: u32, all: u32) -> bool {
        self.random.u32(0..all) < of
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        (!of.is_empty()).then(|| &of[self.random.usize(0..of.len())])
    }

    fn say(&mut self, what: &str) {
        let _ = writeln!(self.history, "{:>9} ms  {what}", self.now);
    }
}

fn recipe(port: u16) -> Recipe {
    Recipe {
        command: AppCommand::Shell("app".into()),
        port: Some(port),
        workdir: None,
        environment: BTreeMap::new(),
        gpu: GpuType("A10G".into()),
        timeout_minutes: 2,
        ready_path: "/".into(),
        access: None,
        container: None,
    }
}

fn posts_of(session: SessionId) -> RangeInclusive<Post> {
    let last = Post {
        session,
        job: Some(u32::MAX),
    };
    session.into()..=last
}

fn short(of: impl Into<Post>) -> String {
    of.into().to_string()
}

fn name(state: &State) -> &'static str {
    match state {
        State::Queued { .. } => "queued",
        State::Starting { .. } => "starting",
        State::Running { .. } => "running",
        State::Stopping { .. } => "stopping",
        State::Ended { .. } => "ended",
    }
}

fn described(session: &Session) -> String {
    match &session.state {
        State::Starting { placement } => format!("starting on {:?}", placement.place),
        State::Ended { ending, .. } => format!(
            "ended: {:?} {}",
            ending.reason,
            ending.error.as_deref().unwrap_or("")
        ),
        state @ (State::Queued { .. } | State::Running { .. } | State::Stopping { .. }) => {
            name(state).to_owned()
        }
    }
}
