//! What agents and servers say to each other, in any order, by any clock.
//!
//! An input is lines. One that is an `AgentStatus` is heard by a control plane, one
//! that is a `ServerMessage` by a lease; a word is something else that happens, and a
//! number is the milliseconds that pass.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use dwell_core::control_plane::{
    Change, Command, ControlPlane, LaunchOutcome, NewSession, Settings, Snapshot, Source,
};
use dwell_core::gpu::{GpuType, Inventory};
use dwell_core::id::{GpuEventId, SessionId};
use dwell_core::job::Offer;
use dwell_core::lease::{Exit, Lease, Terms};
use dwell_core::limits::Limits;
use dwell_core::machine::{AppCommand, Recipe};
use dwell_core::metering::Span;
use dwell_core::owner::{Principal, UserId};
use dwell_core::placement::Places;
use dwell_core::ports::PortPool;
use dwell_core::pricing::{HourlyRate, Prices};
use dwell_core::protocol::{AgentPhase, AgentStatus, ServerMessage};
use dwell_core::session::{Ending, Session, State};
use dwell_core::time::{Millis, Moment, Monotonic, Timestamp};
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// Few enough that one input takes no time.
const LINES_MAX: usize = 64;
const BEGIN: Moment = Moment {
    wall: Timestamp(1_800_000_000_000),
    monotonic: Monotonic(1_000_000),
};

fuzz_target!(|input: &[u8]| {
    let mut server = Server::new();
    let mut agent = Agent::new();
    let mut now = BEGIN;
    for line in input.split(|byte| *byte == b'\n').take(LINES_MAX) {
        if let Some(passed) = span(line) {
            now.monotonic = now.monotonic.plus(passed);
            now.wall = now.wall.plus(passed);
        }
        if let Some(stepped) = line.strip_prefix(b"wall -").and_then(span) {
            now.wall = now.wall.minus(stepped);
        }
        server.step(line, now);
        agent.step(line, now.monotonic);
    }
    server.another_server_recovers_the_same(now);
});

fn span(digits: &[u8]) -> Option<Millis> {
    let span: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Millis(u64::from(span)))
}

/// A message; what it says is what is said again of it.
fn message<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    line: &[u8],
) -> Option<T> {
    let message: T = serde_json::from_slice(line).ok()?;
    let again = serde_json::to_vec(&message).expect("a message can be said");
    let heard: T = serde_json::from_slice(&again).expect("what we say can be read");
    assert_eq!(
        heard, message,
        "a message says something else when it is repeated"
    );
    Some(message)
}

// --- The server's side --------------------------------------------------------------

/// A control plane with one GPU, two sessions and what is on record of them.
struct Server {
    plane: ControlPlane,
    record: BTreeMap<SessionId, Session>,
    /// Whose agent speaks.
    speaker: SessionId,
    /// The store refuses the next step.
    refuses: bool,
}

impl Server {
    fn new() -> Self {
        let mut server = Self {
            plane: ControlPlane::recover(settings(), Snapshot::default(), BEGIN),
            record: BTreeMap::new(),
            speaker: id(1),
            refuses: false,
        };
        for number in [1, 2] {
            let new = NewSession {
                id: id(number),
                gpu_event_id: GpuEventId(Uuid::from_u128(number)),
                principal: ada(),
                source: Source::Recipe(Box::new(recipe())),
                gpu: None,
                timeout_minutes: None,
            };
            server
                .plane
                .create_session(new, BEGIN)
                .expect("there is room");
            server.commit();
        }
        server
    }

    fn step(&mut self, line: &[u8], now: Moment) {
        let speaker = self.speaker;
        let status: Option<AgentStatus> = message(line);
        let was_placed = self
            .plane
            .session(speaker)
            .is_some_and(|it| it.placement().is_some());
        match line {
            b"first" => self.speaker = id(1),
            b"second" => self.speaker = id(2),
            b"stranger" => self.speaker = id(3),
            b"refuse" => self.refuses = true,
            b"extend" => drop(self.plane.extend_session(&ada().owner(), speaker, 7)),
            b"cancel" => drop(self.plane.cancel_session(&ada().owner(), speaker, now)),
            b"cancel all" => self.plane.cancel_all(now),
            b"hang up" => self.plane.hung_up(speaker, now),
            b"started" => self.plane.launched(speaker, LaunchOutcome::Started, now),
            b"runs" => self
                .plane
                .launched(speaker, LaunchOutcome::AlreadyRunning, now),
            b"failed" => {
                let outcome = LaunchOutcome::Failed("no".into());
                self.plane.launched(speaker, outcome, now);
            }
            b"port" => self.plane.port_unusable(speaker, 20_000, now),
            _ => {}
        }
        if let Some(status) = &status {
            self.plane.heard(speaker, status, now);
        }
        self.plane.advance(now);
        assert!(
            self.plane.deadline().is_none_or(|at| at > now.monotonic),
            "time that has passed is still waited for"
        );
        if std::mem::take(&mut self.refuses) && line != b"refuse" {
            self.refuse(now);
            return;
        }
        self.refuses = line == b"refuse";
        let commands = self.commit();
        if let Some(status) = status {
            self.an_agent_is_answered(speaker, &status, was_placed, &commands);
        }
        self.what_is_open_fits_together();
    }

    /// The store commits, and what it now has on record must follow from what it had.
    fn commit(&mut self) -> Vec<Command> {
        let changes = self.plane.changes();
        assert_eq!(changes, self.plane.changes(), "asking changed the answer");
        for change in changes {
            let Change::Session(session) = change else {
                panic!("no machine and no key was changed");
            };
            assert_eq!(
                message::<Session>(&serde_json::to_vec(&session).expect("a row can be written")),
                Some((*session).clone())
            );
            let before = self.record.insert(session.id, (*session).clone());
            follows(before.as_ref(), &session);
        }
        let commands = self.plane.commit();
        assert!(
            self.plane.changes().is_empty(),
            "something is changed after the commit"
        );
        assert!(self.plane.commit().is_empty(), "something is owed twice");
        commands
    }

    /// The store refuses: nothing has happened.
    fn refuse(&mut self, now: Moment) {
        self.plane.roll_back(now);
        assert!(self.plane.changes().is_empty() && self.plane.commit().is_empty());
        self.what_is_open_fits_together();
    }

    fn an_agent_is_answered(
        &self,
        speaker: SessionId,
        status: &AgentStatus,
        was_placed: bool,
        commands: &[Command],
    ) {
        let told: Vec<_> = commands
            .iter()
            .filter_map(|command| match command {
                Command::Tell { session, message } if *session == speaker => Some(message),
                Command::Tell { .. }
                | Command::Launch(_)
                | Command::CancelJob { .. }
                | Command::LimitJob { .. } => None,
            })
            .collect();
        let is_told_to_stop = told
            .iter()
            .any(|it| matches!(it, ServerMessage::Stop { .. }));
        if let AgentPhase::Ended { .. } = status.phase {
            assert!(
                told.contains(&&ServerMessage::Forget),
                "an agent that is done is kept"
            );
        } else if !was_placed {
            assert!(is_told_to_stop, "an agent of no session goes on");
        }
        let Some(session) = self.plane.session(speaker).filter(|_| was_placed) else {
            return;
        };
        let has_begun_to_end = status.phase.rank() >= 2;
        match &session.state {
            State::Stopping { .. } => assert!(is_told_to_stop || has_begun_to_end),
            State::Queued { .. } | State::Starting { .. } | State::Running { .. } => {
                let granted_ms = session.granted_ms;
                let knows = status.granted_ms >= granted_ms
                    || told.contains(&&ServerMessage::Lease { granted_ms });
                assert!(knows, "an agent is not told what was granted");
            }
            State::Ended { .. } => panic!("a session that has ended is open"),
        }
    }

    fn what_is_open_fits_together(&self) {
        let open: Vec<&Session> = self.plane.open_sessions().collect();
        let on_record: Vec<&Session> = self.record.values().filter(|it| it.is_open()).collect();
        assert_eq!(
            open, on_record,
            "what is in memory is not what is on record"
        );
        let placed: Vec<_> = open
            .iter()
            .filter_map(|session| session.placement())
            .collect();
        let gpus: BTreeSet<_> = placed.iter().map(|placement| placement.gpu()).collect();
        assert_eq!(
            gpus.len(),
            placed.len(),
            "one GPU was given to two sessions"
        );
        assert_eq!(
            placed.is_empty(),
            open.is_empty(),
            "a session waits for a GPU that is free"
        );
    }

    fn another_server_recovers_the_same(&self, now: Moment) {
        let snapshot = Snapshot {
            sessions: self
                .record
                .values()
                .filter(|it| it.is_open())
                .cloned()
                .collect(),
            ..Snapshot::default()
        };
        let other = ControlPlane::recover(settings(), snapshot, now);
        assert!(
            other.open_sessions().eq(self.plane.open_sessions()),
            "a restart changes sessions"
        );
    }
}

/// How a row may follow another.
fn follows(before: Option<&Session>, after: &Session) {
    if let (Some(started), State::Ended { ended_at, .. }) = (after.started_at(), &after.state) {
        assert!(*ended_at >= started, "a session ended before it started");
    }
    assert!(
        after.started_at().is_none_or(|at| at >= after.created_at),
        "started before it was made"
    );
    match after.gpu_event.span {
        Span::NotHeld => {}
        Span::Open { .. } => assert!(after.is_open(), "what has ended is billed on"),
        Span::Closed { .. } => assert!(!after.is_open(), "what goes on is billed no more"),
    }
    let Some(before) = before else {
        return;
    };
    assert!(before.is_open(), "what has ended was changed");
    assert!(
        rank(&after.state) >= rank(&before.state),
        "a session went back"
    );
    assert!(
        after.granted_ms >= before.granted_ms,
        "what was granted shrank"
    );
    assert!(
        after.gpu_event.held() >= before.gpu_event.held(),
        "time that was held shrank"
    );
    assert!(
        after.gpu_event.cost() >= before.gpu_event.cost(),
        "it became cheaper"
    );
    let kept = |session: &Session| {
        let gpu = session.placement().map(|placement| placement.place.clone());
        (gpu, session.started_at(), session.gpu_event.gpu.clone())
    };
    let ((gpu, started, held), now) = (kept(before), kept(after));
    assert!(
        gpu.is_none() || now.0.is_none() || gpu == now.0,
        "a session moved"
    );
    assert!(
        started.is_none() || started == now.1,
        "a session started again"
    );
    assert!(held.is_none() || held == now.2, "another GPU is billed");
    if let (State::Stopping { ending, .. }, State::Stopping { ending: now, .. }) =
        (&before.state, &after.state)
    {
        assert_eq!(ending, now, "the reason of an end changed");
    }
}

const fn rank(state: &State) -> u8 {
    match state {
        State::Queued { .. } => 0,
        State::Starting { .. } => 1,
        State::Running { .. } => 2,
        State::Stopping { .. } => 3,
        State::Ended { .. } => 4,
    }
}

fn id(number: u128) -> SessionId {
    SessionId(Uuid::from_u128(number))
}

fn ada() -> Principal {
    Principal {
        user: UserId("ada".into()),
        org: None,
        admin: false,
    }
}

fn settings() -> Settings {
    let a10g = GpuType("A10G".into());
    let rate = HourlyRate::from_dollars(1.10).expect("a price");
    Settings {
        limits: Limits::default(),
        places: Places {
            inventory: Inventory::declared([(&a10g, 1)]),
            offers: vec![Offer::Host { runs_images: false }],
        },
        prices: Prices([(a10g, rate)].into()),
        ports: PortPool::new(20_000..=20_003, 20_000),
    }
}

fn recipe() -> Recipe {
    Recipe {
        command: AppCommand::Shell("app".into()),
        port: None,
        workdir: None,
        environment: BTreeMap::new(),
        gpu: GpuType("A10G".into()),
        timeout_minutes: 15,
        ready_path: "/".into(),
        access: None,
        container: None,
    }
}

// --- The agent's side ---------------------------------------------------------------

/// A lease, and what it was before.
struct Agent {
    lease: Lease,
    terms: Terms,
    /// The most that a `Lease` said.
    granted: Millis,
    before: AgentStatus,
}

impl Agent {
    fn new() -> Self {
        let terms = Terms {
            granted_ms: Millis::from_minutes(15),
            start_limit_ms: Millis::from_minutes(10),
            grace_ms: Millis::from_seconds(10),
            timeout_grace_ms: Millis(800),
        };
        let lease = Lease::new(terms, BEGIN.monotonic);
        Self {
            before: lease.status(BEGIN.monotonic),
            lease,
            terms,
            granted: terms.granted_ms,
        }
    }

    fn step(&mut self, line: &[u8], now: Monotonic) {
        match line {
            b"answered" => {
                let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
                self.lease.app_answered(upstream.into(), now);
            }
            b"exited" => self.lease.app_exited(Exit::Status(3), Some("bye"), now),
            b"not started" => self.lease.app_not_started("no such program", now),
            b"gone" => self.lease.tree_gone(now),
            _ => {}
        }
        if let Some(message) = message::<ServerMessage>(line) {
            self.hear(&message, now);
        }
        self.lease.advance(now);
        assert!(
            self.lease.deadline().is_none_or(|at| at > now),
            "time that has passed is still waited for"
        );
        self.what_it_says_follows(now);
        while self.lease.next_command().is_some() {}
    }

    fn hear(&mut self, message: &ServerMessage, now: Monotonic) {
        let (before, was) = (self.lease.deadline(), self.lease.status(now));
        self.lease.heard(message, now);
        let (after, is) = (self.lease.deadline(), self.lease.status(now));
        match message {
            ServerMessage::Lease { granted_ms } => {
                self.granted = self.granted.max(*granted_ms);
                // One that had run out had run out: it may be seen only now.
                if before > Some(now) {
                    assert!(after >= before, "a lease brought the deadline nearer");
                    assert_eq!(is.phase, was.phase, "a lease ended something");
                }
            }
            ServerMessage::Stop { .. } => {
                assert!(is.phase.rank() >= 2, "a stop was not heard");
                if was.phase.rank() >= 2 {
                    assert_eq!((after, &is), (before, &was), "an end began again");
                }
            }
            ServerMessage::Begin | ServerMessage::Forget | ServerMessage::Servers { .. } => {
                assert_eq!((after, is), (before, was))
            }
        }
    }

    fn what_it_says_follows(&mut self, now: Monotonic) {
        let (before, after) = (&self.before, self.lease.status(now));
        assert!(
            after.phase.rank() >= before.phase.rank(),
            "a phase went back"
        );
        assert!(after.held_ms >= before.held_ms, "time that was held shrank");
        assert!(
            after.granted_ms >= before.granted_ms,
            "what was granted shrank"
        );
        assert!(after.granted_ms <= self.granted, "nobody granted that much");
        if let Some(told) = ending(&before.phase) {
            assert_eq!(
                ending(&after.phase),
                Some(told),
                "the reason of an end changed"
            );
            assert_eq!(
                after.granted_ms, before.granted_ms,
                "what has ended was granted more"
            );
        }
        match &after.phase {
            AgentPhase::Asks { .. } => panic!("a lease asks for nothing"),
            AgentPhase::Starting => assert!(after.held_ms < self.terms.start_limit_ms),
            AgentPhase::Running { running_ms, .. } => {
                assert!(*running_ms < after.granted_ms, "it runs beyond its time");
                assert!(*running_ms <= after.held_ms);
            }
            AgentPhase::Stopping { running_ms, .. } | AgentPhase::Ended { running_ms, .. } => {
                assert!(running_ms.is_none_or(|running_ms| running_ms <= after.held_ms));
            }
        }
        assert_eq!(
            self.lease.is_over(),
            matches!(after.phase, AgentPhase::Ended { .. })
        );
        if matches!(before.phase, AgentPhase::Ended { .. }) {
            assert_eq!(after, *before, "what has ended changed");
        }
        self.before = after;
    }
}

const fn ending(phase: &AgentPhase) -> Option<&Ending> {
    match phase {
        AgentPhase::Asks { .. } | AgentPhase::Starting | AgentPhase::Running { .. } => None,
        AgentPhase::Stopping { ending, .. } | AgentPhase::Ended { ending, .. } => Some(ending),
    }
}
