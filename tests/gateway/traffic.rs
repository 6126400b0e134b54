//! What passes is counted.

use dwell::gateway::{Passed, RouteStatus};
use dwell_core::time::Millis;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

async fn passed(site: &Site) -> Passed {
    let session = route(1, RouteStatus::Starting).session;
    let passed = site.gateway.passed(site.at.port(), session).await;
    passed.expect("it is served")
}

/// Wait until `is_so` of what has passed.
async fn until(site: &Site, is_so: impl Fn(&Passed) -> bool) -> Passed {
    soon(async {
        loop {
            let passed = passed(site).await;
            if is_so(&passed) {
                return passed;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn what_passes_is_counted_while_it_passes_and_whoever_is_connected_too() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let at = raw_app(move |mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut bytes = [0; 1_000];
        while let Ok(read @ 1..) = stream.read(&mut bytes).await {
            stream.write_all(&bytes[..read]).await.unwrap();
        }
    })
    .await;
    let site = Site::of(at).await;
    assert_eq!(passed(&site).await, Passed::default());

    let asked = "GET / HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let mut visitor = site.connect().await;
    visitor.write_all(asked.as_bytes()).await.unwrap();
    read_head(&mut visitor).await;
    let now = passed(&site).await;
    assert_eq!((now.open_connections, now.requests), (1, 1));
    assert_eq!(now.bytes_from_visitors, asked.len() as u64);
    assert_eq!(now.bytes_from_app, answer.len() as u64);
    assert!(now.idle_ms.is_some_and(|idle| idle < Millis(30_000)));

    visitor.write_all(&[7; 700]).await.unwrap();
    visitor.read_exact(&mut [0; 700]).await.unwrap();
    let now = passed(&site).await;
    assert_eq!(now.bytes_from_visitors, asked.len() as u64 + 700);
    assert_eq!(now.bytes_from_app, answer.len() as u64 + 700);

    // A new word of the same session takes nothing away.
    site.publish(route(1, RouteStatus::Stopping)).await;
    drop(visitor);
    let now = until(&site, |passed| passed.open_connections == 0).await;
    assert_eq!(now.requests, 1);
    site.publish(route(2, RouteStatus::Starting)).await;
    let session = route(2, RouteStatus::Starting).session;
    let other = site.gateway.passed(site.at.port(), session).await;
    assert_eq!(other, Some(Passed::default()));
    assert_eq!(
        site.gateway.all_passed().await,
        [(session, Passed::default())]
    );
}
