//! Who is waited for, and for how long: what moves is, and what does not is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dwell::gateway::{RouteStatus, TimeLimits};
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::house::*;
use crate::http2;
use crate::streams::{ON_THE_WAY, fed};
use crate::support::*;
use crate::wire::*;

/// Exchanges in which nothing moves for so long are over.
const IDLE: Duration = Duration::from_millis(400);

fn limits() -> TimeLimits {
    TimeLimits {
        idle: IDLE,
        ..TimeLimits::default()
    }
}

#[tokio::test]
async fn who_is_slow_to_ask_is_not_waited_for() {
    let limit = Duration::from_millis(300);
    let limits = TimeLimits {
        head: limit,
        keep_alive: limit,
        ..TimeLimits::default()
    };
    let site = Site::with(route(1, RouteStatus::Starting), limits).await;
    let whole = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    for (begun, begins) in [("", ""), (&whole[..20], ""), (whole, "HTTP/1.1 503")] {
        let mut stream = site.connect().await;
        let began = std::time::Instant::now();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with(begins), "{answer}");
        assert!(began.elapsed() >= limit, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_app_that_does_not_move_is_a_504_and_one_that_does_is_waited_for() {
    let limits = TimeLimits {
        idle: Duration::from_millis(400),
        ..TimeLimits::default()
    };
    let at = raw_app(|mut stream, _| async move {
        let head = read_head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789";
        if head.starts_with("GET /slow") {
            // In all it takes longer than the limit.
            for byte in answer {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
        }
        read_to_end(&mut stream).await;
    })
    .await;
    let site = Site::with(route(1, running(at)), limits).await;
    let slow = site.get("/slow", &[]).await;
    assert_eq!((slow.status().as_u16(), text(&slow)), (200, "0123456789"));
    let silent = site.get("/silent", &[]).await;
    assert_eq!(silent.status(), 504);
    assert!(text(&silent).contains("has not answered in time"));
}

/// An app that reads whole what it is sent, and says what came of it.
async fn reading() -> (App, mpsc::UnboundedReceiver<Option<Bytes>>) {
    let (came, comes) = mpsc::unbounded_channel();
    let app = App::new(move |request: Request<Incoming>| {
        let came = came.clone();
        async move {
            let read = request.into_body().collect().await;
            let read = read.ok().map(|read| read.to_bytes());
            // Who does not want to know has stopped.
            let _ = came.send(read.clone());
            Response::new(body(read.unwrap_or_default()))
        }
    })
    .await;
    (app, comes)
}

#[tokio::test]
async fn an_upload_that_moves_is_waited_for_and_one_that_does_not_is_not() {
    let (app, mut comes) = reading().await;
    let site = Site::with(route(1, running(app.at)), limits()).await;
    let content = "0123456789".repeat(7);
    let length = content.len();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );

    let mut slow = site.connect().await;
    let began = Instant::now();
    slow.write_all(head.as_bytes()).await.unwrap();
    for byte in content.bytes() {
        slow.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    assert!(began.elapsed() > IDLE * 2);
    let answer = read_to_end(&mut slow).await;
    assert!(answer.ends_with(&content), "{answer}");
    assert_eq!(soon(comes.recv()).await.unwrap().unwrap(), content);

    let stalled = site.raw(&format!("{head}half")).await;
    assert!(stalled.starts_with("HTTP/1.1 408"), "{stalled}");
    assert!(stalled.contains("has not come in time"), "{stalled}");
    // And the app has not taken it for a whole one.
    assert_eq!(soon(comes.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn by_http_2_an_upload_is_waited_for_as_long_as_it_moves_too() {
    let (app, mut comes) = reading().await;
    let house = House::with(Front::Tls, limits()).await;
    let host = house.publish(1, running(app.at)).await;
    let mut sender = house.http2().await;

    let (feed, fed_body) = fed();
    let asked = Request::post(format!("https://{host}/")).body(fed_body);
    let answer = tokio::spawn(sender.send_request(asked.unwrap()));
    for _ in 0..70 {
        feed.send("x".into()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    drop(feed);
    let answer = soon(answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(soon(comes.recv()).await.unwrap().unwrap(), "x".repeat(70));

    let (feed, fed_body) = fed();
    let asked = Request::post(format!("https://{host}/")).body(fed_body);
    let answer = tokio::spawn(sender.send_request(asked.unwrap()));
    feed.send("half".into()).await.unwrap();
    assert_eq!(soon(answer).await.unwrap().unwrap().status(), 408);
    assert_eq!(soon(comes.recv()).await.unwrap(), None);
}

/// An app that sends without an end, and how much it has sent so far. What is returned
/// third is closed when nobody takes any more.
async fn endless() -> (App, Arc<AtomicU64>, mpsc::UnboundedReceiver<()>) {
    let (goes, gone) = mpsc::unbounded_channel();
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let goes = std::sync::Mutex::new(Some(goes));
    let goes = Arc::new(goes);
    let app = App::new(move |_| {
        let goes = goes.lock().unwrap().take();
        let counted = Arc::clone(&counted);
        async move {
            let (feed, fed) = fed();
            tokio::spawn(async move {
                let chunk = Bytes::from(vec![7_u8; 64 * 1_024]);
                while feed.send(chunk.clone()).await.is_ok() {
                    counted.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                }
                drop(goes);
            });
            Response::new(fed)
        }
    })
    .await;
    (app, sent, gone)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_the_answer_is_not_waited_for() {
    let (app, sent, mut gone) = endless().await;
    let site = Site::with(route(1, running(app.at)), limits()).await;
    let mut visitor = site.connect().await;
    let asked = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    visitor.write_all(asked).await.unwrap();
    assert_eq!(soon(gone.recv()).await, None);
    assert!(sent.load(Ordering::SeqCst) < ON_THE_WAY);
    drop(visitor);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_no_window_for_the_answer_is_not_waited_for() {
    let (app, sent, mut gone) = endless().await;
    let house = House::with(Front::Tls, limits()).await;
    let host = house.publish(1, running(app.at)).await;
    let mut wire = Wire::to(&house).await;
    // SETTINGS_INITIAL_WINDOW_SIZE is none.
    wire.frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await;
    let whole = END_STREAM | END_HEADERS;
    wire.frame(HEADERS, whole, 1, &block(&get(&host))).await;
    assert_eq!(wire.answer(1).await.unwrap().kind, HEADERS);
    assert_eq!(wire.answer(1).await.unwrap().kind, RST_STREAM);
    // The rest of its connection goes on.
    wire.frame(HEADERS, whole, 3, &block(&get(DOMAIN))).await;
    assert_eq!(wire.answer(3).await.unwrap().kind, HEADERS);
    assert_eq!(soon(gone.recv()).await, None);
    assert!(sent.load(Ordering::SeqCst) < ON_THE_WAY);
}

#[tokio::test]
async fn who_is_slow_to_ask_by_http_2_is_not_waited_for() {
    let limits = TimeLimits {
        head: Duration::from_millis(300),
        ..TimeLimits::default()
    };
    let house = House::with(Front::Tls, limits).await;
    let host = house.publish(1, RouteStatus::Starting).await;
    let head = block(&get(&host));
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = framed(SETTINGS, 0, 0, &[]);
    let half = framed(HEADERS, END_STREAM, 1, &head);
    for (what, said) in [
        ("nothing", vec![]),
        ("half a preface", preface[..9].to_vec()),
        ("a preface", preface.clone()),
        ("settings", [&preface[..], &settings].concat()),
        (
            "half a frame",
            [&preface[..], &settings, &half[..12]].concat(),
        ),
        ("half a head", [&preface[..], &settings, &half].concat()),
    ] {
        let mut stream = house.tls(&["h2"]).await;
        let began = Instant::now();
        stream.write_all(&said).await.unwrap();
        read_to_end(&mut stream).await;
        assert!(
            began.elapsed() >= limits.head,
            "{what}: {:?}",
            began.elapsed()
        );
    }
}

async fn is_echoed_later<S>(mut socket: WebSocketStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for word in ["before", "after"] {
        socket.send(Message::text(word)).await.unwrap();
        let echoed = soon(socket.next()).await.unwrap().unwrap();
        assert_eq!(echoed, Message::text(word));
        // Longer than any limit there is.
        tokio::time::sleep(IDLE * 2).await;
    }
}

#[tokio::test]
async fn a_websocket_may_be_silent_for_longer_than_anything_else() {
    let short = TimeLimits {
        head: IDLE,
        keep_alive: IDLE,
        idle: IDLE,
        finish: IDLE,
    };
    let at = echo_app().await;
    let site = Site::with(route(1, running(at)), short).await;
    let url = format!("ws://{}/", site.at);
    let connected = tokio_tungstenite::client_async(url, site.connect().await);
    let (by_http_1, _) = soon(connected).await.unwrap();

    let house = House::with(Front::Tls, short).await;
    let host = house.publish(1, running(at)).await;
    let by_http_2 = http2::websocket(&mut house.http2().await, &host).await;
    tokio::join!(is_echoed_later(by_http_1), is_echoed_later(by_http_2));
}
