//! Machines: making, changing, looking, deleting.

use axum::Json;
use axum::extract::State;
use dwell_core::control_plane::NewMachine;
use dwell_core::id::{MachineId, MachineVersionId};
use dwell_core::machine::{Machine, MachineVersion};
use dwell_core::owner::Owner;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{ApiError, Denied, ErrorDetail, UnfitBody};
use super::extract::{Body, Caller, Ids};
use super::machine_wire::{
    ChangeMachineBody, CreateMachineBody, MachineResponse, MachineVersionResponse,
};
use super::session_wire::GpuEventResponse;
use super::{Api, Shared};
use crate::store::EventQuery;

/// It was done.
#[derive(Serialize, ToSchema)]
pub(super) struct Message {
    /// What was done.
    message: &'static str,
}

impl Message {
    pub const fn new(message: &'static str) -> Self {
        Self { message }
    }
}

fn no_machine() -> ApiError {
    ApiError::not_found("Machine not found")
}

fn no_version() -> ApiError {
    ApiError::not_found("Machine version not found")
}

/// The machine of this id, as a request writes it.
pub(super) fn id_of_machine(text: &str) -> Result<MachineId, ApiError> {
    text.parse().map_err(|_| no_machine())
}

async fn machine(api: &Api, owner: &Owner, id: &str) -> Result<Machine, ApiError> {
    let machine = api.store.machine(owner, id_of_machine(id)?).await?;
    machine.ok_or_else(no_machine)
}

async fn version(
    api: &Api,
    owner: &Owner,
    machine: MachineId,
    id: &str,
) -> Result<MachineVersion, ApiError> {
    let id: MachineVersionId = id.parse().map_err(|_| no_version())?;
    let version = api.store.machine_version(owner, machine, id).await?;
    version.ok_or_else(no_version)
}

/// List machines
///
/// Machines in scope, newest first.
#[utoipa::path(
    get, path = "/machines", tag = "machines",
    responses(
        (status = 200, description = "The machines.", body = Vec<MachineResponse>),
        Denied,
    ),
)]
pub(super) async fn list_machines(
    caller: Caller,
    State(api): State<Shared>,
) -> Result<Json<Vec<MachineResponse>>, ApiError> {
    let machines = api.store.machines(&caller.owner()).await?;
    let machines = machines.iter().map(|it| MachineResponse::new(it, &api));
    Ok(Json(machines.collect()))
}

/// Get a machine
#[utoipa::path(
    get, path = "/machine/{machine_id}", tag = "machines",
    params(("machine_id" = Uuid, Path, description = "The machine.")),
    responses(
        (status = 200, description = "The machine.", body = MachineResponse),
        (status = 404, description = "`Machine not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn get_machine(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<MachineResponse>, ApiError> {
    let machine = machine(&api, &caller.owner(), &id).await?;
    Ok(Json(MachineResponse::new(&machine, &api)))
}

/// Delete a machine
///
/// Its sessions go on.
#[utoipa::path(
    delete, path = "/machine/{machine_id}", tag = "machines",
    params(("machine_id" = Uuid, Path, description = "The machine.")),
    responses(
        (status = 200, description = "It is gone.", body = Message),
        (status = 404, description = "`Machine not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn delete_machine(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<Message>, ApiError> {
    let id = id_of_machine(&id)?;
    api.driver
        .ask(move |plane, _| plane.delete_machine(&caller.owner(), id))
        .await?;
    Ok(Json(Message::new("Machine deleted successfully")))
}

/// Create a machine
#[utoipa::path(
    post, path = "/machine/serverless", tag = "machines",
    request_body = CreateMachineBody,
    responses(
        (status = 200, description = "The machine.", body = MachineResponse),
        (status = 400, description = "There are too many machines already.", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn create_machine(
    caller: Caller,
    State(api): State<Shared>,
    Body(body): Body<CreateMachineBody>,
) -> Result<Json<MachineResponse>, ApiError> {
    let new = NewMachine {
        id: MachineId(Uuid::new_v4()),
        version_id: MachineVersionId(Uuid::new_v4()),
        principal: caller.principal,
        name: body.name.0.clone(),
        recipe: body.recipe(&api)?,
    };
    let machine = api
        .driver
        .ask(move |plane, now| plane.create_machine(new, now))
        .await?;
    Ok(Json(MachineResponse::new(&machine, &api)))
}

/// Change a machine
///
/// What changes what it runs makes a new version. Sessions that run go on with
/// theirs.
#[utoipa::path(
    patch, path = "/machine/serverless/{machine_id}", tag = "machines",
    params(("machine_id" = Uuid, Path, description = "The machine.")),
    request_body = ChangeMachineBody,
    responses(
        (status = 200, description = "The machine.", body = MachineResponse),
        (status = 404, description = "`Machine not found`", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn update_machine(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
    Body(body): Body<ChangeMachineBody>,
) -> Result<Json<MachineResponse>, ApiError> {
    let id = id_of_machine(&id)?;
    let patch = body.patch(&api)?;
    let version_id = MachineVersionId(Uuid::new_v4());
    let machine = api
        .driver
        .ask(move |plane, now| plane.change_machine(&caller.principal, id, patch, version_id, now))
        .await?;
    Ok(Json(MachineResponse::new(&machine, &api)))
}

/// List a machine's versions
///
/// Newest first.
#[utoipa::path(
    get, path = "/machine/serverless/{machine_id}/versions", tag = "machines",
    params(("machine_id" = Uuid, Path, description = "The machine.")),
    responses(
        (status = 200, description = "The versions.", body = Vec<MachineVersionResponse>),
        (status = 404, description = "`Machine not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn list_machine_versions(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<Vec<MachineVersionResponse>>, ApiError> {
    let id = id_of_machine(&id)?;
    let versions = api.store.machine_versions(&caller.owner(), id).await?;
    // A machine has one version at least.
    if versions.is_empty() {
        return Err(no_machine());
    }
    let versions = versions
        .iter()
        .map(|version| MachineVersionResponse::new(id, version, &api));
    Ok(Json(versions.collect()))
}

/// Get a machine's version
#[utoipa::path(
    get, path = "/machine/serverless/{machine_id}/versions/{version_id}", tag = "machines",
    params(
        ("machine_id" = Uuid, Path, description = "The machine."),
        ("version_id" = Uuid, Path, description = "The version."),
    ),
    responses(
        (status = 200, description = "The version.", body = MachineVersionResponse),
        (status = 404, description = "`Machine not found` or `Machine version not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn get_machine_version(
    caller: Caller,
    State(api): State<Shared>,
    Ids((machine_id, version_id)): Ids<(String, String)>,
) -> Result<Json<MachineVersionResponse>, ApiError> {
    let owner = caller.owner();
    let machine = machine(&api, &owner, &machine_id).await?;
    let version = version(&api, &owner, machine.id, &version_id).await?;
    Ok(Json(MachineVersionResponse::new(
        machine.id, &version, &api,
    )))
}

/// Which version to go back to.
#[derive(Deserialize, ToSchema)]
pub(super) struct RollbackBody {
    /// The version.
    machine_version_id: String,
}

/// Roll a machine back
///
/// Not supported by this server yet.
#[utoipa::path(
    post, path = "/machine/serverless/{machine_id}/rollback", tag = "machines",
    params(("machine_id" = Uuid, Path, description = "The machine.")),
    request_body = RollbackBody,
    responses(
        (status = 404, description = "`Machine not found` or `Machine version not found`", body = ErrorDetail),
        (status = 501, description = "This server cannot roll machines back yet.", body = ErrorDetail),
        Denied, UnfitBody,
    ),
)]
pub(super) async fn rollback_machine(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
    Body(body): Body<RollbackBody>,
) -> Result<Json<MachineResponse>, ApiError> {
    let owner = caller.owner();
    let machine = machine(&api, &owner, &id).await?;
    version(&api, &owner, machine.id, &body.machine_version_id).await?;
    Err(ApiError::not_built_yet(
        "This server cannot roll machines back yet; change the machine instead",
    ))
}

/// List a machine's GPU events
///
/// Newest first.
#[utoipa::path(
    get, path = "/machine/{machine_id}/events", tag = "machines",
    params(("machine_id" = Uuid, Path, description = "The machine.")),
    responses(
        (status = 200, description = "The events.", body = Vec<GpuEventResponse>),
        (status = 404, description = "`Machine not found`", body = ErrorDetail),
        Denied,
    ),
)]
pub(super) async fn list_machine_events(
    caller: Caller,
    State(api): State<Shared>,
    Ids(id): Ids<String>,
) -> Result<Json<Vec<GpuEventResponse>>, ApiError> {
    let owner = caller.owner();
    let machine = machine(&api, &owner, &id).await?;
    let query = EventQuery {
        machine: Some(machine.id),
        ..EventQuery::default()
    };
    let sessions = api.store.gpu_events(&owner, query).await?;
    let events = sessions
        .iter()
        .map(|session| GpuEventResponse::new(session, &api.urls));
    Ok(Json(events.collect()))
}
