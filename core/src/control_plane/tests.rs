//! The control plane's promises, one example each. `tests/simulation.rs` is where
//! they meet.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test says what it looks for"
)]

mod jobs;

use super::silence::{CALL_BACK_WITHIN, ORPHAN_GONE_WITHIN};
use super::*;
use crate::gpu::Inventory;
use crate::id::GpuEventId;
use crate::job::Offer;
use crate::key::KeyHash;
use crate::machine::{Access, AppCommand};
use crate::owner::{Principal, UserId};
use crate::pricing::{HourlyRate, MicroDollars};
use crate::refusal::Refusal;
use crate::share::{Scope, Visit};
use crate::upstream::Upstream;
use std::net::Ipv4Addr;
use uuid::Uuid;

/// A plane with its committed rows and a clock.
struct World {
    plane: ControlPlane,
    stored: BTreeMap<SessionId, Session>,
    ms: u64,
}

fn settings(gpus: u32) -> Settings {
    let a10g = GpuType("A10G".into());
    Settings {
        limits: Limits {
            sessions_per_machine: 2,
            timeout_max_minutes: 60,
            ..Limits::default()
        },
        prices: Prices(BTreeMap::from([(
            a10g.clone(),
            HourlyRate(MicroDollars(3_600_000)),
        )])),
        places: Places {
            inventory: Inventory::declared([(&a10g, gpus)]),
            offers: vec![Offer::Host { runs_images: false }],
        },
        ports: PortPool::new(20_000..=20_009, 20_000),
    }
}

fn alice() -> Principal {
    Principal {
        user: UserId("alice".into()),
        org: None,
        admin: false,
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

fn id(number: u128) -> SessionId {
    SessionId(Uuid::from_u128(number))
}

fn upstream() -> Upstream {
    Upstream::Direct((Ipv4Addr::LOCALHOST, 9).into())
}

fn status(held_ms: u64, granted_minutes: u32, phase: AgentPhase) -> AgentStatus {
    AgentStatus {
        held_ms: Millis(held_ms),
        granted_ms: Millis::from_minutes(granted_minutes),
        phase,
    }
}

fn running(held_ms: u64, running_ms: u64, granted_minutes: u32) -> AgentStatus {
    let phase = AgentPhase::Running {
        running_ms: Millis(running_ms),
        upstream: upstream(),
    };
    status(held_ms, granted_minutes, phase)
}

fn ended(held_ms: u64, reason: EndReason) -> AgentStatus {
    status(
        held_ms,
        15,
        AgentPhase::Ended {
            ending: Ending::plain(reason),
            running_ms: None,
        },
    )
}

impl World {
    fn new(gpus: u32) -> Self {
        let plane = ControlPlane::recover(settings(gpus), Snapshot::default(), moment(0));
        Self {
            plane,
            stored: BTreeMap::new(),
            ms: 0,
        }
    }

    fn now(&self) -> Moment {
        moment(self.ms)
    }

    fn create(&mut self, number: u128, source: Source) -> Result<(), Refusal> {
        let new = NewSession {
            id: id(number),
            gpu_event_id: GpuEventId(Uuid::from_u128(number)),
            principal: alice(),
            source,
            gpu: None,
            timeout_minutes: None,
        };
        self.plane.create_session(new, self.now())
    }

    fn create_plain(&mut self, number: u128) -> Vec<Command> {
        self.create(number, Source::Recipe(Box::new(recipe())))
            .unwrap();
        self.commit()
    }

    fn heard(&mut self, number: u128, status: &AgentStatus) -> Vec<Command> {
        self.plane.heard(id(number), status, self.now());
        self.commit()
    }

    /// A session whose app answers at once.
    fn create_running(&mut self, number: u128) {
        self.create_plain(number);
        self.launched(number, LaunchOutcome::Started);
        self.heard(number, &running(0, 0, 15));
    }

    fn launched(&mut self, number: u128, outcome: LaunchOutcome) {
        self.plane.launched(id(number), outcome, self.now());
    }

    fn after(&mut self, span: Millis) -> Vec<Command> {
        self.ms += span.0;
        self.plane.advance(self.now());
        self.commit()
    }

    fn commit(&mut self) -> Vec<Command> {
        for change in self.plane.changes() {
            if let Change::Session(session) = change {
                self.stored.insert(session.id, *session);
            }
        }
        self.plane.commit()
    }

    fn stored(&self, number: u128) -> &Session {
        &self.stored[&id(number)]
    }

    fn restart(&mut self) {
        self.restart_with(settings(1));
    }

    fn restart_with(&mut self, settings: Settings) {
        let open = self
            .stored
            .values()
            .filter(|session| session.is_open())
            .cloned()
            .collect();
        let snapshot = Snapshot {
            sessions: open,
            ..Snapshot::default()
        };
        self.plane = ControlPlane::recover(settings, snapshot, self.now());
    }
}

fn moment(ms: u64) -> Moment {
    Moment {
        wall: Timestamp(1_000_000 + i64::try_from(ms).unwrap()),
        monotonic: Monotonic(ms),
    }
}

fn launched(commands: &[Command]) -> Vec<SessionId> {
    let of = |command: &Command| match command {
        Command::Launch(launch) => Some(launch.session),
        Command::Tell { .. } | Command::CancelJob { .. } | Command::LimitJob { .. } => None,
    };
    commands.iter().filter_map(of).collect()
}

fn told(commands: &[Command]) -> Vec<ServerMessage> {
    let of = |command: &Command| match command {
        Command::Launch(_) | Command::CancelJob { .. } | Command::LimitJob { .. } => None,
        Command::Tell { message, .. } => Some(message.clone()),
    };
    commands.iter().filter_map(of).collect()
}

fn reason(session: &Session) -> EndReason {
    match &session.state {
        State::Ended { ending, .. } => ending.reason,
        state => panic!("not ended but {state:?}"),
    }
}

#[test]
fn a_free_gpu_is_given_at_once_and_a_taken_one_is_waited_for() {
    let mut world = World::new(1);
    assert_eq!(launched(&world.create_plain(1)), [id(1)]);
    assert_eq!(launched(&world.create_plain(2)), []);
    assert!(matches!(world.stored(2).state, State::Queued { .. }));
    // The GPU is not free while the tree is being ended, only when it is gone.
    world
        .plane
        .cancel_session(&alice().owner(), id(1), world.now())
        .unwrap();
    assert_eq!(launched(&world.commit()), []);
    assert_eq!(
        launched(&world.heard(1, &ended(5_000, EndReason::Cancelled))),
        [id(2)]
    );
}

#[test]
fn the_countdown_begins_when_the_app_answers() {
    let mut world = World::new(1);
    world.create_plain(1);
    world.ms = 90_000;
    world.heard(1, &running(90_000, 0, 15));
    let State::Running {
        started_at,
        timeout_end,
        ..
    } = world.stored(1).state
    else {
        panic!()
    };
    assert_eq!(started_at, moment(90_000).wall);
    assert_eq!(timeout_end, moment(90_000 + 15 * 60_000).wall);
}

#[test]
fn a_bill_is_for_the_time_that_the_gpu_was_held_starting_included() {
    let mut world = World::new(1);
    world.create_plain(1);
    world.ms = 30_000;
    world.heard(1, &running(30_000, 0, 15));
    world.ms = 60_000;
    world.heard(1, &ended(60_000, EndReason::Exited));
    assert_eq!(world.stored(1).gpu_event.cost(), MicroDollars(60_000));
    assert_eq!(world.stored(1).gpu_event.start(), Some(moment(0).wall));
    assert_eq!(world.stored(1).gpu_event.end(), Some(moment(60_000).wall));
}

#[test]
fn what_could_never_be_had_is_refused_at_once() {
    let mut world = World::new(1);
    let mut other = recipe();
    other.gpu = GpuType("H100".into());
    let refused = world
        .create(1, Source::Recipe(Box::new(other)))
        .unwrap_err();
    assert_eq!(
        refused.to_string(),
        "GPU type H100 is not available here; this server has: A10G"
    );
    let mut long = recipe();
    long.timeout_minutes = 61;
    let refused = world.create(1, Source::Recipe(Box::new(long))).unwrap_err();
    assert_eq!(refused, Refusal::TimeoutOutOfRange { asked: 61, max: 60 });
    assert_eq!(world.plane.changes(), []);
}

#[test]
fn the_limit_of_a_machine_counts_open_sessions_only() {
    let mut world = World::new(9);
    let machine = NewMachine {
        id: MachineId(Uuid::from_u128(7)),
        version_id: crate::id::MachineVersionId(Uuid::from_u128(7)),
        principal: alice(),
        name: "m".into(),
        recipe: recipe(),
    };
    let source = || Source::Machine(MachineId(Uuid::from_u128(7)));
    world.plane.create_machine(machine, moment(0)).unwrap();
    world.create(1, source()).unwrap();
    world.create(2, source()).unwrap();
    assert_eq!(world.create(3, source()), Err(Refusal::TooManySessions));
    world.heard(1, &ended(1, EndReason::Exited));
    assert_eq!(world.create(3, source()), Ok(()));
}

#[test]
fn an_extension_is_told_until_the_agent_knows_of_it() {
    let mut world = World::new(1);
    world.create_plain(1);
    assert_eq!(
        world.plane.extend_session(&alice().owner(), id(1), 5),
        Err(Refusal::NotStarted)
    );
    world.heard(1, &running(0, 0, 15));
    world
        .plane
        .extend_session(&alice().owner(), id(1), 5)
        .unwrap();
    let lease = ServerMessage::Lease {
        granted_ms: Millis::from_minutes(20),
    };
    assert_eq!(told(&world.commit()), std::slice::from_ref(&lease));
    // That message was lost; the agent's next word shows it.
    assert_eq!(told(&world.heard(1, &running(9, 9, 15))), [lease]);
    assert_eq!(told(&world.heard(1, &running(19, 19, 20))), []);
    assert_eq!(
        world.plane.extend_session(&alice().owner(), id(1), 41),
        Err(Refusal::TimeoutOutOfRange { asked: 61, max: 60 })
    );
}

#[test]
fn a_session_cancelled_while_it_starts_is_stopped_when_its_agent_calls() {
    let mut world = World::new(1);
    world.create_plain(1);
    world
        .plane
        .cancel_session(&alice().owner(), id(1), world.now())
        .unwrap();
    world.commit();
    let stop = ServerMessage::Stop {
        ending: Ending::plain(EndReason::Cancelled),
    };
    assert_eq!(
        told(&world.heard(1, &status(1, 15, AgentPhase::Starting))),
        [stop]
    );
    assert_eq!(
        told(&world.heard(1, &ended(9, EndReason::Cancelled))),
        [ServerMessage::Forget]
    );
    assert_eq!(reason(world.stored(1)), EndReason::Cancelled);
}

#[test]
fn what_the_store_refused_never_happened() {
    let mut world = World::new(1);
    world.create_plain(1);
    world.heard(1, &running(0, 0, 15));
    let before: Vec<_> = world.plane.open_sessions().cloned().collect();

    world.create(2, Source::Recipe(Box::new(recipe()))).unwrap();
    world
        .plane
        .extend_session(&alice().owner(), id(1), 5)
        .unwrap();
    world
        .plane
        .heard(id(1), &ended(7, EndReason::Exited), moment(7));
    world.plane.roll_back(moment(7));

    assert_eq!(
        world.plane.open_sessions().cloned().collect::<Vec<_>>(),
        before
    );
    assert_eq!(world.plane.commit(), []);
    // The GPU is still taken, and the agent's next word brings the end again.
    assert_eq!(launched(&world.create_plain(3)), []);
    assert_eq!(
        launched(&world.heard(1, &ended(7, EndReason::Exited))),
        [id(3)]
    );
}

#[test]
fn an_agent_that_hung_up_has_a_second_to_call_before_it_is_looked_for() {
    let mut world = World::new(1);
    world.create_running(1);
    world.plane.hung_up(id(1), world.now());
    assert_eq!(
        launched(&world.after(CALL_BACK_WITHIN.minus(Millis(1)))),
        []
    );
    assert_eq!(launched(&world.after(Millis(1))), [id(1)]);
}

#[test]
fn an_end_that_the_store_refused_is_looked_for_again() {
    let mut world = World::new(1);
    let Limits {
        relaunch_after,
        lost_after,
        ..
    } = Limits::default();
    world.create_running(1);
    world
        .plane
        .heard(id(1), &ended(7, EndReason::Exited), world.now());
    world.plane.roll_back(world.now());
    // Its agent told the end, died, and nobody says anything any more.
    assert_eq!(launched(&world.after(CALL_BACK_WITHIN)), [id(1)]);
    for _ in 0..lost_after.0 / relaunch_after.0 {
        world.launched(1, LaunchOutcome::Failed("no room".into()));
        assert_eq!(launched(&world.after(relaunch_after)), [id(1)]);
    }
    world.launched(1, LaunchOutcome::Failed("no room".into()));
    world.after(relaunch_after);
    assert_eq!(reason(world.stored(1)), EndReason::Lost);
}

#[test]
fn an_app_may_begin_only_while_no_agent_was_heard_of() {
    let mut world = World::new(1);
    let Limits { relaunch_after, .. } = Limits::default();
    let may_begin = |commands: &[Command]| match commands {
        [Command::Launch(launch)] => launch.may_begin,
        commands => panic!("not one launch but {commands:?}"),
    };
    assert!(may_begin(&world.create_plain(1)));
    assert!(may_begin(&world.after(relaunch_after)));
    world.heard(1, &status(1, 15, AgentPhase::Starting));
    assert!(!may_begin(&world.after(relaunch_after)));
    world.restart();
    assert!(!may_begin(&world.after(Millis::ZERO)));
}

#[test]
fn a_server_that_leaves_nothing_behind_ends_all_and_takes_no_more() {
    let mut world = World::new(1);
    world.create_plain(1);
    world.create_plain(2);
    world.plane.cancel_all(world.now());
    let stop = ServerMessage::Stop {
        ending: Ending::plain(EndReason::Cancelled),
    };
    assert_eq!(told(&world.commit()), [stop]);
    assert_eq!(reason(world.stored(2)), EndReason::Cancelled);
    let more = world.create(3, Source::Recipe(Box::new(recipe())));
    assert_eq!(more, Err(Refusal::ShuttingDown));
}

#[test]
fn a_server_that_comes_back_owes_what_it_owed() {
    let mut world = World::new(1);
    world.create_plain(1); // Committed; whether it was launched is not known.
    world.restart();
    assert_eq!(launched(&world.after(Millis::ZERO)), [id(1)]);

    world.heard(1, &running(0, 0, 15));
    world.restart();
    // Its agent has a moment to call, and then another is sent to look.
    assert_eq!(launched(&world.after(Millis::ZERO)), []);
    assert_eq!(launched(&world.after(CALL_BACK_WITHIN)), [id(1)]);
}

#[test]
fn silence_is_looked_into_and_then_ends_at_the_last_proof_of_life() {
    let mut world = World::new(1);
    let Limits {
        relaunch_after,
        lost_after,
        ..
    } = Limits::default();
    world.create_plain(1);
    world.launched(1, LaunchOutcome::Started);
    world.heard(1, &running(4_000, 0, 15));
    assert_eq!(launched(&world.after(relaunch_after)), [id(1)]);
    world.launched(1, LaunchOutcome::Failed("no such host".into()));
    assert_eq!(launched(&world.after(relaunch_after)), [id(1)]);
    world.launched(1, LaunchOutcome::Failed("no such host".into()));
    world.after(lost_after.minus(relaunch_after).minus(relaunch_after));
    assert_eq!(reason(world.stored(1)), EndReason::Lost);
    assert_eq!(world.stored(1).gpu_event.held(), Millis(4_000));
    // The host comes back: its agent learns that it is over.
    let stop = ServerMessage::Stop {
        ending: Ending::plain(EndReason::Lost),
    };
    assert_eq!(told(&world.heard(1, &running(90_000, 86_000, 15))), [stop]);
    assert_eq!(
        told(&world.heard(1, &ended(91_000, EndReason::Lost))),
        [ServerMessage::Forget]
    );
}

#[test]
fn an_agent_that_lives_but_cannot_be_heard_is_not_lost() {
    let mut world = World::new(1);
    let Limits {
        relaunch_after,
        lost_after,
        ..
    } = Limits::default();
    world.create_plain(1);
    world.heard(1, &running(0, 0, 15));
    for _ in 0..5 {
        world.after(relaunch_after);
        world
            .plane
            .launched(id(1), LaunchOutcome::AlreadyRunning, world.now());
    }
    assert!(world.ms > lost_after.0);
    assert!(world.stored(1).is_open());
}

#[test]
fn what_an_agent_cannot_have_held_is_not_believed() {
    let mut world = World::new(1);
    world.create_plain(1);
    world.heard(1, &ended(u64::MAX, EndReason::Exited));
    let day_ms = 24 * 60 * 60_000;
    let held = world.stored(1).gpu_event.held();
    assert!((day_ms..2 * day_ms).contains(&held.0), "{held}");
    assert!(world.stored(1).gpu_event.end().is_some());
}

#[test]
fn no_session_is_lost_before_somebody_has_looked_for_it() {
    let mut world = World::new(1);
    let Limits { lost_after, .. } = Limits::default();
    world.create_running(1);
    // The server itself stood still, or its store refused to have a launch on record.
    assert_eq!(launched(&world.after(lost_after)), [id(1)]);
    // A launcher takes its time. While it does it is not asked again.
    assert_eq!(launched(&world.after(lost_after)), []);
    assert!(world.stored(1).is_open());
    world.launched(1, LaunchOutcome::Failed("no such host".into()));
    // If there was an agent until a moment ago, its app is gone in another.
    world.after(ORPHAN_GONE_WITHIN.minus(Millis(1)));
    assert!(world.stored(1).is_open());
    world.after(CALL_BACK_WITHIN);
    assert_eq!(reason(world.stored(1)), EndReason::Lost);
}

#[test]
fn a_host_that_is_gone_is_given_up_by_a_server_that_is_always_a_little_late() {
    let mut world = World::new(1);
    world.create_running(1);
    let mut settings = settings(1);
    settings.limits.relaunch_after = Millis(1_000);
    settings.limits.lost_after = Millis(3_000);
    world.restart_with(settings);
    let began = world.ms;
    while world.stored(1).is_open() {
        let due = world.plane.deadline().unwrap();
        world.ms = due.0 + 300;
        assert!(
            world.ms < began + 10_000,
            "it is looked for again and again"
        );
        for _ in launched(&world.after(Millis(0))) {
            world.ms += 10;
            world.launched(1, LaunchOutcome::Failed("no such host".into()));
        }
    }
    assert_eq!(reason(world.stored(1)), EndReason::Lost);
}

#[test]
fn what_was_seen_before_the_server_stood_still_loses_no_session() {
    let mut world = World::new(1);
    let Limits {
        relaunch_after,
        lost_after,
        ..
    } = Limits::default();
    world.create_running(1);
    assert_eq!(launched(&world.after(relaunch_after)), [id(1)]);
    world.launched(1, LaunchOutcome::Failed("no room".into()));
    // The app may have stood still as well, as it does on a laptop that is closed.
    assert_eq!(launched(&world.after(lost_after)), [id(1)]);
    assert!(world.stored(1).is_open());
    world.launched(1, LaunchOutcome::Failed("no room".into()));
    world.after(ORPHAN_GONE_WITHIN);
    assert_eq!(reason(world.stored(1)), EndReason::Lost);
}

#[test]
fn a_launch_that_fails_while_another_is_under_way_ends_nothing() {
    let mut world = World::new(1);
    let Limits { relaunch_after, .. } = Limits::default();
    world.create_plain(1);
    assert_eq!(launched(&world.after(relaunch_after)), [id(1)]);
    world.launched(1, LaunchOutcome::Failed("no room".into()));
    world.commit();
    assert!(world.stored(1).is_open());
    world.launched(1, LaunchOutcome::Failed("still no room".into()));
    world.commit();
    assert_eq!(reason(world.stored(1)), EndReason::Failed);
}

#[test]
fn a_launch_that_fails_ends_the_session_with_its_sentence() {
    let mut world = World::new(1);
    world.create_plain(1);
    world.plane.launched(
        id(1),
        LaunchOutcome::Failed("The disk is full".into()),
        moment(0),
    );
    world.commit();
    let State::Ended { ending, .. } = &world.stored(1).state else {
        panic!()
    };
    assert_eq!(*ending, Ending::failed("The disk is full".into()));
    assert_eq!(world.stored(1).gpu_event.cost(), MicroDollars(0));
}

#[test]
fn a_port_that_another_program_has_is_replaced() {
    let mut world = World::new(1);
    world.create_plain(1);
    world.plane.port_unusable(id(1), 20_000, moment(0));
    world.commit();
    assert_eq!(world.stored(1).placement().unwrap().port, 20_001);
}

#[test]
fn other_owners_sessions_do_not_exist() {
    let mut world = World::new(1);
    world.create_plain(1);
    world.heard(1, &running(0, 0, 15));
    let in_an_org = Owner::Org(crate::owner::OrgId("alice".into()));
    assert_eq!(
        world.plane.extend_session(&in_an_org, id(1), 5),
        Err(Refusal::NoSuchSession)
    );
    assert_eq!(
        world.plane.cancel_session(&in_an_org, id(1), moment(0)),
        Err(Refusal::NoSuchSession)
    );
}

#[test]
fn a_change_of_the_recipe_makes_a_version_and_a_change_of_the_name_does_not() {
    let mut world = World::new(1);
    let version = |number| crate::id::MachineVersionId(Uuid::from_u128(number));
    let machine = NewMachine {
        id: MachineId(Uuid::from_u128(7)),
        version_id: version(1),
        principal: alice(),
        name: "m".into(),
        recipe: recipe(),
    };
    world.plane.create_machine(machine, moment(0)).unwrap();
    let mut patch = |patch, number| {
        let id = MachineId(Uuid::from_u128(7));
        world
            .plane
            .change_machine(&alice(), id, patch, version(number), moment(1))
            .unwrap()
    };
    let renamed = patch(
        MachinePatch {
            name: Some("n".into()),
            ..MachinePatch::default()
        },
        2,
    );
    assert_eq!((renamed.name.as_str(), renamed.current.version), ("n", 1));
    let ported = patch(
        MachinePatch {
            port: Some(Some(81)),
            ..MachinePatch::default()
        },
        3,
    );
    assert_eq!((ported.current.version, ported.current.id), (2, version(3)));
    let again = patch(
        MachinePatch {
            port: Some(Some(82)),
            ..MachinePatch::default()
        },
        4,
    );
    assert_eq!(again.current.version, 3);
    // Every version of one step is on record, not only the last.
    let versions = world
        .plane
        .changes()
        .into_iter()
        .filter_map(|change| match change {
            Change::MachineVersion(_, version) => Some(version.version),
            _ => None,
        });
    assert_eq!(versions.collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn only_an_admin_makes_keys_for_others() {
    let mut world = World::new(1);
    let key = |principal: Principal| Key {
        id: KeyId(Uuid::from_u128(1)),
        name: "k".into(),
        hash: crate::key::KeyHash([0; 32]),
        principal,
        created_at: Timestamp(0),
        revoked_at: None,
    };
    let bob = Principal {
        user: UserId("bob".into()),
        org: None,
        admin: false,
    };
    let admin = Principal {
        admin: true,
        ..alice()
    };
    assert_eq!(
        world.plane.create_key(key(bob.clone()), Some(&alice())),
        Err(Refusal::AdminOnly)
    );
    assert_eq!(
        world.plane.create_key(key(admin.clone()), Some(&alice())),
        Err(Refusal::AdminOnly)
    );
    assert_eq!(world.plane.create_key(key(alice()), Some(&alice())), Ok(()));
    assert_eq!(world.plane.create_key(key(bob), Some(&admin)), Ok(()));
}

#[test]
fn an_agent_that_started_late_has_its_time_to_call() {
    let mut world = World::new(1);
    let Limits {
        relaunch_after,
        lost_after,
        ..
    } = Limits::default();
    world.create_plain(1);
    world.ms = relaunch_after.minus(Millis(1)).0;
    world.launched(1, LaunchOutcome::Started);
    world.after(lost_after.minus(ORPHAN_GONE_WITHIN));
    assert!(world.stored(1).is_open());
    // One that starts again and again and never calls is given up all the same.
    world.launched(1, LaunchOutcome::Started);
    world.after(ORPHAN_GONE_WITHIN);
    assert_eq!(reason(world.stored(1)), EndReason::Failed);
}

fn new_share(number: u128, session: u128, principal: Principal, access: Access) -> NewShare {
    NewShare {
        id: ShareId(Uuid::from_u128(number)),
        principal,
        session: id(session),
        name: "for bob".into(),
        hash: KeyHash([1; 32]),
        scope: Scope::Use,
        good_for: Some(Millis(60_000)),
        default_access: access,
    }
}

#[test]
fn a_share_link_is_its_owners_and_is_good_until_it_is_revoked_or_expires() {
    let mut world = World::new(1);
    world.create_plain(1);
    let bob = Principal {
        user: UserId("bob".into()),
        ..alice()
    };
    let now = world.now();
    let asked = new_share(1, 1, bob.clone(), Access::Private);
    let refused = world.plane.create_share(asked, now);
    assert_eq!(refused, Err(Refusal::NoSuchSession));
    let asked = new_share(1, 1, alice(), Access::Link);
    let refused = world.plane.create_share(asked, now);
    assert_eq!(refused, Err(Refusal::NotPrivate));

    let asked = new_share(1, 1, alice(), Access::Private);
    let share = world.plane.create_share(asked, now).unwrap();
    assert!(share.is_good(now.wall.plus(Millis(59_999))));
    assert!(!share.is_good(now.wall.plus(Millis(60_000))));
    let revoked = world.plane.revoke_share(&bob, id(1), share.id, now);
    assert_eq!(revoked, Err(Refusal::NoSuchSession));
    world
        .plane
        .revoke_share(&alice(), id(1), share.id, now)
        .unwrap();
    assert!(world.plane.shares().all(|share| !share.is_good(now.wall)));
    let again = world.plane.revoke_share(&alice(), id(1), share.id, now);
    assert_eq!(again, Err(Refusal::NoSuchShare));
}

#[test]
fn a_share_link_counts_who_comes_and_goes_with_its_session() {
    let mut world = World::new(1);
    world.create_plain(1);
    let now = world.now();
    let asked = new_share(1, 1, alice(), Access::Private);
    let share = world.plane.create_share(asked, now).unwrap();
    world.commit();
    let visits = [1, 2].map(|last| Visit {
        from: Ipv4Addr::new(10, 0, 0, last).into(),
        at: now.wall,
    });
    for visit in visits {
        world.plane.share_visited(id(1), share.id, visit);
    }
    let counted = world.plane.shares().next().unwrap();
    assert_eq!(counted.visits, 2);
    assert_eq!(counted.recent_visits, [visits[1], visits[0]]);

    world
        .plane
        .cancel_session(&alice().owner(), id(1), now)
        .unwrap();
    world.commit();
    world.heard(1, &ended(1_000, EndReason::Cancelled));
    assert_eq!(world.plane.shares().count(), 0);
}

#[test]
fn a_session_has_so_many_share_links_that_are_good_and_no_more() {
    let mut world = World::new(1);
    world.create_plain(1);
    let now = world.now();
    let limit = Limits::default().shares_per_session;
    for number in 0..limit {
        let asked = new_share(number.into(), 1, alice(), Access::Private);
        world.plane.create_share(asked, now).unwrap();
    }
    let one_more = || new_share(1_000, 1, alice(), Access::Private);
    let refused = world.plane.create_share(one_more(), now);
    assert!(matches!(refused, Err(Refusal::TooMany { .. })));
    let later = moment(60_000);
    assert!(world.plane.create_share(one_more(), later).is_ok());
}
