//! How an agent calls its server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dwell_core::protocol::{CHANNEL_PROTOCOL, LOG_PROTOCOL, PROTOCOL};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::upgrade::Upgraded;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::spec::{AgentSpec, ServerAt};
use crate::data_dir::ServerFile;
use crate::keep_alive::{CHANNEL, expect_answers};
use crate::read_ahead::ReadAhead;
use crate::trust;

const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// A connection to the server.
pub(super) type Link = Either<TcpStream, Box<TlsStream<ReadAhead<TcpStream>>>>;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The server does not know this session, or not this agent.
    #[error("the server says {0}")]
    Refused(StatusCode),
    /// Nobody answers, or not as a server does.
    #[error("{0}")]
    Unreachable(String),
}

fn unreachable(why: impl std::fmt::Display) -> CallError {
    CallError::Unreachable(why.to_string())
}

/// Calls one session's server.
pub(super) struct Dialer {
    spec: AgentSpec,
    /// Made when it is first needed, and anew when it did not do.
    tls: Mutex<Option<TlsConnector>>,
}

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// To keep in touch.
    Control,
    /// To carry a connection to the app.
    Channel,
    /// To bring what the app wrote.
    Log,
}

impl Call {
    const fn name_and_protocol(self) -> (&'static str, &'static str) {
        match self {
            Self::Control => ("control", PROTOCOL),
            Self::Channel => ("channel", CHANNEL_PROTOCOL),
            Self::Log => ("log", LOG_PROTOCOL),
        }
    }
}

/// Where to call.
struct Number {
    host: String,
    port: u16,
    is_encrypted: bool,
}

impl Dialer {
    pub(super) const fn new(spec: AgentSpec) -> Self {
        Self {
            spec,
            tls: Mutex::new(None),
        }
    }

    /// A connection that is what is asked for from here on.
    pub(super) async fn call(&self, what: Call) -> Result<Upgraded, CallError> {
        let called = timeout(ANSWER_WITHIN, self.upgrade(what)).await;
        called.map_err(unreachable)?
    }

    async fn upgrade(&self, what: Call) -> Result<Upgraded, CallError> {
        let (name, protocol) = what.name_and_protocol();
        let number = Number::of(&self.spec.server)?;
        let link = self.link(&number).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(link))
            .await
            .map_err(unreachable)?;
        tokio::spawn(connection.with_upgrades());
        let path = format!("/agent/v1/sessions/{}/{name}", self.spec.session);
        let request = Request::get(path)
            .header(header::HOST, format!("{}:{}", number.host, number.port))
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, protocol)
            .header(
                header::AUTHORIZATION,
                format!("Bearer {}", self.spec.secret),
            )
            .body(Empty::<Bytes>::new())
            .map_err(unreachable)?;
        let response = sender.send_request(request).await.map_err(unreachable)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                hyper::upgrade::on(response).await.map_err(unreachable)
            }
            status if status.is_client_error() => Err(CallError::Refused(status)),
            status => Err(unreachable(status)),
        }
    }

    async fn link(&self, number: &Number) -> Result<Link, CallError> {
        let host = number.host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, number.port)).await;
        let stream = stream.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        expect_answers(&stream, CHANNEL).map_err(unreachable)?;
        if !number.is_encrypted {
            return Ok(Either::Left(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(unreachable)?;
        let connector = self.connector()?;
        let shaken = connector.connect(name, ReadAhead::new(stream)).await;
        shaken
            .map(|stream| Either::Right(Box::new(stream)))
            .map_err(|error| {
                // The certificate that it is known by may have been replaced.
                *self.tls() = None;
                unreachable(error)
            })
    }

    fn connector(&self) -> Result<TlsConnector, CallError> {
        let mut tls = self.tls();
        if let Some(connector) = &*tls {
            return Ok(connector.clone());
        }
        let certificate = match &self.spec.server {
            ServerAt::ThisHost { .. } => None,
            ServerAt::Elsewhere { certificate, .. } => certificate.as_deref(),
        };
        let config = trust::client_config(certificate).map_err(unreachable)?;
        let connector = TlsConnector::from(Arc::new(config));
        Ok(tls.insert(connector).clone())
    }

    fn tls(&self) -> std::sync::MutexGuard<'_, Option<TlsConnector>> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Number {
    fn of(server: &ServerAt) -> Result<Self, CallError> {
        let url = match server {
            ServerAt::ThisHost { server_file, .. } => {
                let file = std::fs::read(server_file).map_err(unreachable)?;
                let file: ServerFile = serde_json::from_slice(&file).map_err(unreachable)?;
                file.url
            }
            ServerAt::Elsewhere { url, .. } => url.clone(),
        };
        let uri: Uri = url.parse().map_err(unreachable)?;
        let is_encrypted = uri.scheme_str() == Some("https");
        let usual = if is_encrypted { 443 } else { 80 };
        let no_host = || unreachable(format!("{url} names no host"));
        Ok(Self {
            host: uri.host().ok_or_else(no_host)?.to_owned(),
            port: uri.port_u16().unwrap_or(usual),
            is_encrypted,
        })
    }
}

/// How long to wait before the next call, while calls come to nothing.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_WAIT)
    }
}

impl Backoff {
    /// Wait between half the time and all of it, so that agents that lost a server do not
    /// all come back at once; the next time is longer.
    pub(super) async fn wait(&mut self) {
        let mut bits = [0; 1];
        let _ = getrandom::fill(&mut bits);
        sleep(self.0 / 2 + self.0 * u32::from(bits[0]) / 512).await;
        self.0 = (self.0 * 2).min(LONGEST_WAIT);
    }
}
