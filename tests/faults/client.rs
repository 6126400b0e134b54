//! Someone who uses sessions while all kinds of things go wrong.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use hyper::Method;
use serde_json::{Value, json};

use super::harness::{Answer, Api};
use super::ledger::Ledger;

/// Minutes that a session is made with.
const MINUTES: u64 = 5;

/// What the environment says of a storm.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Where the API is, however often it moves.
#[derive(Clone)]
pub struct Door(Arc<Mutex<Api>>);

impl Door {
    pub fn to(api: Api) -> Self {
        Self(Arc::new(Mutex::new(api)))
    }

    pub fn lead_to(&self, api: Api) {
        *self.0.lock().unwrap() = api;
    }

    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Answer, String> {
        let api = self.0.lock().unwrap().clone();
        api.try_send(method, path, body.to_string()).await
    }
}

/// Someone who makes sessions, looks at them, gives them more time and ends them.
pub struct Client {
    door: Door,
    apps: [Value; 4],
    rng: Rng,
    ledger: Ledger,
    cost: f64,
}

impl Client {
    /// One of those in a storm; `app` makes a command of a test app's name.
    pub fn new(door: Door, app: impl Fn(&str) -> Value, rng: Rng) -> Self {
        Self {
            door,
            apps: ["serve.py", "serve.py", "leaves_daemon.py", "stubborn.py"].map(app),
            rng,
            ledger: Ledger::default(),
            cost: 0.0,
        }
    }

    pub async fn work(mut self, until: Instant) -> Ledger {
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
            // Where it takes long until one runs, few would.
            let waits = self.rng.bool();
            while waits && Instant::now() < until && !self.has_begun(&id).await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
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

    async fn has_begun(&mut self, id: &str) -> bool {
        let shown = self.try_get(&format!("/session/{id}")).await;
        shown.is_some_and(|shown| {
            ["running", "ended"]
                .map(Value::from)
                .contains(&shown["status"])
        })
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
