//! What goes over the wire, as far as this client reads it. Everything that it could
//! do without is optional, so that an older or newer server is understood too.

use std::collections::BTreeMap;

use dwell_core::machine::{Access, AppCommand};
use dwell_core::time::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

/// Any JSON; it is passed on, not looked into.
pub type Document = serde_json::Value;

/// A request for a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NewSession {
    /// Of this machine; otherwise from `command`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// What to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<AppCommand>,
    /// On which GPU type; the machine's or the server's default if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// For how many minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// The port of an app that cannot be told one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where it starts; absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Added to its environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The path of the ready probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_path: Option<String>,
    /// Who may use the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    /// The container image that it runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether little can be written in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// The capabilities that it keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
}

/// A session that was made.
#[derive(Clone, Debug, Deserialize)]
pub struct Created {
    /// Its id.
    pub session_id: String,
}

/// How far a session is, as the wire says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// No GPU of its type is free.
    Queued,
    /// Its app does not answer yet.
    Starting,
    /// Its app answers.
    #[default]
    Running,
    /// It is being ended.
    Stopping,
    /// It is over.
    Ended,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in SessionResponse")]
pub struct Session {
    pub id: String,
    pub gpu: String,
    #[serde(deserialize_with = "moment")]
    pub created_at: Option<Timestamp>,
    pub url: Option<String>,
    pub timeout: Option<u32>,
    #[serde(deserialize_with = "moment")]
    pub timeout_end: Option<Timestamp>,
    pub machine_id: Option<String>,
    pub status: Status,
    pub user_id: Option<String>,
    pub org_id: Option<String>,
    #[serde(deserialize_with = "moment")]
    pub started_at: Option<Timestamp>,
    #[serde(deserialize_with = "moment")]
    pub ended_at: Option<Timestamp>,
    pub end_reason: Option<String>,
    pub error: Option<String>,
    pub queue_position: Option<u32>,
    pub job: Option<Job>,
    pub cost: Option<f64>,
}

/// What a cluster's engine runs for a session.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in the API's Job")]
pub struct Job {
    pub launcher: String,
    pub id: String,
    #[serde(deserialize_with = "moment")]
    pub starts_at: Option<Timestamp>,
    pub timeline: Vec<Said>,
}

/// Something that an engine said of a job.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in the API's Said")]
pub struct Said {
    #[serde(deserialize_with = "moment")]
    pub at: Option<Timestamp>,
    pub words: String,
}

impl Job {
    /// The last of its engine's words.
    #[must_use]
    pub fn words(&self) -> &str {
        self.timeline.last().map_or("", |said| &said.words)
    }
}

/// What a machine is, or is to be; what is `None` is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "each is what it is in API's machine")]
pub struct MachineSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<AppCommand>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<String>>,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in the API")]
pub struct MachineRow {
    pub id: String,
    pub name: String,
    pub command: Option<AppCommand>,
    pub port: Option<u16>,
    pub workdir: Option<String>,
    pub environment: Option<BTreeMap<String, String>>,
    pub gpu: Option<String>,
    pub timeout: Option<u32>,
    pub ready_path: Option<String>,
    pub access: Option<Access>,
    pub image: Option<String>,
    pub machine_version_id: Option<String>,
    pub version: Option<u32>,
    #[serde(deserialize_with = "moment")]
    pub created_at: Option<Timestamp>,
    #[serde(deserialize_with = "moment")]
    pub updated_at: Option<Timestamp>,
}

/// One version of a machine.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in the API")]
pub struct VersionRow {
    pub id: String,
    pub version: Option<u32>,
    pub command: Option<AppCommand>,
    pub gpu: Option<String>,
    pub timeout: Option<u32>,
    #[serde(deserialize_with = "moment")]
    pub created_at: Option<Timestamp>,
}

/// A request for a key. One that names no user is for who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NewKey {
    /// What it is called.
    pub name: String,
    /// The user it speaks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The organisation it acts in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// May it make keys for others?
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
}

/// A key that was made; the only time that it is shown.
#[derive(Clone, Debug, Deserialize)]
pub struct KeyCreated {
    /// The secret.
    pub key: String,
}

/// A key, without its secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in the API")]
pub struct KeyRow {
    pub id: String,
    pub name: String,
    pub user_id: Option<String>,
    pub org_id: Option<String>,
    pub admin: bool,
    #[serde(deserialize_with = "moment")]
    pub created_at: Option<Timestamp>,
}

/// A request for a share link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NewShare {
    /// What it is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `view`, or `use` when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<&'static str>,
    /// For how many minutes it is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minutes: Option<u32>,
}

/// A share link that was made; the only time that it is shown.
#[derive(Clone, Debug, Deserialize)]
pub struct ShareCreated {
    /// The link; none while the session has no URL.
    pub url: Option<String>,
    /// Its secret.
    pub token: String,
}

/// A share link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in the API")]
pub struct ShareRow {
    pub id: String,
    pub name: String,
    pub scope: String,
    pub created_by: String,
    pub good: bool,
    #[serde(deserialize_with = "moment")]
    pub expires_at: Option<Timestamp>,
    #[serde(deserialize_with = "moment")]
    pub revoked_at: Option<Timestamp>,
    pub visits: u32,
    pub recent_visits: Vec<ShareVisit>,
}

/// A visit by a share link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in the API")]
pub struct ShareVisit {
    pub from: String,
    #[serde(deserialize_with = "moment")]
    pub at: Option<Timestamp>,
}

/// What opens a session to a program.
#[derive(Clone, Debug, Deserialize)]
pub struct SessionToken {
    /// The secret.
    pub token: String,
}

/// What was used.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// By GPU type.
    pub usage: Vec<UsageRow>,
    /// What it all cost, in dollars.
    pub total_cost: f64,
}

/// What was used of one GPU type.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct UsageRow {
    /// The type.
    pub gpu: String,
    /// For how long GPUs of it were held, in seconds.
    pub usage_in_sec: f64,
    /// What that cost, in dollars.
    pub cost: f64,
}

/// What there is of a GPU type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GpuStanding {
    /// The type.
    pub gpu: String,
    /// Sessions in the server's own queue.
    pub queued: usize,
    /// At each launcher that has some.
    pub launchers: Vec<GpuPlace>,
}

/// What a launcher has of a GPU type, as far as it tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each is what it is in the API's GpuPlace")]
pub struct GpuPlace {
    pub launcher: String,
    pub total: Option<u32>,
    pub free: Option<u32>,
    pub waiting: Option<u32>,
    pub sessions: usize,
    pub error: Option<String>,
}

/// What a server says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct OpenApi {
    /// Its title and version.
    pub info: OpenApiInfo,
}

/// See [`OpenApi`].
#[derive(Clone, Debug, Deserialize)]
pub struct OpenApiInfo {
    /// `Dwell`, for ours.
    pub title: String,
    /// Its version.
    pub version: String,
}

/// The sentence of an error's body: `{"detail": …}`, a sentence or the list of what
/// does not fit.
#[must_use]
pub fn detail(body: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Body {
        detail: Detail,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Detail {
        Sentence(String),
        List(Vec<Misfit>),
    }
    #[derive(Deserialize)]
    struct Misfit {
        #[serde(default)]
        loc: Vec<serde_json::Value>,
        msg: String,
    }
    let body: Body = serde_json::from_str(body).ok()?;
    match body.detail {
        Detail::Sentence(sentence) => Some(sentence),
        Detail::List(misfits) => {
            let sentences = misfits.into_iter().map(|Misfit { loc, msg }| {
                let names = loc.iter().skip(1).map(|part| {
                    let name = part.as_str().map(ToOwned::to_owned);
                    name.unwrap_or_else(|| part.to_string())
                });
                let names: Vec<_> = names.collect();
                if names.is_empty() {
                    msg
                } else {
                    format!("{}: {msg}", names.join("."))
                }
            });
            Some(sentences.collect::<Vec<_>>().join("; "))
        }
    }
}

/// An RFC 3339 moment. One that is not understood is none.
fn moment<'de, D: Deserializer<'de>>(source: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(source)?;
    Ok(text
        .and_then(|text| text.parse::<jiff::Timestamp>().ok())
        .map(|moment| Timestamp(moment.as_millisecond())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_servers_own_words() {
        assert_eq!(
            detail(r#"{"detail": "Machine not found"}"#).as_deref(),
            Some("Machine not found")
        );
        assert_eq!(
            detail(r#"{"detail": [{"loc": ["body", "minutes"], "msg": "too few", "type": "x"}, {"loc": ["body"], "msg": "no JSON", "type": "x"}]}"#)
                .as_deref(),
            Some("minutes: too few; no JSON")
        );
        assert_eq!(detail("<html>"), None);
    }

    #[test]
    fn a_session_of_an_older_server_is_understood() {
        let session: Session = serde_json::from_str(
            r#"{"id": "a", "gpu": "CPU", "created_at": "2026-11-23T12:00:00.000Z", "url": null, "timeout": null}"#,
        )
        .unwrap();
        assert_eq!(session.status, Status::Running);
        assert_eq!(session.created_at, Some(Timestamp(1_795_435_200_000)));
    }

    #[test]
    fn what_is_not_said_is_not_on_the_wire() {
        let new = NewSession {
            command: Some(AppCommand::Argv(vec!["app".into()])),
            ..NewSession::default()
        };
        assert_eq!(
            serde_json::to_string(&new).unwrap(),
            r#"{"command":["app"]}"#
        );
    }
}
