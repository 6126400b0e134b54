//! Visitors who speak HTTP/2: what holds for the others holds for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::ext::Protocol;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::house::*;
use crate::streams::fed;
use crate::support::*;

fn ask(method: &str, host: &str, target: &str) -> hyper::http::request::Builder {
    let uri = format!("https://{host}{target}");
    Request::builder().method(method).uri(uri)
}

async fn begin(sender: &mut SendRequest<Body>, request: Request<Body>) -> Response<Incoming> {
    soon(sender.ready()).await.unwrap();
    soon(sender.send_request(request)).await.unwrap()
}

async fn send(sender: &mut SendRequest<Body>, request: Request<Body>) -> Response<Bytes> {
    let (parts, body) = begin(sender, request).await.into_parts();
    let content = soon(body.collect()).await.unwrap().to_bytes();
    Response::from_parts(parts, content)
}

async fn get(sender: &mut SendRequest<Body>, host: &str) -> Response<Bytes> {
    send(sender, ask("GET", host, "/").body(body("")).unwrap()).await
}

#[tokio::test]
async fn an_app_sees_the_request_as_any_other() {
    let (house, host) = House::of(Front::Tls, App::mirror().await.at).await;
    let mut sender = house.http2().await;
    let asked = ask("GET", &host, "/a?b=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("x-own", "1")
        .header("te", "trailers");
    let response = send(&mut sender, asked.body(body("")).unwrap()).await;
    let seen = text(&response);
    assert!(seen.starts_with("GET /a?b=1 HTTP/1.1\n"), "{seen}");
    for line in [
        &format!("host: {host}"),
        "cookie: a=1; b=2",
        "x-own: 1",
        "x-forwarded-proto: https",
        "x-forwarded-for: 127.0.0.1",
    ] {
        let count = seen.lines().filter(|seen| seen == &line).count();
        assert_eq!(count, 1, "{line}: {seen}");
    }
    assert!(!seen.contains("content-length"), "{seen}");
    assert!(!seen.contains("transfer-encoding"), "{seen}");
}

#[tokio::test]
async fn each_stream_goes_where_its_authority_says() {
    let saying = |what: &'static str| App::new(move |_| async move { Response::new(body(what)) });
    let (one, two) = (saying("one").await, saying("two").await);
    let (house, first) = House::of(Front::Tls, one.at).await;
    let second = house.publish(2, running(two.at)).await;
    let mut sender = house.http2().await;
    for (host, status, answer) in [
        (first.as_str(), 200, "one"),
        (&second, 200, "two"),
        (DOMAIN, 200, "the API"),
        ("no.gpu.test", 404, ""),
        (&first, 200, "one"),
    ] {
        let response = get(&mut sender, host).await;
        assert_eq!(response.status(), status, "{host}");
        if status == 200 {
            assert_eq!(text(&response), answer);
        }
    }
    // What else it calls its host is of no meaning.
    let asked = ask("GET", &first, "/").header("host", &second);
    let response = send(&mut sender, asked.body(body("")).unwrap()).await;
    assert_eq!(text(&response), "one");
}

#[tokio::test]
async fn many_streams_of_one_connection_are_answered_each_by_its_own() {
    let app = App::new(|request: Request<Incoming>| async move {
        let path = request.uri().path().to_owned();
        let content = request.into_body().collect().await.unwrap().to_bytes();
        let mut answer = path.into_bytes();
        answer.extend(content);
        Response::new(body(answer))
    })
    .await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let sender = house.http2().await;
    let asking = (0..200).map(|number| {
        let mut sender = sender.clone();
        let content = vec![b'a' + u8::try_from(number % 26).unwrap(); number * 100];
        let asked = ask("POST", &host, &format!("/{number}"));
        async move {
            let request = asked.body(body(content.clone())).unwrap();
            let response = send(&mut sender, request).await;
            let mut expected = format!("/{number}").into_bytes();
            expected.extend(content);
            assert!(response.body() == &expected, "{number}");
        }
    });
    join_all(asking).await;
}

#[tokio::test]
async fn a_body_of_unknown_length_its_trailers_and_the_answers_pass() {
    let app = App::new(|request: Request<Incoming>| async move {
        assert_eq!(request.headers()["transfer-encoding"], "chunked");
        let collected = request.into_body().collect().await.unwrap();
        let sum = collected.trailers().unwrap()["x-sum"].clone();
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), sum)]);
        let frames = [
            Ok(Frame::data(collected.to_bytes())),
            Ok(Frame::trailers(trailers)),
        ];
        Response::builder()
            .header("trailer", "x-sum")
            .body(BodyExt::boxed(StreamBody::new(stream::iter(frames))))
            .unwrap()
    })
    .await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let mut sender = house.http2().await;
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "5".parse().unwrap())]);
    let (feed, content) = fed();
    let content = content.with_trailers(async { Some(Ok(trailers)) }).boxed();
    let asked = ask("POST", &host, "/").header("te", "trailers");
    let feeding = async {
        feed.send("abc".into()).await.unwrap();
        feed.send("de".into()).await.unwrap();
        drop(feed);
    };
    let asking = begin(&mut sender, asked.body(content).unwrap());
    let ((), response) = tokio::join!(feeding, asking);
    let collected = soon(response.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "5");
    assert_eq!(collected.to_bytes(), "abcde");
}

#[tokio::test]
async fn head_gets_the_length_and_no_body() {
    let app = App::new(|_| async { Response::new(body("twelve bytes")) }).await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let asked = ask("HEAD", &host, "/").body(body("")).unwrap();
    let response = send(&mut house.http2().await, asked).await;
    assert_eq!(response.headers()["content-length"], "12");
    assert_eq!(text(&response), "");
}

#[tokio::test]
async fn events_pass_one_by_one_and_an_app_notices_who_leaves() {
    let (feed, content) = fed();
    let once = Arc::new(std::sync::Mutex::new(Some(content)));
    let app = App::new(move |_| {
        let events = once.lock().unwrap().take().unwrap();
        async move { Response::new(events) }
    })
    .await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let mut sender = house.http2().await;
    let asked = ask("GET", &host, "/events").body(body("")).unwrap();
    let mut events = begin(&mut sender, asked).await.into_body();
    for number in 0..5 {
        let event = format!("data: {number}\n\n");
        feed.send(event.clone().into()).await.unwrap();
        let frame = soon(events.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), event);
    }
    // The stream alone: its connection stays.
    drop(events);
    soon(feed.closed()).await;
    assert_eq!(get(&mut sender, DOMAIN).await.status(), 200);
}

#[tokio::test]
async fn an_answer_that_breaks_off_does_not_look_whole() {
    let seen = Arc::new(Notify::new());
    let breaks = Arc::clone(&seen);
    let at = raw_app(move |mut stream, _| {
        let breaks = Arc::clone(&breaks);
        async move {
            read_head(&mut stream).await;
            let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfive!";
            stream.write_all(begun).await.unwrap();
            breaks.notified().await;
        }
    })
    .await;
    let (house, host) = House::of(Front::Tls, at).await;
    let asked = ask("GET", &host, "/").body(body("")).unwrap();
    let mut sender = house.http2().await;
    let mut answer = begin(&mut sender, asked).await.into_body();
    let frame = soon(answer.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "five!");
    seen.notify_one();
    assert!(soon(answer.collect()).await.is_err());
}

#[tokio::test]
async fn a_download_goes_no_faster_than_its_visitor_reads() {
    const CHUNK: usize = 64 << 10;
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let app = App::new(move |_| {
        let (feed, content) = fed();
        let counted = Arc::clone(&counted);
        tokio::spawn(async move {
            while feed.send(vec![1; CHUNK].into()).await.is_ok() {
                counted.fetch_add(CHUNK as u64, Ordering::SeqCst);
            }
        });
        async move { Response::new(content) }
    })
    .await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let mut sender = house.http2().await;
    let asked = ask("GET", &host, "/").body(body("")).unwrap();
    let stalled = begin(&mut sender, asked).await;
    let held = crate::streams::settled(&sent).await;
    assert!(held < 48 << 20, "{held} bytes are on the way");
    // And nobody else has to wait for who does not read.
    assert_eq!(get(&mut sender, DOMAIN).await.status(), 200);
    drop(stalled);
}

pub async fn websocket(
    sender: &mut SendRequest<Body>,
    host: &str,
) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
    let asked = ask("CONNECT", host, "/ws?a=1")
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"));
    let response = begin(sender, asked.body(body("")).unwrap()).await;
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let upgraded = soon(hyper::upgrade::on(response)).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

#[tokio::test]
async fn websockets_pass_beside_other_streams_until_their_session_ends() {
    let (house, host) = House::of(Front::Tls, echo_app().await).await;
    let mut sender = house.http2().await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(websocket(&mut sender, &host).await);
    }
    for size in [1, 1_000, 3 << 20] {
        for socket in &mut sockets {
            let message = Message::binary(vec![7; size]);
            let echoed = async {
                let (mut to, mut from) = socket.split();
                let (sent, got) = tokio::join!(to.send(message.clone()), from.next());
                sent.unwrap();
                got.unwrap().unwrap()
            };
            assert_eq!(soon(echoed).await, message);
        }
    }
    let mut first = sockets.remove(0);
    soon(first.close(None)).await.unwrap();
    soon(async { while let Some(Ok(_)) = first.next().await {} }).await;
    house.publish(1, ended()).await;
    for mut socket in sockets {
        let last = soon(socket.next()).await;
        assert!(!matches!(last, Some(Ok(Message::Binary(_)))), "{last:?}");
    }
    assert_eq!(get(&mut sender, DOMAIN).await.status(), 200);
}

#[tokio::test]
async fn an_app_that_declines_a_websocket_just_answers() {
    let app = App::new(|_| async { Response::builder().status(403).body(body("no")).unwrap() });
    let (house, host) = House::of(Front::Tls, app.await.at).await;
    let mut sender = house.http2().await;
    let asked = ask("CONNECT", &host, "/").extension(Protocol::from_static("websocket"));
    let response = send(&mut sender, asked.body(body("")).unwrap()).await;
    assert_eq!(response.status(), 403);
    assert_eq!(text(&response), "no");
}

#[tokio::test]
async fn it_is_no_forward_proxy() {
    let app = App::mirror().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let mut sender = house.http2().await;
    let asked = Request::connect(format!("{host}:80"))
        .body(body(""))
        .unwrap();
    assert_eq!(begin(&mut sender, asked).await.status(), 405);
    assert_eq!(app.connections(), 0);
}
