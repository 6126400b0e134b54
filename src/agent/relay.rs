//! Bytes both ways between two connections. Where nothing is said, no memory is held.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read at once, in bytes.
const SIZE: usize = 256 * 1_024;

thread_local! {
    /// What all connections of a thread read into, one after the other.
    static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; SIZE]);
}

/// Carry until both ends have said all they have to say.
pub(super) async fn relay(
    mut one: impl AsyncRead + AsyncWrite + Unpin,
    mut other: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let (mut there, mut back) = (Way::default(), Way::default());
    poll_fn(|cx| {
        let there = there.poll(cx, &mut one, &mut other)?;
        let back = back.poll(cx, &mut other, &mut one)?;
        if there.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    })
    .await
}

/// One direction.
#[derive(Default)]
struct Way {
    /// What was read and not taken yet, and how much of it was.
    left: Vec<u8>,
    used: usize,
    stage: Stage,
}

#[derive(Clone, Copy, Default)]
enum Stage {
    #[default]
    Open,
    /// No more comes; the other end is still to be told.
    Ending,
    Ended,
}

impl Way {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        loop {
            while let Some(left) = self.left.get(self.used..).filter(|left| !left.is_empty()) {
                self.used += ready!(write(cx, to, left))?;
            }
            if !self.left.is_empty() {
                self.left = Vec::new();
                self.used = 0;
            }
            match self.stage {
                Stage::Open => {
                    // What was written may still wait to be sent.
                    let _ = Pin::new(&mut *to).poll_flush(cx)?;
                    if ready!(self.poll_pass(cx, from, to))? == 0 {
                        self.stage = Stage::Ending;
                    }
                }
                Stage::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Ended;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Read once, and write what the other end takes of it now. How much was read.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<usize>> {
        ROOM.with_borrow_mut(|room| {
            let mut room = ReadBuf::new(room);
            ready!(Pin::new(from).poll_read(cx, &mut room))?;
            let mut rest = room.filled();
            let read = rest.len();
            while !rest.is_empty() {
                match write(cx, to, rest) {
                    Poll::Ready(written) => rest = rest.get(written?..).unwrap_or_default(),
                    Poll::Pending => {
                        self.left = rest.to_vec();
                        break;
                    }
                }
            }
            Poll::Ready(Ok(read))
        })
    }
}

fn write(
    cx: &mut Context<'_>,
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(to).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn all_is_carried_both_ways_and_each_end_hears_the_others_last_word() {
        let (mut visitor, one) = duplex(1_000);
        let (other, mut app) = duplex(70);
        let carried = tokio::spawn(relay(one, other));
        let long = vec![7; 100_000];
        let asks = async {
            visitor.write_all(&long).await.unwrap();
            visitor.shutdown().await.unwrap();
            let mut answer = String::new();
            visitor.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answers = async {
            let mut asked = Vec::new();
            app.read_to_end(&mut asked).await.unwrap();
            // It has heard that no more comes, and may still speak.
            app.write_all(format!("{} bytes", asked.len()).as_bytes())
                .await
                .unwrap();
            drop(app);
        };
        let (answer, ()) = tokio::join!(asks, answers);
        assert_eq!(answer, "100000 bytes");
        carried.await.unwrap().unwrap();
    }
}
