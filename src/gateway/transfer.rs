//! A message on its way from one connection to the other: its head, which we wrote,
//! and its body, as it comes.

use std::io;
use std::task::{Context, Poll, ready};

use super::buffered::{Buffer, Buffered};
use super::framing::{Framing, Kind, Malformed, Part};

/// A body that is shorter is copied behind its head: one write of one piece costs less
/// than one of two.
const COPY_BYTES_MAX: usize = 8 * 1_024;

/// Why a message did not arrive whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Where it came from is gone.
    #[error("it broke off: {0}")]
    Source(io::Error),
    /// Where it was to go is gone.
    #[error("it is not taken any more: {0}")]
    Sink(io::Error),
    /// Its body cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What of a body's bytes goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passing {
    /// All, as they come.
    All,
    /// All but the trailers.
    NoTrailers,
    /// The content alone, for who knows no chunks.
    Content,
    /// The content in chunks, for it could not be told otherwise where it ends.
    InChunks,
}

impl Passing {
    const fn passes(self, kind: Kind) -> bool {
        match (self, kind) {
            (Self::All, _) | (_, Kind::Data) | (Self::NoTrailers, Kind::Frame) => true,
            (Self::NoTrailers, Kind::Trailer)
            | (Self::Content | Self::InChunks, Kind::Frame | Kind::Trailer) => false,
        }
    }
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    /// What is to be written before anything else: the head, the size of a chunk.
    head: Buffer,
    /// A chunk of ours has not been closed yet.
    is_in_chunk: bool,
    framing: Framing,
    passing: Passing,
    /// Bytes that wait at the source and are to be written next.
    approved: usize,
    /// What comes to the end of the connection has ended.
    has_ended: bool,
    /// Nothing that was written waits to be sent.
    is_flushed: bool,
    /// Bytes of the body that were written, or are about to be.
    passed: u64,
}

impl Transfer {
    pub(super) fn new(head: Buffer, framing: Framing, passing: Passing) -> Self {
        Self {
            head,
            is_in_chunk: false,
            framing,
            passing,
            approved: 0,
            has_ended: false,
            is_flushed: false,
            passed: 0,
        }
    }

    /// Has all of it been written, and is it on its way?
    pub(super) fn is_done(&self) -> bool {
        self.is_flushed && self.is_written()
    }

    fn is_written(&self) -> bool {
        self.head.is_empty() && self.approved == 0 && (self.has_ended || self.framing.is_done())
    }

    /// Is all of it written that has come?
    pub(super) fn waits_for_more(&self, from: &Buffered) -> bool {
        self.head.is_empty() && self.approved == 0 && from.buffer.is_empty() && !self.is_written()
    }

    /// How much of its body has passed, in bytes.
    pub(super) const fn passed(&self) -> u64 {
        self.passed
    }

    /// The head is not needed once more.
    pub(super) fn forget_head(&mut self) {
        self.head.release_if_empty();
    }

    /// The head once more, for another connection.
    pub(super) fn rewind(&mut self) {
        self.is_flushed = false;
        self.head.rewind();
    }

    /// Write the head alone: no more comes, or it is not known yet from where.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Buffered,
    ) -> Poll<io::Result<()>> {
        while !self.head.is_empty() {
            ready!(to.poll_write_behind(cx, &mut self.head, &[]))?;
        }
        to.poll_flush(cx)
    }

    /// Carry on until it is done. What was read and is not the message's stays where
    /// it was read from.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Buffered,
        to: &mut Buffered,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if self.approved == 0 && !self.has_ended && !self.framing.is_done() {
                if !from.buffer.is_empty() {
                    self.approve(from)?;
                    continue;
                }
                // What we have need not wait for what is still to come.
                ready!(self.poll_head(cx, to)).map_err(Broken::Sink)?;
                // A body may be long in coming, and who has one is asked for once only.
                self.forget_head();
                self.read(ready!(from.poll_fill(cx)))?;
                continue;
            }
            if self.is_written() {
                ready!(to.poll_flush(cx)).map_err(Broken::Sink)?;
                self.is_flushed = true;
                return Poll::Ready(Ok(()));
            }
            if !self.head.is_empty() && (1..COPY_BYTES_MAX).contains(&self.approved) {
                let approved = from.buffer.filled().get(..self.approved);
                let behind_head = self.head.writer();
                behind_head.extend_from_slice(approved.unwrap_or_default());
                from.buffer.consume(self.approved);
                self.passed += self.approved as u64;
                self.approved = 0;
                continue;
            }
            let approved = from
                .buffer
                .filled()
                .get(..self.approved)
                .unwrap_or_default();
            let written = ready!(to.poll_write_behind(cx, &mut self.head, approved));
            let written = written.map_err(Broken::Sink)?;
            from.buffer.consume(written);
            self.approved -= written;
            self.passed += written as u64;
        }
    }

    fn read(&mut self, read: io::Result<usize>) -> Result<(), Broken> {
        match read {
            Ok(0) if self.framing == Framing::ToEnd => {
                self.has_ended = true;
                if self.passing == Passing::InChunks {
                    self.begin_chunk(0);
                    self.head.writer().extend_from_slice(b"\r\n");
                }
            }
            Ok(0) => return Err(Broken::Source(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => {}
            Err(error) => return Err(Broken::Source(error)),
        }
        Ok(())
    }

    /// See what of the waiting bytes is to be written; what is not to be is dropped.
    fn approve(&mut self, from: &mut Buffered) -> Result<(), Malformed> {
        if self.passing == Passing::All {
            self.approved = self.framing.all(from.buffer.filled())?;
            return Ok(());
        }
        while let Some(Part { kind, length }) = self.framing.next(from.buffer.filled())? {
            if self.passing.passes(kind) {
                self.approved = length;
                if self.passing == Passing::InChunks {
                    self.begin_chunk(length);
                }
                return Ok(());
            }
            from.buffer.consume(length);
        }
        Ok(())
    }

    fn begin_chunk(&mut self, length: usize) {
        self.head.forget_used();
        let end_of_last = if self.is_in_chunk { "\r\n" } else { "" };
        let line = format!("{end_of_last}{length:x}\r\n");
        self.head.writer().extend_from_slice(line.as_bytes());
        self.is_in_chunk = true;
    }
}
