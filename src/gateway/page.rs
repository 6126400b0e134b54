//! What the gateway says itself: a page for people, JSON for programs.

use std::borrow::Cow;

use dwell_core::session::{EndReason, Ending};
use hyper::StatusCode;

use super::answer::Answer;
use super::head::Lines;
use crate::keys::KeyError;

/// Something to say.
pub(super) struct Page {
    status: StatusCode,
    title: &'static str,
    detail: String,
    /// How far the session is, for programs.
    session: Option<&'static str>,
    /// What is asked will soon be there.
    is_soon: bool,
    /// Nothing more will come on this connection.
    is_last: bool,
    /// What people are told in the place of the detail, as HTML.
    for_people: Option<String>,
}

impl Page {
    fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            title,
            detail: detail.into(),
            session: None,
            is_soon: false,
            is_last: false,
            for_people: None,
        }
    }

    pub(super) fn starting() -> Self {
        Self {
            session: Some("starting"),
            is_soon: true,
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Starting",
                "This session is starting. Its app does not answer yet.",
            )
        }
    }

    pub(super) fn stopping() -> Self {
        Self {
            session: Some("stopping"),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Stopping",
                "This session is being ended.",
            )
        }
    }

    pub(super) fn ended(ending: &Ending) -> Self {
        let reason = match ending.reason {
            EndReason::Cancelled => "it was stopped",
            EndReason::TimedOut => "its time was up",
            EndReason::Idle => "nobody used it",
            EndReason::Exited => "its app exited by itself",
            EndReason::Failed => "it failed",
            EndReason::Lost => "its host was not heard of any more",
            EndReason::OverBudget => "its owner's budget was spent",
        };
        let mut detail = format!("This session has ended: {reason}.");
        if let Some(error) = &ending.error {
            detail.push(' ');
            detail.push_str(error);
        }
        Self {
            session: Some("ended"),
            is_last: true,
            ..Self::new(StatusCode::GONE, "Ended", detail)
        }
    }

    /// For who comes with a connection to a session that was here before.
    pub(super) fn over() -> Self {
        Self {
            session: Some("ended"),
            is_last: true,
            ..Self::new(StatusCode::GONE, "Ended", "This session has ended.")
        }
    }

    pub(super) fn unreachable() -> Self {
        Self {
            session: Some("running"),
            ..Self::new(
                StatusCode::BAD_GATEWAY,
                "No answer",
                "This session is running, but its app does not accept connections. It may be \
                 restarting: try again in a moment, or look at the session's log.",
            )
        }
    }

    pub(super) fn broken_off() -> Self {
        Self {
            session: Some("running"),
            ..Self::new(
                StatusCode::BAD_GATEWAY,
                "No answer",
                "This session's app closed the connection before it answered, or its answer \
                 was not HTTP. The session's log may say why.",
            )
        }
    }

    pub(super) fn too_slow() -> Self {
        Self {
            session: Some("running"),
            is_last: true,
            ..Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "No answer",
                "This session's app has been asked, and has not answered in time.",
            )
        }
    }

    /// For who is not let in, and can sign in there.
    pub(super) fn private(error: KeyError, sign_in: &str) -> Self {
        let sentence = match error {
            KeyError::Missing => "This session is private.",
            KeyError::Unknown => {
                "This session is private. What you came with does not open it, or no longer."
            }
            KeyError::Revoked => "This session is private. What you came with was revoked.",
        };
        let for_people = format!(
            "<p>{sentence}</p><p><a href=\"{}\">Sign in</a> with a key of its owner, or come \
             by a link that was shared with you.</p>",
            escape(sign_in)
        );
        Self {
            for_people: Some(for_people),
            ..Self::new(StatusCode::UNAUTHORIZED, "Private", error.to_string())
        }
    }

    /// For who came by a link that lets nobody do more.
    pub(super) fn only_to_look_at() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Only to look at",
            "The link that you came by lets you look at this session and change nothing. Ask \
             its owner for another one.",
        )
    }

    /// For who names a session that is not here. Whether it ever was is not said.
    pub(super) fn nobody() -> Self {
        Self {
            is_last: true,
            ..Self::new(
                StatusCode::NOT_FOUND,
                "Nothing here",
                "There is no session at this address, or not any more.",
            )
        }
    }

    pub(super) fn crowded() -> Self {
        Self {
            is_last: true,
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Too many visitors",
                "This session has as many connections as it can have. Try again later.",
            )
        }
    }

    pub(super) fn refused(status: StatusCode, sentence: &'static str) -> Self {
        Self {
            is_last: true,
            ..Self::new(status, "Not possible", sentence)
        }
    }

    /// The page as a response, to a person or to a program.
    pub(super) fn respond(self, to_person: bool) -> Answer {
        let mut answer = Answer::new(self.status.as_u16());
        if to_person {
            answer.body("text/html; charset=utf-8", self.html());
        } else {
            answer.body("application/json", self.json());
        }
        answer.line("cache-control", "no-store");
        answer.line(
            "content-security-policy",
            "default-src 'none'; style-src 'unsafe-inline'",
        );
        if self.is_soon {
            answer.line("retry-after", "1");
        }
        if self.status == StatusCode::UNAUTHORIZED {
            answer.line("www-authenticate", "Bearer");
        }
        answer.is_last = self.is_last;
        answer
    }

    fn json(&self) -> String {
        let mut json = serde_json::json!({ "detail": self.detail });
        if let Some(session) = self.session {
            json["status"] = session.into();
        }
        json.to_string()
    }

    fn html(&self) -> String {
        let refresh = if self.is_soon {
            "<meta http-equiv=\"refresh\" content=\"1\">"
        } else {
            ""
        };
        let said = match &self.for_people {
            Some(said) => Cow::Borrowed(said),
            None => Cow::Owned(format!("<p>{}</p>", escape(&self.detail))),
        };
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">{refresh}\
             <title>{title}</title><style>{STYLE}</style></head>\n\
             <body><main><h1>{title}</h1>{said}</main></body></html>\n",
            title = escape(self.title),
        )
    }
}

pub(crate) const STYLE: &str = ":root{color-scheme:light dark}\
    body{margin:0;min-height:100vh;display:grid;place-items:center;\
    font:1rem/1.5 system-ui,sans-serif}\
    main{max-width:34rem;padding:2rem}h1{font-size:1.5rem;font-weight:600;margin:0 0 .5rem}\
    p{margin:0 0 .5rem;opacity:.8;overflow-wrap:anywhere}";

/// Does a person ask, by a browser? Only those ask for HTML by name.
pub(super) fn is_for_person(request: Lines<'_>) -> bool {
    request.all("accept").any(asks_for_html)
}

pub(super) fn asks_for_html(accept: &[u8]) -> bool {
    accept
        .windows(9)
        .any(|word| word.eq_ignore_ascii_case(b"text/html"))
}

pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_app_says_cannot_become_markup() {
        let page = Page::ended(&Ending::failed("<script>'x' & \"y\"".to_owned()));
        let html = page.html();
        assert!(html.contains("&lt;script&gt;&#39;x&#39; &amp; &quot;y&quot;"));
        assert!(!html.contains("<script>"));
    }

    #[test]
    fn people_are_told_that_a_session_is_private_and_programs_what_their_key_lacks() {
        for error in [KeyError::Missing, KeyError::Unknown, KeyError::Revoked] {
            let page = Page::private(error, "/signin?session=\"><script>");
            let detail = serde_json::json!({"detail": error.to_string()});
            assert_eq!(page.json(), detail.to_string());
            let html = page.html();
            assert_eq!(html.matches("This session is private.").count(), 1);
            assert!(!html.contains(&error.to_string()), "{html}");
            assert!(html.contains("href=\"/signin?session=&quot;&gt;&lt;script&gt;\""));
        }
    }
}
