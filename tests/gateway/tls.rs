//! Visitors whose connections are encrypted.

use std::time::Duration;

use dwell::gateway::TimeLimits;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::house::*;
use crate::support::*;

#[tokio::test]
async fn an_app_is_told_that_its_visitors_connection_is_encrypted() {
    let (house, host) = House::of(Front::Tls, App::mirror().await.at).await;
    let mut visitor = visitor(house.tls(&["http/1.1"]).await).await;
    for _ in 0..2 {
        let asked = request("GET", "/a?b", &[("host", &host)], "");
        let seen = visitor.send(asked).await;
        assert!(text(&seen).starts_with("GET /a?b "), "{}", text(&seen));
        assert!(text(&seen).contains("\nx-forwarded-proto: https\n"));
    }
    // An API, by the same door.
    let asked = request("GET", "/", &[("host", DOMAIN)], "");
    assert_eq!(text(&visitor.send(asked).await), "the API");
}

#[tokio::test]
async fn a_websocket_passes_by_tls() {
    let (house, host) = House::of(Front::Tls, echo_app().await).await;
    let stream = house.tls(&[]).await;
    let (mut socket, _) = tokio_tungstenite::client_async(format!("ws://{host}/"), stream)
        .await
        .unwrap();
    for size in [1, 1_000, 1_000_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), message);
    }
    house.publish(1, ended()).await;
    assert!(!matches!(
        soon(socket.next()).await,
        Some(Ok(Message::Binary(_)))
    ));
}

#[tokio::test]
async fn what_is_whole_ends_as_tls_says_and_what_was_cut_off_does_not() {
    use tokio::io::AsyncReadExt;
    let whole = "HTTP/1.0 200 OK\r\n\r\nall of it";
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nnot all";
    for (answer, is_whole) in [(whole, true), (short, false)] {
        let app = raw_app(move |mut stream, _| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await;
        let (house, host) = House::of(Front::Tls, app).await;
        let unknown = format!("{:032x}.{DOMAIN}", 7);
        for (host, is_whole) in [(host, is_whole), (unknown, true)] {
            let mut stream = house.tls(&["http/1.1"]).await;
            let asked = format!("GET / HTTP/1.0\r\nhost: {host}\r\n\r\n");
            stream.write_all(asked.as_bytes()).await.unwrap();
            // An error where the end was not said.
            let ended = soon(stream.read_to_end(&mut Vec::new())).await;
            assert_eq!(ended.is_ok(), is_whole, "{host}: {ended:?}");
        }
    }
}

#[tokio::test]
async fn a_large_body_passes_by_tls_both_ways() {
    let app = App::new(|request| async move {
        use http_body_util::BodyExt;
        let content = request.into_body().collect().await.unwrap().to_bytes();
        hyper::Response::new(body(content))
    })
    .await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let content: Vec<u8> = (0..16_u32 << 20).map(|at| at.to_le_bytes()[1]).collect();
    let mut visitor = visitor(house.tls(&["http/1.1"]).await).await;
    let asked = hyper::Request::post("/").header("host", host);
    let answer = visitor
        .send(asked.body(body(content.clone())).unwrap())
        .await;
    assert!(answer.body() == &content, "the same bytes");
}

#[tokio::test]
async fn a_certificate_that_is_renewed_is_shown_to_who_comes_next() {
    let mut house = House::new(Front::Tls).await;
    house.certificate.spoil();
    let before = house.certificate.renew();
    // Until it has been read.
    soon(async {
        while house.try_tls(&[], &house.certificate).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let shown = house.tls(&[]).await;
    let shown = shown.get_ref().1.peer_certificates().unwrap();
    assert_ne!(shown, [before]);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_leaves_the_one_before() {
    let house = House::new(Front::Tls).await;
    house.certificate.spoil();
    // It is looked at every 10 ms; whenever it has been, nothing changes.
    for _ in 0..50 {
        house.tls(&[]).await;
    }
}

#[tokio::test]
async fn who_does_not_shake_hands_is_not_waited_for() {
    let limits = TimeLimits {
        head: Duration::from_millis(100),
        ..TimeLimits::default()
    };
    let house = House::with(Front::Tls, limits).await;
    for begun in ["", "\x16\x03\x01"] {
        assert_eq!(house.raw(begun).await, "");
    }
    // Nor who does and then says nothing.
    let mut silent = house.tls(&["http/1.1"]).await;
    assert_eq!(read_to_end(&mut silent).await, "");
    let mut slow = house.tls(&["h2"]).await;
    slow.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    read_to_end(&mut slow).await;
}

#[tokio::test]
async fn what_is_on_this_host_may_speak_in_the_clear() {
    let house = House::new(Front::Tls).await;
    let got = house
        .raw("GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        .await;
    assert!(got.ends_with("the API"), "{got}");
}
