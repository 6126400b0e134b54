//! A connection, and what was read from it and not yet used.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::io::poll_read_buf;

use super::connection::Visitor;
use super::traffic::Meter;
use crate::read_ahead::ReadAhead;
use crate::session_urls::Scheme;

/// What is read at once, in bytes. A head must fit.
const SIZE: usize = super::head::HEAD_BYTES_MAX;
/// What is read at once where so much comes that less would cost more.
const BULK_SIZE: usize = 512 * 1_024;

/// Buffers of one size that nobody uses now.
struct Stock {
    size: usize,
    most: usize,
    buffers: RefCell<Vec<Vec<u8>>>,
}

thread_local! {
    /// A connection that has nothing to say has no buffer: it takes one when it is
    /// read from, mostly one that another has just used.
    static STOCK: Stock = const { Stock::of(SIZE, 64) };
    static BULK_STOCK: Stock = const { Stock::of(BULK_SIZE, 8) };
}

impl Stock {
    const fn of(size: usize, most: usize) -> Self {
        let buffers = RefCell::new(Vec::new());
        Self {
            size,
            most,
            buffers,
        }
    }

    fn take(&self) -> Vec<u8> {
        let used_before = self.buffers.borrow_mut().pop();
        used_before.unwrap_or_else(|| Vec::with_capacity(self.size))
    }

    fn put(&self, bytes: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < self.most {
            buffers.push(bytes);
        }
    }
}

fn from_stock(is_bulk: bool) -> Vec<u8> {
    let stock = if is_bulk { &BULK_STOCK } else { &STOCK };
    stock.with(Stock::take)
}

fn to_stock(mut bytes: Vec<u8>) {
    let stock = match bytes.capacity() {
        SIZE => &STOCK,
        BULK_SIZE => &BULK_STOCK,
        _ => return,
    };
    bytes.clear();
    // The thread may be ending, and its stock be gone.
    let _ = stock.try_with(|stock| stock.put(bytes));
}

/// Bytes that wait to be used, first come first. Holds no memory when there are none.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    used: usize,
    /// More came than there was room for.
    is_bulk: bool,
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
            self.bytes = from_stock(self.is_bulk);
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
        self.bytes.len() - self.used >= self.bytes.capacity().max(SIZE)
    }

    /// Hold no memory if nothing waits. What was used is not used again.
    pub(super) fn release_if_empty(&mut self) {
        if self.is_empty() {
            self.release();
        }
    }

    fn release(&mut self) {
        to_stock(std::mem::take(&mut self.bytes));
        self.used = 0;
    }

    /// Read more, if there is room. 0 says that no more will come.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() == self.bytes.capacity() && self.used > 0 {
            self.forget_used();
        }
        if self.bytes.is_empty() && self.is_bulk && self.bytes.capacity() < BULK_SIZE {
            self.release();
        }
        let read = poll_read_buf(Pin::new(stream), cx, self.writer());
        match &read {
            Poll::Pending => self.release_if_empty(),
            Poll::Ready(Ok(bytes)) => {
                let has_room = self.bytes.len() < self.bytes.capacity();
                self.is_bulk = !has_room || (self.is_bulk && *bytes >= SIZE / 8);
            }
            Poll::Ready(Err(_)) => {}
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
    /// Encrypted.
    Tls(Box<TlsStream<ReadAhead<TcpStream>>>),
    /// A stream of HTTP/2, led through this process in HTTP/1.1.
    Led(DuplexStream),
}

impl Stream {
    /// Has the other end neither closed it nor said anything unasked?
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        let read = Pin::new(self).poll_read(&mut cx, &mut ReadBuf::new(&mut byte));
        read.is_pending()
    }

    /// What it goes through. One that is led through this process goes through none.
    pub(super) fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0.get_ref()),
            Self::Led(_) => None,
        }
    }

    /// Confirm what has come. An app that writes a head and then a body may not send the
    /// one before the other is confirmed, which would take the kernel 40 ms by itself.
    pub(super) fn acknowledge_now(&self) {
        if let Some(socket) = self.socket() {
            // If it cannot be hurried, it comes later.
            let _ = socket.set_quickack(true);
        }
    }

    /// Is what was written on its way without being told to be?
    const fn flushes_itself(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Led(_) => true,
            Self::Tls(_) => false,
        }
    }
}

/// The same call on whatever stream it is.
macro_rules! each {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Self::Plain(it) => {
                let $stream = Pin::new(it);
                $call
            }
            Self::Tls(it) => {
                let $stream = Pin::new(&mut **it);
                $call
            }
            Self::Led(it) => {
                let $stream = Pin::new(it);
                $call
            }
        }
    };
}

impl Stream {
    /// Before it is closed in good order: by TLS that is said, and what is not is taken for
    /// cut off.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) | Self::Led(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read(cx, into))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_shutdown(cx))
    }
}

/// A connection, and what was read from it and not yet used.
#[derive(Debug)]
pub(super) struct Buffered {
    pub(super) stream: Stream,
    pub(super) buffer: Buffer,
    meter: Meter,
}

impl Buffered {
    pub(super) fn new(stream: Stream, meter: Meter) -> Self {
        Self {
            stream,
            buffer: Buffer::default(),
            meter,
        }
    }

    /// One who has said something before it was known what it is to count for.
    pub(super) fn having_said(buffer: Buffer, stream: Stream, meter: Meter) -> Self {
        if !buffer.is_empty() {
            meter.sent(buffer.filled().len());
        }
        Self {
            stream,
            buffer,
            meter,
        }
    }

    pub(super) fn into_visitor(self, from: SocketAddr, scheme: Scheme) -> Visitor {
        Visitor {
            stream: self.stream,
            said: self.buffer,
            from,
            scheme,
        }
    }

    /// See to it that what was written is on its way.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stream.flushes_itself() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Read more. There must be room for it.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = ready!(self.buffer.poll_fill(cx, &mut self.stream))?;
        if read > 0 {
            self.meter.sent(read);
        }
        Poll::Ready(Ok(read))
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
