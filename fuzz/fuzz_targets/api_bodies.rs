//! Any body, sent to every route that takes one.
//!
//! The first byte of an input picks the route (`ROUTES`), the rest is the body. In it
//! `MACHINE`, `VERSION` and `SESSION` stand for ids of things that exist.

#![no_main]

use std::cell::RefCell;
use std::future::ready;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use dwell::admission::Admission;
use dwell::api::{Api, router};
use dwell::clock;
use dwell::data_dir::DataDir;
use dwell::driver::{Driver, Effects, Running};
use dwell::gate::Gate;
use dwell::gateway::Gateway;
use dwell::keys;
use dwell::launcher::{Launcher, Launchers};
use dwell::session_urls::{Scheme, SessionUrls};
use dwell::store::Store;
use dwell::store::sqlite::Sqlite;
use dwell::tunnel::Switchboard;
use dwell_core::control_plane::{ControlPlane, Launch, LaunchOutcome, Settings};
use dwell_core::gpu::{GpuType, Inventory};
use dwell_core::id::{KeyId, SessionId};
use dwell_core::job::Offer;
use dwell_core::key::Key;
use dwell_core::limits::Limits;
use dwell_core::machine::Access;
use dwell_core::owner::{Principal, UserId};
use dwell_core::placement::Places;
use dwell_core::ports::PortPool;
use dwell_core::pricing::{HourlyRate, Prices};
use dwell_core::protocol::{AgentPhase, AgentStatus};
use dwell_core::session::{EndReason, Ending};
use dwell_core::time::Millis;
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;
use uuid::Uuid;

/// Every route that reads a body, by the letter that picks it.
const ROUTES: [(u8, Method, &str); 9] = [
    (b's', Method::POST, "/session"),
    (b'd', Method::POST, "/session/dynamic"),
    (b't', Method::POST, "/session/SESSION/increase-timeout"),
    (b'o', Method::POST, "/session/increase-timeout"),
    (b'n', Method::POST, "/session/SESSION/snapshot"),
    (b'm', Method::POST, "/machine/serverless"),
    (b'c', Method::PATCH, "/machine/serverless/MACHINE"),
    (b'r', Method::POST, "/machine/serverless/MACHINE/rollback"),
    (b'k', Method::POST, "/platform/api-keys"),
];
/// After so many inputs a new server is made: what has ended stays on record.
const INPUTS_PER_WORLD: u32 = 2_000;

struct Inputs {
    runtime: Runtime,
    world: World,
    left: u32,
}

thread_local! {
    static INPUTS: RefCell<Option<Inputs>> = const { RefCell::new(None) };
}

fuzz_target!(|input: &[u8]| {
    let Some((first, body)) = input.split_first() else {
        return;
    };
    let by_letter = ROUTES.iter().find(|(letter, ..)| letter == first);
    let (_, method, path) = by_letter.unwrap_or(&ROUTES[usize::from(*first) % ROUTES.len()]);
    INPUTS.with_borrow_mut(|inputs| {
        let mut it = inputs.take().filter(|it| it.left > 0).unwrap_or_else(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            let world = runtime.block_on(World::new());
            let left = INPUTS_PER_WORLD;
            Inputs {
                runtime,
                world,
                left,
            }
        });
        it.left -= 1;
        it.runtime.block_on(it.world.try_body(method, path, body));
        *inputs = Some(it);
    });
});

/// What was answered.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    body: Value,
}

impl Reply {
    fn text(&self, field: &str) -> String {
        let text = self.body[field].as_str();
        text.unwrap_or_else(|| panic!("there is no {field} in {self:?}"))
            .to_owned()
    }
}

/// A server without a network, whose apps answer at once and end when they are told.
struct World {
    router: Router,
    key: String,
    /// The driver stops when this goes.
    _running: Running,
    _dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let data_dir = DataDir(dir.path().to_owned());
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&data_dir.store()).expect("a store"));
        let a10g = GpuType("A10G".into());
        let rate = HourlyRate::from_dollars(1.10).expect("a price");
        let settings = Settings {
            limits: Limits::default(),
            prices: Prices([(a10g.clone(), rate)].into()),
            places: Places {
                inventory: Inventory::declared([(&a10g, 2), (&GpuType::cpu(), 4)]),
                offers: vec![Offer::Host { runs_images: false }],
            },
            // Port 0 is any free one.
            ports: PortPool::new(0..=0, 0),
        };
        let (admission, _) = Admission::new([7; 32]).expect("there is randomness");
        let agents = Agents::default();
        let gateway = Gateway::new(IpAddr::V4(Ipv4Addr::LOCALHOST), admission.clone());
        let launchers = Launchers::new(Arc::new(agents.clone()), []);
        let effects = Effects::new(
            launchers.clone(),
            gateway.clone(),
            Switchboard::default(),
            admission.clone(),
            Access::Link,
        );
        let (limits, prices) = (settings.limits.clone(), settings.prices.clone());
        let places = settings.places.clone();
        let snapshot = store.load().await.expect("a snapshot");
        let plane = ControlPlane::recover(settings, snapshot, clock::now());
        let (driver, running) = Driver::start(ready(Ok(plane)), Arc::clone(&store), effects);
        assert!(agents.driver.set(driver.clone()).is_ok());
        let key = new_key(&driver).await;
        let router = router(Api {
            gate: Gate::new(driver.role()),
            driver,
            store,
            gateway,
            admission,
            sessions: data_dir.sessions(),
            urls: SessionUrls::ports(Scheme::Http, "gpu.test".to_owned(), 8080),
            default_access: Access::Link,
            limits,
            places,
            launchers,
            prices,
            engine: None,
        });
        Self {
            router,
            key,
            _running: running,
            _dir: dir,
        }
    }

    async fn try_body(&self, method: &Method, path: &str, body: &[u8]) {
        let named = self.make_what_is_named(path, body).await;
        let mut path = path.to_owned();
        let mut body = body.to_vec();
        for (word, id) in &named {
            path = path.replace(word, id);
            body = replaced(&body, word.as_bytes(), id.as_bytes());
        }
        let reply = self.send(method, &path, body).await;
        an_answer_is_one_that_is_promised(&reply);
        if reply.status.is_success() {
            self.what_was_done_can_be_seen(method, &path, &reply).await;
        }
        for (word, id) in named {
            match word {
                "SESSION" => self.end_session(&id).await,
                "MACHINE" => drop(
                    self.done(&Method::DELETE, &format!("/machine/{id}"), "")
                        .await,
                ),
                _ => {}
            }
        }
    }

    /// What the request names is made for it alone, so that what is found can be
    /// repeated.
    async fn make_what_is_named(&self, path: &str, body: &[u8]) -> Vec<(&'static str, String)> {
        let names = |word: &str| path.contains(word) || contains(body, word.as_bytes());
        let mut made = Vec::new();
        if names("MACHINE") || names("VERSION") {
            let body = r#"{"name": "fuzz", "command": ["app", "{port}"], "gpu": "A10G"}"#;
            let machine = self.done(&Method::POST, "/machine/serverless", body);
            let machine = machine.await.text("id");
            let path = format!("/machine/serverless/{machine}/versions");
            let versions = self.done(&Method::GET, &path, "").await;
            let version = versions.body[0]["id"].as_str().expect("a version");
            made.extend([("VERSION", version.to_owned()), ("MACHINE", machine)]);
        }
        // There is one port: a session would be in the way of one that is asked for.
        if path.contains("increase-timeout") || path.contains("SESSION") {
            let body = r#"{"command": "app", "gpu": "A10G", "wait_for_server": true}"#;
            let session = self.done(&Method::POST, "/session/dynamic", body);
            made.push(("SESSION", session.await.text("session_id")));
        }
        made
    }

    async fn end_session(&self, id: &str) {
        let path = format!("/session/{id}?wait_for_shutdown=true");
        self.done(&Method::DELETE, &path, "").await;
    }

    /// What was made is there, and goes again.
    async fn what_was_done_can_be_seen(&self, method: &Method, path: &str, reply: &Reply) {
        match path {
            "/session" | "/session/dynamic" => {
                let session = format!("/session/{}", reply.text("session_id"));
                self.done(&Method::GET, &session, "").await;
                let url = &reply.body["url"];
                let is_here = |url: &str| url.starts_with("http://gpu.test:");
                assert!(
                    url.is_null() || url.as_str().is_some_and(is_here),
                    "{reply:?}"
                );
                self.end_session(&reply.text("session_id")).await;
                self.done(&Method::GET, &session, "").await;
            }
            "/machine/serverless" => {
                let machine = format!("/machine/{}", reply.text("id"));
                let seen = self.done(&Method::GET, &machine, "").await;
                assert_eq!(
                    seen.body, reply.body,
                    "another machine was made than was said"
                );
                self.done(&Method::DELETE, &machine, "").await;
            }
            // One that speaks for another is that one's to revoke.
            "/platform/api-keys"
                if reply.body["user_id"] == "ada" && reply.body["org_id"].is_null() =>
            {
                let key = format!("/platform/api-keys/{}", reply.text("id"));
                self.done(&Method::DELETE, &key, "").await;
            }
            _ if *method == Method::PATCH => {
                let machine = format!("/machine/{}", reply.text("id"));
                let seen = self.done(&Method::GET, &machine, "").await;
                assert_eq!(seen.body, reply.body, "the machine was changed otherwise");
            }
            _ => {}
        }
    }

    /// The answer to a request that nothing is wrong with.
    async fn done(&self, method: &Method, path: &str, body: impl Into<Body>) -> Reply {
        let reply = self.send(method, path, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{method} {path}: {reply:?}");
        reply
    }

    async fn send(&self, method: &Method, path: &str, body: impl Into<Body>) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key))
            .body(body.into())
            .expect("a request");
        let Ok(answer) = self.router.clone().oneshot(request).await;
        let status = answer.status();
        let bytes = answer
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| panic!("{method} {path}: {status} is not in JSON: {bytes:?}"));
        Reply { status, body }
    }
}

fn an_answer_is_one_that_is_promised(reply: &Reply) {
    let status = reply.status;
    if status == StatusCode::OK {
        return;
    }
    assert!(
        status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED,
        "an answer that nobody documented: {reply:?}"
    );
    match &reply.body["detail"] {
        Value::String(sentence) => assert!(!sentence.is_empty(), "{reply:?}"),
        Value::Array(misfits) => {
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply:?}");
            assert!(!misfits.is_empty(), "{reply:?}");
            for misfit in misfits {
                assert_eq!(misfit["loc"][0], "body", "{reply:?}");
                assert!(
                    misfit["msg"].is_string() && misfit["type"].is_string(),
                    "{reply:?}"
                );
            }
        }
        _ => panic!("there is no detail in {reply:?}"),
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|here| here == word)
}

fn replaced(text: &[u8], word: &[u8], by: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(word.len()).position(|here| here == word) {
        replaced.extend(&rest[..at]);
        replaced.extend(by);
        rest = &rest[at + word.len()..];
    }
    replaced.extend(rest);
    replaced
}

async fn new_key(driver: &Driver) -> String {
    let secret = keys::new_secret().expect("a secret");
    let key = Key {
        id: KeyId(Uuid::from_u128(1)),
        name: "fuzz".into(),
        hash: keys::hash(&secret),
        principal: Principal {
            user: UserId("ada".into()),
            org: None,
            admin: true,
        },
        created_at: clock::wall(),
        revoked_at: None,
    };
    let made = driver
        .ask(move |plane, _| plane.create_key(key, None))
        .await;
    made.expect("a key");
    secret
}

/// An engine whose agents say at once that their app answers, and that it is gone when
/// its session is to end.
#[derive(Clone, Default)]
struct Agents {
    driver: Arc<OnceLock<Driver>>,
}

#[async_trait]
impl Launcher for Agents {
    async fn launch(&self, launch: Launch) -> LaunchOutcome {
        let driver = self.driver.get().expect("the driver runs").clone();
        tokio::spawn(live(driver, launch.session));
        LaunchOutcome::Started
    }
}

async fn live(driver: Driver, session: SessionId) {
    let Some(mut states) = driver.watch(session).await else {
        return;
    };
    let status = |phase| AgentStatus {
        held_ms: Millis(36_000),
        granted_ms: Millis::from_minutes(15),
        phase,
    };
    let running = AgentPhase::Running {
        running_ms: Millis::ZERO,
        upstream: SocketAddr::from((Ipv4Addr::LOCALHOST, 9)).into(),
    };
    driver.heard(session, status(running)).await;
    let goes_on = |state: &dwell_core::session::State| {
        use dwell_core::session::State;
        matches!(state, State::Starting { .. } | State::Running { .. })
    };
    if states
        .wait_for(|session| !goes_on(&session.state))
        .await
        .is_ok()
    {
        let ended = AgentPhase::Ended {
            ending: Ending::plain(EndReason::Cancelled),
            running_ms: Some(Millis::ZERO),
        };
        driver.heard(session, status(ended)).await;
    }
}
