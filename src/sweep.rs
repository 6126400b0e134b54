//! The sweep: whatever is on this host of sessions that are not open (any more) is
//! found and ended. The other way round, open sessions without an agent, the control
//! plane looks after by itself.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use dwell_core::id::SessionId;
use dwell_core::sweep::{Remedy, Sweep};
use dwell_core::time::Millis;
use nix::sys::signal::Signal;
use tokio::time::{MissedTickBehavior, interval};

use crate::agent::journal::Holder;
use crate::agent::remains;
use crate::data_dir::SessionsDir;
use crate::driver::Driver;
use crate::engine::{Engine, EngineSettings, Left};
use crate::gpus::{self, GpuProcess};

/// How often.
const EVERY: Duration = Duration::from_secs(60);

/// Sweep at once, and then again and again.
pub async fn keep_sweeping(
    driver: Driver,
    sessions: SessionsDir,
    engine: Option<EngineSettings>,
    retention: Millis,
) {
    let mut sweep = Sweep::default();
    let mut reported = HashSet::new();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let containers = containers(engine.as_ref(), &sessions).await;
        let remedies = compare(&mut sweep, &driver, &sessions, &containers, retention).await;
        for (session, remedy) in remedies.unwrap_or_default() {
            apply(session, remedy, &sessions).await;
            if remedy == Remedy::ClearAway {
                remove(session, engine.as_ref(), &containers).await;
            }
        }
        let unowned = tokio::task::spawn_blocking(unowned_gpu_processes).await;
        report(unowned.unwrap_or_default(), &mut reported);
    }
}

async fn compare(
    sweep: &mut Sweep,
    driver: &Driver,
    sessions: &SessionsDir,
    containers: &[Left],
    retention: Millis,
) -> Option<Vec<(SessionId, Remedy)>> {
    let place = sessions.clone();
    let found = tokio::task::spawn_blocking(move || remains::of_all(&place)).await;
    let mut found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            let place = &sessions.0;
            tracing::warn!("{} cannot be swept: {error}", place.display());
            return None;
        }
        Err(_) => return None,
    };
    for container in containers {
        found.entry(container.session).or_default().container = true;
    }
    // Asked afterwards: what was begun meanwhile is open by now.
    let open = driver.ask(|plane, _| {
        let ids = plane.open_sessions().map(|session| session.id);
        Ok(ids.collect::<BTreeSet<_>>())
    });
    Some(sweep.compare(&found, &open.await.ok()?, retention))
}

/// What an engine has of the sessions in `sessions`. One that does not answer is asked
/// the next time.
async fn containers(engine: Option<&EngineSettings>, sessions: &SessionsDir) -> Vec<Left> {
    let Some(settings) = engine else {
        return Vec::new();
    };
    let found = async {
        let engine = Engine::connect(&settings.host).await?;
        engine.containers(&sessions.0).await
    };
    found.await.unwrap_or_else(|why| {
        tracing::warn!("containers cannot be swept: {why}");
        Vec::new()
    })
}

async fn remove(session: SessionId, engine: Option<&EngineSettings>, containers: &[Left]) {
    let Some(settings) = engine else { return };
    for container in containers.iter().filter(|it| it.session == session) {
        let removed = async {
            let engine = Engine::connect(&settings.host).await?;
            engine.remove(&container.id).await
        };
        if let Err(why) = removed.await {
            tracing::warn!(%session, "its container cannot be removed: {why}");
        }
    }
}

async fn apply(session: SessionId, remedy: Remedy, sessions: &SessionsDir) {
    let dir = sessions.of(session);
    let signal = |signal| match Holder::of(&dir) {
        Ok(holder) => holder.signal(signal),
        Err(error) => tracing::warn!(%session, "its agent cannot be found: {error}"),
    };
    match remedy {
        Remedy::EndAgent => {
            tracing::info!(%session, "an agent lives whose session is not open; it is to end it");
            // A paused one would not hear.
            signal(Signal::SIGTERM);
            signal(Signal::SIGCONT);
        }
        Remedy::KillAgent => {
            tracing::warn!(%session, "an agent does not end a session that is not open; killing it");
            signal(Signal::SIGKILL);
        }
        Remedy::ClearAway => {
            tracing::warn!(%session, "something is left of a session that is not open; clearing it away");
            let cleared = tokio::time::timeout(EVERY / 2, remains::clear_away(session)).await;
            if cleared.is_err() {
                tracing::error!(%session, "some of its processes cannot be killed");
            }
        }
        Remedy::RemoveDirectory => {
            tracing::info!(%session, "its log is as old as logs get; removing it");
            let removed = tokio::fs::remove_dir_all(dir.path()).await;
            if let Err(error) = removed {
                tracing::warn!(%session, "{} cannot be removed: {error}", dir.path().display());
            }
        }
    }
}

/// Processes on this host's GPUs that are no session's.
fn unowned_gpu_processes() -> Vec<GpuProcess> {
    let mut processes = gpus::processes();
    processes.retain(|process| remains::session_of(process.pid).is_none());
    processes
}

/// Say each once. They are not ours to kill.
fn report(unowned: Vec<GpuProcess>, reported: &mut HashSet<GpuProcess>) {
    reported.retain(|process| unowned.contains(process));
    for process in unowned {
        if reported.insert(process.clone()) {
            let GpuProcess { gpu, pid } = process;
            tracing::warn!(
                "process {pid} uses {gpu} and is no session's; sessions share it with that"
            );
        }
    }
}
