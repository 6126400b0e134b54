//! The agent's end of the control channel: call, say, listen, call again.

use std::path::Path;
use std::time::Duration;

use dwell_core::protocol::{AgentStatus, MESSAGE_BYTES_MAX, ServerMessage};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::dial::{Backoff, Call, CallError, Dialer};
use super::spec::{AgentSpec, ServerAt};

/// How often a server on another host is asked whether it is there.
const ASKED_EVERY: Duration = Duration::from_secs(3);

/// A server that was asked and says nothing for so long is not reached by this call any
/// more, whatever the network makes of it: all that goes through it is called for anew.
const SILENCE_MAX: Duration = Duration::from_secs(6);

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
    let asked_every = match &spec.server {
        ServerAt::ThisHost { .. } => None,
        ServerAt::Elsewhere { .. } => Some(ASKED_EVERY),
    };
    let shared_file = match &spec.server {
        ServerAt::ThisHost {
            server_file,
            is_shared: true,
        } => Some(server_file.clone()),
        ServerAt::ThisHost { .. } | ServerAt::Elsewhere { .. } => None,
    };
    let dialer = Dialer::new(spec);
    let mut backoff = Backoff::default();
    loop {
        let called = tokio::select! {
            called = call(&dialer, asked_every, &mut status, &events) => called,
            // One that stands still hangs nobody up.
            () = replaced(shared_file.as_deref()) => Ok(()),
        };
        match called {
            Ok(()) => backoff = Backoff::default(),
            Err(CallError::Refused(_)) => {
                let _ = events.send(Event::Refused).await;
            }
            Err(CallError::Unreachable(_)) => {}
        }
        if events.is_closed() {
            return;
        }
        backoff.wait().await;
    }
}

/// One call, until it breaks.
async fn call(
    dialer: &Dialer,
    asked_every: Option<Duration>,
    status: &mut watch::Receiver<AgentStatus>,
    events: &mpsc::Sender<Event>,
) -> Result<(), CallError> {
    let upgraded = dialer.call(Call::Control).await?;
    let (reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
    // What was published before the call is old news by now.
    status.mark_unchanged();
    let _ = events.send(Event::Connected).await;
    let saying = async {
        loop {
            let mut line = tokio::select! {
                changed = status.changed() => match changed {
                    Ok(()) => serde_json::to_vec(&*status.borrow_and_update()).unwrap_or_default(),
                    Err(_) => return,
                },
                () = pause(asked_every) => Vec::new(),
            };
            line.push(b'\n');
            if writer.write_all(&line).await.is_err() {
                return;
            }
        }
    };
    let silence_max = asked_every.map(|_| SILENCE_MAX);
    tokio::select! {
        () = saying => {}
        () = listen(reader, silence_max, events) => {}
    }
    Ok(())
}

/// Until `file` names another server.
async fn replaced(file: Option<&Path>) {
    let Some(file) = file else {
        return std::future::pending().await;
    };
    let began = std::fs::read(file).ok();
    loop {
        sleep(ASKED_EVERY).await;
        let now = std::fs::read(file).ok();
        if now.is_some() && now != began {
            return;
        }
    }
}

async fn pause(span: Option<Duration>) {
    match span {
        Some(span) => sleep(span).await,
        None => std::future::pending().await,
    }
}

async fn listen(
    reader: impl tokio::io::AsyncRead + Unpin,
    silence_max: Option<Duration>,
    events: &mpsc::Sender<Event>,
) {
    let mut reader = BufReader::with_capacity(1_024, reader);
    let limit = u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(limit);
        let read = limited.read_until(b'\n', &mut line);
        let read = match silence_max {
            None => read.await,
            Some(silence_max) => match timeout(silence_max, read).await {
                Ok(read) => read,
                Err(_) => return,
            },
        };
        if !read.is_ok_and(|bytes| bytes > 0) || !line.ends_with(b"\n") {
            return;
        }
        // A word that a newer server knows and we do not is not for us; an empty line only
        // says that it is there.
        if let Ok(message) = serde_json::from_slice(&line)
            && events.send(Event::Said(message)).await.is_err()
        {
            return;
        }
    }
}
