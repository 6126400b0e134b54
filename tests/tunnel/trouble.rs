//! Networks that are slow, that stall, that break; servers that change.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::far::{Far, address, is_echoed, url_of, web_socket};
use crate::harness::{PATIENCE, app};

/// Until the agent has called again, and its channels are ready again.
async fn calls_again(far: &Far, before: u64) {
    let called = async {
        while far.way.relay.count() < before + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, called).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_web_sockets_survive_the_loss_of_the_control_channel_alone() {
    let far = Far::new().await;
    let (id, url) = far.session().await;
    let mut socket = web_socket(&url).await;
    is_echoed(&mut socket, "before").await;
    for _ in 0..3 {
        let before = far.way.relay.count();
        far.way.relay.reset_control();
        is_echoed(&mut socket, "during").await;
        calls_again(&far, before).await;
    }
    is_echoed(&mut socket, "after").await;
    far.visit(&url).await;
    far.api().stop(&id).await;
    far.server.nothing_is_left(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_network_that_broke_the_next_visitor_is_served() {
    let far = Far::new().await;
    let (id, url) = far.session().await;
    for _ in 0..5 {
        far.visit(&url).await;
        far.way.relay.reset();
        far.visit(&url).await;
    }
    assert_eq!(far.api().session(&id).await["status"], "running");
    far.api().stop(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_dead_and_do_not_show_it_cost_a_visitor_seconds_at_most() {
    let far = Far::new().await;
    let (id, url) = far.session().await;
    far.way.relay.stall();
    let began = Instant::now();
    far.visit(&url).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{began:?}");
    far.api().stop(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_and_distant_network_only_makes_it_slow() {
    let far = Far::new().await;
    let (id, url) = far.session().await;
    far.way.relay.delay(Duration::from_millis(100));
    let began = Instant::now();
    far.visit(&url).await;
    // There and back to open the channel, and for the answer; nothing else.
    let took = began.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
    far.way.relay.throttle(20_000);
    let answer = far.api().get(&format!("{url}/slow")).await;
    assert_eq!(answer.text.lines().count(), 300);
    far.api().stop(&id).await;
}

/// For longer than it takes to find out that a network is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_who_pauses_a_download_gets_the_rest_of_it() {
    const LARGE: usize = 64 << 20;
    let far = Far::new().await;
    let id = far.api().create(app("large.py")).await;
    let url = url_of(&far.api().running(&id).await);
    let mut visitor = TcpStream::connect(address(&url)).await.unwrap();
    let request = format!("GET /{LARGE} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    visitor.write_all(request.as_bytes()).await.unwrap();
    visitor.read_u8().await.unwrap();
    tokio::time::sleep(Duration::from_secs(45)).await;
    let mut rest = Vec::new();
    visitor.read_to_end(&mut rest).await.unwrap();
    assert!(rest.len() > LARGE, "{} bytes", rest.len());
    far.api().stop(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_come_at_once_are_all_served() {
    let far = Far::new().await;
    let (id, url) = far.session().await;
    far.way.relay.delay(Duration::from_millis(20));
    let mut sockets = join_all((0..200).map(|_| web_socket(&url))).await;
    let echoed = sockets.iter_mut().map(|socket| is_echoed(socket, "here"));
    join_all(echoed).await;
    far.visit(&url).await;
    far.api().stop(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_finds_its_sessions_elsewhere_again() {
    let mut far = Far::new().await;
    let (id, url) = far.session().await;
    far.visit(&url).await;
    far.server.kill();
    far.server.restart();
    assert_eq!(far.api().running(&id).await["status"], "running");
    far.visit(&url).await;
    far.api().stop(&id).await;
    far.server.nothing_is_left(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_replaced_in_place_takes_the_tunnels_over() {
    let mut far = Far::new().await;
    let (id, url) = far.session().await;
    let mut socket = web_socket(&url).await;
    is_echoed(&mut socket, "before").await;
    let mut old = far.server.is_taken_over();
    far.visit(&url).await;
    is_echoed(&mut socket, "after").await;
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    drop(socket);
    assert!(old.wait().unwrap().success());
    far.visit(&url).await;
    far.api().stop(&id).await;
    far.server.nothing_is_left(&[id]).await;
}
