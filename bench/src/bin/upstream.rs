//! The app behind every proxy that is compared: one thread, as little work as can be.
//!
//! usage: upstream PORT
//!
//! `GET /1k` and `GET /bytes?n=…` answer so many bytes, `POST /sink` how many came;
//! `GET /ws` is a WebSocket that echoes. Any other GET is answered too: ready probes.

#[path = "../payload.rs"]
mod payload;

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;

use httparse::{EMPTY_HEADER, Request, Status};
use payload::{BODY, KIB, PIECE};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use tungstenite::handshake::derive_accept_key;

/// As many as may call at once.
const BACKLOG: i32 = 4_096;
/// The event that says that somebody calls.
const CALL: u64 = u64::MAX;

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse().ok());
    let port: u16 = port.ok_or_else(|| io::Error::other("usage: upstream PORT"))?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(CALL), EventFlags::IN)?;

    let mut connections = HashMap::new();
    let mut numbers = 0..;
    let mut buffer = vec![0; PIECE];
    let mut events = Vec::with_capacity(256);
    loop {
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            let number = event.data.u64();
            let data = EventData::new_u64(number);
            if number == CALL {
                while let Ok((stream, _)) = listener.accept() {
                    let connection = Connection::new(stream)?;
                    let number = numbers.next().unwrap_or(CALL);
                    let data = EventData::new_u64(number);
                    epoll::add(&epoll, &connection.stream, data, EventFlags::IN)?;
                    connections.insert(number, connection);
                }
            } else if let Some(connection) = connections.get_mut(&number) {
                let was_writing = connection.is_writing();
                if connection.advance(&mut buffer).is_err() {
                    // Closed, and so no longer waited for.
                    connections.remove(&number);
                } else if connection.is_writing() != was_writing {
                    let interest = match was_writing {
                        true => EventFlags::IN,
                        false => EventFlags::OUT,
                    };
                    epoll::modify(&epoll, &connection.stream, data, interest)?;
                }
            }
        }
    }
}

/// What comes next on a connection.
enum Next {
    Request,
    /// The rest of a body of that length.
    Body {
        length: usize,
        left: usize,
    },
    Frame,
}

struct Connection {
    stream: TcpStream,
    next: Next,
    /// What came and is not complete.
    input: Vec<u8>,
    /// What is still to be written: this, and then that part of a body.
    output: Vec<u8>,
    body: Range<usize>,
}

impl Connection {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            next: Next::Request,
            input: Vec::new(),
            output: Vec::new(),
            body: 0..0,
        })
    }

    fn is_writing(&self) -> bool {
        !self.output.is_empty() || !self.body.is_empty()
    }

    /// Go on as far as can be without waiting. An error is the end of it.
    fn advance(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.write()?;
        self.take(&[])?;
        while !self.is_writing() {
            match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    self.take(buffer.get(..length).unwrap_or_default())?;
                    if length < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, came: &[u8]) -> io::Result<()> {
        if self.input.is_empty() {
            let used = self.answer(came)?;
            self.input.extend(came.iter().skip(used));
        } else {
            let mut input = std::mem::take(&mut self.input);
            input.extend(came);
            let used = self.answer(&input)?;
            input.drain(..used);
            self.input = input;
        }
        Ok(())
    }

    /// Answer what is complete, one after the other. How much of the input that was.
    fn answer(&mut self, input: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        while !self.is_writing() {
            let rest = input.get(used..).unwrap_or_default();
            let length = match self.next {
                _ if rest.is_empty() => break,
                Next::Request => self.request(rest)?,
                Next::Body { length, left } => {
                    if rest.first() != BODY.get((length - left) % PIECE) {
                        return Err(ErrorKind::InvalidData.into());
                    }
                    self.swallow(length, left, rest.len())
                }
                Next::Frame => self.echo(rest)?,
            };
            if length == 0 {
                break;
            }
            used += length;
            self.write()?;
        }
        Ok(used)
    }

    /// How long the head of a request was; 0 if it is not complete.
    fn request(&mut self, input: &[u8]) -> io::Result<usize> {
        let mut headers = [EMPTY_HEADER; 64];
        let mut request = Request::new(&mut headers);
        let parsed = request.parse(input).map_err(io::Error::other)?;
        let Status::Complete(head) = parsed else {
            return Ok(0);
        };
        let path = request.path.unwrap_or_default();
        let header = |name: &str| {
            let header = request
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case(name));
            header.map(|header| header.value)
        };
        let number = |digits: &[u8]| -> Option<usize> {
            std::str::from_utf8(digits).ok()?.trim().parse().ok()
        };
        match (request.method, path) {
            (Some("GET"), "/1k") => self.say_ok(KIB),
            (Some("GET"), "/ws") => {
                let key = header("sec-websocket-key").ok_or(ErrorKind::InvalidData)?;
                let accept = derive_accept_key(key);
                write!(
                    self.output,
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
                     connection: Upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
                )?;
                self.next = Next::Frame;
            }
            (Some("GET"), path) => {
                let length = path.strip_prefix("/bytes?n=").map(str::as_bytes);
                self.say_ok(length.and_then(number).unwrap_or_default());
            }
            (Some("POST"), "/sink") => {
                let length = header("content-length").and_then(number);
                let length = length.ok_or(ErrorKind::InvalidData)?;
                self.swallow(length, length, 0);
            }
            _ => write!(
                self.output,
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
            )?,
        }
        Ok(head)
    }

    fn say_ok(&mut self, length: usize) {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        self.output.extend(head.as_bytes());
        if length <= KIB {
            self.output.extend(BODY.iter().take(length));
        } else {
            self.body = 0..length;
        }
    }

    /// How much of a body that is, of which so much is left and so much has come.
    fn swallow(&mut self, length: usize, left: usize, came: usize) -> usize {
        let swallowed = left.min(came);
        self.next = Next::Body {
            length,
            left: left - swallowed,
        };
        if swallowed == left {
            self.next = Next::Request;
            let count = length.to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", count.len());
            self.output.extend(head.as_bytes());
            self.output.extend(count.as_bytes());
        }
        swallowed
    }

    /// How long a frame was; 0 if it is not complete.
    fn echo(&mut self, input: &[u8]) -> io::Result<usize> {
        let Some((first, mask, payload, length)) = frame(input) else {
            return Ok(0);
        };
        const PING: u8 = 9;
        const PONG: u8 = 10;
        self.output.push(match first & 0x0f {
            PING => first - PING + PONG,
            _ => first,
        });
        match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
            (Ok(length @ ..126), _) => self.output.push(length),
            (_, Ok(length)) => {
                self.output.push(126);
                self.output.extend(length.to_be_bytes());
            }
            _ => {
                self.output.push(127);
                self.output.extend((payload.len() as u64).to_be_bytes());
            }
        }
        let begin = self.output.len();
        self.output.extend(payload);
        let (words, rest) = self.output[begin..].as_chunks_mut::<4>();
        for word in words {
            *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(mask) {
            *byte ^= mask;
        }
        Ok(length)
    }

    /// Write what there is to write, as far as can be without waiting.
    fn write(&mut self) -> io::Result<()> {
        while self.is_writing() {
            let piece = match self.output.as_slice() {
                [] => {
                    let piece = BODY.get(self.body.start % PIECE..).unwrap_or_default();
                    piece.get(..self.body.len()).unwrap_or(piece)
                }
                output => output,
            };
            match self.stream.write(piece) {
                Ok(length) if self.output.is_empty() => self.body.start += length,
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The first byte of a client's frame, its mask, its payload, and its whole length.
fn frame(input: &[u8]) -> Option<(u8, [u8; 4], &[u8], usize)> {
    let ([first, second], rest) = input.split_first_chunk()?;
    let (length, rest) = match second & 0x7f {
        126 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        127 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::try_from(u64::from_be_bytes(*length)).ok()?, rest)
        }
        length => (usize::from(length), rest),
    };
    let (mask, rest) = rest.split_first_chunk()?;
    let payload = rest.get(..length)?;
    Some((*first, *mask, payload, input.len() - rest.len() + length))
}
