//! One connection through a proxy, and what must come back on it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use httparse::{EMPTY_HEADER, Response, Status};

use crate::Result;
use crate::payload::{BODY, KIB};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// The example of RFC 6455.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

pub struct Client {
    pub stream: TcpStream,
    request: Vec<u8>,
    expected: Expected,
    /// What came of an answer that is not complete.
    received: Vec<u8>,
}

enum Expected {
    /// 200 and the first KiB of a body.
    Kib,
    /// That a WebSocket is open.
    WebSocket,
    /// These bytes and no others.
    Echo(Vec<u8>),
}

impl Client {
    /// One that gets 1 KiB, again and again.
    pub fn http(address: &str) -> Result<Self> {
        Ok(Self {
            stream: connect(address)?,
            request: format!("GET /1k HTTP/1.1\r\nhost: {address}\r\n\r\n").into(),
            expected: Expected::Kib,
            received: Vec::new(),
        })
    }

    /// One that opens a WebSocket.
    pub fn handshake(address: &str) -> Result<Self> {
        Ok(Self {
            stream: connect(address)?,
            request: format!(
                "GET /ws HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\n\
                 upgrade: websocket\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: {KEY}\r\n\r\n"
            )
            .into(),
            expected: Expected::WebSocket,
            received: Vec::new(),
        })
    }

    /// One that says 1 KiB of its own and hears it again, on a WebSocket.
    pub fn websocket(address: &str, number: usize) -> Result<Self> {
        let mut handshake = Self::handshake(address)?;
        handshake.ask()?;
        let mut stream = handshake.stream;
        if !is_websocket(&read_head(&mut stream)?)? {
            return Err("its head was not complete".into());
        }
        let message: Vec<u8> = BODY.iter().skip(number % KIB).take(KIB).copied().collect();
        Ok(Self {
            stream,
            request: frame(&message, Some([7, 11, 13, 17])),
            expected: Expected::Echo(frame(&message, None)),
            received: Vec::new(),
        })
    }

    pub fn ask(&mut self) -> Result<()> {
        // So little that it is written at once.
        Ok(self.stream.write_all(&self.request)?)
    }

    /// Read what has come. Whether that completes the answer; an error if it is wrong.
    pub fn hear(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let came = match self.stream.read(buffer) {
            Ok(0) => return Err("the proxy hung up".into()),
            Ok(length) => buffer.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if self.received.is_empty() && self.expected.is(came)? {
            return Ok(true);
        }
        self.received.extend(came);
        let complete = self.expected.is(&self.received)?;
        if complete {
            self.received.clear();
        }
        Ok(complete)
    }
}

impl Expected {
    /// Whether that is all of it; an error if it is something else.
    fn is(&self, received: &[u8]) -> Result<bool> {
        let (body, expected) = match self {
            Self::WebSocket => return is_websocket(received),
            Self::Echo(expected) => (received, expected.as_slice()),
            Self::Kib => {
                let Some(body) = body(received, KIB)? else {
                    return Ok(false);
                };
                (body, BODY.get(..KIB).unwrap_or_default())
            }
        };
        if body.len() < expected.len() {
            return Ok(false);
        }
        match body == expected {
            true => Ok(true),
            false => Err("what came back is not what was sent".into()),
        }
    }
}

/// Whether that says that a WebSocket is open; an error if it says something else.
fn is_websocket(received: &[u8]) -> Result<bool> {
    let mut headers = [EMPTY_HEADER; 32];
    let mut response = Response::new(&mut headers);
    if response.parse(received)?.is_partial() {
        return Ok(false);
    }
    let accepted = header(&response, "sec-websocket-accept") == Some(ACCEPT);
    if response.code != Some(101) || !accepted {
        let head = String::from_utf8_lossy(received);
        return Err(format!("no WebSocket was opened: {head}").into());
    }
    Ok(true)
}

/// What came of the body of a response once its head is complete; an error unless the
/// response is 200 and its body has that length.
pub fn body(received: &[u8], length: usize) -> Result<Option<&[u8]>> {
    let mut headers = [EMPTY_HEADER; 32];
    let mut response = Response::new(&mut headers);
    let Status::Complete(head) = response.parse(received)? else {
        return Ok(None);
    };
    let says = header(&response, "content-length")
        .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    if response.code != Some(200) || says != Some(length) {
        let answer = String::from_utf8_lossy(received);
        return Err(format!("not 200 with {length} bytes: {answer}").into());
    }
    Ok(received.get(head..))
}

/// Connect, and wait for whatever comes, but not for ever.
pub fn connect(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The head of a response, to its last byte and no further.
pub fn read_head(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(head)
}

fn header<'a>(response: &Response<'_, 'a>, name: &str) -> Option<&'a [u8]> {
    let mut headers = response.headers.iter();
    let header = headers.find(|header| header.name.eq_ignore_ascii_case(name));
    header.map(|header| header.value)
}

/// A message of 1 KiB in one binary frame.
fn frame(message: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    const BINARY_AND_LAST: u8 = 0x82;
    const LENGTH_FOLLOWS: u8 = 126;
    const MASKED: u8 = 0x80;
    let masked = mask.map_or(0, |_| MASKED);
    let length = u16::try_from(message.len()).unwrap_or_default();
    let mut frame = vec![BINARY_AND_LAST, LENGTH_FOLLOWS | masked];
    frame.extend(length.to_be_bytes());
    frame.extend(mask.into_iter().flatten());
    let mask = mask.unwrap_or_default().into_iter().cycle();
    frame.extend(message.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    frame
}
