//! What is to become of a visitor's request, and of its app's answer, by their heads
//! alone.

use std::sync::Arc;

use dwell_core::machine::Access;
use dwell_core::share::Scope;
use hyper::StatusCode;

use super::answer::Answer;
use super::buffered::Buffer;
use super::connection::Visit;
use super::framing::{Framing, LengthError};
use super::head::{self, HeadError, RequestHead, ResponseHead};
use super::headers::{self, Target, Terms, Way};
use super::page::{self, Page};
use super::pool::Pool;
use super::route::{Route, RouteStatus};
use super::transfer::Passing;
use super::{cors, credentials};
use crate::seals::Grant;
use crate::session_urls::Scheme;

/// What of a request still matters once its head has been passed on.
#[derive(Debug)]
pub(super) struct Asked {
    /// It speaks HTTP/1.1, and not 1.0.
    pub(super) is_1_1: bool,
    /// It would have its connection kept.
    pub(super) keeps_alive: bool,
    /// It asks for the head alone.
    pub(super) is_head: bool,
    /// To do it twice is to do it once.
    pub(super) is_safe: bool,
    /// It takes header lines behind the body.
    pub(super) wants_trailers: bool,
    /// It would go on in another protocol.
    pub(super) would_switch: bool,
    /// It sends its body when it is told to.
    pub(super) expects_continue: bool,
    /// A person asks, by a browser.
    pub(super) to_person: bool,
    /// The other origin that it comes from.
    pub(super) origin: Option<Vec<u8>>,
    /// Where its body ends.
    pub(super) body: Framing,
    /// By what it was let in, where not everybody is.
    pub(super) by: Option<Grant>,
}

/// What is to become of a request.
#[derive(Debug)]
pub(super) enum Course {
    /// Nothing can be said that would be understood.
    Close,
    /// It is not for this session.
    Elsewhere,
    /// The gateway answers it.
    Answer(Answer),
    /// Its app does, which is to see this head.
    Pass { app: Arc<Pool>, head: Buffer },
}

/// What is to become of the request with this head.
pub(super) fn decide(visit: &Visit, bytes: &[u8]) -> (Asked, Course) {
    let mut storage = head::storage();
    let head = match RequestHead::parse(bytes, &mut storage) {
        Ok(head) => head,
        // Who speaks HTTP/2 would not understand an answer in HTTP/1.1.
        Err(HeadError::Version) if bytes.starts_with(b"PRI ") => {
            return (Asked::unread(), Course::Close);
        }
        Err(HeadError::TooLarge) => {
            return refused(
                Asked::unread(),
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "The head of this request is too large.",
            );
        }
        Err(HeadError::Version | HeadError::Malformed) => {
            return refused(
                Asked::unread(),
                StatusCode::BAD_REQUEST,
                "This is not a request of HTTP/1.1.",
            );
        }
    };
    let mut asked = Asked::of(&head);
    match Framing::of_request(&head) {
        Ok(body) => asked.body = body,
        Err(LengthError::Ambiguous) => {
            let sentence = "It is not certain where the body of this request ends.";
            return refused(asked, StatusCode::BAD_REQUEST, sentence);
        }
        Err(LengthError::Coding) => {
            let sentence = "The only transfer coding that is understood here is chunked.";
            return refused(asked, StatusCode::NOT_IMPLEMENTED, sentence);
        }
    }
    // Nothing may follow what could have been longer to another reader.
    if matches!(asked.body, Framing::Chunked(_)) && head.lines.has("content-length") {
        asked.keeps_alive = false;
    }
    if head.method == "CONNECT" {
        let sentence = "This is no forward proxy: CONNECT is not possible here.";
        return refused(asked, StatusCode::METHOD_NOT_ALLOWED, sentence);
    }
    let hosts = head.lines.all("host").count();
    let is_one = head.lines.first("host").is_none_or(headers::is_one_host);
    if hosts > 1 || (hosts == 0 && head.is_1_1) || !is_one {
        return refused(
            asked,
            StatusCode::BAD_REQUEST,
            "A request must have exactly one Host header, which names one host.",
        );
    }
    let Ok(target) = Target::of(&head) else {
        return refused(
            asked,
            StatusCode::BAD_REQUEST,
            "What this request asks for is no path.",
        );
    };
    let host = target.authority.map(str::as_bytes);
    if visit.is_elsewhere(host.or_else(|| head.lines.first("host"))) {
        return (asked, Course::Elsewhere);
    }
    if let Some(preflight) = cors::preflight(&head) {
        return (asked, Course::Answer(preflight));
    }
    match route(visit, &head, target, &mut asked) {
        Ok(course) => (asked, course),
        Err(page) => {
            let answer = own(page, &asked);
            (asked, Course::Answer(answer))
        }
    }
}

/// A page of ours as the answer to this request.
pub(super) fn own(page: Page, asked: &Asked) -> Answer {
    let mut answer = page.respond(asked.to_person);
    if let Some(origin) = &asked.origin {
        answer.allow(origin);
    }
    answer
}

fn refused(asked: Asked, status: StatusCode, sentence: &'static str) -> (Asked, Course) {
    let answer = own(Page::refused(status, sentence), &asked);
    (asked, Course::Answer(answer))
}

impl Asked {
    fn of(head: &RequestHead<'_>) -> Self {
        let lines = head.lines;
        let keeps_alive = if head.is_1_1 {
            !lines.has_token("connection", "close")
        } else {
            lines.has_token("connection", "keep-alive")
        };
        Self {
            is_1_1: head.is_1_1,
            keeps_alive,
            is_head: head.method == "HEAD",
            is_safe: ["GET", "HEAD", "OPTIONS"].contains(&head.method),
            wants_trailers: lines.has_token("te", "trailers"),
            would_switch: headers::wanted_protocol(lines).is_some(),
            expects_continue: head.is_1_1 && lines.has_token("expect", "100-continue"),
            to_person: page::is_for_person(lines),
            origin: cors::other_origin(lines).map(<[u8]>::to_vec),
            body: Framing::NONE,
            by: None,
        }
    }

    /// One whose head could not be read, and so not where it ends either.
    fn unread() -> Self {
        Self {
            is_1_1: true,
            keeps_alive: false,
            is_head: false,
            is_safe: false,
            wants_trailers: false,
            would_switch: false,
            expects_continue: false,
            to_person: false,
            origin: None,
            body: Framing::ToEnd,
            by: None,
        }
    }
}

/// To the app, or what there is to say instead.
fn route(
    visit: &Visit,
    head: &RequestHead<'_>,
    target: Target<'_>,
    asked: &mut Asked,
) -> Result<Course, Page> {
    let backend = visit.current.borrow().clone();
    let Some(backend) = backend.filter(|backend| backend.route.session == visit.session) else {
        return Err(Page::over());
    };
    if backend.route.access == Access::Private
        && let Some(entry) = pass_door(visit, &backend.route, head, target, asked)?
    {
        return Ok(Course::Answer(entry));
    }
    let app = match (&backend.route.status, &backend.app) {
        (RouteStatus::Starting, _) => return Err(Page::starting()),
        (RouteStatus::Stopping, _) => return Err(Page::stopping()),
        (RouteStatus::Ended(ending), _) => return Err(Page::ended(ending)),
        (RouteStatus::Running(_), None) => return Err(Page::unreachable()),
        (RouteStatus::Running(_), Some(app)) => Arc::clone(app),
    };
    let way = Way {
        from: visit.from.ip(),
        app: app.upstream().address(),
        scheme: visit.scheme.as_str(),
    };
    let mut out = Buffer::default();
    headers::for_app(
        head,
        target,
        visit.admission(),
        way,
        &asked.body,
        out.writer(),
    );
    Ok(Course::Pass { app, head: out })
}

/// What is to become of an app's answer.
#[derive(Debug)]
pub(super) enum Reply {
    /// The visitor may see this, and another answer follows.
    Interim(Buffer),
    /// The visitor sees this, and both ends then speak another protocol.
    Switch(Buffer),
    /// It is the answer.
    Whole(Whole),
}

/// An app's answer as its visitor is to see it.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) status: u16,
    pub(super) head: Buffer,
    pub(super) framing: Framing,
    pub(super) passing: Passing,
    /// The visitor's connection is kept.
    pub(super) keeps_visitor: bool,
    /// The app's connection is kept.
    pub(super) keeps_app: bool,
}

/// What is to become of the answer with this head. None if it is none.
pub(super) fn reply(asked: &Asked, bytes: &[u8], gives_way: bool) -> Option<Reply> {
    let mut storage = head::storage();
    let head = ResponseHead::parse(bytes, &mut storage).ok()?;
    let mut out = Buffer::default();
    let mut terms = Terms {
        is_1_1: asked.is_1_1,
        keeps_alive: true,
        is_chunked: false,
        switches: head.status == 101,
    };
    if head.status == 101 {
        // An app that switches unasked speaks what its visitor does not.
        if !asked.would_switch {
            return None;
        }
        headers::for_visitor(&head, terms, out.writer());
        out.writer().extend_from_slice(b"\r\n");
        return Some(Reply::Switch(out));
    }
    if head.status < 200 {
        // That it may go on the visitor has heard from us.
        if head.status != 100 && asked.is_1_1 {
            headers::for_visitor(&head, terms, out.writer());
            out.writer().extend_from_slice(b"\r\n");
        }
        return Some(Reply::Interim(out));
    }
    let framing = Framing::of_response(&head, asked.is_head).ok()?;
    let has_length = matches!(framing, Framing::Length(_));
    let passing = match (&framing, asked.is_1_1) {
        (Framing::Length(_), _) | (Framing::ToEnd, false) => Passing::All,
        (Framing::ToEnd, true) => Passing::InChunks,
        (Framing::Chunked(_), false) => Passing::Content,
        (Framing::Chunked(_), true) if asked.wants_trailers => Passing::All,
        (Framing::Chunked(_), true) => Passing::NoTrailers,
    };
    // To who knows no chunks the end of the connection is the end of the body.
    terms.keeps_alive = asked.keeps_alive && !gives_way && (has_length || asked.is_1_1);
    terms.is_chunked = !has_length && asked.is_1_1;
    headers::for_visitor(&head, terms, out.writer());
    if let Some(origin) = &asked.origin
        && !cors::is_settled(head.lines)
    {
        cors::allow(origin, out.writer());
    }
    out.writer().extend_from_slice(b"\r\n");
    let keeps_app = if head.is_1_1 {
        !head.lines.has_token("connection", "close")
    } else {
        head.lines.has_token("connection", "keep-alive")
    };
    Some(Reply::Whole(Whole {
        status: head.status,
        head: out,
        keeps_app: keeps_app && framing != Framing::ToEnd,
        framing,
        passing,
        keeps_visitor: terms.keeps_alive,
    }))
}

/// Only who may passes a private session's door. A person who came by what stands in the
/// address is sent on, with a pass and without that.
fn pass_door(
    visit: &Visit,
    route: &Route,
    head: &RequestHead<'_>,
    target: Target<'_>,
    asked: &mut Asked,
) -> Result<Option<Answer>, Page> {
    let at = credentials::At {
        session: visit.session,
        owner: &route.owner,
        address: visit.address(),
        scheme: visit.scheme,
        from: visit.from.ip(),
    };
    let clean_query = target.query.and_then(credentials::strip_query);
    let clean_query = clean_query.as_deref().or(target.query).unwrap_or_default();
    let clean = credentials::with_query(target.path, clean_query);
    let passage = credentials::admit(visit.admission(), at, target.query, head.lines)
        .map_err(|error| Page::private(error, &visit.sign_in(&clean)))?;
    let grant = passage.admitted.grant;
    asked.by = Some(grant);
    let only_looks = asked.is_safe && !asked.would_switch;
    if passage.admitted.scope == Scope::View && !only_looks {
        return Err(Page::only_to_look_at());
    }
    // A path that begins with two slashes, of either kind, would name another host.
    let is_here = !target.path.starts_with("//") && !target.path.starts_with("/\\");
    if !(passage.is_in_query && asked.to_person && head.method == "GET" && is_here) {
        return Ok(None);
    }
    let mut answer = Answer::new(303);
    answer.line("set-cookie", pass_cookie(visit, grant));
    answer.line("location", clean);
    answer.line("cache-control", "no-store");
    answer.line("referrer-policy", "no-referrer");
    if let Some(origin) = &asked.origin {
        answer.allow(origin);
    }
    Ok(Some(answer))
}

/// By TLS a browser keeps it in a frame of another site too, apart for each such site.
fn pass_cookie(visit: &Visit, grant: Grant) -> String {
    let name = credentials::own_cookie(visit.address(), visit.scheme);
    let pass = visit.admission().pass(visit.session, grant);
    let manner = match visit.scheme {
        Scheme::Http => "SameSite=Lax",
        Scheme::Https => "Secure; SameSite=None; Partitioned",
    };
    format!("{name}={pass}; Path=/; HttpOnly; {manner}")
}
