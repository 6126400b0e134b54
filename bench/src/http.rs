//! A client that costs little: one connection, one request at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What came back.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// A connection to one server.
pub struct Connection {
    stream: BufReader<TcpStream>,
    headers: String,
}

impl Connection {
    /// Connect to `address` (`host:port`); `key` is sent with each request, unless it
    /// is empty.
    pub fn open(address: &str, key: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let authorization = match key {
            "" => String::new(),
            key => format!("authorization: Bearer {key}\r\n"),
        };
        Ok(Self {
            stream: BufReader::new(stream),
            headers: format!("host: {address}\r\n{authorization}"),
        })
    }

    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.send("GET", path, "")
    }

    pub fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let content = match body.len() {
            0 => String::new(),
            length => {
                format!("content-type: application/json\r\ncontent-length: {length}\r\n")
            }
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{}{content}\r\n{body}",
            self.headers
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let cut_off = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .ok_or_else(cut_off)?;
        let mut length = None;
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(cut_off());
            }
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
        }
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body)?;
            }
            None => {
                self.stream.read_to_end(&mut body)?;
            }
        }
        Ok(Answer { status, body })
    }
}

/// Ask `address` until it answers 200; for who cannot be told when that is.
pub fn until_it_answers(address: &str) -> io::Result<()> {
    until_200(|| Connection::open(address, "")?.get("/"))
}

/// Ask until the answer is 200.
pub fn until_200(ask: impl Fn() -> io::Result<Answer>) -> io::Result<()> {
    const ASK_AGAIN_AFTER: Duration = Duration::from_micros(300);
    let began = std::time::Instant::now();
    loop {
        match ask() {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(_) | Err(_) if began.elapsed() < PATIENCE => std::thread::sleep(ASK_AGAIN_AFTER),
            Ok(answer) => return Err(io::Error::other(format!("it answers {}", answer.status))),
            Err(error) => return Err(error),
        }
    }
}
