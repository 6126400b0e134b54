//! A store that holds many sessions.

use dwell::data_dir::DataDir;
use dwell::store::StoreAt;
use dwell_core::control_plane::Change;
use dwell_core::gpu::{GpuId, GpuType};
use dwell_core::id::{GpuEventId, SessionId};
use dwell_core::machine::{AppCommand, Recipe};
use dwell_core::metering::{GpuEvent, Span};
use dwell_core::owner::{Owner, UserId};
use dwell_core::pricing::{HourlyRate, MicroDollars};
use dwell_core::session::{EndReason, Ending, Session, State};
use dwell_core::time::{Millis, Timestamp};
use uuid::Uuid;

use crate::Result;

pub const STORED: usize = 100_000;

/// Put as many sessions that have ended into the store of `dir`; their ids.
pub fn fill(dir: &DataDir) -> Result<Vec<SessionId>> {
    fill_store(&StoreAt::DataDir, dir)
}

/// The same, in that store.
pub fn fill_store(store: &StoreAt, dir: &DataDir) -> Result<Vec<SessionId>> {
    dir.create()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let store = runtime.block_on(store.open(&dir.store()))?;
    let now = dwell::clock::wall();
    let sessions: Vec<_> = (0..STORED).map(|number| session(number, now)).collect();
    let ids = sessions.iter().map(|session| session.id).collect();
    for some in sessions.chunks(1_000) {
        let changes = some.iter().cloned().map(Box::new).map(Change::Session);
        runtime.block_on(store.commit(changes.collect()))?;
    }
    Ok(ids)
}

fn session(number: usize, now: Timestamp) -> Session {
    let minutes = |minutes: usize| Millis(60_000 * minutes as u64);
    // Over the last 20 days, of the one who has the key.
    let created_at = now.minus(minutes(number % 28_800 + 10));
    let started_at = created_at.plus(Millis(50));
    Session {
        id: SessionId(Uuid::new_v4()),
        owner: Owner::User(UserId("admin".to_owned())),
        user_id: UserId("admin".to_owned()),
        machine_id: None,
        machine_version_id: None,
        recipe: Recipe {
            command: AppCommand::Argv(vec!["jupyter".to_owned(), "lab".to_owned()]),
            port: None,
            workdir: None,
            environment: [("HF_HOME".to_owned(), "/models".to_owned())].into(),
            gpu: GpuType::cpu(),
            timeout_minutes: 15,
            ready_path: "/".to_owned(),
            access: None,
            container: None,
        },
        gpu_type: GpuType::cpu(),
        created_at,
        granted_ms: minutes(15),
        state: State::Ended {
            started_at: Some(started_at),
            ended_at: started_at.plus(minutes(9)),
            ending: Ending::plain(EndReason::Cancelled),
        },
        job: None,
        begun_by: None,
        gpu_event: GpuEvent {
            gpu: Some(GpuId(format!("CPU {}", number % 64))),
            span: Span::Closed {
                start: created_at,
                held: minutes(9),
            },
            ..GpuEvent::new(
                GpuEventId(Uuid::new_v4()),
                HourlyRate(MicroDollars(1_100_000)),
            )
        },
    }
}
