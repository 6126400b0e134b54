//! The API's end of the server's own listener: who comes for no session is served here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderValue};
use axum::http::{StatusCode, Version};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::{Buf, Bytes};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::buffered::Stream;
use super::connection::Visitor;
use super::door::Names;
use super::places::Place;
use super::workers::Workers;

/// How long a client may take for a request's head, or to send the next request.
const HEAD_LIMIT: Duration = Duration::from_secs(75);

/// Serves the API. Clones are handles to the same one.
#[derive(Clone)]
pub struct Desk {
    app: Router,
    /// Where the API's work is done: never on the threads that carry traffic.
    runtime: Handle,
    /// Whether it is to finish.
    finishing: watch::Sender<bool>,
    /// What is under way.
    open: TaskTracker,
}

impl Desk {
    /// Serve `app` on this runtime.
    #[must_use]
    pub fn new(app: Router) -> Self {
        Self {
            app,
            runtime: Handle::current(),
            finishing: watch::Sender::default(),
            open: TaskTracker::new(),
        }
    }

    /// The same one, refusing requests for any of the `names`: a connection is led by its
    /// first request.
    pub(super) fn beside(self, names: Arc<Names>) -> Self {
        // Once for all connections: it goes through every route.
        let app = self
            .app
            .layer(from_fn_with_state(names, refuse_misdirected));
        Self { app, ..self }
    }

    /// Close the connections that are idle, and the others once they are. Returns when
    /// none is left.
    pub async fn finish(&self) {
        self.finishing.send_replace(true);
        self.open.close();
        self.open.wait().await;
    }

    /// Until it is told to finish.
    pub(super) fn told_to_finish(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut finishing = self.finishing.subscribe();
        async move {
            // A server that is gone serves no more either.
            let _ = finishing.wait_for(|is_finishing| *is_finishing).await;
        }
    }

    /// Serve a visitor who does not come for a session.
    pub(super) fn serve(&self, visitor: Visitor, place: Place) {
        let app = self.app.clone();
        let told = self.told_to_finish();
        let io = TokioIo::new(Handed {
            said: Bytes::copy_from_slice(visitor.said.filled()),
            stream: visitor.stream,
            worker: Workers::own_number(),
            _place: place,
        });
        let serving = async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .serve_connection(io, TowerToHyperService::new(app))
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            // How it ends is between the two of them.
            tokio::select! {
                _ = connection.as_mut() => return,
                () = told => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        };
        self.open.spawn_on(serving, &self.runtime);
    }

    /// Answer one request that came in a stream of HTTP/2.
    pub(super) async fn answer(&self, request: hyper::Request<Incoming>) -> Response {
        let app = self.app.clone();
        let answering = app.oneshot(in_http1(request).map(Body::new));
        match self.open.spawn_on(answering, &self.runtime).await {
            Ok(Ok(response)) => response,
            // It cannot fail, so it has panicked, or the server is going.
            Ok(Err(never)) => match never {},
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

/// A request of HTTP/2 as one of HTTP/1.1. The API reads in one place which host is asked,
/// and a server that was replaced passes the request on as such.
fn in_http1<B>(mut request: hyper::Request<B>) -> hyper::Request<B> {
    *request.version_mut() = Version::HTTP_11;
    let host = request.uri().authority();
    let host = host.and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    request
}

/// A connection is led by its first request; one for a session must not follow.
async fn refuse_misdirected(
    State(names): State<Arc<Names>>,
    request: Request,
    next: Next,
) -> Response {
    let host = request.uri().host().map(str::as_bytes);
    let host = host.or_else(|| Some(request.headers().get("host")?.as_bytes()));
    if names.label(host).is_some() {
        let sentence = "Sessions are not served on this connection; make a new one\n";
        let close = [("connection", "close")];
        return (StatusCode::MISDIRECTED_REQUEST, close, sentence).into_response();
    }
    next.run(request).await
}

/// A connection whose first bytes have been read already.
struct Handed {
    said: Bytes,
    stream: Stream,
    /// The thread that carries it.
    worker: usize,
    _place: Place,
}

/// A connection that was upgraded, as it was when it came, and the thread that carries it.
/// None if more has been said on it than the request.
pub(super) fn taken_back(upgraded: Upgraded) -> Option<(Stream, usize)> {
    let parts = upgraded.downcast::<TokioIo<Handed>>().ok()?;
    let handed = parts.io.into_inner();
    let is_quiet = parts.read_buf.is_empty() && handed.said.is_empty();
    is_quiet.then_some((handed.stream, handed.worker))
}

impl AsyncRead for Handed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.said.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, into);
        }
        let length = this.said.len().min(into.remaining());
        into.put_slice(this.said.get(..length).unwrap_or_default());
        this.said.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Handed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_http_2_reads_like_one_of_http_1() {
        let asked = Request::builder()
            .version(Version::HTTP_2)
            .uri("https://gpu.test:8080/signin?session=1")
            .header(HOST, "elsewhere.test");
        let asked = in_http1(asked.body(()).unwrap());
        assert_eq!(asked.version(), Version::HTTP_11);
        let hosts: Vec<_> = asked.headers().get_all(HOST).iter().collect();
        assert_eq!(hosts, ["gpu.test:8080"]);
        assert_eq!(asked.uri().query(), Some("session=1"));
    }
}
