//! Bodies that are larger than what may be kept of them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{ROOMY, Server, app, memory};

const GIB: u64 = 1 << 30;
/// What a server may have more while they pass. An app's and a visitor's buffers, and
/// what any server takes in its first minute.
const MORE_KIB: u64 = 16 * 1_024;

async fn ask(url: &str, request: &str) -> TcpStream {
    let (_, at) = url.split_once("://").unwrap();
    let mut stream = TcpStream::connect(at.trim_end_matches('/')).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn download(url: &str) {
    let request = format!("GET /{GIB} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
    let mut stream = ask(url, &request).await;
    let mut chunk = vec![0; 1 << 18];
    let mut all = 0;
    loop {
        let read = stream.read(&mut chunk).await.unwrap();
        if read == 0 {
            break;
        }
        all += read as u64;
    }
    assert!((GIB..GIB + 1_000).contains(&all), "{all}");
}

async fn upload(url: &str) {
    let request =
        format!("POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {GIB}\r\n\r\n");
    let mut stream = ask(url, &request).await;
    let chunk = vec![7; 1 << 18];
    for _ in 0..GIB >> 18 {
        stream.write_all(&chunk).await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(&format!("\r\n\r\n{GIB}")), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_passes_each_way_and_is_not_kept() {
    let server = Server::start(ROOMY);
    let id = server.api.create(app("large.py")).await;
    let session = server.api.running(&id).await;
    let url = session["url"].as_str().unwrap();
    let pid = server.pid();
    let before = memory::forget_most(pid);
    tokio::join!(download(url), upload(url));
    let after = memory::most_kib(pid);
    assert!(after < before + MORE_KIB, "{before} KiB became {after} KiB");
    server.api.stop(&id).await;
}
