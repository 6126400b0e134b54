//! A visitor that writes HTTP/2 frame by frame, as no honest one does (RFC 9113).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::house::*;
use crate::support::*;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame.
#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A connection of somebody's who writes frames by hand.
pub struct Wire(pub TlsStream<TcpStream>);

impl Wire {
    pub async fn to(house: &House) -> Self {
        let mut wire = Self(house.tls(&["h2"]).await);
        wire.greet().await;
        wire
    }

    /// What is said before all else.
    pub async fn greet(&mut self) {
        self.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        self.frame(SETTINGS, 0, 0, &[]).await;
    }

    /// Who is not listened to any more says nothing.
    pub async fn say(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.say(&framed(kind, flags, stream, payload)).await;
    }

    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        soon(self.0.read_exact(&mut head)).await.ok()?;
        let [a, b, c, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        soon(self.0.read_exact(&mut payload)).await.ok()?;
        let stream = u32::from_be_bytes(stream);
        Some(Frame {
            kind,
            stream,
            payload,
        })
    }

    /// How it is answered: the first frame that is about `stream`, or about the end of the
    /// connection. None if that was closed without a word.
    pub async fn answer(&mut self, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == GOAWAY || (frame.stream == stream && frame.kind != WINDOW_UPDATE) {
                return Some(frame);
            }
        }
    }
}

pub fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A block of headers in the plainest way there is (RFC 7541, section 6.2.2).
pub fn block(lines: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in lines {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

pub fn get(host: &str) -> Vec<(&'static str, &str)> {
    vec![
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", host),
        (":path", "/"),
    ]
}

/// An app that counts the requests that it gets, whole.
pub async fn counting() -> (App, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let app = App::new(move |request| {
        let counted = Arc::clone(&counted);
        async move {
            use http_body_util::BodyExt;
            if request.into_body().collect().await.is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
            hyper::Response::new(body("hi"))
        }
    })
    .await;
    (app, count)
}

/// Somebody else is served.
pub async fn serves(house: &House, host: &str) {
    let asked = hyper::Request::get(format!("https://{host}/"));
    let request = asked.body(body("")).unwrap();
    let mut sender = house.http2().await;
    assert_eq!(
        soon(sender.send_request(request)).await.unwrap().status(),
        200
    );
}
