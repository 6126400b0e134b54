//! The agent's end of the control channel: call, say, listen, call again.

use std::path::Path;
use std::time::Duration;

use dwell_core::protocol::{AgentStatus, MESSAGE_BYTES_MAX, PROTOCOL, ServerMessage};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::spec::AgentSpec;
use crate::data_dir::ServerFile;

const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What the channel tells the agent.
#[derive(Debug)]
pub enum Event {
    /// The server listens: say where the session stands.
    Connected,
    /// The server said this.
    Said(ServerMessage),
    /// The server does not know this session, or not this agent.
    Refused,
}

/// Keep in touch with the server for ever. Each new status is sent as soon as it is
/// published; what the server says, and when a connection begins, comes as events.
pub async fn keep(
    spec: AgentSpec,
    mut status: watch::Receiver<AgentStatus>,
    events: mpsc::Sender<Event>,
) {
    let mut wait = FIRST_WAIT;
    loop {
        match call(&spec, &mut status, &events).await {
            Ok(()) => wait = FIRST_WAIT,
            Err(CallError::Refused) => {
                let _ = events.send(Event::Refused).await;
            }
            Err(CallError::Unreachable) => {}
        }
        if events.is_closed() {
            return;
        }
        sleep(jittered(wait)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

enum CallError {
    Refused,
    Unreachable,
}

impl<E: std::error::Error> From<E> for CallError {
    fn from(_: E) -> Self {
        Self::Unreachable
    }
}

/// One call, until it breaks.
async fn call(
    spec: &AgentSpec,
    status: &mut watch::Receiver<AgentStatus>,
    events: &mpsc::Sender<Event>,
) -> Result<(), CallError> {
    let address = server_address(&spec.server_file).ok_or(CallError::Unreachable)?;
    let upgraded = timeout(ANSWER_WITHIN, upgrade(spec, &address)).await??;
    let (reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
    // What was published before the call is old news by now.
    status.mark_unchanged();
    let _ = events.send(Event::Connected).await;
    let saying = async {
        while status.changed().await.is_ok() {
            let mut line = serde_json::to_vec(&*status.borrow_and_update()).unwrap_or_default();
            line.push(b'\n');
            if writer.write_all(&line).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = saying => {}
        () = listen(reader, events) => {}
    }
    Ok(())
}

async fn listen(reader: impl tokio::io::AsyncRead + Unpin, events: &mpsc::Sender<Event>) {
    let mut reader = BufReader::with_capacity(1_024, reader);
    let limit = u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(limit).read_until(b'\n', &mut line).await;
        if !read.is_ok_and(|bytes| bytes > 0) || !line.ends_with(b"\n") {
            return;
        }
        // A word that a newer server knows and we do not is not for us.
        if let Ok(message) = serde_json::from_slice(&line)
            && events.send(Event::Said(message)).await.is_err()
        {
            return;
        }
    }
}

async fn upgrade(spec: &AgentSpec, address: &str) -> Result<hyper::upgrade::Upgraded, CallError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::get(format!("/agent/v1/sessions/{}/control", spec.session))
        .header(header::HOST, address)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .header(header::AUTHORIZATION, format!("Bearer {}", spec.secret))
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => Ok(hyper::upgrade::on(response).await?),
        status if status.is_client_error() => Err(CallError::Refused),
        _ => Err(CallError::Unreachable),
    }
}

fn server_address(file: &Path) -> Option<String> {
    let file: ServerFile = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    Some(file.url.strip_prefix("http://")?.to_owned())
}

/// Between half of `wait` and all of it, so that agents that lost a server do not
/// all come back at once.
fn jittered(wait: Duration) -> Duration {
    let mut bits = [0; 1];
    let _ = getrandom::fill(&mut bits);
    wait / 2 + wait * u32::from(bits[0]) / 512
}
