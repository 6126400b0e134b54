//! Rows to put on record, plain but for what a story is about.

use std::collections::BTreeMap;

use dwell_core::control_plane::Change;
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::id::{GpuEventId, KeyId, MachineId, MachineVersionId, SessionId, ShareId};
use dwell_core::key::{Key, KeyHash};
use dwell_core::machine::{AppCommand, Machine, MachineVersion, Recipe};
use dwell_core::metering::{GpuEvent, Span};
use dwell_core::owner::{OrgId, Owner, Principal, UserId};
use dwell_core::pricing::{HourlyRate, MicroDollars};
use dwell_core::session::{EndReason, Ending, Place, Placement, Session, State};
use dwell_core::share::{Scope, Share};
use dwell_core::time::{Millis, Timestamp};
use uuid::Uuid;

pub fn user(name: &str) -> Owner {
    Owner::User(UserId(name.into()))
}

pub fn org(name: &str) -> Owner {
    Owner::Org(OrgId(name.into()))
}

/// Whose a row is when a story does not care.
pub fn ann() -> Owner {
    user("ann")
}

pub fn session_id(n: u32) -> SessionId {
    SessionId(Uuid::from_u128(n.into()))
}

pub fn machine_id(n: u32) -> MachineId {
    MachineId(Uuid::from_u128(n.into()))
}

pub fn version_id(n: u32) -> MachineVersionId {
    MachineVersionId(Uuid::from_u128(n.into()))
}

fn recipe() -> Recipe {
    Recipe {
        command: AppCommand::Argv(vec!["python3".into(), "-m".into(), "http.server".into()]),
        port: None,
        workdir: None,
        environment: BTreeMap::from([("GREETING".into(), "snow ☃ \"quoted\"\n".into())]),
        gpu: GpuType("A10G".into()),
        timeout_minutes: 15,
        ready_path: "/".into(),
        access: None,
        container: None,
    }
}

/// Ann's `n`th session: made at `n`, waiting with ticket `n` for an A10G.
pub fn session(n: u32) -> Session {
    Session {
        id: session_id(n),
        owner: ann(),
        user_id: UserId("ann".into()),
        machine_id: None,
        machine_version_id: None,
        recipe: recipe(),
        gpu_type: GpuType("A10G".into()),
        created_at: Timestamp(n.into()),
        granted_ms: Millis::from_minutes(15),
        state: State::Queued { ticket: n.into() },
        job: None,
        begun_by: None,
        gpu_event: GpuEvent::new(
            GpuEventId(Uuid::from_u128(n.into())),
            HourlyRate(MicroDollars(1_100_000)),
        ),
    }
}

pub fn placement() -> Placement {
    Placement {
        place: Place::Host {
            gpu: GpuId("A10G/0000".into()),
            visible_device: "0".into(),
        },
        port: 20_000,
    }
}

pub fn starting(session: Session) -> Session {
    Session {
        state: State::Starting {
            placement: placement(),
        },
        ..session
    }
}

pub fn ended(session: Session, at: i64) -> Session {
    Session {
        state: State::Ended {
            started_at: None,
            ended_at: Timestamp(at),
            ending: Ending::plain(EndReason::Exited),
        },
        ..session
    }
}

/// The session held `gpu` from `start` on: up to `end`, or still.
pub fn held(session: Session, gpu: &str, start: i64, end: Option<i64>) -> Session {
    let span = match end {
        Some(end) => Span::Closed {
            start: Timestamp(start),
            held: Timestamp(end).since(Timestamp(start)),
        },
        None => Span::Open {
            start: Timestamp(start),
            held: Millis(1),
        },
    };
    Session {
        gpu_event: GpuEvent {
            gpu: Some(GpuId(gpu.into())),
            span,
            ..session.gpu_event
        },
        ..session
    }
}

/// Version `number` of a machine, with an id of its own.
pub fn version(id: u32, number: u32) -> MachineVersion {
    MachineVersion {
        id: version_id(id),
        version: number,
        recipe: recipe(),
        user_id: UserId("ann".into()),
        created_at: Timestamp(id.into()),
    }
}

/// Ann's `n`th machine, made at `n`, at its first version.
pub fn machine(n: u32) -> Machine {
    Machine {
        id: machine_id(n),
        owner: ann(),
        user_id: UserId("ann".into()),
        name: format!("machine {n}"),
        current: version(n, 1),
        created_at: Timestamp(n.into()),
        updated_at: Timestamp(n.into()),
    }
}

/// Ann's `n`th key, made at `n`.
pub fn key(n: u32) -> Key {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&n.to_be_bytes());
    Key {
        id: KeyId(Uuid::from_u128(n.into())),
        name: format!("key {n}"),
        hash: KeyHash(hash),
        principal: Principal {
            user: UserId("ann".into()),
            org: None,
            admin: false,
        },
        created_at: Timestamp(n.into()),
        revoked_at: None,
    }
}

pub fn put(session: &Session) -> Change {
    Change::Session(Box::new(session.clone()))
}

pub fn put_machine(machine: &Machine) -> Change {
    Change::Machine(Box::new(machine.clone()))
}

pub fn put_version(machine: MachineId, version: &MachineVersion) -> Change {
    Change::MachineVersion(machine, Box::new(version.clone()))
}

/// What every store must refuse, for a reason of its own: a version of a machine
/// that there is not.
pub fn refused() -> Change {
    put_version(machine_id(u32::MAX), &version(u32::MAX, 1))
}

/// A link to that session, made at `n`, when the session is Ann's.
pub fn share(n: u32, session: SessionId) -> Share {
    Share {
        id: ShareId(Uuid::from_u128(n.into())),
        session,
        owner: ann(),
        name: format!("link {n}"),
        hash: KeyHash([0; 32]),
        scope: Scope::View,
        created_by: UserId("ann".into()),
        created_at: Timestamp(n.into()),
        expires_at: None,
        revoked: None,
        visits: 0,
        recent_visits: Vec::new(),
    }
}

pub fn put_share(share: &Share) -> Change {
    Change::Share(Box::new(share.clone()))
}
