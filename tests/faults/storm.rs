//! Clients at work while server, agents, first processes and apps are killed at
//! random. `DWELL_FAULTS_SECONDS` is for how long, `DWELL_FAULTS_SEED` which storm.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;

use super::audit::audit;
use super::client::{Client, number};
use super::harness::signal;
use super::ledger::Ledger;
use super::world::{CONFIG, World};

const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_in_a_storm_of_deaths_holds_and_nothing_is_left() {
    let seed = number("DWELL_FAULTS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let seconds = number("DWELL_FAULTS_SECONDS").unwrap_or(20);
    eprintln!("storm {seed} for {seconds} s; again with DWELL_FAULTS_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let until = Instant::now() + Duration::from_secs(seconds);

    let world = World::new(CONFIG);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let client = Client::new(world.door(), |name| world.app(name), rng.fork());
            tokio::spawn(client.work(until))
        })
        .collect();
    let storm = Storm {
        world,
        rng,
        standing: Vec::new(),
        stood_still: BTreeSet::new(),
        deaths: [0; 4],
    };
    let storm = tokio::task::spawn_blocking(move || storm.rage(until));
    let mut storm = storm.await.unwrap();

    let mut ledger = Ledger::default();
    for client in clients {
        ledger.sessions.extend(client.await.unwrap().sessions);
    }
    ledger.stood_still = storm.stood_still;
    let sessions = ledger.sessions.len();
    eprintln!(
        "{sessions} sessions; killed servers, agents, first processes, apps: {:?}; stood still: {}",
        storm.deaths,
        ledger.stood_still.len()
    );
    assert!(sessions > CLIENTS, "the storm kept all from working");
    audit(&mut storm.world, &ledger).await;
}

struct Storm {
    world: World,
    rng: Rng,
    /// Agents that stand still, and until when.
    standing: Vec<(u32, Instant)>,
    stood_still: BTreeSet<String>,
    deaths: [usize; 4],
}

impl Storm {
    fn rage(mut self, until: Instant) -> Self {
        while Instant::now() < until {
            // At any moment of what goes on, not in step with it.
            std::thread::sleep(Duration::from_millis(self.rng.u64(20..800)));
            self.standing.retain(|(agent, until)| {
                let goes_on = Instant::now() >= *until;
                if goes_on {
                    signal(*agent, Signal::SIGCONT);
                }
                !goes_on
            });
            match self.rng.u8(..100) {
                0..40 => {
                    self.world.kill();
                    std::thread::sleep(Duration::from_millis(self.rng.u64(..300)));
                    self.world.start();
                    self.deaths[0] += 1;
                }
                40..60 => self.kill_one_of(1, self.world.agents()),
                60..75 => self.kill_one_of(2, self.world.first_processes()),
                75..85 => self.kill_one_of(3, self.world.apps()),
                _ => self.stop_an_agent(),
            }
        }
        for (agent, _) in self.standing.drain(..) {
            signal(agent, Signal::SIGCONT);
        }
        self
    }

    fn kill_one_of(&mut self, kind: usize, pids: Vec<u32>) {
        if let Some(pid) = self.rng.choice(pids) {
            signal(pid, Signal::SIGKILL);
            self.deaths[kind] += 1;
        }
    }

    fn stop_an_agent(&mut self) {
        let Some(agent) = self.rng.choice(self.world.agents()) else {
            return;
        };
        let words = std::fs::read_to_string(format!("/proc/{agent}/cmdline")).unwrap_or_default();
        let Some((_, session)) = words.trim_end_matches('\0').rsplit_once('/') else {
            return;
        };
        signal(agent, Signal::SIGSTOP);
        self.stood_still.insert(session.to_owned());
        let until = Instant::now() + Duration::from_millis(self.rng.u64(100..3_000));
        self.standing.push((agent, until));
    }
}
