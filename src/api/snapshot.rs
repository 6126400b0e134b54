//! `POST /session/ID/snapshot`: what a session has become, as a version of a machine.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dwell_core::control_plane::NewMachine;
use dwell_core::id::{MachineId, MachineVersionId, SessionId};
use dwell_core::machine::{Container, Recipe};
use dwell_core::session::{Session, State as SessionState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Shared;
use super::error::{ApiError, Denied, ErrorDetail, UnfitBody};
use super::extract::{Caller, Ids, OptionalBody};
use super::fields::Name;
use crate::engine::Engine;

/// Where the version goes.
#[derive(Default, Deserialize, ToSchema)]
pub(super) struct SnapshotBody {
    /// The name of a new machine for it; a new version of the session's own when there
    /// is none.
    machine_name: Option<Name>,
}

/// A snapshot was made.
#[derive(Serialize, ToSchema)]
pub(super) struct SnapshotResponse {
    /// `Session snapshot created successfully`
    message: &'static str,
    /// The new version.
    version_id: Uuid,
    /// Its number within its machine.
    version: u32,
    /// The image that it runs in.
    image_id: String,
}

/// Snapshot a session
///
/// Keeps what a session in a container has become, its files in `/workspace` left out:
/// an image of this host that a new version of its machine runs in, or a new machine.
#[utoipa::path(
    post, path = "/session/{session_id}/snapshot", tag = "sessions",
    params(("session_id" = Uuid, Path, description = "The session.")),
    request_body = Option<SnapshotBody>,
    responses(
        (status = 200, description = "It was made.", body = SnapshotResponse),
        (status = 400, description = "`Machine id not found`: the session has no machine, and none was named; or it does not run.", body = ErrorDetail),
        (status = 404, description = "`GPUEvent not found session_id: ID`, or `Machine not found`", body = ErrorDetail),
        (status = 500, description = "The container engine could not do it, and why.", body = ErrorDetail),
        (status = 501, description = "This server can snapshot no sessions but those in containers yet.", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn snapshot_session(
    caller: Caller,
    State(api): State<Shared>,
    Ids(raw_id): Ids<String>,
    OptionalBody(body): OptionalBody<SnapshotBody>,
) -> Result<Json<SnapshotResponse>, ApiError> {
    let not_found = || ApiError::not_found(format!("GPUEvent not found session_id: {raw_id}"));
    let id: SessionId = raw_id.parse().map_err(|_| not_found())?;
    let record = api.store.session(&caller.owner(), id).await?;
    let session = record
        .map(|record| record.session)
        .filter(Session::is_open)
        .ok_or_else(not_found)?;
    let (Some(container), Some(settings)) = (&session.recipe.container, &api.engine) else {
        return Err(ApiError::not_built_yet(
            "This server can snapshot no sessions but those in containers yet",
        ));
    };
    let bad = |sentence: &str| ApiError::Sentence(StatusCode::BAD_REQUEST, sentence.to_owned());
    if !matches!(session.state, SessionState::Running { .. }) {
        return Err(bad(
            "The session does not run: there is nothing to snapshot",
        ));
    }
    let new_machine = body.and_then(|body| body.machine_name);
    let machine_id = match (&new_machine, session.machine_id) {
        (Some(_), _) => MachineId(Uuid::new_v4()),
        (None, Some(machine_id)) => {
            let owner = caller.owner();
            api.driver
                .ask(move |plane, _| plane.machine(&owner, machine_id).map(|_| machine_id))
                .await?
        }
        (None, None) => return Err(bad("Machine id not found")),
    };
    let version_id = MachineVersionId(Uuid::new_v4());
    // The image is there before a version that needs it is on record.
    let image = format!("dwell/machine-{}:{}", machine_id.0, version_id.0);
    let made = async {
        let engine = Engine::connect(&settings.host).await?;
        engine.commit(id, &image).await
    };
    let failed = |why: String| {
        let sentence = format!("The session could not be snapshot: {why}");
        ApiError::Sentence(StatusCode::INTERNAL_SERVER_ERROR, sentence)
    };
    let image_id = made.await.map_err(failed)?;
    let recipe = Recipe {
        container: Some(Container {
            image,
            ..container.clone()
        }),
        ..session.recipe.clone()
    };
    let principal = caller.principal;
    let machine = api
        .driver
        .ask(move |plane, now| match new_machine {
            Some(name) => {
                let new = NewMachine {
                    id: machine_id,
                    version_id,
                    principal,
                    name: name.0,
                    recipe,
                };
                plane.create_machine(new, now)
            }
            None => plane.add_version(&principal, machine_id, recipe, version_id, now),
        })
        .await?;
    Ok(Json(SnapshotResponse {
        message: "Session snapshot created successfully",
        version_id: machine.current.id.0,
        version: machine.current.version,
        image_id,
    }))
}
