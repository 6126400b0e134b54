//! HTTP/2 as no honest visitor speaks it (RFC 9113).

use std::sync::atomic::Ordering;

use crate::house::*;
use crate::support::*;
use crate::wire::*;

#[tokio::test]
async fn frames_written_by_hand_are_answered() {
    let (app, count) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let mut wire = Wire::to(&house).await;
    let whole = END_STREAM | END_HEADERS;
    wire.frame(HEADERS, whole, 1, &block(&get(&host))).await;
    let answer = wire.answer(1).await.unwrap();
    assert_eq!(answer.kind, HEADERS);
    // A block may come in parts.
    let block = block(&get(&host));
    let (begin, end) = block.split_at(7);
    wire.frame(HEADERS, END_STREAM, 3, begin).await;
    wire.frame(CONTINUATION, END_HEADERS, 3, end).await;
    assert_eq!(wire.answer(3).await.unwrap().kind, HEADERS);
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn requests_that_would_mean_another_thing_in_http_1_1_reach_nobody() {
    let (app, count) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let with = |more: &[(&'static str, &'static str)]| {
        let mut lines = get(&host);
        lines.extend_from_slice(more);
        lines
    };
    let replaced = |name: &str, value: &'static str| {
        let mut lines = get(&host);
        for line in &mut lines {
            if line.0 == name {
                line.1 = value;
            }
        }
        lines
    };
    for lines in [
        with(&[("transfer-encoding", "chunked")]),
        with(&[("connection", "keep-alive, x")]),
        with(&[("upgrade", "websocket")]),
        with(&[("keep-alive", "1")]),
        with(&[("te", "gzip")]),
        with(&[("x", "1\r\ntransfer-encoding: chunked")]),
        with(&[("x", "1\ny: 2")]),
        with(&[("x: 1\r\ny", "2")]),
        with(&[("x y", "2")]),
        with(&[("X-Upper", "2")]),
        with(&[(":path", "/two")]),
        with(&[(":status", "200")]),
        with(&[("content-length", "1")]),
        with(&[("content-length", "1"), ("content-length", "2")]),
        with(&[("content-length", "-1")]),
        replaced(":method", "GET / HTTP/1.1\r\nx: "),
        replaced(":method", ""),
        replaced(":path", "/ HTTP/1.1\r\nx: y"),
        replaced(":path", "/a b"),
        replaced(":path", ""),
        replaced(":authority", "a b"),
        replaced(":authority", "h\r\nx: y"),
        get(&host).split_off(1),
        {
            let mut late = get(&host);
            late.rotate_left(1);
            late.insert(0, ("x", "before"));
            late
        },
    ] {
        let mut wire = Wire::to(&house).await;
        let whole = END_STREAM | END_HEADERS;
        wire.frame(HEADERS, whole, 1, &block(&lines)).await;
        if let Some(answer) = wire.answer(1).await {
            let is_4xx = answer.kind == HEADERS && {
                // 400 is in the static table; all others are written out.
                answer.payload[0] == 0x8c || answer.payload[0] == 0x8d
            };
            let is_refused = [RST_STREAM, GOAWAY].contains(&answer.kind) || is_4xx;
            assert!(is_refused, "{lines:?}: {answer:?}");
        }
    }
    assert_eq!(count.load(Ordering::SeqCst), 0, "none has come");
    serves(&house, &host).await;
}

#[tokio::test]
async fn a_body_of_another_length_than_was_said_is_no_whole_request() {
    let (app, count) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    for said in ["2", "9"] {
        let mut wire = Wire::to(&house).await;
        let mut lines = get(&host);
        lines[0].1 = "POST";
        lines.push(("content-length", said));
        wire.frame(HEADERS, END_HEADERS, 1, &block(&lines)).await;
        wire.frame(DATA, END_STREAM, 1, b"hello").await;
        let answer = wire.answer(1).await.unwrap();
        assert_eq!(answer.kind, RST_STREAM, "{said}: {answer:?}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection() {
    let (app, count) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let head = block(&get(&host));
    let whole = END_STREAM | END_HEADERS;
    for (what, frames) in [
        ("data before a request", framed(DATA, 0, 1, b"x")),
        ("an even stream", framed(HEADERS, whole, 2, &head)),
        ("a request on no stream", framed(HEADERS, whole, 0, &head)),
        ("settings of no length", framed(SETTINGS, 0, 0, &[0])),
        ("settings of a stream", framed(SETTINGS, 0, 1, &[])),
        ("a ping of no length", framed(PING, 0, 0, &[0])),
        (
            "no block that is one",
            framed(HEADERS, whole, 1, &[0xff; 9]),
        ),
        ("no window at all", framed(WINDOW_UPDATE, 0, 0, &[0; 4])),
        (
            "a block begun by nothing",
            framed(CONTINUATION, END_HEADERS, 1, &head),
        ),
        (
            "a frame of 16 MiB",
            vec![0xff, 0xff, 0xff, HEADERS, whole, 0, 0, 0, 1],
        ),
        ("a window that overflows", {
            let most = 0x7fff_ffff_u32.to_be_bytes();
            framed(WINDOW_UPDATE, 0, 0, &most)
        }),
        ("another frame amid a block", {
            let mut frames = framed(HEADERS, END_STREAM, 1, &head);
            frames.extend(framed(PING, 0, 0, &[0; 8]));
            frames
        }),
    ] {
        let mut wire = Wire::to(&house).await;
        wire.say(&frames).await;
        let answer = wire.answer(0).await;
        let mut answer = answer;
        // Its settings come first.
        while answer.as_ref().is_some_and(|frame| frame.kind == SETTINGS) {
            answer = wire.answer(0).await;
        }
        assert!(answer.is_none_or(|frame| frame.kind == GOAWAY), "{what}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0, "none has come");
    serves(&house, &host).await;
}

#[tokio::test]
async fn who_says_nothing_of_http_2_is_not_answered() {
    let house = House::new(Front::Tls).await;
    let stream = house.tls(&["h2"]).await;
    let got = raw(stream, "GET / HTTP/1.1\r\nhost: gpu.test\r\n\r\n").await;
    assert!(!got.contains("the API"), "{got:?}");
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let (app, count) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let mut sender = house.http2().await;
    let asked = hyper::Request::get(format!("https://{host}/"));
    let large = asked
        .header("x", "x".repeat(60_000))
        .header("y", "y".repeat(60_000));
    // Either the visitor is told before what is taken, or by the answer.
    if let Ok(response) = soon(sender.send_request(large.body(body("")).unwrap())).await {
        assert_eq!(response.status(), 431);
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    serves(&house, &host).await;
}

#[tokio::test]
async fn settings_and_pings_are_acknowledged() {
    let house = House::new(Front::Tls).await;
    let mut wire = Wire::to(&house).await;
    wire.frame(PING, 0, 0, b"12345678").await;
    let mut acknowledged = [false, false];
    while acknowledged != [true, true] {
        let frame = wire.next().await.unwrap();
        match frame.kind {
            PING => acknowledged[0] = frame.payload == b"12345678",
            SETTINGS if frame.payload.is_empty() => acknowledged[1] = true,
            SETTINGS => wire.frame(SETTINGS, ACK, 0, &[]).await,
            _ => {}
        }
    }
}
