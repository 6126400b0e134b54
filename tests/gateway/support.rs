//! A gateway with one port, visitors of it, and apps behind it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dwell::admission::Admission;
use dwell::gateway::{Gateway, Route, RouteStatus, Settings, TimeLimits};
use dwell::keys;
use dwell_core::id::{KeyId, SessionId};
use dwell_core::key::Key;
use dwell_core::machine::Access;
use dwell_core::owner::{Owner, Principal, UserId};
use dwell_core::session::{EndReason, Ending};
use dwell_core::time::Timestamp;
use futures_util::{SinkExt, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

/// The body of whatever the tests send.
pub type Body = BoxBody<Bytes, Infallible>;

pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// What happens within a time that no healthy machine needs.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what)
        .await
        .expect("it happens within 30 s")
}

/// Ada's session `number`, open to all who have the link.
/// Its app listens at `at`, and is reached there.
pub fn running(at: SocketAddr) -> RouteStatus {
    RouteStatus::Running(at.into())
}

pub fn route(number: u128, status: RouteStatus) -> Route {
    Route {
        session: SessionId(Uuid::from_u128(number)),
        owner: Owner::User(UserId("ada".to_owned())),
        access: Access::Link,
        status,
    }
}

pub fn ended() -> RouteStatus {
    RouteStatus::Ended(Ending::plain(EndReason::TimedOut))
}

/// The rules of a door.
pub fn admission() -> Admission {
    Admission::new([7; 32]).unwrap().0
}

/// A gateway with one port.
pub struct Site {
    pub gateway: Gateway,
    pub admission: Admission,
    pub at: SocketAddr,
}

impl Site {
    pub async fn new(route: Route) -> Self {
        Self::with(route, TimeLimits::default()).await
    }

    pub async fn with(route: Route, limits: TimeLimits) -> Self {
        Self::keeping(route, admission(), limits).await
    }

    /// One whose door is kept by these rules.
    pub async fn keeping(route: Route, admission: Admission, limits: TimeLimits) -> Self {
        let here = Ipv4Addr::LOCALHOST.into();
        let settings = Settings {
            limits,
            ..Settings::ports(here)
        };
        let gateway = Gateway::with(settings, admission.clone(), HashMap::new());
        loop {
            // Another test may take the port before the gateway does.
            let at = free_address().await;
            match gateway.publish(at.port(), route.clone()).await {
                Ok(()) => {
                    return Self {
                        gateway,
                        admission,
                        at,
                    };
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse),
            }
        }
    }

    /// Session 1 runs, and `app` is its app.
    pub async fn of(app: SocketAddr) -> Self {
        Self::new(route(1, running(app))).await
    }

    pub async fn publish(&self, route: Route) {
        let published = self.gateway.publish(self.at.port(), route).await;
        published.expect("the port is ours");
    }

    /// A key of `user`'s.
    pub fn key_of(&self, user: &str, revoked_at: Option<Timestamp>) -> String {
        let secret = keys::new_secret().unwrap();
        self.admission.keys.publish(Key {
            id: KeyId(Uuid::new_v4()),
            name: user.to_owned(),
            hash: keys::hash(&secret),
            principal: Principal {
                user: UserId(user.to_owned()),
                org: None,
                admin: false,
            },
            created_at: Timestamp(0),
            revoked_at,
        });
        secret
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    /// A visitor that speaks HTTP/1.1.
    pub async fn visitor(&self) -> Visitor {
        visitor(self.connect().await).await
    }

    /// One request on a connection of its own.
    pub async fn send(&self, request: Request<Body>) -> Response<Bytes> {
        self.visitor().await.send(request).await
    }

    /// A GET of `target` with these headers.
    pub async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
        self.send(request("GET", target, headers, "")).await
    }

    /// What comes back for these very bytes until the connection is closed.
    pub async fn raw(&self, bytes: &str) -> String {
        raw(self.connect().await, bytes).await
    }
}

/// What comes back for these very bytes until the connection is closed.
pub async fn raw(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &str) -> String {
    stream.write_all(bytes.as_bytes()).await.unwrap();
    read_to_end(&mut stream).await
}

async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap()
}

pub fn request(
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    content: &'static str,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(target);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "gpu.example:8");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body(content)).unwrap()
}

/// One connection to a gateway.
pub struct Visitor {
    pub sender: SendRequest<Body>,
}

pub async fn visitor(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Visitor {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection.with_upgrades());
    Visitor { sender }
}

impl Visitor {
    pub async fn send(&mut self, request: Request<Body>) -> Response<Bytes> {
        let response = self.begin(request).await;
        let (parts, body) = response.into_parts();
        let content = soon(body.collect()).await.unwrap().to_bytes();
        Response::from_parts(parts, content)
    }

    /// The response's head; its body is still to come.
    pub async fn begin(&mut self, request: Request<Body>) -> Response<Incoming> {
        soon(self.sender.ready()).await.unwrap();
        soon(self.sender.send_request(request)).await.unwrap()
    }

    /// Waits until the gateway closes the connection.
    pub async fn is_closed(&mut self) {
        soon(async {
            while self.sender.ready().await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

pub fn text(response: &Response<Bytes>) -> &str {
    std::str::from_utf8(response.body()).unwrap()
}

/// An app that speaks HTTP by hyper.
pub struct App {
    pub at: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl App {
    pub async fn new<H, F>(handler: H) -> Self
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let at = raw_app(move |stream, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            let handler = handler.clone();
            async move {
                let service = service_fn(move |request| {
                    let response = handler(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                // A visitor that is gone is no error of the test's.
                let _ = http
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            }
        })
        .await;
        Self { at, connections }
    }

    /// An app that answers with the request's head as it saw it.
    pub async fn mirror() -> Self {
        Self::new(|request| async move {
            let mut seen = format!(
                "{} {} {:?}\n",
                request.method(),
                request.uri(),
                request.version()
            );
            for (name, value) in request.headers() {
                seen += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            Response::new(body(seen))
        })
        .await
    }

    /// How many connections it was made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// An app that does as `script` says with each connection and its number, from 0 on.
pub async fn raw_app<S, F>(script: S) -> SocketAddr
where
    S: Fn(TcpStream, usize) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(script(stream, number));
        }
    });
    at
}

/// An app that says back what it hears over WebSockets.
pub async fn echo_app() -> SocketAddr {
    raw_app(|stream, _| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
            return;
        };
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Reads one message's head, or less if the other side closes before.
pub async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match soon(stream.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Reads until the other side closes, cleanly or not.
pub async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut all = Vec::new();
    let _ = soon(stream.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}
