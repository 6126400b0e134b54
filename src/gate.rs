//! The API's gate: who answers a request while a server goes, or gives way to another, or
//! has another beside it that decides.
//!
//! ```text
//!  open ──▶ leaving                    the server goes: what waits is answered now
//!    │
//!    └────▶ closed ──▶ to a successor  it is replaced: what comes in is passed on
//! ```
//!
//! While it is open, what would change something is passed on to the server that leads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::api::{BODY_BYTES_MAX, unavailable};
use crate::driver::Role;
use crate::peers::{PASSED_ON, Peers};

/// Requests that came before the gate closed have so long to be decided.
const DECIDED_WITHIN: Duration = Duration::from_secs(2);

/// For how long a request waits for a server that decides.
const DECIDES_WITHIN: Duration = Duration::from_secs(5);
/// How soon a server that cannot be reached is tried again, should it still lead then.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The gate. Clones are handles to the same one.
#[derive(Clone)]
pub struct Gate {
    state: watch::Sender<GateState>,
    /// Whether this server decides, or another.
    role: watch::Receiver<Role>,
    peers: Peers,
}

#[derive(Clone, Debug, Default)]
struct GateState {
    position: Position,
    /// Requests that may still have something decided here.
    busy: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    #[default]
    Open,
    Leaving,
    Closed,
    Successor(SocketAddr),
}

/// Counts a request among the busy ones while it lives.
struct Busy(watch::Sender<GateState>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.busy -= 1);
    }
}

/// Counts a request out again while it only waits for something to come about.
pub struct Aside(watch::Sender<GateState>);

impl Drop for Aside {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.busy += 1);
    }
}

impl Gate {
    /// The gate of a server that is this among others.
    #[must_use]
    pub fn new(role: watch::Receiver<Role>) -> Self {
        Self {
            state: watch::Sender::default(),
            role,
            peers: Peers::default(),
        }
    }

    /// The request that calls this has had decided what it wanted and only waits.
    #[must_use]
    pub fn stand_aside(&self) -> Aside {
        self.state.send_modify(|state| state.busy -= 1);
        Aside(self.state.clone())
    }

    /// The server goes: whoever waits for something is to be answered now.
    pub fn leave(&self) {
        self.state
            .send_modify(|state| state.position = Position::Leaving);
    }

    /// Returns when the server goes.
    pub async fn left(&self) {
        let mut state = self.state.subscribe();
        // It cannot be closed: we hold its sender.
        let _ = state
            .wait_for(|state| state.position == Position::Leaving)
            .await;
    }

    /// Have requests wait from now on, and those that came before be decided.
    pub async fn close(&self) {
        self.state
            .send_modify(|state| state.position = Position::Closed);
        let mut state = self.state.subscribe();
        let idle = state.wait_for(|state| state.busy == 0);
        let _ = tokio::time::timeout(DECIDED_WITHIN, idle).await;
    }

    /// The server that listens at `address` answers from now on.
    pub fn lead_to(&self, address: SocketAddr) {
        self.state
            .send_modify(|state| state.position = Position::Successor(address));
    }

    /// Where a request is to go: `Ok` here, `Err` there.
    async fn enter(&self) -> Result<Busy, SocketAddr> {
        let mut state = self.state.subscribe();
        loop {
            let mut position = Position::Open;
            self.state.send_if_modified(|state| {
                position = state.position;
                if matches!(position, Position::Open | Position::Leaving) {
                    state.busy += 1;
                }
                // Nobody waits for there to be more.
                false
            });
            match position {
                Position::Open | Position::Leaving => return Ok(Busy(self.state.clone())),
                Position::Successor(address) => return Err(address),
                Position::Closed => {
                    let _ = state
                        .wait_for(|state| state.position != Position::Closed)
                        .await;
                }
            }
        }
    }

    /// The successor's answer, and the end of this connection: the next one is made
    /// to the successor itself.
    async fn hand_over(&self, mut request: Request, to: SocketAddr) -> Response {
        request.headers_mut().remove(CONNECTION);
        match self.peers.hand_over(request, &format!("http://{to}")).await {
            None => unavailable("The server was replaced by another; ask again").into_response(),
            Some(Ok(response)) => {
                let mut response = response.into_response();
                let headers = response.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
            Some(Err(error)) => {
                tracing::warn!("a request could not be passed on to {to}: {error}");
                unavailable("The server was replaced by another; ask again").into_response()
            }
        }
    }

    /// The answer of the server that decides, be it this one.
    async fn have_decided(&self, request: Request, next: Next) -> Response {
        let (parts, body) = request.into_parts();
        let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
            return (StatusCode::PAYLOAD_TOO_LARGE, CLOSE).into_response();
        };
        let deadline = Instant::now() + DECIDES_WITHIN;
        let mut role = self.role.clone();
        let may_pass_on = !parts.headers.contains_key(PASSED_ON);
        loop {
            let decides = |role: &Role| match role {
                Role::Leads => true,
                Role::Follows(leader) => may_pass_on && leader.is_some(),
            };
            let who = timeout_at(deadline, role.wait_for(decides)).await;
            let leader = match who.map(|who| who.map(|role| role.clone())) {
                Ok(Ok(Role::Follows(Some(leader)))) => leader,
                Ok(Ok(Role::Leads)) => {
                    return next.run(Request::from_parts(parts, body.into())).await;
                }
                Ok(Ok(Role::Follows(None)) | Err(_)) | Err(_) => {
                    let sentence = "No server decides at this moment; ask again";
                    return unavailable(sentence).into_response();
                }
            };
            if let Some(answer) = self.ask(&leader, &parts, body.clone()).await {
                return answer;
            }
            sleep(TRY_AGAIN_AFTER).await;
        }
    }

    /// The leader's answer, or what is to be said if it has become another's meanwhile.
    /// None if it cannot be reached: nothing has happened.
    async fn ask(&self, leader: &Arc<str>, parts: &Parts, body: Bytes) -> Option<Response> {
        let mut parts = parts.clone();
        parts.headers.remove(CONNECTION);
        let mut role = self.role.clone();
        let replaced = role.wait_for(|role| *role != Role::Follows(Some(Arc::clone(leader))));
        let request = Request::from_parts(parts, body.into());
        let asked = self.peers.pass_on(request, leader);
        let unknown = "The server that decides was lost; what was asked for may have been done, \
                       or not: look, then ask again";
        tokio::select! {
            answer = asked => match answer? {
                Ok(mut answer) => {
                    answer.headers_mut().remove(CONNECTION);
                    Some(answer.into_response())
                }
                Err(error) if error.is_connect() => None,
                Err(error) => {
                    tracing::warn!("a request could not be passed on to {leader}: {error}");
                    Some(unavailable(unknown).into_response())
                }
            },
            _ = replaced => Some(unavailable(unknown).into_response()),
        }
    }
}

/// What is left of a body that was too large is not read.
const CLOSE: [(HeaderName, &str); 1] = [(CONNECTION, "close")];

/// Any server can tell what is on record.
fn only_looks(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The layer that has each request pass the gate.
pub async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    match gate.enter().await {
        Err(successor) => gate.hand_over(request, successor).await,
        Ok(_busy) if only_looks(request.method()) || *gate.role.borrow() == Role::Leads => {
            next.run(request).await
        }
        Ok(_busy) => gate.have_decided(request, next).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn gate() -> Gate {
        Gate::new(watch::Sender::new(Role::Leads).subscribe())
    }

    #[tokio::test]
    async fn a_closed_gate_waits_for_what_is_being_decided_and_for_nothing_else() {
        let gate = gate();
        let deciding = gate.enter().await.unwrap();
        let waiting = gate.enter().await.unwrap();
        let aside = gate.stand_aside();
        let closing = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close().await }
        });
        let mut state = gate.state.subscribe();
        state
            .wait_for(|state| state.position == Position::Closed)
            .await
            .unwrap();
        tokio::task::yield_now().await;
        assert!(!closing.is_finished());
        drop(deciding);
        closing.await.unwrap();
        drop(aside);
        drop(waiting);
        assert_eq!(gate.state.borrow().busy, 0);
    }

    #[tokio::test]
    async fn what_comes_while_the_gate_is_closed_waits_for_the_successor() {
        let gate = gate();
        gate.close().await;
        let entering = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await.err() }
        });
        let successor = (Ipv4Addr::LOCALHOST, 7).into();
        gate.lead_to(successor);
        assert_eq!(entering.await.unwrap(), Some(successor));
    }

    /// Which may pass it on: it need not be the one that decides.
    #[tokio::test]
    async fn a_successor_is_not_told_that_what_it_takes_over_was_passed_on() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.unwrap();
        let successor = listener.local_addr().unwrap();
        let says = async |request: Request| request.headers().contains_key(PASSED_ON).to_string();
        let router = axum::Router::new().fallback(says);
        let desk = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(router);
            hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
                .await
                .unwrap();
        });
        let gate = gate();
        gate.close().await;
        gate.lead_to(successor);
        let request = Request::post("/session").body(axum::body::Body::empty());
        let answer = gate.hand_over(request.unwrap(), successor).await;
        let body = to_bytes(answer.into_body(), 100).await.unwrap();
        assert_eq!(body, "false");
        desk.abort();
    }

    #[tokio::test]
    async fn whoever_waits_is_told_that_the_server_goes() {
        let gate = gate();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.left().await }
        });
        gate.leave();
        waiting.await.unwrap();
        assert!(gate.enter().await.is_ok());
    }
}
