//! A server without a network, and a client of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use dwell_core::control_plane::{ControlPlane, Launch, LaunchOutcome, Settings};
use dwell_core::gpu::{GpuType, Inventory};
use dwell_core::id::{KeyId, SessionId};
use dwell_core::job::Offer;
use dwell_core::key::Key;
use dwell_core::limits::Limits;
use dwell_core::machine::Access;
use dwell_core::owner::{OrgId, Principal, UserId};
use dwell_core::placement::Places;
use dwell_core::ports::PortPool;
use dwell_core::pricing::{HourlyRate, Prices};
use dwell_core::protocol::{AgentPhase, AgentStatus};
use dwell_core::session::Ending;
use dwell_core::time::Millis;
use http_body_util::BodyExt;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use uuid::Uuid;

use crate::admission::Admission;
use crate::api::{Api, router};
use crate::clock;
use crate::data_dir::DataDir;
use crate::driver::{Driver, Effects, Running};
use crate::gate::Gate;
use crate::gateway::Gateway;
use crate::keys;
use crate::launcher::{Launcher, Launchers};
use crate::session_urls::{Scheme, SessionUrls};
use crate::store::Store;
use crate::store::sqlite::Sqlite;
use crate::tunnel::Switchboard;

/// An engine whose agents are the tests themselves.
struct Nobody;

#[async_trait]
impl Launcher for Nobody {
    async fn launch(&self, _: Launch) -> LaunchOutcome {
        LaunchOutcome::Started
    }
}

/// What was answered.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Reply {
    /// The sentence of an error.
    pub fn detail(&self) -> &str {
        self.body["detail"].as_str().unwrap_or_default()
    }

    /// Where and of what kind the one misfit is.
    pub fn misfit(&self) -> (&Value, &str) {
        assert_eq!(self.status, StatusCode::UNPROCESSABLE_ENTITY, "{self:?}");
        let misfit = &self.body["detail"][0];
        assert!(misfit["msg"].is_string(), "{self:?}");
        (&misfit["loc"], misfit["type"].as_str().unwrap())
    }
}

/// A server that has two `A10G` at 1.10 dollars an hour and four CPU slots.
pub struct World {
    router: Router,
    pub driver: Driver,
    /// A key of ada's, who has no org.
    pub ada: String,
    /// The driver stops when this goes.
    _running: Running,
    _dir: TempDir,
}

impl World {
    pub async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let data_dir = DataDir(dir.path().to_owned());
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&data_dir.store()).unwrap());
        let a10g = GpuType("A10G".into());
        let settings = Settings {
            limits: Limits::default(),
            prices: Prices([(a10g.clone(), HourlyRate::from_dollars(1.10).unwrap())].into()),
            places: Places {
                inventory: Inventory::declared([(&a10g, 2), (&GpuType::cpu(), 4)]),
                offers: vec![Offer::Host { runs_images: false }],
            },
            // Port 0 is any free one, so that nothing here can be in the way.
            ports: PortPool::new(0..=0, 0),
        };
        let (admission, _) = Admission::new([7; 32]).unwrap();
        let gateway = Gateway::new(IpAddr::V4(Ipv4Addr::LOCALHOST), admission.clone());
        let launchers = Launchers::new(Arc::new(Nobody), []);
        let effects = Effects::new(
            launchers.clone(),
            gateway.clone(),
            Switchboard::default(),
            admission.clone(),
            Access::Link,
        );
        let (limits, prices) = (settings.limits.clone(), settings.prices.clone());
        let places = settings.places.clone();
        let snapshot = store.load().await.unwrap();
        let plane = ControlPlane::recover(settings, snapshot, clock::now());
        let (driver, running) =
            Driver::start(std::future::ready(Ok(plane)), Arc::clone(&store), effects);
        let mut world = Self {
            router: router(Api {
                driver: driver.clone(),
                gate: Gate::new(driver.role()),
                gateway,
                store,
                admission,
                sessions: data_dir.sessions(),
                urls: SessionUrls::ports(Scheme::Http, "gpu.test".to_owned(), 8080),
                default_access: Access::Link,
                limits,
                places,
                launchers,
                prices,
                engine: None,
            }),
            driver,
            ada: String::new(),
            _running: running,
            _dir: dir,
        };
        world.ada = world.key_for("ada", None, false).await;
        world
    }

    /// A new key, made by the operator.
    pub async fn key_for(&self, user: &str, org: Option<&str>, admin: bool) -> String {
        let secret = keys::new_secret().unwrap();
        let key = Key {
            id: KeyId(Uuid::new_v4()),
            name: "test".into(),
            hash: keys::hash(&secret),
            principal: Principal {
                user: UserId(user.into()),
                org: org.map(|org| OrgId(org.into())),
                admin,
            },
            created_at: clock::wall(),
            revoked_at: None,
        };
        self.driver
            .ask(move |plane, _| plane.create_key(key, None))
            .await
            .unwrap();
        secret
    }

    pub async fn send(&self, request: Request<Body>) -> Reply {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Reply {
            status,
            headers,
            body,
        }
    }

    async fn call(&self, method: Method, key: &str, path: &str, body: Body) -> Reply {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {key}"))
            .body(body)
            .unwrap();
        self.send(request).await
    }

    pub async fn get_as(&self, key: &str, path: &str) -> Reply {
        self.call(Method::GET, key, path, Body::empty()).await
    }

    pub async fn post_as(&self, key: &str, path: &str, body: impl Into<Body>) -> Reply {
        self.call(Method::POST, key, path, body.into()).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.get_as(&self.ada, path).await
    }

    pub async fn post(&self, path: &str, body: impl Into<Body>) -> Reply {
        self.post_as(&self.ada, path, body).await
    }

    pub async fn patch(&self, path: &str, body: impl Into<Body>) -> Reply {
        self.call(Method::PATCH, &self.ada, path, body.into()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.call(Method::DELETE, &self.ada, path, Body::empty())
            .await
    }

    /// A machine of ada's; its id.
    pub async fn machine(&self) -> String {
        let made = self
            .post(
                "/machine/serverless",
                r#"{"name": "comfy", "command": ["app", "{port}"], "gpu": "A10G"}"#,
            )
            .await;
        assert_eq!(made.status, StatusCode::OK, "{made:?}");
        made.body["id"].as_str().unwrap().to_owned()
    }

    /// A session of a machine of ada's; its id.
    pub async fn session(&self) -> String {
        let machine = self.machine().await;
        let made = self
            .post("/session", format!(r#"{{"machine_id": "{machine}"}}"#))
            .await;
        assert_eq!(made.status, StatusCode::OK, "{made:?}");
        made.body["session_id"].as_str().unwrap().to_owned()
    }

    async fn agent_says(&self, session: &str, phase: AgentPhase) {
        let status = AgentStatus {
            held_ms: Millis(36_000),
            granted_ms: Millis::from_minutes(15),
            phase,
        };
        let id: SessionId = session.parse().unwrap();
        self.driver.heard(id, status).await;
        // What is asked after it is answered after it.
        self.driver.ask(|_, _| Ok(())).await.unwrap();
    }

    /// The session's agent says that its app answers.
    pub async fn app_answers(&self, session: &str) {
        let phase = AgentPhase::Running {
            running_ms: Millis::ZERO,
            upstream: SocketAddr::from((Ipv4Addr::LOCALHOST, 9)).into(),
        };
        self.agent_says(session, phase).await;
    }

    /// The session's agent says that it is over.
    pub async fn app_is_gone(&self, session: &str, ending: Ending) {
        let phase = AgentPhase::Ended {
            ending,
            running_ms: None,
        };
        self.agent_says(session, phase).await;
    }

    /// The one session that is open, once there is one.
    pub async fn open_session(&self) -> String {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let id = self
                .driver
                .ask(|plane, _| Ok(plane.open_sessions().next().map(|session| session.id)))
                .await
                .unwrap();
            if let Some(id) = id {
                return id.to_string();
            }
            assert!(tokio::time::Instant::now() < deadline, "no session is open");
            tokio::task::yield_now().await;
        }
    }
}
