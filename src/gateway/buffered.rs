//! A connection, and what was read from it and not yet used.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// What is read at once, in bytes.
pub(super) const SIZE: usize = 64 * 1_024;
/// How many unused buffers a thread keeps.
const STOCK_MAX: usize = 64;

thread_local! {
    /// A connection that has nothing to say has no buffer: it takes one when it is
    /// read from, mostly one that another has just used.
    static STOCK: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn from_stock() -> Vec<u8> {
    STOCK
        .with_borrow_mut(Vec::pop)
        .unwrap_or_else(|| Vec::with_capacity(SIZE))
}

fn to_stock(mut bytes: Vec<u8>) {
    if bytes.capacity() != SIZE {
        return;
    }
    bytes.clear();
    // The thread may be ending, and its stock be gone.
    let _ = STOCK.try_with(|stock| {
        let mut stock = stock.borrow_mut();
        if stock.len() < STOCK_MAX {
            stock.push(bytes);
        }
    });
}

/// Bytes that wait to be used, first come first. Holds no memory when there are none.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    used: usize,
}

impl Buffer {
    /// What waits.
    pub(super) fn filled(&self) -> &[u8] {
        self.bytes.get(self.used..).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used == self.bytes.len()
    }

    /// The first `length` bytes have been used.
    pub(super) fn consume(&mut self, length: usize) {
        self.used = (self.used + length).min(self.bytes.len());
        if self.is_empty() {
            self.bytes.clear();
            self.used = 0;
        }
    }

    /// Where to put more behind what waits.
    pub(super) fn writer(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = from_stock();
        }
        &mut self.bytes
    }

    /// What was used is not used again.
    pub(super) fn forget_used(&mut self) {
        self.bytes.drain(..self.used);
        self.used = 0;
    }

    /// Begin again with what was used.
    pub(super) fn rewind(&mut self) {
        self.used = 0;
    }

    /// Could more be read?
    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() - self.used >= SIZE
    }

    fn release(&mut self) {
        to_stock(std::mem::take(&mut self.bytes));
        self.used = 0;
    }

    /// Read more, if there is room. 0 says that no more will come.
    fn poll_fill(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<usize>> {
        if self.bytes.len() >= SIZE && self.used > 0 {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        let read = poll_read_buf(Pin::new(stream), cx, self.writer());
        if read.is_pending() && self.is_empty() {
            self.release();
        }
        read
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

/// The connections that the gateway carries bytes between.
#[derive(Debug)]
pub(super) enum Stream {
    /// As it is.
    Plain(TcpStream),
}

impl Stream {
    /// Has the other end neither closed it nor said anything unasked?
    pub(super) fn is_quiet(&self) -> bool {
        match self {
            Self::Plain(stream) => {
                let read = stream.try_read(&mut [0]);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(_) => true,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection, and what was read from it and not yet used.
#[derive(Debug)]
pub(super) struct Buffered {
    pub(super) stream: Stream,
    pub(super) buffer: Buffer,
}

impl Buffered {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            buffer: Buffer::default(),
        }
    }

    /// Read more. There must be room for it.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.buffer.poll_fill(cx, &mut self.stream)
    }

    /// Write what waits in `first`, and then `second`, as far as the other end takes it.
    /// How many bytes of `second` were written; there may be more of it.
    pub(super) fn poll_write_behind(
        &mut self,
        cx: &mut Context<'_>,
        first: &mut Buffer,
        second: &[u8],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let ahead = first.filled().len();
        let written = match (ahead, second.len()) {
            (0, _) => stream.poll_write(cx, second),
            (_, 0) => stream.poll_write(cx, first.filled()),
            _ => {
                let slices = [IoSlice::new(first.filled()), IoSlice::new(second)];
                stream.poll_write_vectored(cx, &slices)
            }
        };
        let written = ready!(written)?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        first.used += written.min(ahead);
        Poll::Ready(Ok(written.saturating_sub(ahead)))
    }
}
