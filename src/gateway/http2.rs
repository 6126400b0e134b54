//! Visitors who speak HTTP/2. Each of their streams is led through this process as a
//! connection of its own, in HTTP/1.1: what holds for the one holds for the other.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::ext::Protocol;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;

use super::answer::Answer;
use super::buffered::{Buffer, Stream};
use super::connection::{self, Visitor};
use super::door::{Door, Named};
use super::framing::{Framing, Kind};
use super::head::{self, HEAD_BYTES_MAX, Lines, ResponseHead};
use super::page::{self, Page};
use super::patience::TimeLimits;
use super::places::Place;
use super::reception::Reception;
use super::stalled::{Offer, Streams};
use crate::read_ahead::ReadAhead;
use crate::session_urls::Scheme;

/// Streams that one visitor may have open at once.
const STREAMS_MAX: u32 = 256;
/// Bytes that may be under way to us: in one stream, and in all of a connection.
const STREAM_WINDOW: u32 = 1024 * 1_024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1_024;
/// Bytes of a stream that wait in this process, each way.
const PIPE_BYTES: usize = 64 * 1_024;
/// How often it is seen whether the visitor is there still, and how long its answer may
/// take.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_ANSWER: Duration = Duration::from_secs(30);
/// How long a connection is kept on which no stream is open.
const KEEP: Duration = Duration::from_secs(180);

/// Serve a visitor until it leaves, or has nothing more to ask for.
pub(super) async fn serve(
    reception: Arc<Reception>,
    stream: TlsStream<ReadAhead<TcpStream>>,
    from: SocketAddr,
    _place: Place,
) {
    let mut gives_way = reception.gives_way();
    let over = reception.over();
    let TimeLimits {
        head: first, idle, ..
    } = *reception.limits();
    let streams = Arc::new(AtomicU64::new(0));
    let service = service_fn({
        let streams = Arc::clone(&streams);
        move |request| {
            let (reception, open) = (Arc::clone(&reception), Arc::clone(&streams));
            open.fetch_add(1, Ordering::Relaxed);
            async move {
                let offer = Offer::of_stream();
                let answered = answer(&reception, from, request).await;
                let seen = |body| Body::new(Seen { body, open, offer });
                Ok::<_, Infallible>(answered.map(seen))
            }
        }
    });
    let mut builder = http2::Builder::new(Streams { idle });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .enable_connect_protocol();
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let nothing_more = async {
        tokio::select! {
            // An error says that the gateway is gone.
            _ = gives_way.wait_for(|gives_way| *gives_way) => {}
            () = over => {}
            () = unused(&streams, first) => {}
        }
    };
    // How it ends is between the two of them.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = nothing_more => connection.as_mut().graceful_shutdown(),
    }
    // Who does not hear that does not take leave either.
    tokio::select! {
        _ = connection => {}
        () = unused(&streams, first) => {}
    }
}

/// Until no stream has been opened `first` after the connection was, or none has been open
/// for [`KEEP`]. The service holds one of the counters, and so does each open stream.
async fn unused(streams: &Arc<AtomicU64>, first: Duration) {
    tokio::time::sleep(first).await;
    if streams.load(Ordering::Relaxed) == 0 {
        return;
    }
    let mut before = None;
    loop {
        tokio::time::sleep(KEEP).await;
        let opened = streams.load(Ordering::Relaxed);
        if Arc::strong_count(streams) == 2 && before == Some(opened) {
            return;
        }
        before = Some(opened);
    }
}

/// A response's body, which keeps its stream counted, and tells what is not taken.
struct Seen {
    body: Body,
    open: Arc<AtomicU64>,
    offer: Offer,
}

impl hyper::body::Body for Seen {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.offer.set(frame.is_ready());
        if let Poll::Ready(None) = &frame {
            self.open.fetch_add(1, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The answer to one stream's request.
async fn answer(
    reception: &Reception,
    from: SocketAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    let host = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let host = host.map(str::as_bytes);
    let host = host.or_else(|| Some(request.headers().get(header::HOST)?.as_bytes()));
    let (named, desk) = reception.whose(host);
    let to_person = request
        .headers()
        .get_all(header::ACCEPT)
        .iter()
        .any(|accept| page::asks_for_html(accept.as_bytes()));
    let page = match (named, desk) {
        (Named::Door(door), _) => match door.places.take_now(from.ip()) {
            Some(place) => match lead(door, from, request, place).await {
                Ok(response) => return response,
                Err(page) => page,
            },
            None => Page::crowded(),
        },
        (Named::Other, Some(desk)) => return desk.answer(request).await,
        (Named::Nobody, _) | (Named::Other, None) => Page::nobody(),
    };
    own(&page.respond(to_person))
}

/// A response of ours, for HTTP/2.
fn own(answer: &Answer) -> Response<Body> {
    let mut out = Vec::new();
    answer.write(true, true, false, &mut out);
    let length = head::end(&out, &mut 0).unwrap_or(out.len());
    let (head, body) = out.split_at(length);
    let mut storage = head::storage();
    let response = ResponseHead::parse(head, &mut storage).ok();
    let response = response.and_then(|head| respond(&head, Body::from(body.to_vec())));
    response.unwrap_or_else(|| Response::new(Body::empty()))
}

/// Lead a request to the session behind `door`, and the answer back.
async fn lead(
    door: Arc<Door>,
    from: SocketAddr,
    mut request: Request<Incoming>,
    place: Place,
) -> Result<Response<Body>, Page> {
    let protocol = request.extensions().get::<Protocol>().cloned();
    let upgrade = protocol.is_some().then(|| hyper::upgrade::on(&mut request));
    let head = head_of(&request, protocol.as_ref())?;
    let is_head = request.method() == Method::HEAD;
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let visitor = Visitor {
        stream: Stream::Led(theirs),
        said: Buffer::default(),
        from,
        scheme: Scheme::Https,
    };
    tokio::spawn(async move {
        let _place = place;
        connection::serve(visitor, door).await;
    });
    let (answers, asks) = tokio::io::split(ours);
    let way = BodyWay::of(&request);
    let asking = match upgrade {
        None => Asking::Request {
            _upload: Upload::begin(head, request.into_body(), way, asks),
        },
        Some(upgrade) => {
            let mut asks = asks;
            let sent = asks.write_all(&head).await;
            sent.map_err(|_| Page::broken_off())?;
            Asking::Upgrade(upgrade, asks)
        }
    };
    let mut answers = Answers {
        pipe: answers,
        buffer: Buffer::default(),
    };
    loop {
        let length = answers.head().await.ok_or_else(Page::broken_off)?;
        let bytes = answers.buffer.filled().get(..length).unwrap_or_default();
        let mut storage = head::storage();
        let head = ResponseHead::parse(bytes, &mut storage).map_err(|_| Page::broken_off())?;
        if head.status == 101 {
            let Asking::Upgrade(upgrade, asks) = asking else {
                return Err(Page::broken_off());
            };
            let mut response = respond(&head, Body::empty()).ok_or_else(Page::broken_off)?;
            *response.status_mut() = StatusCode::OK;
            // It says that a key was understood which the visitor has not sent.
            response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
            answers.buffer.consume(length);
            tokio::spawn(carry(upgrade, answers, asks));
            return Ok(response);
        }
        // What comes before the answer proper goes no further.
        if head.status < 200 {
            answers.buffer.consume(length);
            continue;
        }
        let framing = Framing::of_response(&head, is_head).map_err(|_| Page::broken_off())?;
        let mut response = respond(&head, Body::empty()).ok_or_else(Page::broken_off)?;
        answers.buffer.consume(length);
        *response.body_mut() = Body::new(Led {
            answers,
            framing,
            trailers: Vec::new(),
            _asking: asking,
        });
        return Ok(response);
    }
}

/// A request's head in HTTP/1.1.
fn head_of(request: &Request<Incoming>, protocol: Option<&Protocol>) -> Result<Vec<u8>, Page> {
    let refused = |sentence| Page::refused(StatusCode::BAD_REQUEST, sentence);
    let is_connect = request.method() == Method::CONNECT;
    if is_connect && protocol.is_none() {
        let sentence = "This is no forward proxy: CONNECT is not possible here.";
        return Err(Page::refused(StatusCode::METHOD_NOT_ALLOWED, sentence));
    }
    let method = if is_connect {
        "GET"
    } else {
        request.method().as_str()
    };
    let path = request.uri().path_and_query();
    let path = path.map_or("/", |path| path.as_str());
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if let Some(authority) = request.uri().authority() {
        // Writing to a string cannot fail.
        let _ = write!(text, "host: {authority}\r\n");
    }
    let mut out = text.into_bytes();
    let headers = request.headers();
    for (name, value) in headers {
        let is_said_anew = match *name {
            header::HOST => request.uri().authority().is_some(),
            header::COOKIE | header::EXPECT => true,
            _ => is_about_connection(name),
        };
        if !is_said_anew {
            super::headers::put(&mut out, name.as_str(), value.as_bytes());
        }
    }
    // HTTP/2 may split it (RFC 9113, section 8.2.3), and HTTP/1.1 must not.
    let cookies: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if !cookies.is_empty() {
        super::headers::put(&mut out, "cookie", &cookies.join(&b"; "[..]));
    }
    if let Some(protocol) = protocol {
        let protocol = protocol.as_str();
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./+".contains(&byte);
        if protocol.is_empty() || !protocol.bytes().all(is_token) {
            return Err(refused("What this request would speak has no name."));
        }
        super::headers::put(&mut out, "connection", b"upgrade");
        super::headers::put(&mut out, "upgrade", protocol.as_bytes());
        if protocol.eq_ignore_ascii_case("websocket") {
            let mut key = [0; 16];
            getrandom::fill(&mut key).map_err(|_| Page::broken_off())?;
            let key = STANDARD.encode(key);
            super::headers::put(&mut out, "sec-websocket-key", key.as_bytes());
        }
    } else if BodyWay::of(request) == BodyWay::InChunks {
        super::headers::put(&mut out, "transfer-encoding", b"chunked");
    }
    out.extend_from_slice(b"\r\n");
    Ok(out)
}

fn is_about_connection(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE
    ) || ["keep-alive", "proxy-connection"].contains(&name.as_str())
}

/// How a body is written in HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyWay {
    /// There is none, or its length has been said.
    AsItIs,
    /// Nobody knows how long it will be.
    InChunks,
}

impl BodyWay {
    fn of(request: &Request<Incoming>) -> Self {
        let has_length = request.headers().contains_key(header::CONTENT_LENGTH);
        if has_length || request.body().is_end_stream() {
            Self::AsItIs
        } else {
            Self::InChunks
        }
    }
}

/// What a stream asks with. All of it ends when this is dropped.
enum Asking {
    Request { _upload: Upload },
    Upgrade(OnUpgrade, WriteHalf<DuplexStream>),
}

/// A request on its way.
struct Upload(JoinHandle<()>);

impl Upload {
    fn begin(head: Vec<u8>, body: Incoming, way: BodyWay, to: WriteHalf<DuplexStream>) -> Self {
        Self(tokio::spawn(async move {
            // Who has gone takes no more, and who sends no more is seen to be gone.
            let _ = upload(head, body, way, to).await;
        }))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn upload(
    head: Vec<u8>,
    mut body: Incoming,
    way: BodyWay,
    mut to: WriteHalf<DuplexStream>,
) -> io::Result<()> {
    to.write_all(&head).await?;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(io::Error::other)?;
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().unwrap_or_default();
                continue;
            }
        };
        match way {
            BodyWay::AsItIs => to.write_all(&data).await?,
            BodyWay::InChunks if data.is_empty() => {}
            BodyWay::InChunks => {
                to.write_all(format!("{:x}\r\n", data.len()).as_bytes())
                    .await?;
                to.write_all(&data).await?;
                to.write_all(b"\r\n").await?;
            }
        }
    }
    if way == BodyWay::InChunks {
        let mut end = b"0\r\n".to_vec();
        for (name, value) in &trailers {
            super::headers::put(&mut end, name.as_str(), value.as_bytes());
        }
        end.extend_from_slice(b"\r\n");
        to.write_all(&end).await?;
    }
    Ok(())
}

/// What comes back.
struct Answers {
    pipe: ReadHalf<DuplexStream>,
    buffer: Buffer,
}

impl Answers {
    /// How long the next head is, once it is there.
    async fn head(&mut self) -> Option<usize> {
        let mut searched = 0;
        loop {
            if let Some(length) = head::end(self.buffer.filled(), &mut searched) {
                return Some(length);
            }
            let read = std::future::poll_fn(|cx| self.buffer.poll_fill(cx, &mut self.pipe));
            if read.await.ok()? == 0 {
                return None;
            }
        }
    }
}

/// The same response, for HTTP/2.
fn respond(head: &ResponseHead<'_>, body: Body) -> Option<Response<Body>> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(head.status).ok()?;
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = headers_of(head.lines)?;
    Some(response)
}

fn headers_of(lines: Lines<'_>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for line in lines.iter() {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        if !is_about_connection(&name) {
            headers.append(name, HeaderValue::from_bytes(line.value).ok()?);
        }
    }
    Some(headers)
}

/// An answer's body.
struct Led {
    answers: Answers,
    framing: Framing,
    /// The lines behind the body, as far as they have come.
    trailers: Vec<u8>,
    _asking: Asking,
}

impl hyper::body::Body for Led {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        loop {
            if this.framing.is_done() {
                let trailers = trailers_of(&std::mem::take(&mut this.trailers));
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let Answers { pipe, buffer } = &mut this.answers;
            let filled = buffer.filled();
            let Some(part) = this.framing.next(filled).map_err(io::Error::other)? else {
                if ready!(buffer.poll_fill(cx, pipe))? == 0 {
                    let is_whole = this.framing == Framing::ToEnd;
                    let cut = || Err(io::ErrorKind::UnexpectedEof.into());
                    return Poll::Ready((!is_whole).then(cut));
                }
                continue;
            };
            let bytes = filled.get(..part.length).unwrap_or_default();
            let data = match part.kind {
                Kind::Data => Some(Bytes::copy_from_slice(bytes)),
                Kind::Frame => None,
                Kind::Trailer => {
                    this.trailers.extend_from_slice(bytes);
                    None
                }
            };
            buffer.consume(part.length);
            if let Some(data) = data {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.framing.is_done() && self.trailers.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Length(length) => SizeHint::with_exact(length),
            Framing::Chunked(_) | Framing::ToEnd => SizeHint::default(),
        }
    }
}

fn trailers_of(lines: &[u8]) -> Option<HeaderMap> {
    if lines.is_empty() {
        return None;
    }
    let mut storage = [httparse::EMPTY_HEADER; 32];
    let mut whole = lines.to_vec();
    whole.extend_from_slice(b"\r\n");
    match httparse::parse_headers(&whole, &mut storage) {
        Ok(httparse::Status::Complete((_, lines))) => headers_of(Lines::new(lines)),
        Ok(httparse::Status::Partial) | Err(_) => None,
    }
}

/// Carry bytes both ways between a stream that speaks another protocol now and its app.
async fn carry(upgrade: OnUpgrade, answers: Answers, mut asks: WriteHalf<DuplexStream>) {
    let Ok(upgraded) = upgrade.await else {
        return;
    };
    let (mut from_visitor, mut to_visitor) = tokio::io::split(TokioIo::new(upgraded));
    let there = async {
        let _ = tokio::io::copy(&mut from_visitor, &mut asks).await;
        let _ = asks.shutdown().await;
        // The app may have more to say.
        std::future::pending::<()>().await;
    };
    let back = async {
        let Answers { mut pipe, buffer } = answers;
        let said = to_visitor.write_all(buffer.filled()).await;
        drop(buffer);
        if said.is_ok() {
            let _ = tokio::io::copy(&mut pipe, &mut to_visitor).await;
        }
        let _ = to_visitor.shutdown().await;
    };
    // Once nothing more comes from the app, nobody hears what the visitor says.
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}
