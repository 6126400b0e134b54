//! Visitors from other hosts, one of which wants all there is.

use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::far::{Way, address, url_of};
use crate::harness::{ROOMY, Server, app};

/// What one address may have open to one session.
const MOST: usize = 256;

/// A connection on which something was answered, if it is not refused.
async fn visitor(url: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address(url)).await.ok()?;
    let asked = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    stream.write_all(asked).await.ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        let read = stream.read_buf(&mut answer).await.ok()?;
        if read == 0 {
            return None;
        }
    }
    Some(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_address_alone_keeps_all_others_out() {
    let way = Way::new().await;
    let ours = way.subnet.ours();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::spawn(&data, ROOMY, &format!("{ours}:0"), &["--access", "link"]);
    let api = &server.api;
    let id = api.create(app("streams.py")).await;
    let url = url_of(&api.running(&id).await);
    let mut visitors = Vec::new();
    for _ in 0..MOST {
        visitors.push(visitor(&url).await.expect("there is a place"));
    }
    assert!(visitor(&url).await.is_none(), "one more than there may be");
    // Another host is served all the while.
    let [program, word] = way.away.enter();
    let ask = format!("import urllib.request as r; print(r.urlopen('{url}').read().decode())");
    let asked = Command::new(program)
        .args([&word, "python3", "-c", &ask])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&asked.stdout),
        "hello\n",
        "{asked:?}"
    );
    // And so is this one again, once it has left some.
    drop(visitors);
    while visitor(&url).await.is_none() {
        tokio::task::yield_now().await;
    }
    api.stop(&id).await;
}
