//! As many connections as a session may have, and one more.

use std::time::Duration;

use dwell::gateway::{RouteStatus, TimeLimits};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::house::*;
use crate::support::*;

/// What a session may have at once, of all addresses together.
const MOST: usize = 1_024;

/// Nobody leaves before the test is over.
fn limits() -> TimeLimits {
    let long = Duration::from_secs(3_600);
    TimeLimits {
        head: long,
        keep_alive: long,
        ..TimeLimits::default()
    }
}

fn room_for_all() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// Has an answer, and stays.
async fn is_answered(stream: &mut TcpStream, host: &str) -> String {
    let asked = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(asked.as_bytes()).await.unwrap();
    let head = read_head(stream).await;
    let (_, length) = head.split_once("content-length: ").unwrap();
    let length = length.lines().next().unwrap().parse().unwrap();
    let mut content = vec![0; length];
    soon(stream.read_exact(&mut content)).await.unwrap();
    head
}

#[tokio::test]
async fn who_comes_to_a_full_port_waits_until_somebody_leaves() {
    room_for_all();
    let site = Site::with(route(1, RouteStatus::Starting), limits()).await;
    let mut visitors = Vec::new();
    for _ in 0..MOST {
        let mut visitor = site.connect().await;
        is_answered(&mut visitor, "h").await;
        visitors.push(visitor);
    }
    let mut late = site.connect().await;
    late.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    // All others are served meanwhile …
    for visitor in &mut visitors {
        is_answered(visitor, "h").await;
    }
    // … and the late one is not.
    let nothing = late.try_read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(nothing, Err(std::io::ErrorKind::WouldBlock));
    visitors.pop();
    assert!(read_head(&mut late).await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn who_comes_to_a_full_session_by_its_name_is_told_so_and_others_have_room() {
    room_for_all();
    let house = House::with(Front::Proxy, limits()).await;
    let full = house.publish(1, RouteStatus::Starting).await;
    let other = house.publish(2, RouteStatus::Starting).await;
    let mut visitors = Vec::new();
    for _ in 0..MOST {
        let mut visitor = house.connect().await;
        is_answered(&mut visitor, &full).await;
        visitors.push(visitor);
    }
    let asked = format!("GET / HTTP/1.1\r\nhost: {full}\r\n\r\n");
    let told = house.raw(&asked).await;
    assert!(told.starts_with("HTTP/1.1 503"), "{told}");
    assert!(
        told.contains("as many connections as it can have"),
        "{told}"
    );
    let mut visitor = house.connect().await;
    is_answered(&mut visitor, &other).await;
    // A connection that goes on to another session has left this one.
    is_answered(visitors.last_mut().unwrap(), &other).await;
    let mut late = house.connect().await;
    is_answered(&mut late, &full).await;
}

#[tokio::test]
async fn each_stream_of_http_2_takes_a_place_of_its_sessions() {
    let app = App::new(|_| std::future::pending()).await;
    let house = House::with(Front::Tls, limits()).await;
    let full = house.publish(1, running(app.at)).await;
    let other = house.publish(2, RouteStatus::Starting).await;
    let mut senders = Vec::new();
    let mut waiting = Vec::new();
    let ask = |host: &str| {
        let asked = hyper::Request::get(format!("https://{host}/"));
        asked.body(body("")).unwrap()
    };
    // As many as one connection may have open, on each.
    for _ in 0..MOST / 256 {
        let mut sender = house.http2().await;
        for _ in 0..256 {
            soon(sender.ready()).await.unwrap();
            waiting.push(sender.send_request(ask(&full)));
        }
        senders.push(sender);
    }
    soon(async {
        while app.connections() < MOST {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut sender = house.http2().await;
    let told = soon(sender.send_request(ask(&full))).await.unwrap();
    assert_eq!(told.status(), 503);
    assert_eq!(app.connections(), MOST);
    let served = soon(sender.send_request(ask(&other))).await.unwrap();
    assert_eq!(served.status(), 503);
    assert_eq!(served.headers()["retry-after"], "1", "it is starting");
    drop(waiting);
}
