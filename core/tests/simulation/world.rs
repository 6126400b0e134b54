//! The world of one seed: a server that crashes, a store that refuses, hosts, a
//! network and a clock that steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::RangeInclusive;

use dwell_core::control_plane::{
    Change, Command, ControlPlane, LaunchOutcome, MachinePatch, NewMachine, NewSession, Settings,
    Snapshot, Source,
};
use dwell_core::gpu::{GpuId, GpuType, Inventory};
use dwell_core::id::{GpuEventId, KeyId, MachineId, MachineVersionId, SessionId};
use dwell_core::key::{Key, KeyHash};
use dwell_core::lease::{Exit, Terms};
use dwell_core::limits::Limits;
use dwell_core::machine::{AppCommand, Machine, Recipe};
use dwell_core::owner::{OrgId, Owner, Principal, UserId};
use dwell_core::ports::PortPool;
use dwell_core::pricing::{HourlyRate, MicroDollars, Prices};
use dwell_core::protocol::{AgentPhase, AgentStatus, ServerMessage};
use dwell_core::refusal::Refusal;
use dwell_core::session::{Session, State};
use dwell_core::time::{Millis, Moment, Monotonic, Timestamp};
use uuid::Uuid;

use crate::agents::{AppNature, ORPHAN_MS, Site, Wish};
use crate::invariants;

pub const PORTS: RangeInclusive<u16> = 20_000..=20_099;
pub const LIMITS: Limits = Limits {
    sessions_per_machine: 2,
    sessions_per_owner: 4,
    machines_per_owner: 4,
    keys_per_owner: 5,
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
    pub machines: BTreeMap<MachineId, Machine>,
    pub versions: BTreeSet<(MachineId, MachineVersionId)>,
    pub keys: BTreeMap<KeyId, Key>,
}

enum Event {
    Client,
    Fault,
    ServerWakes,
    ServerStarts,
    StoreRecovers,
    ToServer(SessionId, AgentStatus),
    ToAgent(SessionId, ServerMessage),
    HangsUp(SessionId),
    Launch(SessionId, GpuId, Terms),
    Launched(SessionId, LaunchOutcome),
    PortTaken(SessionId, u16),
    Heartbeat(SessionId, u32),
    AgentWakes(SessionId, u32),
    AppAnswers(SessionId),
    AppExits(SessionId, i32),
    TreeGone(SessionId),
}

pub struct World {
    random: fastrand::Rng,
    pub now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    next_id: u128,
    wall_offset: i64,
    calm: bool,
    pub inventory: Inventory,
    pub plane: Option<ControlPlane>,
    pub store: Stored,
    store_refuses: bool,
    launcher_broken_until: u64,
    /// The server has nothing undecided: what it waits for is not its doing.
    pub at_rest: bool,
    pub sites: BTreeMap<SessionId, Site>,
    pub acknowledged: BTreeMap<SessionId, Acknowledged>,
    pub acknowledged_versions: BTreeSet<(MachineId, MachineVersionId)>,
    pub acknowledged_keys: BTreeSet<KeyId>,
    pub last_events: BTreeMap<GpuId, (SessionId, Timestamp)>,
    commands: u64,
    history: String,
    broken: Option<String>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let (a10g, cpu) = (GpuType("A10G".into()), GpuType::cpu());
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            now: 0,
            events: BTreeMap::new(),
            next_event: 0,
            next_id: 1,
            wall_offset: 1_795_435_200_000,
            calm: false,
            inventory: Inventory::declared([(&a10g, 3), (&cpu, 2)]),
            plane: None,
            store: Stored::default(),
            store_refuses: false,
            launcher_broken_until: 0,
            at_rest: false,
            sites: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            acknowledged_versions: BTreeSet::new(),
            acknowledged_keys: BTreeSet::new(),
            last_events: BTreeMap::new(),
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
        for _ in 0..steps {
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
        self.happen(event);
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        invariants::check(self)
    }

    fn everything_came_to_rest(&mut self, commands_before: u64) -> Result<(), String> {
        for session in self.store.sessions.values() {
            if session.is_open() {
                return Err(format!("{} never ended: {:?}", session.id, session.state));
            }
        }
        for (id, site) in &self.sites {
            if site.tree_since.is_some() || site.agent.is_some() {
                return Err(format!("something of {id} is left: {:?}", site.agent));
            }
        }
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
                .all(|site| site.tree_since.is_none() && site.agent.is_none())
    }

    /// From now on nothing fails any more, and nobody asks for anything.
    fn calm_down(&mut self) {
        self.say("the faults stop");
        self.calm = true;
        self.store_refuses = false;
        for site in self.sites.values_mut() {
            site.partitioned_until = 0;
        }
        if self.plane.is_none() {
            self.at(1, Event::ServerStarts);
        }
        self.at(2, Event::ServerWakes);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Client => self.client(),
            Event::Fault => self.fault(),
            Event::ServerWakes => {
                self.serve(|_, _| ());
            }
            Event::ServerStarts => self.server_starts(),
            Event::StoreRecovers => {
                self.store_refuses = false;
                self.say("the store takes writes again");
                self.serve(|_, _| ());
            }
            Event::ToServer(id, status) => {
                self.serve(|plane, now| plane.heard(id, &status, now));
            }
            Event::ToAgent(id, message) => self.with_site(id, |site, now| site.hear(&message, now)),
            Event::HangsUp(id) => {
                self.serve(|plane, now| plane.hung_up(id, now));
            }
            Event::Launch(id, gpu, terms) => self.launch(id, gpu, terms),
            Event::Launched(id, outcome) => {
                self.serve(|plane, now| plane.launched(id, outcome, now));
            }
            Event::PortTaken(id, port) => {
                self.say(&format!("port is taken: {port} of {}", short(id)));
                self.serve(|plane, now| plane.port_unusable(id, port, now));
            }
            Event::Heartbeat(id, incarnation) => {
                if self.is_alive(id, incarnation) {
                    self.with_site(id, Site::prove_life);
                    self.report(id);
                    self.at(LIMITS.heartbeat.0, Event::Heartbeat(id, incarnation));
                }
            }
            Event::AgentWakes(id, incarnation) => {
                if self.is_alive(id, incarnation) {
                    self.with_site(id, Site::advance);
                }
            }
            Event::AppAnswers(id) => {
                if self.has_tree(id) {
                    self.with_site(id, Site::app_answers);
                }
            }
            Event::AppExits(id, status) => {
                if self.has_tree(id) {
                    self.with_site(id, |site, now| site.app_exits(Exit::Status(status), now));
                }
            }
            Event::TreeGone(id) => self.tree_gone(id),
        }
    }

    // --- The server -----------------------------------------------------------

    fn server_starts(&mut self) {
        if self.plane.is_some() {
            return;
        }
        let a10g = GpuType("A10G".into());
        let settings = Settings {
            limits: LIMITS,
            prices: Prices([(a10g, HourlyRate(MicroDollars(1_100_000)))].into()),
            inventory: self.inventory.clone(),
            ports: PortPool::new(PORTS, self.random.u16(PORTS)),
        };
        let snapshot = Snapshot {
            sessions: self
                .store
                .sessions
                .values()
                .filter(|s| s.is_open())
                .cloned()
                .collect(),
            machines: self.store.machines.values().cloned().collect(),
            keys: self.store.keys.values().cloned().collect(),
            gpu_free_since: self
                .last_events
                .iter()
                .map(|(gpu, (_, end))| (gpu.clone(), *end))
                .collect(),
        };
        let now = self.moment();
        self.plane = Some(ControlPlane::recover(settings, snapshot, now));
        self.say("the server is back");
        let ids: Vec<_> = self.sites.keys().copied().collect();
        for id in ids {
            // Agents find it within a moment.
            self.report(id);
        }
        self.serve(|_, _| ());
    }

    fn crash(&mut self, when: &str) {
        self.plane = None;
        // Its launcher is in the same process.
        self.events
            .retain(|_, event| !matches!(event, Event::Launch(..)));
        self.say(&format!("the server crashes {when}"));
        let back = self.random.u64(100..20_000);
        self.at(back, Event::ServerStarts);
    }

    /// One step of the driver: decide, commit, act. `None` when nobody answered, or
    /// the answer was that it could not be put on record.
    fn serve<T>(&mut self, decide: impl FnOnce(&mut ControlPlane, Moment) -> T) -> Option<T> {
        let now = self.moment();
        let mut plane = self.plane.take()?;
        plane.advance(now);
        let answer = decide(&mut plane, now);
        let changes = plane.changes();
        if !self.calm && !changes.is_empty() && self.chance(1, 150) {
            self.crash("before it commits");
            return None;
        }
        if self.store_refuses && !changes.is_empty() {
            plane.roll_back(now);
            self.at_rest = false;
            self.plane = Some(plane);
            self.at(1_000, Event::ServerWakes);
            return None;
        }
        self.plane = Some(plane);
        for change in changes {
            self.commit(change);
        }
        let commands = self
            .plane
            .as_mut()
            .map(ControlPlane::commit)
            .unwrap_or_default();
        if !self.calm && !commands.is_empty() && self.chance(1, 100) {
            // On record, and so acknowledged or not; nothing of it was done.
            self.crash("before it acts");
            return None;
        }
        for command in commands {
            self.perform(command);
        }
        self.at_rest = true;
        if let Some(deadline) = self.plane.as_ref().and_then(ControlPlane::deadline) {
            let wait = deadline.0.saturating_sub(self.moment().monotonic.0);
            self.at(wait.max(1), Event::ServerWakes);
        }
        Some(answer)
    }

    fn commit(&mut self, change: Change) {
        match change {
            Change::Session(session) => {
                let before = self.store.sessions.get(&session.id).cloned();
                let checked = invariants::check_change(self, before.as_ref(), &session);
                self.broken = self.broken.take().or(checked.err());
                if before.as_ref().map(|before| name(&before.state)) != Some(name(&session.state)) {
                    self.say(&format!("{} is {}", short(session.id), described(&session)));
                }
                if let (State::Ended { .. }, Some(gpu), Some(end)) = (
                    &session.state,
                    &session.gpu_event.gpu,
                    session.gpu_event.end(),
                ) {
                    self.last_events.insert(gpu.clone(), (session.id, end));
                }
                self.store.sessions.insert(session.id, *session);
            }
            Change::Machine(machine) => {
                self.store.machines.insert(machine.id, *machine);
            }
            Change::MachineVersion(machine, version) => {
                self.store.versions.insert((machine, version.id));
            }
            Change::MachineDeleted(id) => {
                self.store.machines.remove(&id);
                self.store.versions.retain(|(machine, _)| *machine != id);
                self.acknowledged_versions
                    .retain(|(machine, _)| *machine != id);
            }
            Change::Key(key) => {
                self.store.keys.insert(key.id, key);
            }
            Change::ForgetEndedBefore(_) => {}
        }
    }

    fn perform(&mut self, command: Command) {
        self.commands += 1;
        match command {
            Command::Launch(launch) => {
                let (id, port) = (launch.session, launch.placement.port);
                let takes = if self.calm {
                    5
                } else {
                    self.random.u64(1..3_000)
                };
                if !self.calm && self.chance(1, 40) {
                    self.at(1, Event::PortTaken(id, port));
                }
                self.at(
                    takes,
                    Event::Launch(id, launch.placement.gpu.clone(), launch.terms),
                );
            }
            Command::Tell { session, message } => {
                let delays = self.delivery(session);
                for delay in delays {
                    self.at(delay, Event::ToAgent(session, message.clone()));
                }
            }
        }
    }

    // --- Clients --------------------------------------------------------------

    fn client(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.random.u64(10..4_000);
        self.at(wait, Event::Client);
        match self.random.u8(0..20) {
            0..=9 => self.client_creates(),
            10..=12 => self.client_cancels(),
            13..=15 => self.client_extends(),
            16 | 17 => self.client_changes_machine(),
            18 => self.client_deletes_machine(),
            _ => self.client_makes_key(),
        }
    }

    fn principal(&mut self) -> Principal {
        let (user, org) = *self
            .pick(&[("ada", None), ("bob", None), ("ada", Some("lab"))])
            .unwrap();
        Principal {
            user: UserId(user.into()),
            org: org.map(|org| OrgId(org.into())),
            admin: user == "bob",
        }
    }

    fn client_creates(&mut self) {
        let principal = self.principal();
        let id = SessionId(self.new_id());
        let minutes = *self.pick(&[0, 1, 1, 2, 5, 31]).unwrap();
        let machines: Vec<MachineId> = self.store.machines.keys().copied().collect();
        let source = match self.pick(&machines).copied() {
            Some(machine) if self.random.bool() => Source::Machine(machine),
            _ => Source::Recipe(Box::new(recipe(self.random.u16(1..9)))),
        };
        let gpu = self
            .pick(&[None, Some("A10G"), Some("A10G"), Some("CPU"), Some("H100")])
            .copied()
            .flatten();
        let new = NewSession {
            id,
            gpu_event_id: GpuEventId(id.0),
            principal: principal.clone(),
            source,
            gpu: gpu.map(|gpu| GpuType(gpu.into())),
            timeout_minutes: Some(minutes),
        };
        let answer = self.serve(|plane, now| plane.create_session(new, now));
        if self.said(&format!("create {} for {minutes} min", short(id)), &answer) {
            let granted = Millis::from_minutes(if minutes == 0 { 2 } else { minutes });
            let (owner, cancelled, cancelled_in_queue) = (principal.owner(), false, false);
            self.acknowledged.insert(
                id,
                Acknowledged {
                    owner,
                    granted,
                    cancelled,
                    cancelled_in_queue,
                },
            );
        } else if answer.is_some() && self.store.sessions.contains_key(&id) {
            self.broken = Some(format!("{id} was refused and is there"));
        }
    }

    fn client_cancels(&mut self) {
        let Some((id, owner)) = self.some_session() else {
            return;
        };
        let queued = matches!(
            self.store.sessions.get(&id).map(|s| &s.state),
            Some(State::Queued { .. })
        );
        let answer = self.serve(|plane, now| plane.cancel_session(&owner, id, now));
        if self.said(&format!("cancel {}", short(id)), &answer)
            && let Some(acknowledged) = self.acknowledged.get_mut(&id)
        {
            acknowledged.cancelled = true;
            acknowledged.cancelled_in_queue |= queued;
            self.ensure_own(id, &owner);
        }
    }

    fn client_extends(&mut self) {
        let Some((id, owner)) = self.some_session() else {
            return;
        };
        let minutes = self.random.u32(0..4);
        let answer = self.serve(|plane, _| plane.extend_session(&owner, id, minutes));
        if self.said(&format!("extend {} by {minutes} min", short(id)), &answer) {
            self.ensure_own(id, &owner);
            let granted = self.store.sessions[&id].granted_ms;
            self.say(&format!("{} is extended to {granted}", short(id)));
            if let Some(acknowledged) = self.acknowledged.get_mut(&id) {
                acknowledged.granted = granted;
            }
        }
    }

    /// Some session, asked for by its owner or, now and then, by somebody else.
    fn some_session(&mut self) -> Option<(SessionId, Owner)> {
        let ids: Vec<SessionId> = self
            .store
            .sessions
            .values()
            .filter(|s| s.is_open())
            .map(|s| s.id)
            .collect();
        let id = *self.pick(&ids)?;
        let owner = self.store.sessions[&id].owner.clone();
        let owner = if self.chance(1, 6) {
            self.principal().owner()
        } else {
            owner
        };
        Some((id, owner))
    }

    fn ensure_own(&mut self, id: SessionId, owner: &Owner) {
        if self.store.sessions[&id].owner != *owner {
            self.broken = Some(format!("{owner:?} touched {id}"));
        }
    }

    fn client_changes_machine(&mut self) {
        let principal = self.principal();
        let version_id = MachineVersionId(self.new_id());
        let machines: Vec<MachineId> = self.store.machines.keys().copied().collect();
        let existing = self.pick(&machines).copied().filter(|_| self.random.bool());
        let id = existing.unwrap_or_else(|| MachineId(self.new_id()));
        let port = self.random.u16(1..9);
        let answer = self.serve(|plane, now| match existing {
            Some(id) => {
                let patch = MachinePatch {
                    port: Some(Some(port)),
                    ..MachinePatch::default()
                };
                plane.change_machine(&principal, id, patch, version_id, now)
            }
            None => {
                let (name, recipe) = ("m".to_owned(), recipe(port));
                plane.create_machine(
                    NewMachine {
                        id,
                        version_id,
                        principal,
                        name,
                        recipe,
                    },
                    now,
                )
            }
        });
        if self.said("change a machine", &answer)
            && let Some(Ok(machine)) = answer
        {
            self.acknowledged_versions.insert((id, machine.current.id));
        }
    }

    fn client_deletes_machine(&mut self) {
        let owner = self.principal().owner();
        let machines: Vec<MachineId> = self.store.machines.keys().copied().collect();
        let known = self.pick(&machines).copied();
        let id = known.unwrap_or_else(|| MachineId(self.new_id()));
        let answer = self.serve(|plane, _| plane.delete_machine(&owner, id));
        self.said("delete a machine", &answer);
    }

    fn client_makes_key(&mut self) {
        let (by, principal) = (self.principal(), self.principal());
        let id = KeyId(self.new_id());
        let now = self.moment().wall;
        let key = Key {
            id,
            name: "k".into(),
            hash: KeyHash([0; 32]),
            principal: principal.clone(),
            created_at: now,
            revoked_at: None,
        };
        let answer = self.serve(|plane, _| plane.create_key(key, Some(&by)));
        if self.said("make a key", &answer) {
            self.acknowledged_keys.insert(id);
            if by != principal && !by.admin {
                self.broken = Some(format!("{by:?} made a key for {principal:?}"));
            }
        }
    }

    /// Put down what came of a request; was it granted?
    fn said<T>(&mut self, request: &str, answer: &Option<Result<T, Refusal>>) -> bool {
        let outcome = match answer {
            None => "no answer".to_owned(),
            Some(Ok(_)) => "granted".to_owned(),
            Some(Err(refusal)) => format!("refused: {refusal}"),
        };
        self.say(&format!("{request}: {outcome}"));
        matches!(answer, Some(Ok(_)))
    }

    // --- Hosts ----------------------------------------------------------------

    fn launch(&mut self, id: SessionId, gpu: GpuId, terms: Terms) {
        let broken = !self.calm && (self.launcher_broken_until > self.now || self.chance(1, 25));
        let clock_base = self.random.u64(0..1_000_000);
        let nature = self.nature();
        let now = self.now;
        let site = self.sites.entry(id).or_insert_with(|| Site {
            gpu,
            terms,
            nature,
            agent: None,
            incarnations: 0,
            starts: 0,
            journal: None,
            tree_since: None,
            partitioned_until: 0,
            clock_base,
            truly_held_ms: None,
        });
        let outcome = if site.agent.is_some() {
            self.say(&format!("an agent lives already: {}", short(id)));
            LaunchOutcome::AlreadyRunning
        } else if broken {
            self.say(&format!("no agent can be started: {}", short(id)));
            LaunchOutcome::Failed("no room".into())
        } else {
            let starts_app = site.start_agent(terms, now);
            let (nature, incarnation) = (site.nature, site.incarnations);
            if starts_app {
                if let Some(after) = nature.answers_after_ms {
                    self.at(after, Event::AppAnswers(id));
                }
                if let Some((after, status)) = nature.exits_after_ms {
                    self.at(after, Event::AppExits(id, status));
                }
            }
            self.at(1, Event::Heartbeat(id, incarnation));
            self.say(&format!("agent {incarnation} of {} starts", short(id)));
            LaunchOutcome::Started
        };
        self.with_site(id, Site::settle);
        if self.plane.is_some() {
            self.at(1, Event::Launched(id, outcome));
        }
    }

    fn nature(&mut self) -> AppNature {
        let answers = self.random.u64(50..20_000);
        let exits = (self.random.u64(10..200_000), self.random.i32(0..2));
        let heeds = self.random.u64(1..3_000);
        AppNature {
            answers_after_ms: (!self.chance(1, 8)).then_some(answers),
            exits_after_ms: self.chance(1, 4).then_some(exits),
            heeds_term_ms: self.chance(2, 3).then_some(heeds),
        }
    }

    /// Something happens to a session's agent; then it does what it wants done.
    fn with_site(&mut self, id: SessionId, happens: impl FnOnce(&mut Site, u64)) {
        let now = self.now;
        let Some(site) = self.sites.get_mut(&id) else {
            return;
        };
        happens(site, now);
        site.settle(now);
        let (wishes, nature, incarnation, deadline) = (
            site.wishes(),
            site.nature,
            site.incarnations,
            site.deadline(),
        );
        for wish in wishes {
            match wish {
                Wish::Report => self.report(id),
                Wish::TermToApp => {
                    if let Some(after) = nature.heeds_term_ms {
                        self.at(after, Event::AppExits(id, 0));
                    }
                }
                Wish::KillTree => {
                    let after = self.random.u64(1..20);
                    self.at(after, Event::TreeGone(id));
                }
            }
        }
        if let Some(deadline) = deadline {
            self.at(
                deadline.saturating_sub(now),
                Event::AgentWakes(id, incarnation),
            );
        }
    }

    fn tree_gone(&mut self, id: SessionId) {
        if !self.has_tree(id) {
            return;
        }
        self.with_site(id, Site::tree_is_gone);
        self.report(id);
        let Some(site) = self.sites.get(&id) else {
            return;
        };
        if let Some(AgentStatus {
            granted_ms,
            phase:
                AgentPhase::Ended {
                    ending,
                    running_ms: Some(ran),
                },
            held_ms,
        }) = site.status(self.now)
            && granted_ms != Millis::ZERO
        {
            let held = site.truly_held_ms.unwrap_or(0);
            let before_it_answered = held_ms.0.saturating_sub(ran.0);
            // Counted from when it answered, to when the last process was gone; an
            // app that was told to stop at its last moment has its grace besides.
            let answered = site.nature.answers_after_ms.unwrap_or(0).max(1);
            let gone = held.saturating_sub(answered);
            let _ = before_it_answered;
            let checked =
                invariants::check_lease(&short(id), ending.reason, granted_ms.0, ran.0, gone);
            self.broken = self.broken.take().or(checked.err());
            if held_ms.0 != held {
                self.broken = Some(format!("{id} says it held {held_ms} and held {held} ms"));
            }
        }
    }

    fn report(&mut self, id: SessionId) {
        let Some(status) = self.sites.get(&id).and_then(|site| site.status(self.now)) else {
            return;
        };
        for delay in self.delivery(id) {
            self.at(delay, Event::ToServer(id, status.clone()));
        }
    }

    /// When copies of a message arrive, if any do.
    fn delivery(&mut self, id: SessionId) -> Vec<u64> {
        if self.calm {
            return vec![self.random.u64(1..50)];
        }
        if self
            .sites
            .get(&id)
            .is_some_and(|site| site.partitioned_until > self.now)
        {
            return Vec::new();
        }
        match self.random.u8(0..40) {
            0 | 1 => {
                self.say(&format!("a message is lost: {}", short(id)));
                Vec::new()
            }
            2 | 3 => {
                self.say(&format!("a message comes twice: {}", short(id)));
                vec![self.random.u64(1..50), self.random.u64(1..5_000)]
            }
            4 => vec![self.random.u64(1..30_000)],
            _ => vec![self.random.u64(1..50)],
        }
    }

    fn is_alive(&self, id: SessionId, incarnation: u32) -> bool {
        self.sites.get(&id).is_some_and(|site| {
            site.agent
                .as_ref()
                .is_some_and(|agent| agent.incarnation == incarnation)
        })
    }

    fn has_tree(&self, id: SessionId) -> bool {
        self.sites
            .get(&id)
            .is_some_and(|site| site.tree_since.is_some())
    }

    // --- Faults ---------------------------------------------------------------

    fn fault(&mut self) {
        if self.calm {
            return;
        }
        let wait = self.random.u64(500..30_000);
        self.at(wait, Event::Fault);
        let alive: Vec<SessionId> = self
            .sites
            .iter()
            .filter(|(_, site)| site.agent.is_some())
            .map(|(id, _)| *id)
            .collect();
        match (self.random.u8(0..9), self.pick(&alive).copied()) {
            (8, _) => {
                self.launcher_broken_until = self.now + self.random.u64(1_000..200_000);
                self.say("the launcher is broken");
            }
            (0, _) if self.plane.is_some() => self.crash("at rest"),
            (1, _) => {
                self.wall_offset += self.random.i64(-86_400_000..86_400_000);
                self.say("the server's clock steps");
            }
            (2, _) if !self.store_refuses => {
                self.store_refuses = true;
                self.say("the store refuses");
                let wait = self.random.u64(100..20_000);
                self.at(wait, Event::StoreRecovers);
            }
            (3 | 4, Some(id)) => {
                self.say(&format!("the agent is killed: {}", short(id)));
                if let Some(site) = self.sites.get_mut(&id) {
                    site.agent = None;
                }
                let orphaned = self.random.u64(0..ORPHAN_MS);
                self.at(orphaned, Event::TreeGone(id));
                self.at(1, Event::HangsUp(id));
            }
            (5 | 6, Some(id)) => {
                self.say(&format!("the network is cut: {}", short(id)));
                let lasts = self.random.u64(100..300_000);
                if let Some(site) = self.sites.get_mut(&id) {
                    site.partitioned_until = self.now + lasts;
                }
                self.at(1, Event::HangsUp(id));
            }
            _ => {}
        }
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
    }
}

fn short(id: SessionId) -> String {
    format!("s{}", id.0.as_u128())
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
        State::Starting { placement } => format!("starting on {}", placement.gpu),
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
