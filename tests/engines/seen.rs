//! What users see of sessions in jobs of a cluster, whichever engine it has.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::Api;

pub async fn served(api: &Api, session: &Value) -> String {
    let url = session["url"].as_str().unwrap();
    let answer = api.get(url).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.text
}

/// What its engine said of its job.
pub fn words(session: &Value) -> Vec<String> {
    let timeline = session["job"]["timeline"].as_array();
    let said = timeline.into_iter().flatten();
    said.map(|said| said["words"].as_str().unwrap().to_owned())
        .collect()
}

pub fn job_of(session: &Value) -> String {
    session["job"]["id"].as_str().unwrap().to_owned()
}

/// Once it has a job.
pub async fn with_job(api: &Api, id: &str) -> String {
    let has_one = |session: &Value| session["job"].is_object() || session["status"] == "ended";
    job_of(&api.until(id, has_one).await)
}

/// Once it waits in its engine's queue.
pub async fn queued(api: &Api, id: &str) -> Value {
    let waits = |session: &Value| session["status"] == "queued" && session["job"].is_object();
    api.until(id, waits).await
}

pub fn sentence(session: &Value) -> &str {
    let error = session["error"].as_str();
    error.unwrap_or_else(|| panic!("no sentence: {session}"))
}

/// That its engine ended it, and its agent heard so.
pub fn was_told_to_end(session: &Value) {
    assert_eq!(session["end_reason"], "failed", "{session}");
    assert!(sentence(session).contains("told to end"), "{session}");
}

/// Once it has ended, of which more is known than that it takes long.
pub async fn ended_within(api: &Api, id: &str, most: Duration) -> Value {
    let began = Instant::now();
    loop {
        let session = api.session(id).await;
        if session["status"] == "ended" {
            return session;
        }
        assert!(began.elapsed() < most, "still {session}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The app's lines.
pub async fn log(api: &Api, session: &str) -> Vec<String> {
    let answer = api
        .get(&format!("/v2/stream-logs?session_id={session}"))
        .await;
    let lines = answer.text.lines().filter_map(|line| {
        let line: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
        Some(line["message"].as_str()?.to_owned())
    });
    lines.collect()
}

pub async fn extended(api: &Api, id: &str, minutes: u32) {
    let path = format!("/session/{id}/increase-timeout");
    let answer = api.post(&path, json!({"minutes": minutes})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Its GPU event is closed, and not longer than the session.
pub async fn event_is_true(api: &Api, id: &str) {
    let list = api.get("/sessions?include_ended=true").await.json();
    let list = list.as_array().unwrap();
    let shown = list.iter().find(|session| session["id"] == *id);
    let shown = shown.unwrap_or_else(|| panic!("{id} is not listed"));
    let moment = |key: &str| -> Option<jiff::Timestamp> { shown[key].as_str()?.parse().ok() };
    match (moment("start_time"), moment("end_time")) {
        (None, None) => {}
        (Some(start), Some(end)) => {
            let (created, ended) = (moment("created_at").unwrap(), moment("ended_at").unwrap());
            // A wall clock's moments are rounded.
            let slack = jiff::SignedDuration::from_secs(2);
            assert!(start + slack >= created && end <= ended + slack, "{shown}");
        }
        _ => panic!("its event is not closed: {shown}"),
    }
}
