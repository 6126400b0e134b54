//! What encryption is read through: rustls asks for 4 KiB at a time, and a call to the
//! kernel for each costs more than what they hold.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What is read at once, in bytes.
const SIZE: usize = 128 * 1_024;
/// So many buffers that nobody uses now are kept by each thread.
const SPARE_MAX: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Reads as much as has come, and hands it out as it is asked for. Where nothing waits, no
/// memory is held.
#[derive(Debug)]
pub struct ReadAhead<S> {
    stream: S,
    ahead: Vec<u8>,
    used: usize,
}

impl<S> ReadAhead<S> {
    /// Of this stream.
    pub const fn new(stream: S) -> Self {
        Self {
            stream,
            ahead: Vec::new(),
            used: 0,
        }
    }

    /// What is read from.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    fn release(&mut self) {
        self.used = 0;
        let mut bytes = std::mem::take(&mut self.ahead);
        bytes.clear();
        // The thread may be ending, and what it keeps be gone.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if bytes.capacity() > 0 && spare.len() < SPARE_MAX {
                spare.push(bytes);
            }
        });
    }
}

impl<S> Drop for ReadAhead<S> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.used == this.ahead.len() {
            let spare = SPARE.with_borrow_mut(Vec::pop);
            this.ahead = spare.unwrap_or_else(|| Vec::with_capacity(SIZE));
            let read = poll_read_buf(Pin::new(&mut this.stream), cx, &mut this.ahead);
            if !matches!(read, Poll::Ready(Ok(1..))) {
                this.release();
            }
            ready!(read)?;
        }
        let ahead = this.ahead.get(this.used..).unwrap_or_default();
        let length = ahead.len().min(into.remaining());
        into.put_slice(ahead.get(..length).unwrap_or_default());
        this.used += length;
        if this.used == this.ahead.len() {
            this.release();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn what_came_at_once_is_handed_out_in_order_and_then_nothing_is_held() {
        let (mut says, hears) = duplex(1_000);
        let mut hears = ReadAhead::new(hears);
        says.write_all(b"one, two").await.unwrap();
        drop(says);
        let mut first = [0; 5];
        hears.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"one, ");
        assert!(hears.ahead.capacity() > 0);
        let mut rest = String::new();
        hears.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "two");
        assert_eq!(hears.ahead.capacity(), 0);
    }
}
