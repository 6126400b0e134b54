//! Sessions and GPU events as answers write them.

use dwell_core::job::Job;
use dwell_core::session::{EndReason, Session, State};
use dwell_core::time::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::fields::DateTime;
use crate::session_urls::SessionUrls;
use crate::store::SessionRecord;

/// The clients' enumerations are closed and share no other value. It says nothing
/// about where a session runs.
const GPU_PROVIDER: &str = "modal";

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum SessionStatus {
    /// No GPU of its type is free yet.
    Queued,
    /// Its app does not answer yet.
    Starting,
    /// Its app answers.
    Running,
    /// Its processes are being ended.
    Stopping,
    /// It is over.
    Ended,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = EndReason)]
pub(super) enum EndReasonName {
    /// Someone asked for it.
    Cancelled,
    /// Its time was up.
    TimedOut,
    /// Nobody used it.
    Idle,
    /// Its app exited by itself.
    Exited,
    /// It never ran, or was broken.
    Failed,
    /// Its host was not heard of any more.
    Lost,
    /// Its owner's money was spent.
    OverBudget,
}

impl From<EndReason> for EndReasonName {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Cancelled => Self::Cancelled,
            EndReason::TimedOut => Self::TimedOut,
            EndReason::Idle => Self::Idle,
            EndReason::Exited => Self::Exited,
            EndReason::Failed => Self::Failed,
            EndReason::Lost => Self::Lost,
            EndReason::OverBudget => Self::OverBudget,
        }
    }
}

/// A session.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct SessionResponse {
    /// The session ID.
    pub id: Uuid,
    /// The same as `id`.
    #[schema(deprecated)]
    pub session_id: Uuid,
    /// The GPU event that accounts for this session's use of a GPU.
    pub gpu_event_id: Uuid,
    /// The GPU type in use.
    #[schema(example = "A10G")]
    pub gpu: String,
    /// When the session was created.
    pub created_at: DateTime,
    /// Where the app is: a bare origin. Null until the app answers, and after the end.
    #[schema(required = false)]
    pub url: Option<String>,
    /// Session timeout in minutes: the total granted, extensions included.
    #[schema(required = false)]
    pub timeout: Option<u32>,
    /// When the session will time out; null unless it runs.
    #[schema(required = false)]
    pub timeout_end: Option<DateTime>,
    /// The machine that it was made from.
    #[schema(required = false)]
    pub machine_id: Option<Uuid>,
    /// The machine's version at that time.
    #[schema(required = false)]
    pub machine_version_id: Option<Uuid>,
    /// How far it is.
    #[schema(required = false)]
    pub status: SessionStatus,
    /// Who made it.
    #[schema(required = false)]
    pub user_id: Option<String>,
    /// The organisation that it belongs to; null for a personal account.
    #[schema(required = false)]
    pub org_id: Option<String>,
    /// Since when the app answers, or did.
    #[schema(required = false)]
    pub started_at: Option<DateTime>,
    /// When it ended.
    #[schema(required = false)]
    pub ended_at: Option<DateTime>,
    /// Why it ended.
    #[schema(required = false)]
    pub end_reason: Option<EndReasonName>,
    /// What went wrong, in one sentence.
    #[schema(required = false)]
    pub error: Option<String>,
    /// While it is queued: how many of its GPU type are served before it, itself
    /// included.
    #[schema(required = false)]
    pub queue_position: Option<u32>,
    /// Its job, if a cluster's engine runs it.
    #[schema(required = false)]
    pub job: Option<JobResponse>,
    /// What its GPU cost so far, in dollars.
    #[schema(required = false)]
    pub cost: f64,
}

/// What a cluster's engine runs for a session.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub(super) struct JobResponse {
    /// The launcher, by its name in the server's configuration.
    #[schema(example = "slurm")]
    launcher: String,
    /// What the engine calls the job.
    id: String,
    /// When the engine expects to have a place for it, if it waits.
    starts_at: Option<DateTime>,
    /// What the engine said of it, in its own words, the last at the end.
    timeline: Vec<SaidResponse>,
}

/// Something that an engine said.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Said)]
pub(super) struct SaidResponse {
    /// When it was heard.
    at: DateTime,
    /// What.
    #[schema(example = "PENDING (Resources)")]
    words: String,
}

impl JobResponse {
    fn new(session: &Session, job: &Job) -> Self {
        let said = job.said.iter().map(|said| SaidResponse {
            at: DateTime(said.at),
            words: said.words.clone(),
        });
        Self {
            launcher: job.launcher.0.clone(),
            id: job.id.0.clone(),
            starts_at: job.starts_at.filter(|_| session.is_queued()).map(DateTime),
            timeline: said.collect(),
        }
    }
}

impl SessionResponse {
    pub fn new(record: &SessionRecord, urls: &SessionUrls) -> Self {
        let session = &record.session;
        let (ended_at, ending) = match &session.state {
            State::Ended {
                ended_at, ending, ..
            } => (Some(*ended_at), Some(ending)),
            State::Queued { .. }
            | State::Starting { .. }
            | State::Running { .. }
            | State::Stopping { .. } => (None, None),
        };
        Self {
            id: session.id.0,
            session_id: session.id.0,
            gpu_event_id: session.gpu_event.id.0,
            gpu: session.gpu_type.0.clone(),
            created_at: DateTime(session.created_at),
            url: url(session, urls),
            timeout: Some(session.granted_ms.whole_minutes()),
            timeout_end: timeout_end(session).map(DateTime),
            machine_id: session.machine_id.map(|id| id.0),
            machine_version_id: session.machine_version_id.map(|id| id.0),
            status: status(session),
            user_id: Some(session.user_id.0.clone()),
            org_id: session.owner.org().map(|org| org.0.clone()),
            started_at: session.started_at().map(DateTime),
            ended_at: ended_at.map(DateTime),
            end_reason: ending.map(|ending| ending.reason.into()),
            error: ending.and_then(|ending| ending.error.clone()),
            queue_position: record.queue_position,
            job: session
                .job
                .as_ref()
                .map(|job| JobResponse::new(session, job)),
            cost: session.gpu_event.cost().dollars(),
        }
    }
}

/// A session in a list: what older clients take for a GPU event is there as well.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct SessionListItem {
    #[serde(flatten)]
    session: SessionResponse,
    /// When the GPU began to be held.
    start_time: Option<DateTime>,
    /// When the GPU was free again.
    end_time: Option<DateTime>,
    /// Always `modal`; says nothing about where the session runs.
    gpu_provider: &'static str,
    /// The same as `timeout`.
    session_timeout: u32,
    /// The same as `url`.
    tunnel_url: Option<String>,
    /// The latest moment that is known of the session.
    updated_at: DateTime,
}

impl SessionListItem {
    pub fn new(record: &SessionRecord, urls: &SessionUrls) -> Self {
        let session = &record.session;
        Self {
            start_time: session.gpu_event.start().map(DateTime),
            end_time: session.gpu_event.end().map(DateTime),
            gpu_provider: GPU_PROVIDER,
            session_timeout: session.granted_ms.whole_minutes(),
            tunnel_url: url(session, urls),
            updated_at: DateTime(updated_at(session)),
            session: SessionResponse::new(record, urls),
        }
    }
}

/// A GPU event: the accounting interval of one session on one GPU.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct GpuEventResponse {
    /// The event's own id.
    id: Uuid,
    /// Who made the session.
    user_id: String,
    /// The organisation that it belongs to.
    org_id: Option<String>,
    /// The machine that the session was made from.
    machine_id: Option<Uuid>,
    /// When the GPU began to be held.
    start_time: Option<DateTime>,
    /// When the GPU was free again; null while it is held.
    end_time: Option<DateTime>,
    /// The GPU type.
    gpu: String,
    /// Always `modal`; says nothing about where the session runs.
    gpu_provider: &'static str,
    /// When the session was created.
    created_at: DateTime,
    /// The latest moment that is known of the session.
    updated_at: DateTime,
    /// The session's timeout in minutes.
    session_timeout: u32,
    /// The session.
    session_id: Uuid,
    /// Where the session's app is, while it answers.
    tunnel_url: Option<String>,
    /// What it cost so far, in dollars.
    cost: f64,
}

impl GpuEventResponse {
    pub fn new(session: &Session, urls: &SessionUrls) -> Self {
        let event = &session.gpu_event;
        Self {
            id: event.id.0,
            user_id: session.user_id.0.clone(),
            org_id: session.owner.org().map(|org| org.0.clone()),
            machine_id: session.machine_id.map(|id| id.0),
            start_time: event.start().map(DateTime),
            end_time: event.end().map(DateTime),
            gpu: session.gpu_type.0.clone(),
            gpu_provider: GPU_PROVIDER,
            created_at: DateTime(session.created_at),
            updated_at: DateTime(updated_at(session)),
            session_timeout: session.granted_ms.whole_minutes(),
            session_id: session.id.0,
            tunnel_url: url(session, urls),
            cost: event.cost().dollars(),
        }
    }
}

/// Where the session's app is, once it answered and until the end.
pub(super) fn url(session: &Session, urls: &SessionUrls) -> Option<String> {
    session.started_at()?;
    let port = session.placement()?.port;
    Some(urls.url(session.id, port))
}

fn status(session: &Session) -> SessionStatus {
    match &session.state {
        _ if session.is_queued() => SessionStatus::Queued,
        State::Queued { .. } => SessionStatus::Queued,
        State::Starting { .. } => SessionStatus::Starting,
        State::Running { .. } => SessionStatus::Running,
        State::Stopping { .. } => SessionStatus::Stopping,
        State::Ended { .. } => SessionStatus::Ended,
    }
}

const fn timeout_end(session: &Session) -> Option<Timestamp> {
    match &session.state {
        State::Running { timeout_end, .. } => Some(*timeout_end),
        State::Queued { .. }
        | State::Starting { .. }
        | State::Stopping { .. }
        | State::Ended { .. } => None,
    }
}

/// The latest moment on record: what happened last, or the last proof that the GPU
/// was held.
fn updated_at(session: &Session) -> Timestamp {
    let ended_at = match &session.state {
        State::Ended { ended_at, .. } => Some(*ended_at),
        State::Queued { .. }
        | State::Starting { .. }
        | State::Running { .. }
        | State::Stopping { .. } => None,
    };
    let proven = session
        .gpu_event
        .start()
        .map(|start| start.plus(session.gpu_event.held()));
    [session.started_at(), proven, ended_at]
        .into_iter()
        .flatten()
        .fold(session.created_at, Timestamp::max)
}
