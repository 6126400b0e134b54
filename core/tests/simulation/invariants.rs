//! What must be true after every step, whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use dwell_core::gpu::GpuId;
use dwell_core::metering::Span;
use dwell_core::session::{EndReason, Session, State};

use super::world::{LIMITS, PORTS, World};

type Checked = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($sentence:tt)*) => {
        if !$condition {
            return Err(format!($($sentence)*));
        }
    };
}

/// All that can be seen at one instant.
pub fn check(world: &World) -> Checked {
    one_gpu_has_one_live_tree(world)?;
    an_app_is_started_once_at_most(world)?;
    acknowledged_requests_hold(world)?;
    let Some(plane) = &world.plane else {
        return Ok(());
    };
    let open: Vec<&Session> = plane.open_sessions().collect();
    one_gpu_is_given_to_one_session(&open)?;
    nothing_waits_while_its_gpu_is_free(world, &open)?;
    ports_are_distinct_and_in_range(&open)?;
    limits_are_kept(&open)?;
    what_is_held_in_memory_is_what_is_on_record(world, &open)
}

fn one_gpu_has_one_live_tree(world: &World) -> Checked {
    let mut busy = BTreeMap::new();
    for (id, site) in world
        .sites
        .iter()
        .filter(|(_, site)| site.tree_since.is_some())
    {
        if let Some(other) = busy.insert(&site.gpu, id) {
            return Err(format!("{} has processes of {id} and of {other}", site.gpu));
        }
    }
    Ok(())
}

fn an_app_is_started_once_at_most(world: &World) -> Checked {
    for (id, site) in &world.sites {
        ensure!(site.starts <= 1, "{id} was started {} times", site.starts);
    }
    Ok(())
}

/// Whatever crashed since: what was created is there, what was granted is granted,
/// what was cancelled is ending or has ended.
fn acknowledged_requests_hold(world: &World) -> Checked {
    for (id, acknowledged) in &world.acknowledged {
        let session = world.store.sessions.get(id);
        let Some(session) = session else {
            return Err(format!("{id} was acknowledged and is gone"));
        };
        ensure!(session.owner == acknowledged.owner, "{id} changed hands");
        ensure!(
            session.granted_ms >= acknowledged.granted,
            "{id} was granted {} and has {}",
            acknowledged.granted,
            session.granted_ms
        );
        let ends = matches!(session.state, State::Stopping { .. } | State::Ended { .. });
        ensure!(
            !acknowledged.cancelled || ends,
            "{id} was cancelled and is {:?}",
            session.state
        );
        let started = world.sites.get(id).map_or(0, |site| site.starts);
        ensure!(
            !acknowledged.cancelled_in_queue || started == 0,
            "{id} was cancelled while it waited and was started later"
        );
    }
    for (machine, version) in &world.acknowledged_versions {
        ensure!(
            world.store.versions.contains(&(*machine, *version)),
            "a version of {machine} is gone"
        );
    }
    for key in &world.acknowledged_keys {
        ensure!(world.store.keys.contains_key(key), "key {key} is gone");
    }
    Ok(())
}

fn one_gpu_is_given_to_one_session(open: &[&Session]) -> Checked {
    let mut given = BTreeSet::new();
    for placement in open.iter().filter_map(|session| session.placement()) {
        ensure!(
            given.insert(&placement.gpu),
            "{} is given to two sessions",
            placement.gpu
        );
    }
    Ok(())
}

fn nothing_waits_while_its_gpu_is_free(world: &World, open: &[&Session]) -> Checked {
    if !world.at_rest {
        return Ok(());
    }
    let given: BTreeSet<&GpuId> = open
        .iter()
        .filter_map(|session| Some(&session.placement()?.gpu))
        .collect();
    for session in open
        .iter()
        .filter(|session| matches!(session.state, State::Queued { .. }))
    {
        let free = world
            .inventory
            .iter()
            .find(|gpu| gpu.gpu_type == session.gpu_type && !given.contains(&gpu.id));
        ensure!(
            free.is_none(),
            "{} waits while {} is free",
            session.id,
            free.map_or("", |gpu| &gpu.id.0)
        );
    }
    Ok(())
}

fn ports_are_distinct_and_in_range(open: &[&Session]) -> Checked {
    let mut ports = BTreeSet::new();
    for port in open
        .iter()
        .filter_map(|session| Some(session.placement()?.port))
    {
        ensure!(PORTS.contains(&port), "port {port} is none of ours");
        ensure!(ports.insert(port), "port {port} is two sessions'");
    }
    Ok(())
}

fn limits_are_kept(open: &[&Session]) -> Checked {
    let mut of_machine = BTreeMap::new();
    for session in open {
        if let Some(machine) = session.machine_id {
            let count = of_machine.entry((&session.owner, machine)).or_insert(0);
            *count += 1;
            ensure!(
                *count <= LIMITS.sessions_per_machine,
                "{machine} has {count} open sessions of one owner"
            );
        }
        ensure!(
            session.granted_ms.whole_minutes() <= LIMITS.timeout_max_minutes,
            "{} was granted {}",
            session.id,
            session.granted_ms
        );
    }
    Ok(())
}

fn what_is_held_in_memory_is_what_is_on_record(world: &World, open: &[&Session]) -> Checked {
    if !world.at_rest {
        return Ok(());
    }
    let stored: Vec<&Session> = world
        .store
        .sessions
        .values()
        .filter(|session| session.is_open())
        .collect();
    ensure!(
        *open == stored,
        "in memory: {open:?}\non record: {stored:?}"
    );
    Ok(())
}

/// A session's row is written again.
pub fn check_change(world: &World, before: Option<&Session>, after: &Session) -> Checked {
    if let Some(before) = before {
        ensure!(
            rank(&before.state) <= rank(&after.state),
            "{} went back from {:?} to {:?}",
            after.id,
            before.state,
            after.state
        );
        ensure!(
            before.granted_ms <= after.granted_ms,
            "{} was granted less",
            after.id
        );
        ensure!(
            before.gpu_event.held() <= after.gpu_event.held(),
            "{} held less",
            after.id
        );
        ensure!(
            before.is_open() || before == after,
            "{} changed after its end: {before:?} {after:?}",
            after.id
        );
        served_in_turn(world, before, after)?;
    }
    let State::Ended { .. } = &after.state else {
        return Ok(());
    };
    ensure!(
        !matches!(after.gpu_event.span, Span::Open { .. }),
        "{} ended with an open event",
        after.id
    );
    event_is_true(world, after)?;
    // For a lost one the launcher has found no agent: with it the tree was gone.
    tree_is_gone(world, after)
}

fn rank(state: &State) -> u8 {
    match state {
        State::Queued { .. } => 0,
        State::Starting { .. } => 1,
        State::Running { .. } => 2,
        State::Stopping { .. } => 3,
        State::Ended { .. } => 4,
    }
}

fn served_in_turn(world: &World, before: &Session, after: &Session) -> Checked {
    let (State::Queued { ticket }, Some(_)) = (&before.state, after.placement()) else {
        return Ok(());
    };
    let Some(plane) = &world.plane else {
        return Ok(());
    };
    let overtaken = plane.open_sessions().find(|other| {
        other.gpu_type == after.gpu_type
            && matches!(other.state, State::Queued { ticket: theirs } if theirs < *ticket)
    });
    ensure!(
        overtaken.is_none(),
        "{} overtook {:?}",
        after.id,
        overtaken.map(|other| other.id)
    );
    Ok(())
}

fn event_is_true(world: &World, ended: &Session) -> Checked {
    let event = &ended.gpu_event;
    ensure!(
        event.cost() == event.rate.cost_of(event.held()),
        "{} costs {:?}",
        ended.id,
        event.cost()
    );
    let site = world.sites.get(&ended.id);
    let truly_held = site.and_then(|site| {
        site.truly_held_ms
            .or_else(|| site.tree_since.map(|since| world.now - since))
    });
    ensure!(
        event.held().0 <= truly_held.unwrap_or(0),
        "{} is billed {} and held its GPU for {truly_held:?} ms",
        ended.id,
        event.held()
    );
    if let (Some(start), Some(gpu)) = (event.start(), &event.gpu)
        && let Some((last, end)) = world.last_events.get(gpu)
    {
        ensure!(
            start >= *end,
            "the event of {} begins before that of {last} ended on {gpu}",
            ended.id
        );
    }
    Ok(())
}

fn tree_is_gone(world: &World, ended: &Session) -> Checked {
    let Some(site) = world.sites.get(&ended.id) else {
        return Ok(());
    };
    ensure!(
        site.tree_since.is_none(),
        "{} has ended and its processes are there",
        ended.id
    );
    Ok(())
}

/// An agent ended a session that ran for so long, by its own clock.
pub fn check_lease(
    id: &str,
    reason: EndReason,
    granted_ms: u64,
    ran_ms: u64,
    gone_after_ms: u64,
) -> Checked {
    if reason == EndReason::TimedOut {
        ensure!(
            ran_ms >= granted_ms,
            "{id} was ended {} ms early",
            granted_ms - ran_ms
        );
    }
    let allowed = granted_ms + LIMITS.grace.0 + 50;
    ensure!(
        gone_after_ms <= allowed,
        "{id} outlived its lease by {} ms",
        gone_after_ms - granted_ms
    );
    Ok(())
}
