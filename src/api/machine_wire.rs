//! Machines as requests and answers write them.

use std::collections::BTreeMap;

use dwell_core::control_plane::MachinePatch;
use dwell_core::gpu::GpuType;
use dwell_core::id::MachineId;
use dwell_core::machine::{AppCommand, Container, Machine, MachineVersion, Recipe};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::create::ready_path;
use super::error::{ApiError, Misfit};
use super::fields::{
    AccessName, Capability, Command, DateTime, Environment, GpuName, ImageName, Minutes, Name,
    NoSecrets, NotYet, Port, ReadyPath, Save, Whole, Workdir, only_null,
};

/// A machine to make.
#[derive(Deserialize, ToSchema)]
pub(super) struct CreateMachineBody {
    /// What people will call it.
    pub name: Name,
    /// What its sessions run.
    pub command: Command,
    /// The GPU type of a session that names none; the server's first when there is
    /// none.
    pub gpu: Option<GpuName>,
    /// The timeout, in minutes, of a session that names none; null or 0 means 15.
    #[schema(value_type = Option<u32>)]
    pub timeout: Option<Minutes>,
    /// The port of an app that cannot be told one.
    pub port: Option<Port>,
    /// Where the app starts; a private directory when there is none.
    pub workdir: Option<Workdir>,
    /// Added to the app's clean environment.
    pub environment: Option<Environment>,
    /// The app is ready when this path answers anything below 500; `/` when there
    /// is none.
    pub ready_path: Option<ReadyPath>,
    /// Who may use a session's URL; the server's default when there is none.
    pub access: Option<AccessName>,
    #[serde(rename = "idle_timeout")]
    #[schema(required = false, schema_with = only_null)]
    pub _idle_timeout: Option<NotYet>,
    /// The container image that its sessions run in, where the server runs containers.
    pub image: Option<ImageName>,
    /// With an image: whether nothing can be written but the session's files and `/tmp`.
    pub read_only: Option<bool>,
    /// With an image: the capabilities that its sessions keep; none when there are none.
    pub capabilities: Option<Vec<Capability>>,
    #[serde(rename = "files")]
    #[schema(required = false, schema_with = only_null)]
    pub _files: Option<NotYet>,
    /// Only `never` is supported by this server yet.
    #[serde(rename = "save")]
    #[schema(value_type = Option<String>, pattern = "^never$")]
    pub _save: Option<Save>,
    /// Not supported by this server yet: must be empty.
    #[serde(rename = "secrets")]
    #[schema(value_type = Option<Vec<String>>, max_items = 0)]
    pub _secrets: Option<NoSecrets>,
}

impl CreateMachineBody {
    /// What its first version runs.
    ///
    /// # Errors
    /// When it names an image and the server runs no containers.
    pub fn recipe(self, api: &Api) -> Result<Recipe, ApiError> {
        let container = container(self.image, self.read_only, self.capabilities, api)?;
        Ok(Recipe {
            command: self.command.0,
            port: self.port.map(|port| port.0),
            workdir: self.workdir.map(|workdir| workdir.0),
            environment: self.environment.map(|it| it.0).unwrap_or_default(),
            gpu: self
                .gpu
                .map_or_else(|| api.places.default_gpu_type(), |gpu| GpuType(gpu.0)),
            timeout_minutes: or_default(self.timeout, api),
            ready_path: ready_path(self.ready_path),
            access: self.access.map(Into::into),
            container,
        })
    }
}

/// What is to change about a machine. What is not there stays as it is; `null` does
/// too, but for `port`, `workdir` and `access`, where it means none.
#[derive(Deserialize, ToSchema)]
pub(super) struct ChangeMachineBody {
    /// A new name. This alone makes no new version.
    pub name: Option<Name>,
    /// A new command.
    pub command: Option<Command>,
    /// A new GPU type.
    pub gpu: Option<GpuName>,
    /// A new default timeout in minutes; 0 means 15.
    #[schema(value_type = Option<u32>)]
    pub timeout: Option<Minutes>,
    /// A new fixed port, or none.
    #[serde(default, deserialize_with = "or_none")]
    #[schema(value_type = Option<Port>)]
    pub port: Option<Option<Port>>,
    /// A new directory to start in, or none.
    #[serde(default, deserialize_with = "or_none")]
    #[schema(value_type = Option<Workdir>)]
    pub workdir: Option<Option<Workdir>>,
    /// A new environment, in the place of the old.
    pub environment: Option<Environment>,
    /// A new path for the ready probe.
    pub ready_path: Option<ReadyPath>,
    /// Who may use a session's URL, or the server's default.
    #[serde(default, deserialize_with = "or_none")]
    #[schema(value_type = Option<AccessName>)]
    pub access: Option<Option<AccessName>>,
    #[serde(rename = "idle_timeout")]
    #[schema(required = false, schema_with = only_null)]
    pub _idle_timeout: Option<NotYet>,
    /// Another container image, or none and with it no container.
    #[serde(default, deserialize_with = "or_none")]
    #[schema(value_type = Option<ImageName>)]
    pub image: Option<Option<ImageName>>,
    /// Whether nothing can be written but the session's files and `/tmp`.
    pub read_only: Option<bool>,
    /// The capabilities that its sessions keep, in the place of the old.
    pub capabilities: Option<Vec<Capability>>,
    #[serde(rename = "files")]
    #[schema(required = false, schema_with = only_null)]
    pub _files: Option<NotYet>,
    /// Only `never` is supported by this server yet.
    #[serde(rename = "save")]
    #[schema(value_type = Option<String>, pattern = "^never$")]
    pub _save: Option<Save>,
    /// Not supported by this server yet: must be empty.
    #[serde(rename = "secrets")]
    #[schema(value_type = Option<Vec<String>>, max_items = 0)]
    pub _secrets: Option<NoSecrets>,
}

impl ChangeMachineBody {
    /// What the core is asked to change.
    ///
    /// # Errors
    /// When it names an image and the server runs no containers.
    pub fn patch(self, api: &Api) -> Result<MachinePatch, ApiError> {
        if let Some(Some(_)) = &self.image {
            check_containers(api)?;
        }
        Ok(MachinePatch {
            name: self.name.map(|name| name.0),
            command: self.command.map(|command| command.0),
            port: self.port.map(|port| port.map(|port| port.0)),
            workdir: self.workdir.map(|workdir| workdir.map(|it| it.0)),
            environment: self.environment.map(|environment| environment.0),
            gpu: self.gpu.map(|gpu| GpuType(gpu.0)),
            timeout_minutes: self.timeout.map(|minutes| or_default(Some(minutes), api)),
            ready_path: self.ready_path.map(|path| path.0),
            access: self.access.map(|access| access.map(Into::into)),
            image: self.image.map(|image| image.map(|it| it.0)),
            read_only: self.read_only,
            capabilities: self.capabilities.map(names),
        })
    }
}

/// The container that a request asks for.
pub(super) fn container(
    image: Option<ImageName>,
    read_only: Option<bool>,
    capabilities: Option<Vec<Capability>>,
    api: &Api,
) -> Result<Option<Container>, ApiError> {
    let Some(image) = image else { return Ok(None) };
    check_containers(api)?;
    Ok(Some(Container {
        image: image.0,
        read_only: read_only.unwrap_or(false),
        capabilities: capabilities.map(names).unwrap_or_default(),
    }))
}

fn names(capabilities: Vec<Capability>) -> Vec<String> {
    let mut names: Vec<_> = capabilities.into_iter().map(|it| it.0).collect();
    names.sort();
    names.dedup();
    names
}

fn check_containers(api: &Api) -> Result<(), ApiError> {
    if !api.places.types_with_images().is_empty() {
        return Ok(());
    }
    let sentence = "this server runs no containers; it does with a [[launcher]] of kind \"docker\", \
                    \"podman\" or \"kubernetes\" in its config, or \"slurm\" with containers";
    Err(Misfit::in_body("image", sentence).into())
}

/// Tells a field that is `null` from one that is not there.
fn or_none<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    source: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(source).map(Some)
}

fn or_default(minutes: Option<Minutes>, api: &Api) -> u32 {
    match minutes {
        None | Some(Whole(0)) => api.limits.timeout_default_minutes,
        Some(minutes) => minutes.0,
    }
}

/// What a machine or a version of it runs.
#[derive(Serialize, ToSchema)]
struct RecipeFields {
    /// The GPU type of a session that names none.
    gpu: String,
    /// The timeout, in minutes, of a session that names none.
    timeout: u32,
    /// What is started.
    #[schema(value_type = Command)]
    command: AppCommand,
    /// The port of an app that cannot be told one.
    port: Option<u16>,
    /// Where the app starts; a private directory when there is none.
    workdir: Option<String>,
    /// Added to the app's clean environment.
    environment: BTreeMap<String, String>,
    /// The app is ready when this path answers anything below 500.
    ready_path: String,
    /// Who may use a session's URL.
    access: AccessName,
    /// The container image that sessions run in.
    image: Option<String>,
    /// Whether nothing can be written in that but the session's files and `/tmp`.
    read_only: bool,
    /// The capabilities that sessions keep in it.
    capabilities: Vec<String>,
}

impl RecipeFields {
    fn new(recipe: &Recipe, api: &Api) -> Self {
        let container = recipe.container.clone();
        let (image, read_only, capabilities) = container
            .map(|it| (Some(it.image), it.read_only, it.capabilities))
            .unwrap_or_default();
        Self {
            gpu: recipe.gpu.0.clone(),
            timeout: recipe.timeout_minutes,
            command: recipe.command.clone(),
            port: recipe.port,
            workdir: recipe.workdir.clone(),
            environment: recipe.environment.clone(),
            ready_path: recipe.ready_path.clone(),
            access: recipe.access.unwrap_or(api.default_access).into(),
            image,
            read_only,
            capabilities,
        }
    }
}

/// A machine.
#[derive(Serialize, ToSchema)]
pub(super) struct MachineResponse {
    /// The machine.
    id: Uuid,
    /// What people call it.
    name: String,
    /// Who made it.
    user_id: String,
    /// The organisation that it belongs to.
    org_id: Option<String>,
    /// What older clients look for; says nothing about where sessions run.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Always `ready`: there is nothing to build.
    status: &'static str,
    #[serde(flatten)]
    recipe: RecipeFields,
    /// The version that its next session runs.
    machine_version_id: Uuid,
    /// That version's number.
    version: u32,
    /// When it was made.
    created_at: DateTime,
    /// When it last changed.
    updated_at: DateTime,
}

impl MachineResponse {
    pub fn new(machine: &Machine, api: &Api) -> Self {
        Self {
            id: machine.id.0,
            name: machine.name.clone(),
            user_id: machine.user_id.0.clone(),
            org_id: machine.owner.org().map(|org| org.0.clone()),
            kind: "comfy-deploy-serverless",
            status: "ready",
            recipe: RecipeFields::new(&machine.current.recipe, api),
            machine_version_id: machine.current.id.0,
            version: machine.current.version,
            created_at: DateTime(machine.created_at),
            updated_at: DateTime(machine.updated_at),
        }
    }
}

/// A version of a machine.
#[derive(Serialize, ToSchema)]
pub(super) struct MachineVersionResponse {
    /// The version's own id.
    id: Uuid,
    /// The machine.
    machine_id: Uuid,
    /// Its number within the machine, from 1 on.
    version: u32,
    /// Who made it.
    user_id: String,
    /// Always `ready`: there is nothing to build.
    status: &'static str,
    #[serde(flatten)]
    recipe: RecipeFields,
    /// When it was made.
    created_at: DateTime,
    /// The same: versions never change.
    updated_at: DateTime,
}

impl MachineVersionResponse {
    pub fn new(machine: MachineId, version: &MachineVersion, api: &Api) -> Self {
        Self {
            id: version.id.0,
            machine_id: machine.0,
            version: version.version,
            user_id: version.user_id.0.clone(),
            status: "ready",
            recipe: RecipeFields::new(&version.recipe, api),
            created_at: DateTime(version.created_at),
            updated_at: DateTime(version.created_at),
        }
    }
}
