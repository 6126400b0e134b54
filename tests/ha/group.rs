//! Servers that share a database, and the sessions' directories of one host.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::{WebSocketStream, tungstenite};

use crate::cluster::Cluster;
use crate::harness::{Answer, Api, PATIENCE, Server, agents_in, app, signal};

/// Sessions have names under it.
const DOMAIN: &str = "dwell.test";

pub struct Group {
    pub servers: Vec<Server>,
    database: String,
    dir: TempDir,
}

impl Group {
    /// The first one leads.
    pub fn start(count: usize) -> Self {
        Self::listen(count, "127.0.0.1:0", "")
    }

    /// Servers that listen there; `more` is of the launcher.
    pub fn listen(count: usize, listen: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = Cluster::shared().database();
        let mut group = Self {
            servers: Vec::new(),
            database,
            dir,
        };
        let config = group.config() + more;
        for number in 0..count {
            let dir = group.dir.path().join(format!("server-{number}"));
            let mut server = Server::spawn(&dir, &config, listen, &[]);
            if let Some(first) = group.servers.first() {
                server.api = Api::new(&server.api.url, &first.api.key);
            }
            group.servers.push(server);
        }
        group
    }

    fn config(&self) -> String {
        format!(
            "store = {:?}\ndomain = \"http://{DOMAIN}\"\n\
             [gpus]\nCPU = 300\n\
             [limits]\nsessions_per_machine = 300\n\
             [[launcher]]\nkind = \"local\"\nsessions_dir = {:?}\n",
            Cluster::shared().url(&self.database),
            self.dir.path().join("sessions"),
        )
    }

    /// What `psql` says of the database.
    pub fn sql(&self, sql: &str) -> String {
        Cluster::shared().sql(&self.database, sql)
    }

    /// The origin of the server that leads, as the database has it.
    pub fn leader(&self) -> String {
        self.sql("SELECT url FROM leadership WHERE NOT superseded AND until > clock_timestamp()")
    }

    /// Until one of them leads.
    pub async fn leads_one_of(&self, numbers: &[usize]) {
        let urls: Vec<_> = numbers
            .iter()
            .map(|of| &self.servers[*of].api.url)
            .collect();
        let began = Instant::now();
        while !urls.contains(&&self.leader()) {
            assert!(began.elapsed() < PATIENCE, "{} leads", self.leader());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Nothing of these sessions is left.
    pub async fn nothing_is_left(&self, sessions: &[String]) {
        let began = Instant::now();
        loop {
            let mut left = self.agents();
            left.extend(crate::harness::app_processes(sessions));
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "left: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn agents(&self) -> Vec<u32> {
        agents_in(&self.dir.path().join("sessions"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for server in &self.servers {
            signal(server.pid(), Signal::SIGKILL);
        }
        for agent in self.agents() {
            signal(agent, Signal::SIGKILL);
        }
    }
}

/// Until a session can be made through it; that one, and how long it took.
pub async fn can_create(api: &Api) -> (String, Duration) {
    let began = Instant::now();
    let body = json!({"command": app("streams.py"), "timeout": 5}).to_string();
    loop {
        let answer = api
            .send(Method::POST, "/session/dynamic", body.clone())
            .await;
        if answer.status == 200 {
            let id = answer.json()["session_id"].as_str().unwrap().to_owned();
            return (id, began.elapsed());
        }
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(began.elapsed() < PATIENCE, "{answer:?}");
    }
}

/// The host of a session's URL.
pub fn host_of(session: &Value) -> String {
    let url = session["url"].as_str().unwrap();
    url.trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned()
}

/// What a session's app says to who comes by way of `server`.
pub async fn visit(server: &Server, host: &str) -> Result<Answer, String> {
    visit_at(&server.listen, host).await
}

/// The same, by way of whoever listens at `address`.
pub async fn visit_at(address: &str, host: &str) -> Result<Answer, String> {
    visit_path(address, host, "/").await
}

/// Another page of it.
pub async fn visit_path(address: &str, host: &str, path: &str) -> Result<Answer, String> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", host);
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await;
    let response = response.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await;
    let bytes = body.map_err(|error| error.to_string())?.to_bytes();
    Ok(Answer {
        status,
        text: String::from_utf8_lossy(&bytes).into_owned(),
    })
}

/// Until the route is known there; how long that took.
pub async fn is_known(server: &Server, host: &str) -> Duration {
    let began = Instant::now();
    while visit(server, host).await.unwrap().text != "hello" {
        assert!(began.elapsed() < PATIENCE, "{host} is not known");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    began.elapsed()
}

/// A WebSocket to a session's app by way of `server`.
pub async fn web_socket(server: &Server, host: &str) -> WebSocketStream<TcpStream> {
    web_socket_at(&server.listen, host).await.unwrap()
}

/// The same, by way of whoever listens at `address`.
pub async fn web_socket_at(
    address: &str,
    host: &str,
) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
    let stream = TcpStream::connect(address).await?;
    let opened = tokio_tungstenite::client_async(format!("ws://{host}/"), stream).await?;
    Ok(opened.0)
}
