//! What does not end soon: streams, large bodies, upgraded connections.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dwell::gateway::{RouteStatus, TimeLimits};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::*;

const MIB: u64 = 1 << 20;
/// What is sent. Far more than the sockets on the way hold.
const LARGE: u64 = 128 * MIB;
/// What sockets and buffers on the way may hold of it.
pub const ON_THE_WAY: u64 = 48 * MIB;

/// A body of what is sent on the channel.
pub fn fed() -> (mpsc::Sender<Bytes>, Body) {
    let (feed, mut fed) = mpsc::channel::<Bytes>(1);
    let stream = futures_util::stream::poll_fn(move |cx| fed.poll_recv(cx))
        .map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
    (feed, BodyExt::boxed(StreamBody::new(stream)))
}

async fn next_chunk(body: &mut Incoming) -> Bytes {
    let frame = soon(body.frame()).await.unwrap().unwrap();
    frame.into_data().unwrap()
}

#[tokio::test]
async fn events_pass_one_by_one_as_they_happen() {
    let (feed, fed) = fed();
    let once = Arc::new(std::sync::Mutex::new(Some(fed)));
    let app = App::new(move |_| {
        let events = once.lock().unwrap().take().unwrap();
        async move {
            let response = Response::builder().header("content-type", "text/event-stream");
            response.body(events).unwrap()
        }
    })
    .await;
    let site = Site::of(app.at).await;
    let mut visitor = site.visitor().await;
    let mut events = visitor
        .begin(request("GET", "/events", &[], ""))
        .await
        .into_body();
    for number in 0..5 {
        let event = format!("data: {number}\n\n");
        feed.send(event.clone().into()).await.unwrap();
        // The next one is not sent before this one has come.
        assert_eq!(next_chunk(&mut events).await, event);
    }
    // And a visitor that leaves is noticed by the app.
    drop((events, visitor));
    soon(feed.closed()).await;
}

/// As the HTTP server of Python's standard library does, which many apps are made with.
#[tokio::test]
async fn an_app_that_writes_a_head_and_then_a_body_is_not_kept_waiting_between_them() {
    let at = raw_app(|mut stream, _| async move {
        while read_head(&mut stream).await.starts_with("GET") {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
            stream.write_all(head).await.unwrap();
            stream.write_all(b"hi").await.unwrap();
        }
    })
    .await;
    let site = Site::of(at).await;
    let mut visitor = site.visitor().await;
    let mut quickest = Duration::MAX;
    for number in 0..30 {
        let began = std::time::Instant::now();
        let response = visitor.send(request("GET", "/", &[], "")).await;
        assert_eq!(text(&response), "hi");
        // On a new connection the kernel confirms all at once by itself.
        if number >= 20 {
            quickest = quickest.min(began.elapsed());
        }
    }
    assert!(quickest < Duration::from_millis(30), "{quickest:?}");
}

#[tokio::test]
async fn an_app_notices_a_visitor_that_leaves_before_the_answer() {
    let (noticed, mut notices) = mpsc::unbounded_channel();
    let at = raw_app(move |mut stream, _| {
        let noticed = noticed.clone();
        async move {
            read_head(&mut stream).await;
            noticed.send("arrived").unwrap();
            read_to_end(&mut stream).await;
            noticed.send("gone").unwrap();
        }
    })
    .await;
    let site = Site::of(at).await;
    let mut stream = site.connect().await;
    let asked = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    stream.write_all(asked).await.unwrap();
    assert_eq!(soon(notices.recv()).await, Some("arrived"));
    drop(stream);
    assert_eq!(soon(notices.recv()).await, Some("gone"));
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let app = App::new(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["transfer-encoding"], "chunked");
        assert_eq!(request.headers()["te"], "trailers");
        let collected = request.into_body().collect().await.unwrap();
        let sum = collected.trailers().unwrap()["x-sum"].clone();
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), sum)]);
        let content = Full::new(collected.to_bytes());
        Response::builder()
            .header("trailer", "x-sum")
            .header("transfer-encoding", "chunked")
            .body(content.with_trailers(async { Some(Ok(trailers)) }).boxed())
            .unwrap()
    })
    .await;
    let got = Site::of(app.at)
        .await
        .raw(
            "POST / HTTP/1.1\r\nhost: h\r\nte: trailers\r\ntrailer: x-sum\r\nconnection: close\r\n\
             transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n",
        )
        .await;
    let (head, content) = got.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert_eq!(content, "5\r\nabcde\r\n0\r\nx-sum: 5\r\n\r\n");
}

#[tokio::test]
async fn trailers_go_to_none_but_who_asks_for_them() {
    let at = raw_app(|mut stream, _| async move {
        while read_head(&mut stream).await.starts_with("GET") {
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                 2\r\nhi\r\n0\r\nx-sum: 2\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let site = Site::of(at).await;
    let mut visitor = site.visitor().await;
    for _ in 0..2 {
        let response = visitor.send(request("GET", "/", &[], "")).await;
        assert_eq!(text(&response), "hi");
    }
}

#[tokio::test]
async fn a_get_keeps_its_chunked_body() {
    let app = App::new(|request: Request<Incoming>| async move {
        Response::new(body(
            request.into_body().collect().await.unwrap().to_bytes(),
        ))
    })
    .await;
    let got = Site::of(app.at)
        .await
        .raw(
            "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
             2\r\nhi\r\n0\r\n\r\n",
        )
        .await;
    assert!(got.ends_with("\r\n\r\nhi"), "{got}");
}

/// Waits until `count` no longer grows, and returns it.
pub async fn settled(count: &AtomicU64) -> u64 {
    soon(async {
        loop {
            let before = count.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
            if count.load(Ordering::SeqCst) == before && before > 0 {
                return before;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_no_faster_than_its_app_reads() {
    let (may_read, go) = watch::channel(false);
    let app = App::new(move |request: Request<Incoming>| {
        let mut go = go.clone();
        async move {
            go.wait_for(|go| *go).await.unwrap();
            let mut content = request.into_body();
            let mut read = 0;
            while let Some(frame) = content.frame().await {
                read += frame.unwrap().into_data().unwrap().len();
            }
            Response::new(body(read.to_string()))
        }
    })
    .await;
    let site = Site::of(app.at).await;
    let mut stream = site.connect().await;
    let head = format!(
        "POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {LARGE}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut from_gateway, mut to_gateway) = stream.into_split();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let upload = tokio::spawn(async move {
        let chunk = vec![7_u8; 64 * 1_024];
        while counted.load(Ordering::SeqCst) < LARGE {
            to_gateway.write_all(&chunk).await.unwrap();
            counted.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        to_gateway
    });
    let ahead = settled(&sent).await;
    assert!(
        ahead < ON_THE_WAY,
        "{ahead} bytes were taken that nobody read"
    );
    may_read.send(true).unwrap();
    let _open = soon(upload).await.unwrap();
    let mut answer = String::new();
    soon(from_gateway.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.ends_with(&format!("\r\n\r\n{LARGE}")), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_no_faster_than_its_visitor_reads() {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let app = App::new(move |_| {
        let counted = Arc::clone(&counted);
        async move {
            let (feed, fed) = fed();
            tokio::spawn(async move {
                let chunk = Bytes::from(vec![7_u8; 64 * 1_024]);
                while counted.load(Ordering::SeqCst) < LARGE {
                    feed.send(chunk.clone()).await.unwrap();
                    counted.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                }
            });
            Response::new(fed)
        }
    })
    .await;
    let site = Site::of(app.at).await;
    let mut visitor = site.visitor().await;
    let mut content = visitor
        .begin(request("GET", "/", &[], ""))
        .await
        .into_body();
    let ahead = settled(&sent).await;
    assert!(
        ahead < ON_THE_WAY,
        "{ahead} bytes were sent that nobody read"
    );
    let mut read = 0;
    while let Some(frame) = soon(content.frame()).await {
        read += frame.unwrap().into_data().unwrap().len() as u64;
    }
    assert_eq!(read, LARGE);
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    for head in ["content-length: 10", "transfer-encoding: chunked"] {
        let at = raw_app(move |mut stream, _| async move {
            read_head(&mut stream).await;
            let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n3\r\nabc\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let site = Site::of(at).await;
        let mut visitor = site.visitor().await;
        let response = visitor.begin(request("GET", "/", &[], "")).await;
        assert!(
            soon(response.into_body().collect()).await.is_err(),
            "{head}"
        );
    }
}

async fn websocket(site: &Site) -> WebSocketStream<TcpStream> {
    let url = format!("ws://{}/ws?cd_token=dwell_1", site.at);
    let connected = tokio_tungstenite::client_async(url, site.connect().await);
    let (socket, response) = soon(connected).await.unwrap();
    assert_eq!(response.headers()["upgrade"], "websocket");
    socket
}

async fn echoes(socket: &mut WebSocketStream<TcpStream>, message: Message) {
    socket.send(message.clone()).await.unwrap();
    assert_eq!(soon(socket.next()).await.unwrap().unwrap(), message);
}

#[tokio::test]
async fn websockets_pass_both_ways_and_close_cleanly() {
    let site = Site::of(echo_app().await).await;
    let mut socket = websocket(&site).await;
    echoes(&mut socket, Message::text("hello")).await;
    echoes(&mut socket, Message::binary(vec![9_u8; 3 << 20])).await;
    socket.close(None).await.unwrap();
    soon(async { while let Some(Ok(_)) = socket.next().await {} }).await;
}

#[tokio::test]
async fn a_websocket_is_cut_off_when_its_session_ends_and_not_before() {
    let at = echo_app().await;
    for then in [route(1, ended()), route(2, running(at))] {
        let site = Site::of(at).await;
        let mut socket = websocket(&site).await;
        echoes(&mut socket, Message::text("hello")).await;
        site.publish(route(1, RouteStatus::Stopping)).await;
        echoes(&mut socket, Message::text("still here")).await;
        site.publish(then).await;
        let last = soon(socket.next()).await;
        assert!(!matches!(last, Some(Ok(_))), "{last:?}");
    }
}

#[tokio::test]
async fn any_protocol_may_take_over_and_bytes_sent_early_are_not_lost() {
    let at = raw_app(|mut stream, _| async move {
        let head = read_head(&mut stream).await;
        assert!(head.contains("\r\nupgrade: own/1\r\n"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
            upgrade: own/1\r\n\r\nfirst";
        stream.write_all(answer).await.unwrap();
        let mut early = [0; 5];
        stream.read_exact(&mut early).await.unwrap();
        stream.write_all(&early).await.unwrap();
    })
    .await;
    let got = Site::of(at)
        .await
        .raw("GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\nearly")
        .await;
    assert!(got.starts_with("HTTP/1.1 101"), "{got}");
    assert!(got.ends_with("\r\n\r\nfirstearly"), "{got}");
}

#[tokio::test]
async fn what_is_half_over_is_not_kept_for_who_says_nothing() {
    let at = raw_app(|mut stream, _| async move {
        read_head(&mut stream).await;
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
            upgrade: own/1\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        // It would hear more.
        let _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let limits = TimeLimits {
        finish: Duration::from_millis(200),
        ..TimeLimits::default()
    };
    let site = Site::with(route(1, running(at)), limits).await;
    let mut visitor = site.connect().await;
    let head = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: own/1\r\n\r\n";
    visitor.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    soon(visitor.read_to_end(&mut answer)).await.unwrap();
    // Nobody hears the visitor any more, who has not closed.
    let refused = async { while visitor.write_all(b"x").await.is_ok() {} };
    soon(refused).await;
}

#[tokio::test]
async fn an_app_that_declines_an_upgrade_just_answers() {
    let app = App::mirror().await;
    let site = Site::of(app.at).await;
    let mut visitor = site.visitor().await;
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    for _ in 0..2 {
        let response = visitor.send(request("GET", "/", &upgrade, "")).await;
        assert_eq!(response.status(), 200);
        assert!(text(&response).contains("upgrade: websocket"));
    }
    let http2 = [("connection", "upgrade"), ("upgrade", "h2c")];
    let response = visitor.send(request("GET", "/", &http2, "")).await;
    assert!(!text(&response).contains("upgrade: h2c"));
}
