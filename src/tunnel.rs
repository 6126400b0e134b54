//! The agents' connections to the server.
//!
//! An agent asks `GET /agent/v1/sessions/ID/control` to be upgraded to
//! [`PROTOCOL`]; from then on both sides write one JSON message a line. One on another
//! host asks `GET /agent/v1/sessions/ID/channel` besides, to be upgraded to
//! [`CHANNEL_PROTOCOL`], and the gateway has what it is then.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dwell_core::id::SessionId;
use dwell_core::protocol::{
    AgentStatus, CHANNEL_PROTOCOL, LOG_PROTOCOL, MESSAGE_BYTES_MAX, PROTOCOL, ServerMessage,
};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Notify, mpsc, watch};

use crate::api::unavailable;
use crate::data_dir::SessionsDir;
use crate::driver::{Driver, Role};
use crate::failpoint::{self, Point};
use crate::gateway::Gateway;
use crate::keys::AgentSecrets;
use crate::peers::{PASSED_ON, Peers};
use crate::session_log::copying;

/// The server that leads says within this whether it hears an agent.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Messages that may wait for a slow agent. Each says a whole: what does not fit is
/// said again when the agent next speaks.
const WAITING_MAX: usize = 16;

/// The agents that are connected.
#[derive(Clone, Default)]
pub struct Switchboard {
    lines: Arc<Mutex<HashMap<SessionId, Line>>>,
    next_serial: Arc<AtomicU64>,
    disconnected: Arc<Notify>,
}

struct Line {
    serial: u64,
    messages: mpsc::Sender<ServerMessage>,
}

impl Switchboard {
    /// Say this to a session's agent, if it is connected.
    pub fn tell(&self, session: SessionId, message: ServerMessage) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(&session) {
            let _ = line.messages.try_send(message);
        }
    }

    /// Wait until no agent is connected.
    pub async fn all_hung_up(&self) {
        loop {
            let disconnected = self.disconnected.notified();
            if self.is_empty() {
                return;
            }
            disconnected.await;
        }
    }

    fn is_empty(&self) -> bool {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.is_empty()
    }

    /// Cut every line; the agents call again.
    pub fn hang_up_all(&self) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clear();
    }

    /// A session's agent calls. An older line of the same session is cut.
    fn connect(&self, session: SessionId) -> (u64, mpsc::Receiver<ServerMessage>) {
        let (messages, receiver) = mpsc::channel(WAITING_MAX);
        let serial = self.next_serial.fetch_add(1, Ordering::Relaxed);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.insert(session, Line { serial, messages });
        (serial, receiver)
    }

    /// A line broke. Says whether it was the session's newest.
    fn disconnect(&self, session: SessionId, serial: u64) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let is_newest = lines
            .get(&session)
            .is_some_and(|line| line.serial == serial);
        if is_newest {
            lines.remove(&session);
            self.disconnected.notify_waiters();
        }
        is_newest
    }
}

/// Where agents call.
#[derive(Clone)]
pub struct Tunnel {
    /// Who acts on what they say.
    pub driver: Driver,
    /// By which they are known.
    pub secrets: AgentSecrets,
    /// Those that are connected.
    pub switchboard: Switchboard,
    /// Which takes the channels to their apps.
    pub gateway: Gateway,
    /// All servers that lead visitors to apps, once they are known; none if there is but this.
    pub servers: watch::Receiver<Option<Vec<String>>>,
    /// By which the one that leads is called.
    pub peers: Peers,
    /// Where logs are kept that agents bring.
    pub sessions: SessionsDir,
    /// How large one may become, in bytes.
    pub log_bytes_max: u64,
    /// After this long without a word a line is cut; the agent calls again.
    pub silence_max: Duration,
}

impl Tunnel {
    /// The agents' routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/agent/v1/sessions/{id}/control", get(control))
            .route("/agent/v1/sessions/{id}/channel", get(channel))
            .route("/agent/v1/sessions/{id}/log", get(log))
            .with_state(self)
    }

    /// Speak `protocol` with the agent of session `id`, if it is that who asks for it.
    fn upgrade<F>(
        self,
        id: &str,
        protocol: &'static str,
        mut request: Request,
        speak: impl FnOnce(Self, SessionId, Upgraded) -> F + Send + 'static,
    ) -> Response
    where
        F: Future<Output = ()> + Send,
    {
        let presented = bearer(request.headers()).unwrap_or_default();
        let session: Option<SessionId> = id.parse().ok();
        let Some(session) = session.filter(|id| self.secrets.check(*id, presented)) else {
            let sentence = "This is not the session's agent\n";
            return (StatusCode::UNAUTHORIZED, sentence).into_response();
        };
        let wanted = request.headers().get(header::UPGRADE);
        if wanted.is_none_or(|wanted| wanted != protocol) {
            let sentence = format!("This server speaks {protocol} to agents here\n");
            let headers = [(header::UPGRADE, protocol)];
            return (StatusCode::UPGRADE_REQUIRED, headers, sentence).into_response();
        }
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => speak(self, session, upgraded).await,
                Err(error) => tracing::debug!(%session, "its agent's call broke off: {error}"),
            }
        });
        let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, protocol)];
        (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
    }

    /// Carry what session `id`'s agent and the server that leads say to each other, as
    /// long as that one leads.
    async fn lead_on(
        self,
        id: &str,
        request: Request,
        leader: Arc<str>,
        mut role: watch::Receiver<Role>,
    ) -> Response {
        let mut call = Request::new(Body::empty());
        call.uri_mut().clone_from(request.uri());
        for name in [header::AUTHORIZATION, header::CONNECTION, header::UPGRADE] {
            if let Some(value) = request.headers().get(&name) {
                call.headers_mut().insert(name, value.clone());
            }
        }
        let lost = || unavailable("The server that leads does not answer; call again");
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.peers.pass_on(call, &leader)).await;
        let mut answer = match answer {
            Ok(Some(Ok(answer))) => answer,
            Ok(Some(Err(_)) | None) | Err(_) => return lost().into_response(),
        };
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return answer.into_response();
        }
        let Ok(there) = hyper::upgrade::on(&mut answer).await else {
            return lost().into_response();
        };
        self.upgrade(id, PROTOCOL, request, async move |_, session, here| {
            let (mut here, mut there) = (TokioIo::new(here), TokioIo::new(there));
            let now = Role::Follows(Some(leader));
            let superseded = role.wait_for(|role| *role != now);
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                _ = superseded => {}
            }
            tracing::debug!(%session, "its agent's line to the server that leads has ended");
        })
    }

    async fn converse(self, session: SessionId, upgraded: Upgraded) {
        let (serial, mut messages) = self.switchboard.connect(session);
        let mut servers = self.servers.clone();
        servers.mark_changed();
        let (read_half, mut write_half) = tokio::io::split(TokioIo::new(upgraded));
        // One alone is where agents are told to call at first, which may be a front. That is
        // no place for channels that were at servers themselves.
        let mut were_several = false;
        let asked = Notify::new();
        let reading = self.listen(session, read_half, &asked);
        let writing = async {
            loop {
                let line = tokio::select! {
                    message = messages.recv() => match message.map(|it| serde_json::to_vec(&it)) {
                        Some(Ok(line)) => line,
                        Some(Err(_)) | None => break,
                    },
                    Ok(()) = servers.changed() => {
                        let Some(mut urls) = servers.borrow_and_update().clone() else {
                            continue;
                        };
                        were_several |= urls.len() > 1;
                        if !were_several {
                            urls.clear();
                        }
                        serde_json::to_vec(&ServerMessage::Servers { urls }).unwrap_or_default()
                    }
                    () = asked.notified() => Vec::new(),
                };
                if !line.is_empty() {
                    failpoint::cross(Point::TunnelBeforeTell);
                }
                if write_half
                    .write_all(&[&line[..], b"\n"].concat())
                    .await
                    .is_err()
                {
                    break;
                }
            }
        };
        let mut role = self.driver.role();
        let superseded = role.wait_for(|role| *role != Role::Leads);
        tokio::select! {
            () = reading => {}
            () = writing => {}
            // It calls again, and comes to the one that leads.
            _ = superseded => {}
        }
        if self.switchboard.disconnect(session, serial) {
            self.driver.hung_up(session).await;
        }
    }

    async fn listen(
        &self,
        session: SessionId,
        reader: impl tokio::io::AsyncRead + Unpin,
        asked: &Notify,
    ) {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        let limit = u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX);
        loop {
            line.clear();
            let mut limited = (&mut reader).take(limit);
            let read = tokio::time::timeout(self.silence_max, limited.read_until(b'\n', &mut line));
            match read.await {
                Ok(Ok(bytes)) if bytes > 0 && line.ends_with(b"\n") => {}
                Ok(Ok(_) | Err(_)) | Err(_) => return,
            }
            if line == b"\n" {
                asked.notify_one();
                continue;
            }
            match serde_json::from_slice::<AgentStatus>(&line) {
                Ok(status) => {
                    self.driver.heard(session, status).await;
                    failpoint::cross(Point::TunnelAfterStatus);
                }
                Err(error) => {
                    tracing::warn!(%session, "its agent sent what is no status: {error}");
                    return;
                }
            }
        }
    }
}

async fn control(
    State(tunnel): State<Tunnel>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let role = tunnel.driver.role();
    let leader = match &*role.borrow() {
        Role::Leads => None,
        Role::Follows(leader) => Some(leader.clone()),
    };
    match leader {
        None => tunnel.upgrade(&id, PROTOCOL, request, Tunnel::converse),
        Some(Some(leader)) if !request.headers().contains_key(PASSED_ON) => {
            tunnel.lead_on(&id, request, leader, role).await
        }
        // It calls again.
        Some(_) => unavailable("No server decides at this moment; call again").into_response(),
    }
}

async fn channel(
    State(tunnel): State<Tunnel>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let take_in = async |tunnel: Tunnel, session, upgraded| {
        tunnel.gateway.take_in(session, upgraded);
    };
    tunnel.upgrade(&id, CHANNEL_PROTOCOL, request, take_in)
}

async fn log(State(tunnel): State<Tunnel>, Path(id): Path<String>, request: Request) -> Response {
    tunnel.upgrade(
        &id,
        LOG_PROTOCOL,
        request,
        async |tunnel: Tunnel, session, upgraded| {
            let dir = tunnel.sessions.of(session).log();
            let received = copying::receive(&dir, TokioIo::new(upgraded), tunnel.log_bytes_max);
            if let Err(error) = received.await {
                tracing::debug!(%session, "its log comes no further for now: {error}");
            }
        },
    )
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}
