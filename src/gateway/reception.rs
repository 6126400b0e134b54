//! A listener: who comes, and to whom they are led.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::buffered::{Buffer, Buffered, Stream};
use super::connection::{self, Visitor, next_head};
use super::desk::Desk;
use super::door::{Door, Named, Names};
use super::framing::Framing;
use super::head::{self, Lines, RequestHead};
use super::headers::Target;
use super::http2;
use super::page::{self, Page};
use super::patience::{AtOver, Limit, Patience, TimeLimits};
use super::places::{FOR_ALL, Place, Places};
use super::tls::{Greeted, Tls};
use super::traffic::{Meter, Sender, Traffic};
use super::transfer::{Passing, Transfer};
use super::workers::Workers;
use super::{Settings, answer::Answer};
use crate::session_urls::Scheme;

/// What to wait when no connection can be accepted, as when files have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections of a listener share.
pub(super) struct Reception {
    behind: Behind,
    tls: Option<Tls>,
    /// What visitors speak who speak in the clear here: something in front of us may
    /// have taken their encryption off.
    scheme: Scheme,
    limits: TimeLimits,
    gives_way: watch::Receiver<bool>,
    places: Arc<Places>,
    workers: Arc<Workers>,
    /// What was said before it was known to whom.
    unknown: Arc<Traffic>,
}

/// Who is behind a listener.
enum Behind {
    /// One session.
    One(Arc<Door>),
    /// Whom a request's host names.
    All { names: Arc<Names>, desk: Desk },
}

impl Reception {
    /// Of a listener for one session.
    pub(super) fn of_one(door: Arc<Door>, settings: &Settings, workers: Arc<Workers>) -> Arc<Self> {
        let places = Arc::clone(&door.places);
        let gives_way = door.gives_way.clone();
        Self::of(Behind::One(door), settings, gives_way, places, workers)
    }

    /// Of a listener for every session that has a name, and for all else.
    pub(super) fn of_all(
        names: Arc<Names>,
        desk: Desk,
        settings: &Settings,
        gives_way: watch::Receiver<bool>,
        workers: Arc<Workers>,
    ) -> Arc<Self> {
        let places = Arc::new(Places::new(FOR_ALL));
        let behind = Behind::All { names, desk };
        Self::of(behind, settings, gives_way, places, workers)
    }

    fn of(
        behind: Behind,
        settings: &Settings,
        gives_way: watch::Receiver<bool>,
        places: Arc<Places>,
        workers: Arc<Workers>,
    ) -> Arc<Self> {
        let scheme = match settings.tls {
            Some(_) => Scheme::Http,
            None => settings.urls.scheme(),
        };
        Arc::new(Self {
            behind,
            tls: settings.tls.clone(),
            scheme,
            limits: settings.limits,
            gives_way,
            places,
            workers,
            unknown: Arc::default(),
        })
    }

    /// Accept connections until aborted.
    pub(super) async fn accept(self: Arc<Self>, listener: Arc<TcpListener>) {
        while let Some(free) = self.places.free().await {
            let accepted = listener.accept().await;
            let given = accepted.and_then(|(stream, from)| {
                let Some(place) = self.places.take(free, from.ip()) else {
                    tracing::debug!("too many connections from {}", from.ip());
                    return Ok(());
                };
                Arc::clone(&self).give(stream, from, place)
            });
            if let Err(error) = given {
                tracing::debug!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    /// Give a connection to the worker whose turn it is.
    fn give(self: Arc<Self>, stream: TcpStream, from: SocketAddr, place: Place) -> io::Result<()> {
        let workers = Arc::clone(&self.workers);
        let (number, worker) = workers.next();
        if number == Workers::own_number() {
            worker.spawn(self.welcome(stream, from, place));
            return Ok(());
        }
        let stream = stream.into_std()?;
        worker.spawn(async move {
            // An error says that it is gone already.
            if let Ok(stream) = TcpStream::from_std(stream) {
                self.welcome(stream, from, place).await;
            }
        });
        Ok(())
    }

    async fn welcome(self: Arc<Self>, stream: TcpStream, from: SocketAddr, place: Place) {
        let (stream, scheme) = match &self.tls {
            None => (Stream::Plain(stream), self.scheme),
            Some(tls) => match tls.greet(stream, self.limits.head).await {
                None => return,
                Some(Greeted::Tls(stream)) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                    return http2::serve(self, *stream, from, place).await;
                }
                Some(Greeted::Tls(stream)) => (Stream::Tls(stream), Scheme::Https),
                Some(Greeted::Plain(stream)) if is_of_this_host(&stream, from) => {
                    (Stream::Plain(stream), self.scheme)
                }
                Some(Greeted::Plain(stream)) => return self.to_https(stream, from).await,
            },
        };
        let visitor = Visitor {
            stream,
            said: Buffer::default(),
            from,
            scheme,
        };
        match &self.behind {
            Behind::One(door) => {
                connection::serve(visitor, Arc::clone(door)).await;
            }
            Behind::All { names, desk } => self.lead(names, desk, visitor, place).await,
        }
    }

    /// Lead a visitor to whom each of its requests is for.
    async fn lead(&self, names: &Arc<Names>, desk: &Desk, mut visitor: Visitor, place: Place) {
        loop {
            let (from, scheme) = (visitor.from, visitor.scheme);
            let mut speaker = self.speaker(visitor);
            let mut patience = Patience::new(std::future::pending());
            let (first, rest) = (self.limits.head, self.limits.head);
            let Some(length) = next_head(&mut speaker, &mut patience, first, rest).await else {
                return;
            };
            let bytes = speaker.buffer.filled().get(..length).unwrap_or_default();
            let (named, to_person) = read(bytes, |head| {
                let named = names.whose(host(head));
                (named, page::is_for_person(head.lines))
            })
            .unwrap_or((Named::Other, false));
            let page = match named {
                Named::Door(door) => match door.places.take_now(from.ip()) {
                    Some(_place) => {
                        visitor = speaker.into_visitor(from, scheme);
                        match connection::serve(visitor, door).await {
                            Some(elsewhere) => visitor = elsewhere,
                            None => return,
                        }
                        continue;
                    }
                    None => Page::crowded(),
                },
                Named::Nobody => Page::nobody(),
                Named::Other => {
                    return desk.serve(speaker.into_visitor(from, scheme), place);
                }
            };
            return self.say(&mut speaker, page.respond(to_person)).await;
        }
    }

    /// Who speaks in the clear from elsewhere is told not to.
    async fn to_https(&self, stream: TcpStream, from: SocketAddr) {
        let visitor = Visitor {
            stream: Stream::Plain(stream),
            said: Buffer::default(),
            from,
            scheme: Scheme::Http,
        };
        let mut speaker = self.speaker(visitor);
        let mut patience = Patience::new(std::future::pending());
        let limit = self.limits.head;
        let Some(length) = next_head(&mut speaker, &mut patience, limit, limit).await else {
            return;
        };
        let bytes = speaker.buffer.filled().get(..length).unwrap_or_default();
        let location = read(bytes, |head| {
            let target = Target::of(head).ok()?;
            let host = std::str::from_utf8(host(head)?).ok()?;
            let query = target.query.map(|query| format!("?{query}"));
            let (path, query) = (target.path, query.unwrap_or_default());
            Some(format!("https://{host}{path}{query}"))
        });
        let mut answer = match location.flatten() {
            Some(location) => {
                let mut answer = Answer::new(StatusCode::PERMANENT_REDIRECT.as_u16());
                answer.line("location", location);
                answer
            }
            None => Page::refused(
                StatusCode::BAD_REQUEST,
                "This server speaks HTTPS alone, and this is no request of HTTP/1.1.",
            )
            .respond(false),
        };
        answer.is_last = true;
        self.say(&mut speaker, answer).await;
    }

    fn speaker(&self, visitor: Visitor) -> Buffered {
        let meter = Meter::new(Arc::clone(&self.unknown), Sender::Visitor);
        Buffered::having_said(visitor.said, visitor.stream, meter)
    }

    /// The last answer on a connection.
    async fn say(&self, to: &mut Buffered, answer: Answer) {
        let mut out = Buffer::default();
        answer.write(true, false, false, out.writer());
        let mut message = Transfer::new(out, Framing::NONE, Passing::All);
        let mut patience = Patience::new(std::future::pending::<()>());
        let limit = Limit::Total(self.limits.head);
        let said = patience.wait(limit, AtOver::Ignore, |cx| message.poll_head(cx, to));
        // Who does not listen misses it.
        let _ = said.await;
        let finish = |cx: &mut std::task::Context<'_>| to.stream.poll_finish(cx);
        let _ = patience.wait(limit, AtOver::Ignore, finish).await;
    }

    /// Until nobody is behind it any more.
    pub(super) fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let (current, finishing) = match &self.behind {
            Behind::One(door) => (Some(door.current.clone()), None),
            Behind::All { desk, .. } => (None, Some(desk.told_to_finish())),
        };
        async move {
            if let Some(mut current) = current {
                // An error says the same.
                let _ = current.wait_for(Option::is_none).await;
            }
            if let Some(finishing) = finishing {
                finishing.await;
            }
        }
    }

    pub(super) const fn limits(&self) -> &TimeLimits {
        &self.limits
    }

    pub(super) fn gives_way(&self) -> watch::Receiver<bool> {
        self.gives_way.clone()
    }

    /// Whom a request that names `host` is for.
    pub(super) fn whose(&self, host: Option<&[u8]>) -> (Named, Option<&Desk>) {
        match &self.behind {
            Behind::One(door) => (Named::Door(Arc::clone(door)), None),
            Behind::All { names, desk } => (names.whose(host), Some(desk)),
        }
    }
}

/// Agents and the command line on this host speak in the clear: nobody is in between.
fn is_of_this_host(stream: &TcpStream, from: SocketAddr) -> bool {
    let from = from.ip().to_canonical();
    let own = stream.local_addr().map(|own| own.ip().to_canonical());
    from.is_loopback() || own.is_ok_and(|own| own == from)
}

fn read<T>(bytes: &[u8], see: impl FnOnce(&RequestHead<'_>) -> T) -> Option<T> {
    let mut storage = head::storage();
    let head = RequestHead::parse(bytes, &mut storage).ok()?;
    Some(see(&head))
}

/// The host that a request names.
fn host<'h>(head: &RequestHead<'h>) -> Option<&'h [u8]> {
    let named = Target::of(head).ok().and_then(|target| target.authority);
    let lines: Lines<'h> = head.lines;
    named.map(str::as_bytes).or_else(|| lines.first("host"))
}
