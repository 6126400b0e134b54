//! What must be true after every step, whatever happened.

use std::collections::{BTreeMap, BTreeSet};

use dwell_core::gpu::GpuId;
use dwell_core::id::SessionId;
use dwell_core::job::{JobState, Jobs};
use dwell_core::metering::{Period, Span, usage_by_type};
use dwell_core::pricing::MicroDollars;
use dwell_core::protocol::AgentPhase;
use dwell_core::session::{Session, State};
use dwell_core::share::Share;
use dwell_core::time::Millis;

use super::agents::{ORPHAN_MS, Post, Site};
use super::engine::{BOOT_MS, EngineJob, Stage, number_of};
use super::world::{LIMITS, PORTS, World};

/// An agent that is paused while it waits for the last process to go may take it to be
/// there for as long as it would not have looked anyway.
const UNSEEN_MS: u64 = 500;

/// An agent that said something so recently speaks.
const SPOKE_MS: u64 = 5_000;

/// Two looks, a word to an engine, and what a job takes to end.
const STRAY_MS: u64 = 90_000;

type Checked = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($sentence:tt)*) => {
        if !$condition {
            return Err(format!($($sentence)*));
        }
    };
}

/// All that can be seen of the server at one instant.
pub fn check(world: &World) -> Checked {
    let Some(plane) = &world.plane else {
        return Ok(());
    };
    let open: Vec<&Session> = plane.open_sessions().collect();
    one_gpu_is_given_to_one_session(&open)?;
    no_more_jobs_than_may_be(world, &open)?;
    nothing_waits_while_its_gpu_is_free(world, &open)?;
    ports_are_distinct_and_in_range(&open)?;
    limits_are_kept(&open)?;
    what_is_held_in_memory_is_what_is_on_record(world, &open)
}

/// An agent starts an app, for which it was launched when an agent had been heard of
/// on record, or had not.
pub fn check_start(world: &World, post: Post, was_heard_of: bool) -> Checked {
    let Some(site) = world.sites.get(&post) else {
        return Ok(());
    };
    an_app_is_started_once_at_most(post, site, was_heard_of)?;
    // Leave to begin may have been on its way when its engine gave up its job.
    let is_given_up = post.job.is_some_and(|job| {
        let engine = world.engine.as_ref();
        world.may_double.contains(&post.session) || engine.is_none_or(|it| it.is_over(job))
    });
    let open = world.store.sessions.get(&post.session);
    ensure!(
        open.is_some_and(Session::is_open) || is_given_up,
        "{post} is started after its end"
    );
    let other = world
        .sites_of(post.session)
        .find(|(other, theirs)| **other != post && theirs.tree.is_some());
    ensure!(
        other.is_none(),
        "{post} is started while {other:?} is there"
    );
    one_gpu_has_one_live_tree(world, post, site)
}

/// The one exception: a tree whose session was given up while its host could not be
/// reached. Of such a host nothing can be proven, its GPU counts as gone with it, and
/// what it brings back when it returns is told to stop.
fn one_gpu_has_one_live_tree(world: &World, post: Post, site: &Site) -> Checked {
    let other = world.sites.iter().find(|(other, theirs)| {
        **other != post && theirs.gpu == site.gpu && theirs.tree.is_some() && !theirs.is_given_up
    });
    ensure!(
        other.is_none(),
        "{} has processes of {post} and of {:?}",
        site.gpu,
        other.map(|(other, _)| other)
    );
    Ok(())
}

/// The one exception: no agent had ever been heard of when the launch was asked for,
/// and its host has lost every trace of an earlier one. Who could know then?
fn an_app_is_started_once_at_most(post: Post, site: &Site, was_heard_of: bool) -> Checked {
    ensure!(
        site.trees == 1 || !was_heard_of,
        "{post} was started {} times, though it had been heard of",
        site.trees
    );
    Ok(())
}

/// Whatever crashed since: what was created is there, what was granted is granted,
/// what was cancelled is ending or has ended.
pub fn acknowledged_requests_hold(world: &World, id: SessionId) -> Checked {
    let Some(acknowledged) = world.acknowledged.get(&id) else {
        return Ok(());
    };
    let Some(session) = world.store.sessions.get(&id) else {
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
    let started: u32 = world.sites_of(id).map(|(_, site)| site.trees).sum();
    ensure!(
        !acknowledged.cancelled_in_queue || started == 0,
        "{id} was cancelled while it waited and was started later"
    );
    Ok(())
}

/// All that was acknowledged in a whole schedule is on record at its end.
pub fn everything_acknowledged_is_there(world: &World) -> Checked {
    for id in world.acknowledged.keys() {
        acknowledged_requests_hold(world, *id)?;
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
    for (id, was_revoked) in &world.acknowledged_shares {
        let share = world.store.shares.get(id);
        ensure!(
            share.is_some_and(|share| !was_revoked || share.revoked.is_some()),
            "share link {id:?} is gone, or good again: {share:?}"
        );
    }
    Ok(())
}

/// What a bill says altogether is what its events say one by one, to the
/// micro-dollar; and no time is lost or counted twice where a bill begins and ends.
pub fn the_bill_adds_up(world: &World) -> Checked {
    let events = || {
        let sessions = world.store.sessions.values();
        sessions.map(|session| (&session.gpu_type, &session.gpu_event))
    };
    let totals = usage_by_type(events(), Period::default());
    let cost: MicroDollars = totals.values().map(|usage| usage.cost).sum();
    let costs: MicroDollars = events().map(|(_, event)| event.cost()).sum();
    ensure!(cost == costs, "{costs:?} was spent and {cost:?} is billed");

    let held = |period| -> u64 {
        let totals = usage_by_type(events(), period);
        totals.values().map(|usage| usage.held.0).sum()
    };
    let some_midnight = events().filter_map(|(_, event)| event.end()).next();
    let (before, after) = (
        Period {
            from: None,
            until: some_midnight,
        },
        Period {
            from: some_midnight,
            until: None,
        },
    );
    let together = events().map(|(_, event)| event.held().0).sum::<u64>();
    ensure!(
        some_midnight.is_none() || held(before) + held(after) == together,
        "{together} ms were held and {} + {} ms are billed",
        held(before),
        held(after)
    );
    Ok(())
}

fn one_gpu_is_given_to_one_session(open: &[&Session]) -> Checked {
    let mut given = BTreeSet::new();
    for gpu in open.iter().filter_map(|session| session.placement()?.gpu()) {
        ensure!(given.insert(gpu), "{gpu} is given to two sessions");
    }
    Ok(())
}

fn nothing_waits_while_its_gpu_is_free(world: &World, open: &[&Session]) -> Checked {
    if !world.at_rest {
        return Ok(());
    }
    let given: BTreeSet<&GpuId> = open
        .iter()
        .filter_map(|session| session.placement()?.gpu())
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
        let has_room = world.engine.as_ref().is_some_and(|engine| {
            let most = engine.cluster.jobs_max;
            engine.cluster.gpu_types.contains(&session.gpu_type)
                && most.is_none_or(|most| in_jobs(open) < most as usize)
        });
        ensure!(!has_room, "{} waits and could have a job", session.id);
    }
    Ok(())
}

fn no_more_jobs_than_may_be(world: &World, open: &[&Session]) -> Checked {
    let most = world
        .engine
        .as_ref()
        .and_then(|it| it.cluster.jobs_max)
        .unwrap_or(u32::MAX);
    let jobs = in_jobs(open);
    ensure!(jobs <= most as usize, "{jobs} sessions are in {most} jobs");
    Ok(())
}

fn in_jobs(open: &[&Session]) -> usize {
    let is_in_job = |session: &&&Session| {
        let placement = session.placement();
        placement.is_some_and(|placement| placement.launcher().is_some())
    };
    open.iter().filter(is_in_job).count()
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
    let stored: Vec<&Session> = world.store.open().collect();
    ensure!(
        *open == stored,
        "in memory: {open:?}\non record: {stored:?}"
    );
    if let Some(plane) = &world.plane {
        ensure!(
            plane.shares().eq(world.store.open_shares()),
            "share links in memory are not those on record"
        );
    }
    Ok(())
}

/// A share link's row is written.
pub fn check_share(world: &World, after: &Share) -> Checked {
    let session = world.store.sessions.get(&after.session);
    ensure!(
        session.is_some_and(|session| session.owner == after.owner),
        "{} is a link to {session:?}",
        after.id
    );
    if let Some(before) = world.store.shares.get(&(after.session, after.id)) {
        ensure!(
            before.revoked.is_none() || before.revoked == after.revoked,
            "{} was revoked and is {after:?}",
            after.id
        );
        ensure!(
            before.visits <= after.visits,
            "{} had more visits",
            after.id
        );
    }
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
        if !before.is_open() {
            // Its engine may say later how its job ended; nothing else changes.
            let as_before = Session {
                job: before.job.clone(),
                ..after.clone()
            };
            ensure!(
                *before == as_before,
                "{} changed after its end: {before:?} {after:?}",
                after.id
            );
            return Ok(());
        }
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
    tree_is_gone(world, after)?;
    jobs_are_gone(world, after)
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
    let held = event.held().0;
    let held_at = |site: &Site| {
        let of_live_tree = site.tree.as_ref().map_or(0, |tree| world.now - tree.since);
        site.truly_held_ms + of_live_tree
    };
    let truly_held: u64 = world
        .sites_of(ended.id)
        .map(|(_, site)| held_at(site))
        .sum();
    ensure!(
        held <= truly_held + UNSEEN_MS,
        "{} is billed {held} ms and held its GPU for {truly_held} ms",
        ended.id
    );
    let proven = world.proven.get(&ended.id).map_or(0, |proven| proven.0);
    ensure!(
        held >= proven,
        "{} is billed {held} ms and has proven {proven} ms",
        ended.id
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

/// Or its host could not be reached when it was last looked for (see
/// [`one_gpu_has_one_live_tree`]); or it is an app that was started anew since nobody
/// could know better (see [`an_app_is_started_once_at_most`]), whose agent is as little
/// heard of as the first; or its host fell asleep while the kernel killed it, and has
/// just woken up.
fn tree_is_gone(world: &World, ended: &Session) -> Checked {
    let Some(site) = world.sites.get(&ended.id.into()) else {
        return Ok(());
    };
    let dies_on_waking = site.tree.as_ref().is_some_and(|tree| {
        site.agent.is_none() && world.now <= tree.promise.host_went_on + ORPHAN_MS
    });
    ensure!(
        site.tree.is_none() || site.host_was_away || site.trees > 1 || dies_on_waking,
        "{} has ended and its processes are there",
        ended.id
    );
    Ok(())
}

/// A session in a job ends no sooner than its processes; or its engine says that the job is
/// over, and its agent does not speak any more; or its lease is over, and all stands still.
/// Whoever could not know of a second job may have been told the end by that one's agent.
fn jobs_are_gone(world: &World, ended: &Session) -> Checked {
    let Some(engine) = &world.engine else {
        return Ok(());
    };
    if world.may_double.contains(&ended.id) {
        return Ok(());
    }
    let waits = engine
        .jobs_of(ended.id)
        .find(|(_, job)| job.stage == Stage::Waits);
    ensure!(
        waits.is_none(),
        "{} has ended and waits: {waits:?}",
        ended.id
    );
    for (post, site) in world.sites_of(ended.id) {
        let (Some(job), Some(tree)) = (post.job, &site.tree) else {
            continue;
        };
        let stands_still =
            world.away.contains(&site.gpu) || world.now <= tree.promise.host_went_on + ORPHAN_MS;
        if stands_still && !tree.promise.goes_on(world.now) {
            continue;
        }
        ensure!(
            engine.is_over(job),
            "{post} has ended and its processes are there"
        );
        let heard = world.last_heard.get(&ended.id).copied().unwrap_or(0);
        ensure!(
            heard + SPOKE_MS <= world.now,
            "{post} has ended and its agent spoke {} ms ago",
            world.now - heard
        );
    }
    Ok(())
}

/// A job is submitted: it is the session's only one, as far as that can be known.
pub fn check_job(world: &World, id: SessionId) -> Checked {
    let other = world.engine.as_ref().and_then(|it| it.jobs_of(id).next());
    ensure!(
        other.is_none() || world.may_double.contains(&id),
        "{id} has two jobs: {other:?}"
    );
    Ok(())
}

/// All that a lease that grants so much can need.
fn longest_lease(granted: Millis) -> Millis {
    LIMITS.start_limit.plus(granted).plus(LIMITS.grace)
}

/// An engine ends a job whose time is up.
pub fn limit_is_longer_than_lease(world: &World, number: u32, job: &EngineJob) -> Checked {
    let post = Post {
        session: job.session,
        job: Some(number),
    };
    let tree = world.sites.get(&post).and_then(|site| site.tree.as_ref());
    let Some(tree) = tree.filter(|tree| tree.promise.goes_on(world.now)) else {
        return Ok(());
    };
    // The node stood still before its agent began.
    if tree.since > job.started_at + job.suspended_ms + BOOT_MS {
        return Ok(());
    }
    // One that was extended, of which the engine could not be told yet.
    let granted = tree.promise.granted_ms();
    let moves = world
        .engine
        .as_ref()
        .is_some_and(|it| it.cluster.moves_time_limits);
    ensure!(
        moves && job.time_limit < longest_lease(granted),
        "{post} is ended by its engine after {} and has {granted}",
        job.time_limit
    );
    Ok(())
}

/// The server has just looked, and saw these: an engine that may be told to let a job run
/// for longer is told.
pub fn limits_are_moved(world: &World, jobs: &Jobs) -> Checked {
    if !world
        .engine
        .as_ref()
        .is_some_and(|it| it.cluster.moves_time_limits)
    {
        return Ok(());
    }
    for (id, status) in &jobs.0 {
        let Some(session) = world.store.sessions.get(id) else {
            continue;
        };
        let is_its = session.job.as_ref().is_some_and(|job| job.id == status.id);
        let is_short = status
            .time_limit
            .is_some_and(|limit| limit < longest_lease(session.granted_ms));
        let runs = matches!(session.state, State::Running { .. });
        ensure!(
            !(is_its && is_short && runs)
                || status.state == JobState::Ended
                || world.limited.contains(&status.id),
            "job {} of {id} may run for {:?} only",
            status.id,
            status.time_limit
        );
    }
    Ok(())
}

/// Once nothing fails any more, no job is left that is no open session's only one.
pub fn jobs_too_many_go(world: &mut World) -> Checked {
    let Some(engine) = world.engine.as_mut().filter(|_| world.calm) else {
        return Ok(());
    };
    let mut kept = BTreeSet::new();
    // What was begun first need not be what is kept; so the one on record.
    for (number, job) in &mut engine.jobs {
        let session = world.store.sessions.get(&job.session);
        let is_its = session.is_some_and(|session| {
            let its = session.job.as_ref().map(|job| number_of(&job.id));
            session.is_open() && its.is_none_or(|its| its == *number)
        });
        if job.stage == Stage::Over || is_its && kept.insert(job.session) {
            job.stray_since = None;
            continue;
        }
        let since = *job.stray_since.get_or_insert(world.now);
        ensure!(
            world.now - since <= STRAY_MS,
            "job {number} of {} is one too many and stays",
            job.session
        );
    }
    Ok(())
}

/// However late and in whatever order an agent is told of more time, it knows of the
/// most that it was told.
pub fn nothing_told_is_taken_back(world: &World, post: Post) -> Checked {
    let Some(site) = world.sites.get(&post) else {
        return Ok(());
    };
    if let (Some(tree), Some(status)) = (&site.tree, site.status(world.now)) {
        ensure!(
            status.granted_ms >= tree.promise.granted_ms(),
            "{post} was told {} and knows of {}",
            tree.promise.granted_ms(),
            status.granted_ms
        );
    }
    Ok(())
}

/// The last process of a session is gone.
pub fn check_end(world: &World, post: Post, site: &Site) -> Checked {
    let Some(tree) = &site.tree else {
        return Ok(());
    };
    let gone_by = tree.promise.gone_by();
    ensure!(
        world.now <= gone_by,
        "{post} outlived its time by {} ms",
        world.now - gone_by
    );
    ensure!(
        !tree.promise.goes_on(world.now),
        "{post} was ended before its time was up"
    );
    Ok(())
}

/// The last process is gone, and the agent knows how long the GPU was held.
pub fn what_is_told_is_true(world: &World, post: Post, site: &Site) -> Checked {
    let Some(status) = site.status(world.now) else {
        return Ok(());
    };
    let AgentPhase::Ended { .. } = &status.phase else {
        return Ok(());
    };
    let (told, held) = (status.held_ms.0, site.last_held_ms);
    // One that knows of no terms tells what another left.
    let is_own = status.granted_ms != Millis::ZERO;
    let is_exact = is_own && site.last_end_was_seen;
    let at_most = if is_own { held + UNSEEN_MS } else { held };
    ensure!(
        told == held || !is_exact && told <= at_most,
        "{post} says it held {told} ms and held {held} ms"
    );
    Ok(())
}
