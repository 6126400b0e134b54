//! One visitor's connection to one session, in HTTP/1.1.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use dwell_core::id::SessionId;
use hyper::StatusCode;
use tokio::io::AsyncWrite;

use super::access::Entry;
use super::answer::Answer;
use super::buffered::{Buffer, Buffered, Stream};
use super::door::Door;
use super::exchange::{self, Asked, Course, Reply, Whole};
use super::framing::Framing;
use super::head::{self, HEAD_BYTES_MAX};
use super::page::Page;
use super::patience::{AtOver, Cut, Limit, Patience, TimeLimits};
use super::pool::Pool;
use super::relay::Relay;
use super::route::Current;
use super::traffic::{Meter, Sender, Traffic};
use super::transfer::{Broken, Passing, Transfer};
use crate::admission::Admission;
use crate::session_urls::{self, Address, Scheme};

/// How long, and for how many bytes, a visitor that is still sending when it has got
/// its last answer is listened to: closed at once, it might never read the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1_024;

/// A visitor who has come.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) stream: Stream,
    /// What it has said already.
    pub(super) said: Buffer,
    pub(super) from: SocketAddr,
    /// How it speaks to us, or to who stands in front of us.
    pub(super) scheme: Scheme,
}

/// One visitor's connection. It belongs to the session that was behind the door when
/// it was made, and to no other.
pub(super) struct Visit {
    door: Arc<Door>,
    pub(super) current: Current,
    pub(super) session: SessionId,
    pub(super) from: SocketAddr,
    pub(super) scheme: Scheme,
}

impl Visit {
    pub(super) fn address(&self) -> &Address {
        &self.door.address
    }

    pub(super) fn admission(&self) -> &Admission {
        &self.door.admission
    }

    /// Where a person signs in to come to `path` of this session.
    pub(super) fn sign_in(&self, path: &str) -> String {
        session_urls::sign_in(&self.door.home, self.session, path)
    }

    /// Is a request that names this host for another session, or for none?
    pub(super) fn is_elsewhere(&self, host: Option<&[u8]>) -> bool {
        !self.door.is_for(host)
    }

    /// Is the visitor to come back on a connection to another gateway?
    fn gives_way(&self) -> bool {
        *self.door.gives_way.borrow()
    }
}

/// Serve a visitor. Returned is one who asks for something that is not behind this door;
/// that request is what it has said.
pub(super) async fn serve(visitor: Visitor, door: Arc<Door>) -> Option<Visitor> {
    let current = door.current.clone();
    let backend = current.borrow().clone()?;
    let (session, had_ended) = (backend.route.session, backend.route.has_ended());
    let traffic = Arc::clone(&backend.traffic);
    let meter = Meter::new(Arc::clone(&traffic), Sender::Visitor);
    drop(backend);
    let over = session_over(current.clone(), session, had_ended);
    let Visitor {
        stream,
        said,
        from,
        scheme,
    } = visitor;
    let mut connection = Connection {
        limits: door.limits,
        visit: Visit {
            door,
            current,
            session,
            from: SocketAddr::new(from.ip().to_canonical(), from.port()),
            scheme,
        },
        traffic,
        visitor: Buffered::having_said(said, stream, meter),
        patience: Patience::new(over),
        answered: Answered::default(),
    };
    match connection.serve().await {
        Left::ForGood => None,
        Left::Elsewhere => Some(connection.visitor.into_visitor(from, scheme)),
    }
}

/// Where a visitor goes from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Its connection is over.
    ForGood,
    /// Its next request is for something else.
    Elsewhere,
}

/// Waits until `session` is no longer behind the port, or has ended if it had not.
async fn session_over(mut current: Current, session: SessionId, had_ended: bool) {
    // An error says that the port is closed.
    let _ = current
        .wait_for(|backend| {
            backend.as_ref().is_none_or(|backend| {
                backend.route.session != session || (backend.route.has_ended() && !had_ended)
            })
        })
        .await;
}

struct Connection<O> {
    limits: TimeLimits,
    visit: Visit,
    traffic: Arc<Traffic>,
    visitor: Buffered,
    patience: Patience<O>,
    answered: Answered,
}

/// How the last request was answered.
#[derive(Clone, Copy, Debug, Default)]
struct Answered {
    status: u16,
    body_bytes: u64,
}

/// What becomes of a connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The next request.
    Request,
    /// It is closed; the visitor may have more to say that nobody needs.
    Linger,
    /// It is closed, all having been said.
    Done,
    /// It is closed.
    Close,
}

/// Why an app's answer did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The app closed the connection, or said what cannot be understood.
    NoAnswer,
    /// Nothing moved for too long, or the session is over.
    TooSlow,
    /// The visitor did not send the rest of its request for too long.
    Unfinished,
    /// The visitor is gone.
    Left,
    /// The visitor's body cannot be read.
    Malformed,
}

impl<O: Future<Output = ()>> Connection<O> {
    async fn serve(&mut self) -> Left {
        let mut limit = self.limits.head;
        loop {
            let (visitor, patience) = (&mut self.visitor, &mut self.patience);
            let Some(length) = next_head(visitor, patience, limit, self.limits.head).await else {
                return Left::ForGood;
            };
            limit = self.limits.keep_alive;
            let bytes = self.visitor.buffer.filled();
            let head = bytes.get(..length).unwrap_or_default();
            let entry = Entry::begin(head);
            let (admission, session) = (self.visit.admission(), self.visit.session);
            admission.redeem(session, head).await;
            let (asked, course) = exchange::decide(&self.visit, head);
            if matches!(course, Course::Elsewhere) {
                return Left::Elsewhere;
            }
            self.answered = Answered::default();
            self.visitor.buffer.consume(length);
            self.traffic.requested();
            let by = asked.by;
            let next = match course {
                Course::Close | Course::Elsewhere => Next::Close,
                Course::Answer(answer) => self.say(&asked, asked.body.is_done(), answer).await,
                Course::Pass { app, head } => self.pass_on(asked, &app, head).await,
            };
            if let Some(entry) = entry {
                let Answered { status, body_bytes } = self.answered;
                entry.end(&self.visit, by, status, body_bytes);
            }
            match next {
                Next::Request => {}
                Next::Linger => {
                    self.linger().await;
                    return Left::ForGood;
                }
                Next::Done => {
                    self.finish().await;
                    return Left::ForGood;
                }
                Next::Close => return Left::ForGood,
            }
        }
    }

    /// Answer a request ourselves. What is left of its body is not passed on.
    async fn say(&mut self, asked: &Asked, is_whole: bool, answer: Answer) -> Next {
        let keeps_alive =
            asked.keeps_alive && !answer.is_last && is_whole && !self.visit.gives_way();
        self.answered.status = answer.status();
        let mut out = Buffer::default();
        answer.write(asked.is_1_1, keeps_alive, asked.is_head, out.writer());
        if !self.write(out).await {
            return Next::Close;
        }
        match (keeps_alive, is_whole) {
            (true, _) => Next::Request,
            (false, true) => Next::Done,
            (false, false) => Next::Linger,
        }
    }

    /// Say that there is no answer of the app's.
    async fn say_why_not(&mut self, asked: &Asked, upload: &Upload, failure: Failure) -> Next {
        let page = match failure {
            Failure::Left => return Next::Close,
            Failure::NoAnswer => Page::broken_off(),
            Failure::TooSlow => Page::too_slow(),
            Failure::Unfinished => Page::refused(
                StatusCode::REQUEST_TIMEOUT,
                "The rest of this request has not come in time.",
            ),
            Failure::Malformed => Page::refused(
                StatusCode::BAD_REQUEST,
                "The body of this request cannot be read.",
            ),
        };
        let is_whole = upload.transfer.is_done();
        self.say(asked, is_whole, exchange::own(page, asked)).await
    }

    /// Write all of this to the visitor. Says whether it took it.
    async fn write(&mut self, out: Buffer) -> bool {
        let mut message = Transfer::new(out, Framing::NONE, Passing::All);
        let visitor = &mut self.visitor;
        let written = self.patience.wait(
            Limit::Idle(self.limits.idle),
            AtOver::Finish(self.limits.finish),
            |cx| message.poll_head(cx, visitor),
        );
        matches!(written.await, Ok(Ok(())))
    }

    async fn connect(&mut self, pool: &Pool) -> Option<Buffered> {
        pool.connect()
            .await
            .inspect_err(|error| {
                let session = self.visit.session;
                tracing::debug!(%session, "its app does not accept connections: {error}");
            })
            .ok()
    }

    /// Have the app answer a request.
    async fn pass_on(&mut self, asked: Asked, pool: &Arc<Pool>, head: Buffer) -> Next {
        let mut upload = Upload {
            transfer: Transfer::new(head, asked.body.clone(), Passing::All),
            is_refused: false,
        };
        let kept = pool.take();
        let mut may_be_repeated = kept.is_some() && asked.is_safe && asked.body.is_done();
        let mut fresh = kept;
        let (app, length) = loop {
            let connected = match fresh.take() {
                Some(kept) => Some(kept),
                None => self.connect(pool).await,
            };
            let Some(mut app) = connected else {
                let answer = exchange::own(Page::unreachable(), &asked);
                return self.say(&asked, asked.body.is_done(), answer).await;
            };
            if !self.tell_to_continue(&asked).await {
                return Next::Close;
            }
            match self.answer(&mut upload, &mut app).await {
                Ok(length) => break (app, length),
                // It may have been closed before it was used.
                Err(Failure::NoAnswer) if may_be_repeated => {
                    may_be_repeated = false;
                    upload.transfer.rewind();
                    upload.is_refused = false;
                }
                Err(failure) => return self.say_why_not(&asked, &upload, failure).await,
            }
        };
        self.pass_back(asked, pool, upload, app, length).await
    }

    /// A visitor may wait with the body until it is told that somebody takes it.
    async fn tell_to_continue(&mut self, asked: &Asked) -> bool {
        if !asked.expects_continue || asked.body.is_done() || !self.visitor.buffer.is_empty() {
            return true;
        }
        let mut out = Buffer::default();
        let words = b"HTTP/1.1 100 Continue\r\n\r\n";
        out.writer().extend_from_slice(words);
        self.write(out).await
    }

    /// How long the head of the app's next answer is, once it is there.
    async fn answer(&mut self, upload: &mut Upload, app: &mut Buffered) -> Result<usize, Failure> {
        let visitor = &mut self.visitor;
        let mut searched = 0;
        let came = |cx: &mut Context<'_>| {
            if let Err(failure) = upload.carry_on(cx, visitor, app) {
                return Poll::Ready(Err(failure));
            }
            loop {
                let filled = app.buffer.filled();
                if let Some(length) = head::end(filled, &mut searched) {
                    return Poll::Ready(Ok(length));
                }
                if filled.len() >= HEAD_BYTES_MAX || !may_be_an_answer(filled) {
                    return Poll::Ready(Err(Failure::NoAnswer));
                }
                match ready!(app.poll_fill(cx)) {
                    Ok(read) if read > 0 => {}
                    Ok(_) | Err(_) => return Poll::Ready(Err(Failure::NoAnswer)),
                }
            }
        };
        let idle = Limit::Idle(self.limits.idle);
        let at_over = AtOver::Finish(self.limits.finish);
        let waited = self.patience.wait(idle, at_over, came).await;
        waited.unwrap_or_else(|cut| {
            let is_unfinished = cut == Cut::TimedOut && upload.waits_for(&self.visitor);
            Err(if is_unfinished {
                Failure::Unfinished
            } else {
                Failure::TooSlow
            })
        })
    }

    /// Pass on the app's answer, whose head has come and is so long.
    async fn pass_back(
        &mut self,
        asked: Asked,
        pool: &Arc<Pool>,
        mut upload: Upload,
        mut app: Buffered,
        mut length: usize,
    ) -> Next {
        let reply = loop {
            let bytes = app.buffer.filled().get(..length).unwrap_or_default();
            let reply = exchange::reply(&asked, bytes, self.visit.gives_way());
            app.buffer.consume(length);
            match reply {
                Some(Reply::Interim(out)) => {
                    if !self.write(out).await {
                        return Next::Close;
                    }
                }
                Some(Reply::Switch(out)) => {
                    self.answered.status = 101;
                    drop(upload);
                    if self.write(out).await {
                        self.relay(app).await;
                    }
                    return Next::Close;
                }
                Some(Reply::Whole(whole)) => break whole,
                None => return self.say_why_not(&asked, &upload, Failure::NoAnswer).await,
            }
            length = match self.answer(&mut upload, &mut app).await {
                Ok(length) => length,
                Err(failure) => return self.say_why_not(&asked, &upload, failure).await,
            };
        };
        let Whole {
            status,
            head,
            framing,
            passing,
            keeps_visitor,
            keeps_app,
        } = reply;
        self.answered.status = status;
        if !framing.is_done() && app.buffer.is_empty() {
            app.stream.acknowledge_now();
        }
        upload.transfer.forget_head();
        let mut download = Transfer::new(head, framing, passing);
        let visitor = &mut self.visitor;
        let arrives = |cx: &mut Context<'_>| {
            match download.poll(cx, &mut app, visitor) {
                Poll::Ready(arrived) => return Poll::Ready(arrived.is_ok()),
                Poll::Pending => {}
            }
            match upload.carry_on(cx, visitor, &mut app) {
                Err(Failure::Left) => Poll::Ready(false),
                // The answer is under way: what more is said is not taken.
                Err(_) => {
                    upload.is_refused = true;
                    Poll::Pending
                }
                Ok(()) => Poll::Pending,
            }
        };
        let idle = Limit::Idle(self.limits.idle);
        let at_over = AtOver::Finish(self.limits.finish);
        let has_arrived = self.patience.wait(idle, at_over, arrives).await;
        self.answered.body_bytes = download.passed();
        if has_arrived != Ok(true) {
            return Next::Close;
        }
        if !upload.transfer.is_done() {
            return Next::Linger;
        }
        if keeps_app {
            pool.keep(app);
        }
        if keeps_visitor {
            Next::Request
        } else {
            Next::Done
        }
    }

    /// Carry bytes both ways until both ends are done, or one is gone, or the session
    /// is over. As long as both may speak, they may be silent; once one has said its last
    /// word, the other may not.
    async fn relay(&mut self, app: Buffered) {
        let visitor = &mut self.visitor;
        let mut relay = Relay::new(app);
        let both = self.patience.wait(Limit::None, AtOver::Cut, |cx| {
            let carried = relay.poll(cx, visitor);
            if relay.is_half_over() {
                return Poll::Ready(Ok(()));
            }
            carried
        });
        if matches!(both.await, Ok(Ok(()))) {
            let limit = Limit::Idle(self.limits.finish);
            let other = self
                .patience
                .wait(limit, AtOver::Cut, |cx| relay.poll(cx, visitor));
            // How it ended is between the two of them.
            let _ = other.await;
        }
    }

    /// Say that nothing was cut off.
    async fn finish(&mut self) {
        let stream = &mut self.visitor.stream;
        let finish = |cx: &mut Context<'_>| stream.poll_finish(cx);
        let limit = Limit::Total(LINGER);
        let _ = self.patience.wait(limit, AtOver::Ignore, finish).await;
    }

    /// Let a visitor that is still sending read its last answer.
    async fn linger(&mut self) {
        let visitor = &mut self.visitor;
        let mut is_shut = false;
        let mut heard = 0;
        let left = |cx: &mut Context<'_>| {
            if !is_shut {
                is_shut = ready!(Pin::new(&mut visitor.stream).poll_shutdown(cx)).is_ok();
                if !is_shut {
                    return Poll::Ready(());
                }
            }
            while heard < LINGER_BYTES {
                visitor.buffer.consume(visitor.buffer.filled().len());
                match ready!(visitor.poll_fill(cx)) {
                    Ok(read) if read > 0 => heard += read,
                    Ok(_) | Err(_) => break,
                }
            }
            Poll::Ready(())
        };
        let limit = Limit::Total(LINGER);
        let _ = self.patience.wait(limit, AtOver::Ignore, left).await;
    }
}

/// How long the next request's head is, once it is there. One that is too long ends where
/// our patience does. None when none comes: no byte within `until_first`, or not the rest
/// of it within `limit`.
pub(super) async fn next_head<O: Future<Output = ()>>(
    visitor: &mut Buffered,
    patience: &mut Patience<O>,
    until_first: Duration,
    limit: Duration,
) -> Option<usize> {
    let mut searched = 0;
    if visitor.buffer.is_empty() {
        let first = |cx: &mut Context<'_>| visitor.poll_fill(cx);
        let until_first = Limit::Total(until_first);
        let read = patience.wait(until_first, AtOver::Cut, first).await.ok()?;
        if read.is_ok_and(|read| read == 0) || visitor.buffer.is_empty() {
            return None;
        }
    }
    let all = |cx: &mut Context<'_>| {
        loop {
            // A line break before the first line is none of it.
            let filled = visitor.buffer.filled();
            let breaks = filled.iter().take_while(|byte| b"\r\n".contains(byte));
            let breaks = breaks.count();
            if searched == 0 && breaks > 0 {
                visitor.buffer.consume(breaks);
                continue;
            }
            let filled = visitor.buffer.filled();
            if let Some(length) = head::end(filled, &mut searched) {
                return Poll::Ready(Some(length.min(HEAD_BYTES_MAX)));
            }
            if filled.len() >= HEAD_BYTES_MAX {
                return Poll::Ready(Some(HEAD_BYTES_MAX));
            }
            match ready!(visitor.poll_fill(cx)) {
                Ok(read) if read > 0 => {}
                Ok(_) | Err(_) => return Poll::Ready(None),
            }
        }
    };
    let limit = Limit::Total(limit);
    patience.wait(limit, AtOver::Ignore, all).await.ok()?
}

/// A request on its way to the app.
struct Upload {
    transfer: Transfer,
    /// The app takes no more of it.
    is_refused: bool,
}

impl Upload {
    /// Would the app take more of it than has come?
    fn waits_for(&self, visitor: &Buffered) -> bool {
        !self.is_refused && self.transfer.waits_for_more(visitor)
    }

    /// Carry on with it; then wait for the visitor to leave, which is an error.
    fn carry_on(
        &mut self,
        cx: &mut Context<'_>,
        visitor: &mut Buffered,
        app: &mut Buffered,
    ) -> Result<(), Failure> {
        if !self.is_refused && !self.transfer.is_done() {
            match self.transfer.poll(cx, visitor, app) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(())) => {}
                // It may have answered before.
                Poll::Ready(Err(Broken::Sink(_))) => self.is_refused = true,
                Poll::Ready(Err(Broken::Source(_))) => return Err(Failure::Left),
                Poll::Ready(Err(Broken::Malformed(_))) => return Err(Failure::Malformed),
            }
        }
        while !visitor.buffer.is_full() {
            match visitor.poll_fill(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(read)) if read > 0 => {}
                Poll::Ready(Ok(_) | Err(_)) => return Err(Failure::Left),
            }
        }
        Ok(())
    }
}

/// Do these bytes begin as an answer does?
fn may_be_an_answer(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .zip(b"HTTP/1.")
        .all(|(byte, begin)| byte == begin)
}
