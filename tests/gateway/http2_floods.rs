//! Visitors by HTTP/2 who would have us work, or keep, without an end.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::house::*;
use crate::streams::settled;
use crate::support::*;
use crate::wire::*;

#[tokio::test]
async fn streams_that_are_opened_and_reset_at_once_end_their_connection() {
    let (app, count) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let mut wire = Wire::to(&house).await;
    let head = block(&get(&host));
    let asked = 20_000;
    let (mut reader, mut writer) = tokio::io::split(wire.0);
    let resetting = async {
        for number in 0..asked {
            let mut frames = framed(HEADERS, END_STREAM | END_HEADERS, number * 2 + 1, &head);
            frames.extend(framed(RST_STREAM, 0, number * 2 + 1, &8_u32.to_be_bytes()));
            if writer.write_all(&frames).await.is_err() {
                return;
            }
        }
        // It is not closed by who attacks.
        std::future::pending::<()>().await;
    };
    let listening = async {
        let mut all = Vec::new();
        // The end may be a reset.
        let _ = reader.read_to_end(&mut all).await;
    };
    tokio::select! {
        () = async { tokio::join!(resetting, soon(listening)); } => {}
    }
    let reached = count.load(Ordering::SeqCst);
    assert!(reached < 2_000, "{reached} of {asked} have come to the app");
    wire = Wire::to(&house).await;
    wire.frame(PING, 0, 0, &[7; 8]).await;
    serves(&house, &host).await;
}

#[tokio::test]
async fn a_block_of_headers_that_does_not_end_is_not_kept() {
    let (app, _) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let mut wire = Wire::to(&house).await;
    wire.frame(HEADERS, END_STREAM, 1, &block(&get(&host)))
        .await;
    let more = block(&[("x-more", &"x".repeat(100))]).repeat(100);
    let (mut reader, mut writer) = tokio::io::split(wire.0);
    let writing = async {
        // 100 MiB, if anybody took it.
        for _ in 0..10_000 {
            if writer
                .write_all(&framed(CONTINUATION, 0, 1, &more))
                .await
                .is_err()
            {
                return true;
            }
        }
        false
    };
    let reading = async {
        let mut all = Vec::new();
        let _ = reader.read_to_end(&mut all).await;
    };
    let (is_cut, ()) = soon(async { tokio::join!(writing, reading) }).await;
    assert!(is_cut);
    serves(&house, &host).await;
}

#[tokio::test]
async fn streams_that_we_are_made_to_reset_end_their_connection() {
    let (app, count) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    let head = block(&get(&host));
    let mut frames = Vec::new();
    for number in 0..5_000 {
        let stream = number * 2 + 1;
        frames.extend(framed(HEADERS, END_HEADERS, stream, &head));
        // No window is opened by nothing.
        frames.extend(framed(WINDOW_UPDATE, 0, stream, &[0; 4]));
    }
    let (mut reader, mut writer) = tokio::io::split(Wire::to(&house).await.0);
    let attack = async {
        // It is cut off amid it.
        let _ = writer.write_all(&frames).await;
        std::future::pending::<()>().await;
    };
    let listen = async {
        let mut all = Vec::new();
        let _ = reader.read_to_end(&mut all).await;
    };
    tokio::select! {
        () = attack => {}
        () = soon(listen) => {}
    }
    assert_eq!(count.load(Ordering::SeqCst), 0, "none has come whole");
    serves(&house, &host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_answers_and_does_not_read_them_is_not_read_either() {
    let (app, _) = counting().await;
    let (house, host) = House::of(Front::Tls, app.at).await;
    for frame in [
        framed(PING, 0, 0, &[7; 8]),
        framed(SETTINGS, 0, 0, &[]),
        // Of a stream that is none: each is answered by a reset, or by the end of all.
        framed(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
    ] {
        let mut wire = Wire(house.tls_of_no_room().await);
        wire.greet().await;
        let taken = AtomicU64::new(frame.len() as u64);
        let many = frame.repeat(1_000);
        let flood = async {
            while wire.0.write_all(&many).await.is_ok() {
                taken.fetch_add(many.len() as u64, Ordering::SeqCst);
            }
            std::future::pending::<()>().await;
        };
        let taken = tokio::select! {
            () = flood => unreachable!("it does not end"),
            taken = settled(&taken) => taken,
        };
        assert!(taken < 32 << 20, "{taken} bytes were read");
        serves(&house, &host).await;
    }
}
