//! A process dies at each point once, and what was acknowledged holds.

use futures_util::StreamExt;
use futures_util::stream;
use hyper::Method;
use serde_json::{Value, json};

use super::audit::audit;
use super::harness::{app_processes, processes};
use super::ledger::Ledger;
use super::world::{CONFIG, World};
use dwell::failpoint::Point;

/// So many worlds at once.
const WORLDS: usize = 8;

/// Before what the point is armed. The death is at the first crossing after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// The first server of a new data directory starts.
    Birth,
    /// Anything is asked.
    First,
    /// The extension.
    Extension,
    /// Another server takes over, which is done in these scenarios alone.
    Takeover,
    /// The stop.
    Stop,
}

/// Every point, at each moment after which it is certain to be crossed.
fn deaths() -> Vec<(Point, Before)> {
    let mut deaths = Vec::new();
    for point in Point::ALL {
        let moments: &[Before] = match point {
            Point::ServerAfterKeyFile => &[Before::Birth],
            Point::ServerBeforeYours | Point::ServerAfterYours | Point::SuccessorBeforeServing => {
                &[Before::Takeover]
            }
            Point::DriverBeforeCommit
            | Point::DriverAfterCommit
            | Point::DriverAfterPublish
            | Point::DriverAfterEffects
            | Point::StoreInTransaction
            | Point::StoreAfterCommit => &[
                Before::Birth,
                Before::First,
                Before::Extension,
                Before::Stop,
            ],
            Point::TunnelBeforeTell | Point::TunnelAfterStatus => {
                &[Before::First, Before::Extension, Before::Stop]
            }
            // Where there is an engine: `tests/engines`.
            Point::AgentBeforeContainer | Point::AgentAfterContainer => &[],
            Point::LauncherBeforeSpec
            | Point::LauncherAfterSpec
            | Point::LauncherAfterSpawn
            | Point::AgentAfterLock
            | Point::AgentAfterBegan
            | Point::AgentAfterStart
            | Point::AgentAfterAnswered
            | Point::InitBeforeApp
            | Point::InitAfterApp => &[Before::First],
            // By the session that ends by itself, and by the one that is stopped.
            Point::AgentBeforeKill
            | Point::AgentBeforeEnded
            | Point::AgentAfterEnded
            | Point::AgentBeforeReport
            | Point::AgentAfterForget => &[Before::First, Before::Stop],
            Point::AgentBeforeTerminate => &[Before::Stop],
        };
        deaths.extend(moments.iter().map(|before| (*point, *before)));
    }
    deaths
}

#[tokio::test]
async fn whoever_dies_at_whatever_step_what_was_acknowledged_holds_and_nothing_is_left() {
    stream::iter(deaths())
        .for_each_concurrent(WORLDS, async |(point, before)| {
            eprintln!("{point:?}, armed before {before:?}");
            let world = World::with_failpoint(CONFIG, point, before == Before::Birth);
            let mut scenario = Scenario {
                world,
                point,
                before,
                ledger: Ledger::default(),
            };
            scenario.play().await;
            assert!(
                !scenario.world.armed().exists(),
                "{point:?} was never crossed, armed before {before:?}"
            );
            audit(&mut scenario.world, &scenario.ledger).await;
        })
        .await;
}

struct Scenario {
    world: World,
    point: Point,
    before: Before,
    ledger: Ledger,
}

impl Scenario {
    async fn play(&mut self) {
        self.now_is(Before::First);
        let serve = self.world.app("serve.py");
        let machine = json!({"name": "m", "command": serve});
        let machine = self.post("/machine/serverless", machine).await;
        let mut session = self.create(json!({"machine_id": machine["id"]})).await;
        let mut shown = self.running_or_ended(&session).await;
        if shown["status"] == "ended" {
            self.check_end(&shown, "failed");
            // Whoever started it dies but once.
            session = self.create(json!({"machine_id": machine["id"]})).await;
            shown = self.running_or_ended(&session).await;
        }
        assert_eq!(shown["status"], "running", "{shown}");
        self.the_app_does_not_see_the_failpoint(&session);

        self.now_is(Before::Extension);
        self.extend(&session, 3).await;
        let shown = self.world.get(&format!("/session/{session}")).await;
        self.ledger.check(&shown);
        let list = self.world.get("/sessions").await;
        let is_listed = list
            .as_array()
            .unwrap()
            .iter()
            .any(|of| of["id"] == session.as_str());
        assert!(is_listed, "{session} is not in {list}");

        if self.before == Before::Takeover {
            self.now_is(Before::Takeover);
            self.world.is_taken_over(self.point);
            let shown = self.world.get(&format!("/session/{session}")).await;
            self.ledger.check(&shown);
            assert_eq!(shown["status"], "running", "{shown}");
        }

        let leaves = self.world.app("leaves_daemon.py");
        let ends_by_itself = self
            .create_with("/session/dynamic", json!({"command": leaves}))
            .await;
        let shown = self.world.until(&ends_by_itself, has_ended).await;
        self.check_end(&shown, "exited");

        self.now_is(Before::Stop);
        let path = format!("/session/{session}");
        let stopped = self.world.ask(Method::DELETE, &path, json!(null)).await;
        // The first of two may have done it, and its answer been lost.
        assert!([200, 404].contains(&stopped.status), "{stopped:?}");
        self.ledger.of(&session).cancelled = true;
        let shown = self.world.until(&session, has_ended).await;
        self.check_end(&shown, "cancelled");
    }

    fn now_is(&self, before: Before) {
        if self.before == before {
            std::fs::write(self.world.armed(), "").unwrap();
        }
    }

    async fn post(&mut self, path: &str, body: Value) -> Value {
        let answer = self.world.ask(Method::POST, path, body).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    async fn create(&mut self, body: Value) -> String {
        self.create_with("/session", body).await
    }

    async fn create_with(&mut self, path: &str, mut body: Value) -> String {
        const MINUTES: u64 = 5;
        body["timeout"] = json!(MINUTES);
        // Of these there are enough, though a lost answer leaves a session behind.
        body["gpu"] = json!("CPU");
        let answer = self.post(path, body).await;
        let id = answer["session_id"].as_str().unwrap().to_owned();
        self.ledger.created(&id, MINUTES);
        id
    }

    async fn extend(&mut self, session: &str, minutes: u64) {
        // It is asked again when it is not answered: it may be granted twice.
        self.ledger.of(session).minutes_perhaps = minutes;
        let path = format!("/session/{session}/increase-timeout");
        self.post(&path, json!({"minutes": minutes})).await;
        self.ledger.of(session).minutes += minutes;
    }

    async fn running_or_ended(&mut self, session: &str) -> Value {
        let is_so = |of: &Value| of["status"] == "running" || has_ended(of);
        self.world.until(session, is_so).await
    }

    /// The server's death ends no session otherwise than it would have ended.
    fn check_end(&self, shown: &Value, reason: &str) {
        let name = format!("{:?}", self.point);
        let kills_an_agent = name.starts_with("Agent") || name.starts_with("Init");
        if shown["end_reason"] != reason {
            assert!(kills_an_agent, "{name} {:?}: {shown}", self.before);
            assert_eq!(shown["end_reason"], "failed", "{shown}");
        }
        if shown["end_reason"] == "failed" {
            assert!(kills_an_agent, "{name} {:?}: {shown}", self.before);
            assert!(shown["error"].is_string(), "{shown}");
        }
    }

    fn the_app_does_not_see_the_failpoint(&self, session: &str) {
        let pids = app_processes(&[session.to_owned()]);
        assert!(!pids.is_empty());
        let sees = processes(|_, environment| {
            environment.contains(&format!("DWELL_SESSION_ID={session}"))
                && environment.contains("DWELL_FAILPOINT")
        });
        assert!(sees.is_empty(), "{sees:?}");
    }
}

fn has_ended(session: &Value) -> bool {
    session["status"] == "ended"
}
