//! Bytes both ways, once both ends speak what the gateway does not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::buffered::Buffered;

/// A connection to an app whose bytes are carried to its visitor and back.
pub(super) struct Relay {
    app: Buffered,
    to_app: Way,
    to_visitor: Way,
}

/// How far one direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// No more comes; what has come is still to be written, and the end be told.
    Ending,
    Ended,
}

impl Relay {
    pub(super) const fn new(app: Buffered) -> Self {
        Self {
            app,
            to_app: Way::Open,
            to_visitor: Way::Open,
        }
    }

    /// Has one end said all it has to say, and the other heard so?
    pub(super) fn is_half_over(&self) -> bool {
        self.to_app == Way::Ended || self.to_visitor == Way::Ended
    }

    /// Carry on until both ends have said all they have to say.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        visitor: &mut Buffered,
    ) -> Poll<io::Result<()>> {
        let there = self.to_app.poll(cx, visitor, &mut self.app)?;
        let back = self.to_visitor.poll(cx, &mut self.app, visitor)?;
        if there.is_ready() && back.is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

impl Way {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Buffered,
        to: &mut Buffered,
    ) -> Poll<io::Result<()>> {
        loop {
            while !from.buffer.is_empty() {
                let stream = Pin::new(&mut to.stream);
                let written = ready!(stream.poll_write(cx, from.buffer.filled()))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                from.buffer.consume(written);
            }
            match self {
                Self::Open => {
                    // Both ways go on even if the other end is slow to take this.
                    let _ = to.poll_flush(cx)?;
                    if ready!(from.poll_fill(cx))? == 0 {
                        *self = Self::Ending;
                    }
                }
                Self::Ending => {
                    ready!(Pin::new(&mut to.stream).poll_shutdown(cx))?;
                    *self = Self::Ended;
                }
                Self::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}
