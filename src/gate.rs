//! The API's gate: who answers a request while a server goes, or gives way to another.
//!
//! ```text
//!  open ──▶ leaving                    the server goes: what waits is answered now
//!    │
//!    └────▶ closed ──▶ to a successor  it is replaced: what comes in is passed on
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::uri::{PathAndQuery, Scheme, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::watch;

use crate::api::unavailable;

/// Requests that came before the gate closed have so long to be decided.
const DECIDED_WITHIN: Duration = Duration::from_secs(2);

/// The gate. Clones are handles to the same one.
#[derive(Clone)]
pub struct Gate {
    state: watch::Sender<GateState>,
    client: Client<HttpConnector, Body>,
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

impl Default for Gate {
    fn default() -> Self {
        Self {
            state: watch::Sender::default(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }
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
    async fn pass_on(&self, mut request: Request, to: SocketAddr) -> Response {
        let path = request.uri().path_and_query().cloned();
        let target = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(to.to_string())
            .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")))
            .build();
        let Ok(target) = target else {
            return unavailable("The server was replaced by another; ask again").into_response();
        };
        *request.uri_mut() = target;
        request.headers_mut().remove(CONNECTION);
        match self.client.request(request).await {
            Ok(response) => {
                let mut response = response.into_response();
                let headers = response.headers_mut();
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
            Err(error) => {
                tracing::warn!("a request could not be passed on to {to}: {error}");
                unavailable("The server was replaced by another; ask again").into_response()
            }
        }
    }
}

/// The layer that has each request pass the gate.
pub async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    match gate.enter().await {
        Ok(_busy) => next.run(request).await,
        Err(successor) => gate.pass_on(request, successor).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[tokio::test]
    async fn a_closed_gate_waits_for_what_is_being_decided_and_for_nothing_else() {
        let gate = Gate::default();
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
        let gate = Gate::default();
        gate.close().await;
        let entering = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await.err() }
        });
        let successor = (Ipv4Addr::LOCALHOST, 7).into();
        gate.lead_to(successor);
        assert_eq!(entering.await.unwrap(), Some(successor));
    }

    #[tokio::test]
    async fn whoever_waits_is_told_that_the_server_goes() {
        let gate = Gate::default();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.left().await }
        });
        gate.leave();
        waiting.await.unwrap();
        assert!(gate.enter().await.is_ok());
    }
}
