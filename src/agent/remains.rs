//! What there is on this host of sessions, whoever started it, and how to clear it
//! away: for an agent that finds what an earlier one left, and for the server's sweep.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use dwell_core::id::SessionId;
use dwell_core::sweep::Remains;
use dwell_core::time::Millis;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::{self, Cgroups};
use super::init;
use super::journal::Holder;
use crate::data_dir::{SessionDir, SessionsDir};

/// How long what was killed may take to go before it is killed again.
const KILL_AGAIN_AFTER: Duration = Duration::from_millis(5);

/// The variables by which every process of a session is known, unless it hides them.
const MARKS: [&str; 2] = ["DWELL_SESSION_ID", init::MARK];

/// What is there of the sessions in `sessions`. What belongs to no session that it
/// knows is another server's.
///
/// # Errors
/// When the directory cannot be read.
pub fn of_all(sessions: &SessionsDir) -> io::Result<BTreeMap<SessionId, Remains>> {
    let mut found: BTreeMap<SessionId, Remains> = fs::read_dir(&sessions.0)?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(|id| (id, of_directory(&sessions.of(id))))
        .collect();
    for (id, _) in marked() {
        if let Some(remains) = found.get_mut(&id) {
            remains.processes = true;
        }
    }
    for id in cgroup::sessions() {
        if let Some(remains) = found.get_mut(&id) {
            remains.cgroup = true;
        }
    }
    Ok(found)
}

fn of_directory(dir: &SessionDir) -> Remains {
    // The app's directory was removed from it at the end.
    let last_written = dir.path().metadata().and_then(|dir| dir.modified()).ok();
    let untouched_for = last_written
        .and_then(|moment| SystemTime::now().duration_since(moment).ok())
        .unwrap_or_default();
    Remains {
        // One that cannot be looked at is left alone.
        agent: Holder::of(dir).map_or(true, |holder| holder != Holder::Nobody),
        untouched_for: Millis(u64::try_from(untouched_for.as_millis()).unwrap_or(0)),
        ..Remains::default()
    }
}

/// Kill every process of the session until none is left, and remove its cgroups.
/// Its agent must be dead.
pub async fn clear_away(session: SessionId) {
    let left = Cgroups::find(session);
    loop {
        let strays = strays(session);
        if strays.is_empty() && left.are_empty() {
            break;
        }
        left.kill();
        for pid in strays {
            let _ = kill(pid, Signal::SIGKILL);
        }
        tokio::time::sleep(KILL_AGAIN_AFTER).await;
    }
    left.remove();
}

/// Every process that was given this session's environment, whoever its parent is
/// by now.
#[must_use]
pub fn strays(session: SessionId) -> Vec<Pid> {
    let of_session = marked().into_iter().filter(|(id, _)| *id == session);
    of_session.map(|(_, pid)| pid).collect()
}

/// Every process that has a session's environment.
#[must_use]
pub fn marked() -> Vec<(SessionId, Pid)> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((session_of(pid)?, Pid::from_raw(pid))))
        .collect()
}

/// The session whose environment a process has.
#[must_use]
pub fn session_of(pid: i32) -> Option<SessionId> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let of_session = |variable: &[u8]| {
        let (name, id) = std::str::from_utf8(variable).ok()?.split_once('=')?;
        MARKS.contains(&name).then(|| id.parse().ok()).flatten()
    };
    environment.split(|byte| *byte == 0).find_map(of_session)
}
