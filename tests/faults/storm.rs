//! Clients at work while server, agents, first processes and apps are killed at
//! random. `DWELL_FAULTS_SECONDS` is for how long, `DWELL_FAULTS_SEED` which storm.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use fastrand::Rng;
use hyper::Method;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::audit::{Ledger, audit};
use super::harness::{Answer, signal};
use super::world::{CONFIG, Door, World};

const CLIENTS: usize = 8;
/// Minutes that a session is made with.
const MINUTES: u64 = 5;

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
            let client = Client {
                door: world.door(),
                apps: ["serve.py", "serve.py", "leaves_daemon.py", "stubborn.py"]
                    .map(|name| world.app(name)),
                rng: rng.fork(),
                ledger: Ledger::default(),
                cost: 0.0,
            };
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

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is no number: {text}")))
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

/// Someone who makes sessions, looks at them, gives them more time and ends them.
struct Client {
    door: Door,
    apps: [Value; 4],
    rng: Rng,
    ledger: Ledger,
    cost: f64,
}

impl Client {
    async fn work(mut self, until: Instant) -> Ledger {
        while Instant::now() < until {
            let body = json!({
                "command": self.rng.choice(&self.apps),
                "gpu": self.rng.choice(["CPU", "CPU", "A10G"]),
                "timeout": MINUTES,
            });
            let Some(answer) = self.try_send(Method::POST, "/session/dynamic", body).await else {
                continue;
            };
            assert_eq!(answer.status, 200, "{answer:?}");
            let id = answer.json()["session_id"].as_str().unwrap().to_owned();
            self.ledger.created(&id, MINUTES);
            for _ in 0..self.rng.u8(..12) {
                self.do_something_with(&id).await;
                tokio::time::sleep(Duration::from_millis(self.rng.u64(..200))).await;
            }
            // What is open at the end is for the audit to end.
            if Instant::now() < until {
                self.end(&id).await;
            }
        }
        self.ledger
    }

    async fn do_something_with(&mut self, id: &str) {
        match self.rng.u8(..4) {
            0 => self.look_at(id).await,
            1 => self.extend(id).await,
            2 => {
                if let Some(list) = self.try_get("/sessions").await {
                    let list = list.as_array().unwrap();
                    let shown = list.iter().find(|session| session["id"] == id);
                    shown.into_iter().for_each(|shown| self.ledger.check(shown));
                }
            }
            _ => {
                if let Some(usage) = self.try_get("/platform/usage").await {
                    let cost = usage["total_cost"].as_f64().unwrap();
                    assert!(cost >= self.cost, "was {} and is {usage}", self.cost);
                    self.cost = cost;
                }
            }
        }
    }

    async fn look_at(&mut self, id: &str) {
        if let Some(shown) = self.try_get(&format!("/session/{id}")).await {
            self.ledger.check(&shown);
        }
    }

    async fn extend(&mut self, id: &str) {
        let path = format!("/session/{id}/increase-timeout");
        // Unless it is answered, nobody knows.
        self.ledger.of(id).minutes_perhaps += 1;
        if let Some(answer) = self
            .try_send(Method::POST, &path, json!({"minutes": 1}))
            .await
        {
            let acknowledged = self.ledger.of(id);
            acknowledged.minutes_perhaps -= 1;
            match answer.status {
                200 => acknowledged.minutes += 1,
                // Not yet, or not any more.
                400 | 404 => {}
                _ => panic!("{answer:?}"),
            }
            self.look_at(id).await;
        }
    }

    async fn end(&mut self, id: &str) {
        let path = format!("/session/{id}");
        let answer = loop {
            if let Some(answer) = self.try_send(Method::DELETE, &path, json!(null)).await {
                break answer;
            }
        };
        match answer.status {
            200 => self.ledger.of(id).cancelled = true,
            // It has ended by itself, or an earlier one was heard.
            404 => {}
            _ => panic!("{answer:?}"),
        }
        self.look_at(id).await;
    }

    async fn try_get(&self, path: &str) -> Option<Value> {
        let answer = self.try_send(Method::GET, path, json!(null)).await?;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        Some(answer.json())
    }

    /// The answer, if there is one; a server that is away is given a moment.
    async fn try_send(&self, method: Method, path: &str, body: Value) -> Option<Answer> {
        match self.door.try_send(method, path, &body).await {
            Ok(answer) if answer.status != 503 => Some(answer),
            Ok(_) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                None
            }
        }
    }
}
