//! The whole core under a seed: requests, agents, apps, a network, a store and a
//! clock, all of which fail. After every step the invariants are checked.
//!
//! A failing seed prints its history. Replay one with
//! `DWELL_SIMULATION_SEED=7 cargo test -p dwell-core --test simulation`; run more
//! with `DWELL_SIMULATION_SCHEDULES=10000` (0: until stopped).
#![expect(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own"
)]
#![expect(clippy::cast_possible_wrap, reason = "the same")]
#![expect(
    clippy::unwrap_used,
    reason = "a simulation that cannot go on has failed"
)]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a simulation says what it looks for"
)]
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "fresh seeds come from outside; what is under test gets nothing of it"
)]

mod agents;
mod engine;
mod invariants;
mod promise;
mod world;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use world::World;

/// Events of one schedule before the faults stop and all must come to rest.
const STEPS: usize = 500;
/// Schedules of an ordinary run: some seeds are always the same, the rest are new.
const SCHEDULES: u64 = 20_000;
const FIXED: u64 = 500;

/// Runs one schedule; its history, and what went wrong.
fn run(seed: u64) -> (String, Result<(), String>) {
    let mut world = World::new(seed);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run(STEPS)));
    let outcome = outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
        Err(format!("panicked: {}", said.unwrap_or_default()))
    });
    (world.history(), outcome)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn every_schedule_keeps_every_invariant() {
    let fresh = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64);
    let seed_of = |index: u64| match number("DWELL_SIMULATION_SEED") {
        Some(seed) => seed,
        None if index < FIXED => index,
        None => fresh.wrapping_add(index),
    };
    let schedules = match number("DWELL_SIMULATION_SEED") {
        Some(_) => 1,
        None => match number("DWELL_SIMULATION_SCHEDULES").unwrap_or(SCHEDULES) {
            0 => u64::MAX,
            schedules => schedules,
        },
    };
    let stop = AtomicBool::new(false);
    let next = AtomicU64::new(0);
    let began = Instant::now();
    let failure = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..std::thread::available_parallelism().map_or(1, usize::from))
            .map(|worker| {
                let (next, stop, seed_of) = (&next, &stop, &seed_of);
                scope.spawn(move || {
                    let mut said = Instant::now();
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= schedules || stop.load(Ordering::Relaxed) {
                            return None;
                        }
                        let seed = seed_of(index);
                        let (history, outcome) = run(seed);
                        if let Err(broken) = outcome {
                            stop.store(true, Ordering::Relaxed);
                            return Some((seed, history, broken));
                        }
                        if worker == 0 && said.elapsed() > Duration::from_secs(10) {
                            said = Instant::now();
                            let rate = index as f64 / began.elapsed().as_secs_f64();
                            println!("{index} schedules, {rate:.0} a second");
                        }
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .find_map(|worker| worker.join().unwrap())
    });
    let done = schedules.min(next.into_inner());
    let rate = done as f64 / began.elapsed().as_secs_f64();
    println!("{done} schedules of {STEPS} steps, {rate:.0} a second");
    if let Some((seed, history, broken)) = failure {
        println!("{history}");
        panic!(
            "{broken}\nseed {seed}: DWELL_SIMULATION_SEED={seed} cargo test -p dwell-core --test simulation"
        );
    }
}

#[test]
fn one_seed_run_twice_gives_the_same_bytes() {
    for seed in 0..20 {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second);
        assert!(
            first.0.lines().count() > STEPS / 10,
            "too little happened:\n{}",
            first.0
        );
    }
}

/// A simulation in which nothing happens proves nothing: over the fixed seeds each
/// thing that matters must have come about.
#[test]
fn the_schedules_reach_what_they_are_for() {
    let all: String = (0..200).map(|seed| run(seed).0).collect();
    for event in [
        "server crashes before it commits",
        "server crashes before it acts",
        "server is back",
        "store refuses",
        "store takes writes again",
        "agent is killed",
        "agent is paused",
        "agent goes on",
        "a paused agent is sent on",
        "killed in the agent's place",
        "the server is stopped",
        "the server is replaced in place",
        "the server is told to end all sessions",
        "refused: The server is shutting down",
        "the server stands still",
        "the server goes on",
        "the store refuses for long",
        "the tree is gone while the store refuses",
        "stands still for",
        "the host of A10G/0000 goes on",
        "its host cannot be reached",
        "is given up with its host",
        "what a host kept is lost: ",
        "what a host kept is lost unheard of",
        "an app that was lost is started anew",
        "What its host kept of it was lost",
        "Its agent was killed",
        "network is cut",
        "clock steps forward during a session: 86400000 ms",
        "clock steps back during a session: -86400000 ms",
        "message is lost",
        "message comes twice",
        "no agent can be started",
        "an agent lives already",
        "port is taken",
        "TimedOut",
        "Cancelled",
        "Exited",
        "Failed",
        "Lost",
        "extended to",
        "refused: Machine not found",
        "maximum number of concurrent sessions",
        "maximum number of share links",
        "revoke a link to ",
        "refused: Share link not found",
        "a job is there already",
        "a dead server's job comes",
        "a job is refused",
        "an agent asks whether it is to begin",
        "an agent is not to begin",
        "what became of a job is lost",
        "an unknown word for job",
        "a word about job",
        "may run for",
        "starts on n2",
        "starts on n3",
        "its node does not reach the server",
        "is over: COMPLETED",
        "is over: CANCELLED",
        "is over: PREEMPTED",
        "is over: NODE_FAIL",
        "the engine does not answer",
        "the engine does not hear of",
        "is back at its engine",
        "is suspended",
        "the engine lost all it knew",
        "a job is one too many",
        "ended its job: NODE_FAIL",
        "does not know its job",
        "Its job runs, but its agent did not call",
        "is given up with its job",
    ] {
        assert!(all.contains(event), "it never came about: {event}");
    }
}
