//! Connections to one app, kept for its next request.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dwell_core::time::{Millis, Monotonic};
use http_body_util::{Either, Empty};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::clock;

/// How long a connection may wait for its next request. Less than the keep-alive
/// time of any app server in wide use (gunicorn has 2 s, uvicorn and Node 5 s): a
/// request must not be sent on a connection that the app is just closing.
const KEEP: Millis = Millis::from_seconds(1);
/// How many may wait.
const KEEP_AT_MOST: usize = 32;
/// How long an app may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A request's body: as it comes in, or none at all.
pub(super) type RequestBody = Either<Incoming, Empty<Bytes>>;
type Sender = SendRequest<RequestBody>;

/// Connections to one app.
pub(super) struct Pool {
    app: SocketAddr,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    sender: Sender,
    since: Monotonic,
}

/// Why an app gave no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It does not accept connections.
    #[error("it does not accept connections: {0}")]
    Connect(#[from] io::Error),
    /// It does, but what then came was no response.
    #[error("it broke off before it answered: {0}")]
    Exchange(#[from] hyper::Error),
}

impl Pool {
    pub(super) const fn new(app: SocketAddr) -> Self {
        Self {
            app,
            idle: Mutex::new(Vec::new()),
        }
    }

    pub(super) const fn app(&self) -> SocketAddr {
        self.app
    }

    /// Have the app answer `request`. A connection that was kept may turn out to be
    /// closed: then the request is sent once more on a new one, if the app cannot
    /// have begun with it or if doing it twice is doing it once.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Failure> {
        if let Some(mut sender) = self.take() {
            let spare = spare(&request);
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.lend(sender, response)),
                Err(mut failure) => match (failure.take_message(), spare) {
                    (Some(unsent), _) => request = unsent,
                    (None, Some(spare)) if !failure.error().is_parse() => request = spare,
                    (None, _) => return Err(failure.into_error().into()),
                },
            }
        }
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await?;
        Ok(self.lend(sender, response))
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        let stream = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(self.app))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        super::notice_dead_peers(&stream)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors reach whoever waits for a response.
        tokio::spawn(connection.with_upgrades());
        Ok(sender)
    }

    fn lend(
        self: &Arc<Self>,
        sender: Sender,
        response: Response<Incoming>,
    ) -> Response<ResponseBody> {
        response.map(|body| ResponseBody {
            body,
            is_complete: false,
            sender: Some(sender),
            pool: Arc::clone(self),
        })
    }

    /// The connection that was used last, if it can be used now.
    fn take(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = idle.pop() {
            if clock::monotonic().since(last.since) > KEEP {
                // So have all below it.
                idle.clear();
            } else if last.sender.is_ready() {
                return Some(last.sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEEP_AT_MOST && !sender.is_closed() {
            idle.push(Idle {
                sender,
                since: clock::monotonic(),
            });
        }
    }

    /// Close what has waited too long.
    pub(super) fn sweep(&self, now: Monotonic) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| now.since(idle.since) <= KEEP && !idle.sender.is_closed());
    }
}

/// The request again, if it may be sent twice: it has no body, and to do it twice is
/// to do it once.
fn spare(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let has_no_body = matches!(request.body(), Either::Right(_));
    let is_safe = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    (has_no_body && is_safe).then(|| {
        let mut spare = Request::new(Either::Right(Empty::new()));
        *spare.method_mut() = request.method().clone();
        *spare.uri_mut() = request.uri().clone();
        *spare.headers_mut() = request.headers().clone();
        spare
    })
}

/// A response's body. Once it has been read to its end, the connection that it came
/// on goes back to its pool; before that, dropping it closes the connection.
pub(super) struct ResponseBody {
    body: Incoming,
    is_complete: bool,
    sender: Option<Sender>,
    pool: Arc<Pool>,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.is_complete = true,
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => self.is_complete = true,
            Poll::Ready(Some(_)) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take()
            && (self.is_complete || self.body.is_end_stream())
        {
            self.pool.keep(sender);
        }
    }
}
