//! `POST /session` and `POST /session/dynamic`: a session is made, and waited for.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dwell_core::control_plane::{NewSession, Source};
use dwell_core::gpu::GpuType;
use dwell_core::id::{GpuEventId, MachineId, SessionId};
use dwell_core::machine::Recipe;
use dwell_core::owner::{Owner, Principal};
use dwell_core::session::{Ending, Session, State as SessionState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, Denied, ErrorDetail, Misfit, UnfitBody};
use super::extract::{Body, Caller};
use super::fields::{
    AccessName, Capability, Command, Environment, GpuName, ImageName, Minutes, Port, ReadyPath,
    Workdir,
};
use super::machine_wire::container;
use super::machines::id_of_machine;
use super::session_wire::url;
use super::{Api, Shared};

/// What waiting takes at most on top of what the app may take to start.
const START_MARGIN: Duration = Duration::from_secs(30);
/// What waiting for a dynamic session takes at most.
const DYNAMIC_WAIT_MAX: Duration = Duration::from_secs(300);

/// A session of a machine.
#[derive(Deserialize, ToSchema)]
pub(super) struct CreateSessionBody {
    /// The machine to run.
    machine_id: String,
    /// The GPU to use; the machine's when there is none.
    gpu: Option<GpuName>,
    /// The timeout in minutes; null or 0 means the machine's.
    #[schema(value_type = Option<u32>)]
    timeout: Option<Minutes>,
    /// Answer only once the app does.
    #[serde(default)]
    #[schema(default = false)]
    wait_for_server: bool,
}

/// A session of a machine, or of a command of its own.
#[derive(Deserialize, ToSchema)]
pub(super) struct CreateDynamicSessionBody {
    /// The GPU to use. When there is none: the machine's, or for a command the
    /// server's first GPU type.
    gpu: Option<GpuName>,
    /// The machine to run.
    machine_id: Option<String>,
    /// The version of the machine to run; the newest when there is none.
    machine_version_id: Option<String>,
    /// The timeout in minutes; null or 0 means the machine's, or 15.
    #[schema(value_type = Option<u32>)]
    timeout: Option<Minutes>,
    /// Building environments is not supported yet.
    #[schema(value_type = Option<Object>)]
    dependencies: Option<serde_json::Value>,
    /// Building environments is not supported yet.
    #[schema(value_type = Option<String>)]
    comfyui_hash: Option<serde_json::Value>,
    /// Building environments is not supported yet.
    #[schema(value_type = Option<String>)]
    base_docker_image: Option<serde_json::Value>,
    /// Building environments is not supported yet.
    #[schema(value_type = Option<String>)]
    python_version: Option<serde_json::Value>,
    /// Answer only once the app does, or after 300 seconds.
    #[serde(default)]
    #[schema(default = false)]
    wait_for_server: bool,
    /// In the place of a machine: what to run.
    command: Option<Command>,
    /// With a command: the port of an app that cannot be told one.
    port: Option<Port>,
    /// With a command: where it starts; a private directory when there is none.
    workdir: Option<Workdir>,
    /// With a command: added to its clean environment.
    environment: Option<Environment>,
    /// With a command: the app is ready when this path answers anything below 500;
    /// `/` when there is none.
    ready_path: Option<ReadyPath>,
    /// With a command: who may use the URL; the server's default when there is none.
    access: Option<AccessName>,
    /// With a command: the container image that it runs in, where the server runs
    /// containers.
    image: Option<ImageName>,
    /// With an image: whether nothing can be written but the session's files and `/tmp`.
    read_only: Option<bool>,
    /// With an image: the capabilities that it keeps; none when there are none.
    capabilities: Option<Vec<Capability>>,
}

/// A session was made.
#[derive(Serialize, ToSchema)]
pub(super) struct CreateSessionResponse {
    /// The session.
    session_id: Uuid,
    /// Where its app is; null when it does not answer yet.
    #[schema(required = false)]
    url: Option<String>,
}

/// Create a session
///
/// Starts a session of a machine. Answers at once with `url: null`, or with
/// `wait_for_server` once the app answers; with `url: null` after all if it still
/// waits for a GPU when it should have started. The timeout counts from the app's
/// first answer on.
#[utoipa::path(
    post, path = "/session", tag = "sessions",
    request_body = CreateSessionBody,
    responses(
        (status = 200, description = "It was made.", body = CreateSessionResponse),
        (status = 400, description = "There are too many open sessions already.", body = ErrorDetail),
        (status = 404, description = "`Machine not found`", body = ErrorDetail),
        (status = 500, description = "`Session creation failed`, and why: it ended before its app answered. Only with `wait_for_server`.", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn create_session(
    caller: Caller,
    State(api): State<Shared>,
    Body(body): Body<CreateSessionBody>,
) -> Result<Json<CreateSessionResponse>, ApiError> {
    let request = Request {
        source: Source::Machine(id_of_machine(&body.machine_id)?),
        gpu: body.gpu,
        timeout: body.timeout,
        wait: body
            .wait_for_server
            .then(|| Duration::from(api.limits.start_limit) + START_MARGIN),
    };
    request.make(&api, caller.principal).await
}

/// Create a session without a machine
///
/// Starts a session of a command, or of a machine's certain version. Building an
/// environment (`dependencies` and the like) answers 501.
#[utoipa::path(
    post, path = "/session/dynamic", tag = "sessions",
    request_body = CreateDynamicSessionBody,
    responses(
        (status = 200, description = "It was made.", body = CreateSessionResponse),
        (status = 400, description = "There are too many open sessions already.", body = ErrorDetail),
        (status = 404, description = "`Machine not found` or `Machine version not found`", body = ErrorDetail),
        (status = 500, description = "`Session creation failed`, and why: it ended before its app answered. Only with `wait_for_server`.", body = ErrorDetail),
        (status = 501, description = "This server does not build environments yet.", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn create_dynamic_session(
    caller: Caller,
    State(api): State<Shared>,
    Body(body): Body<CreateDynamicSessionBody>,
) -> Result<Json<CreateSessionResponse>, ApiError> {
    let wait = body.wait_for_server.then_some(DYNAMIC_WAIT_MAX);
    let request = Request {
        gpu: body.gpu.clone(),
        timeout: body.timeout,
        wait,
        source: source(&api, &caller.owner(), body).await?,
    };
    request.make(&api, caller.principal).await
}

/// What a dynamic session is to run.
async fn source(
    api: &Api,
    owner: &Owner,
    body: CreateDynamicSessionBody,
) -> Result<Source, ApiError> {
    let asks_to_build = body.dependencies.is_some()
        || body.comfyui_hash.is_some()
        || body.base_docker_image.is_some()
        || body.python_version.is_some();
    if asks_to_build {
        return Err(ApiError::not_built_yet(
            "This server does not build environments yet; give machine_id or command instead",
        ));
    }
    match (body.command, body.machine_id) {
        (Some(_), Some(_)) => Err(misfit("command", "give either command or machine_id")),
        (None, None) => Err(ApiError::not_built_yet(
            "This server has no environment of its own to run yet; give machine_id or command",
        )),
        (Some(_), None) if body.machine_version_id.is_some() => {
            Err(misfit("machine_version_id", "goes with machine_id only"))
        }
        (Some(command), None) => Ok(Source::Recipe(Box::new(Recipe {
            command: command.0,
            port: body.port.map(|port| port.0),
            workdir: body.workdir.map(|workdir| workdir.0),
            environment: body.environment.map(|it| it.0).unwrap_or_default(),
            gpu: body
                .gpu
                .map_or_else(|| api.places.default_gpu_type(), |gpu| GpuType(gpu.0)),
            timeout_minutes: api.limits.timeout_default_minutes,
            ready_path: ready_path(body.ready_path),
            access: body.access.map(Into::into),
            container: container(body.image, body.read_only, body.capabilities, api)?,
        }))),
        (None, Some(machine_id)) => {
            // A machine's sessions are alike: what they run is the machine's to say.
            let of_a_command = [
                ("port", body.port.is_some()),
                ("workdir", body.workdir.is_some()),
                ("environment", body.environment.is_some()),
                ("ready_path", body.ready_path.is_some()),
                ("access", body.access.is_some()),
                ("image", body.image.is_some()),
            ];
            if let Some((field, _)) = of_a_command.into_iter().find(|(_, given)| *given) {
                return Err(misfit(field, "goes with command only"));
            }
            let machine_id = id_of_machine(&machine_id)?;
            match body.machine_version_id {
                None => Ok(Source::Machine(machine_id)),
                Some(version_id) => version(api, owner, machine_id, &version_id).await,
            }
        }
    }
}

async fn version(
    api: &Api,
    owner: &Owner,
    machine_id: MachineId,
    version_id: &str,
) -> Result<Source, ApiError> {
    let not_found = || ApiError::not_found("Machine version not found");
    let version_id = version_id.parse().map_err(|_| not_found())?;
    let version = api
        .store
        .machine_version(owner, machine_id, version_id)
        .await?
        .ok_or_else(not_found)?;
    Ok(Source::Version(machine_id, Box::new(version)))
}

fn misfit(field: &str, msg: &str) -> ApiError {
    Misfit::in_body(field, msg).into()
}

/// The path of the ready probe, which has a default.
pub(super) fn ready_path(asked: Option<ReadyPath>) -> String {
    asked.map_or_else(|| "/".to_owned(), |path| path.0)
}

/// What both routes come to.
struct Request {
    source: Source,
    gpu: Option<GpuName>,
    timeout: Option<Minutes>,
    /// For how long to wait for the app, if at all.
    wait: Option<Duration>,
}

impl Request {
    async fn make(
        self,
        api: &Api,
        principal: Principal,
    ) -> Result<Json<CreateSessionResponse>, ApiError> {
        let id = SessionId(Uuid::new_v4());
        let owner = principal.owner();
        let new = NewSession {
            id,
            gpu_event_id: GpuEventId(Uuid::new_v4()),
            principal,
            source: self.source,
            gpu: self.gpu.map(|gpu| GpuType(gpu.0)),
            timeout_minutes: self.timeout.map(|minutes| minutes.0),
        };
        api.driver
            .ask(move |plane, now| plane.create_session(new, now))
            .await?;
        let url = match self.wait {
            None => None,
            Some(wait) => until_it_answers(api, &owner, id, wait).await?,
        };
        Ok(Json(CreateSessionResponse {
            session_id: id.0,
            url,
        }))
    }
}

/// The session's URL once its app answers; none if it still does not after `wait`.
/// Whoever stops waiting changes nothing: the session goes on.
async fn until_it_answers(
    api: &Api,
    owner: &Owner,
    id: SessionId,
    wait: Duration,
) -> Result<Option<String>, ApiError> {
    let is_settled = |session: &Session| match &session.state {
        SessionState::Queued { .. } | SessionState::Starting { .. } => false,
        SessionState::Running { .. }
        | SessionState::Stopping { .. }
        | SessionState::Ended { .. } => true,
    };
    match api.until(owner, id, wait, is_settled).await? {
        None => Ok(None),
        Some(session) if is_running(&session) => Ok(url(&session, &api.urls)),
        Some(session) => Err(failed(&session)),
    }
}

const fn is_running(session: &Session) -> bool {
    matches!(session.state, SessionState::Running { .. })
}

/// It was ended before its app answered; says why, where that is known.
fn failed(session: &Session) -> ApiError {
    let why = ending(session).and_then(|ending| ending.error.as_deref());
    let sentence = match why {
        Some(why) => format!("Session creation failed: {why}"),
        None => "Session creation failed".to_owned(),
    };
    ApiError::Sentence(StatusCode::INTERNAL_SERVER_ERROR, sentence)
}

const fn ending(session: &Session) -> Option<&Ending> {
    match &session.state {
        SessionState::Stopping { ending, .. } | SessionState::Ended { ending, .. } => Some(ending),
        SessionState::Queued { .. }
        | SessionState::Starting { .. }
        | SessionState::Running { .. } => None,
    }
}
