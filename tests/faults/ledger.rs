//! What servers acknowledged, and what must be true of sessions whatever went wrong.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What the server acknowledged, by session.
#[derive(Debug, Default)]
pub struct Ledger {
    pub sessions: BTreeMap<String, Acknowledged>,
    /// Sessions whose agent was made to stand still: it sees late that its app is gone.
    pub stood_still: BTreeSet<String>,
}

/// What it acknowledged of one session.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// Minutes that were granted.
    pub minutes: u64,
    /// Minutes that may have been granted: the answer was lost.
    pub minutes_perhaps: u64,
    pub cancelled: bool,
}

impl Ledger {
    pub fn created(&mut self, session: &str, minutes: u64) {
        let acknowledged = Acknowledged {
            minutes,
            ..Acknowledged::default()
        };
        self.sessions.insert(session.to_owned(), acknowledged);
    }

    pub fn of(&mut self, session: &str) -> &mut Acknowledged {
        self.sessions.get_mut(session).unwrap()
    }

    /// Those of the `open` sessions that are to be ended by hand: what was cancelled must end
    /// without being asked again.
    pub fn not_cancelled(&self, open: &[Value]) -> Vec<String> {
        let ids = open.iter().map(|session| text(&session["id"]));
        ids.filter(|id| !self.sessions.get(*id).is_some_and(|of| of.cancelled))
            .map(str::to_owned)
            .collect()
    }

    /// What the server shows is what it acknowledged.
    pub fn check(&self, shown: &Value) {
        let acknowledged = &self.sessions[shown["id"].as_str().unwrap()];
        let minutes = shown["timeout"].as_u64().unwrap();
        let most = acknowledged.minutes + acknowledged.minutes_perhaps;
        assert!(
            (acknowledged.minutes..=most).contains(&minutes),
            "acknowledged {acknowledged:?}, shown {shown}"
        );
        assert!(
            !acknowledged.cancelled || ["stopping", "ended"].contains(&text(&shown["status"])),
            "cancelled, but {shown}"
        );
        if shown["status"] == "running" {
            let moment = |key: &str| text(&shown[key]).parse::<jiff::Timestamp>().unwrap();
            let span =
                moment("timeout_end").as_millisecond() - moment("started_at").as_millisecond();
            let granted = i64::try_from(minutes).unwrap() * 60_000;
            assert!((span - granted).abs() < 2_100, "{span} ms of {shown}");
        }
    }
}

pub fn every_end_has_a_reason(sessions: &[Value]) {
    for session in sessions {
        assert_eq!(session["state"], "ended", "{session}");
        let (reason, error) = (
            text(&session["ending"]["reason"]),
            &session["ending"]["error"],
        );
        let needs_a_sentence = ["failed", "lost"].contains(&reason);
        assert!(!needs_a_sentence || error.is_string(), "{session}");
        let span = text(&session["gpu_event"]["span"]);
        assert!(["not_held", "closed"].contains(&span), "{session}");
    }
}

/// `started` has the session of each start.
pub fn every_app_was_started_once_at_most(started: &[String], sessions: &[Value]) {
    let mut starts: BTreeMap<&str, usize> = BTreeMap::new();
    for session in started {
        *starts.entry(session).or_default() += 1;
    }
    for (session, count) in &starts {
        assert_eq!(*count, 1, "{session} was started {count} times");
        let on_record = sessions.iter().find(|of| of["id"] == **session);
        let on_record = on_record.unwrap_or_else(|| panic!("{session} is not on record"));
        assert_eq!(
            on_record["gpu_event"]["span"], "closed",
            "its app was started for nothing: {on_record}"
        );
    }
    for session in sessions.iter().filter(|of| of["started_at"].is_i64()) {
        assert!(starts.contains_key(text(&session["id"])), "{session}");
    }
}

pub fn no_gpu_was_held_twice(sessions: &[Value]) {
    let mut by_gpu: BTreeMap<&str, Vec<(i64, i64, &Value)>> = BTreeMap::new();
    for session in sessions {
        let event = &session["gpu_event"];
        if let (Some(gpu), Some(start)) = (event["gpu"].as_str(), event["start"].as_i64()) {
            let end = start + event["held"].as_i64().unwrap();
            by_gpu.entry(gpu).or_default().push((start, end, session));
        }
    }
    for events in by_gpu.values_mut() {
        events.sort_by_key(|(start, end, _)| (*start, *end));
        for pair in events.windows(2) {
            let [(_, end, one), (start, _, next)] = pair else {
                continue;
            };
            assert!(end <= start, "{one} overlaps {next}");
        }
    }
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}
