//! Machines: making, changing, deleting.

use std::collections::BTreeMap;

use super::ControlPlane;
use crate::gpu::GpuType;
use crate::id::{MachineId, MachineVersionId};
use crate::machine::{Access, AppCommand, Container, Machine, MachineVersion, Recipe};
use crate::owner::{Owner, Principal};
use crate::quota;
use crate::refusal::Refusal;
use crate::time::Moment;

/// A request for a machine.
#[derive(Clone, Debug)]
pub struct NewMachine {
    /// Its id.
    pub id: MachineId,
    /// The id of its first version.
    pub version_id: MachineVersionId,
    /// Who asks.
    pub principal: Principal,
    /// What people will call it.
    pub name: String,
    /// What it runs.
    pub recipe: Recipe,
}

/// What is to change about a machine; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct MachinePatch {
    /// A new name. This alone makes no new version.
    pub name: Option<String>,
    /// A new command.
    pub command: Option<AppCommand>,
    /// A new fixed port, or none.
    pub port: Option<Option<u16>>,
    /// A new directory to start in, or none.
    pub workdir: Option<Option<String>>,
    /// A new environment, in the place of the old.
    pub environment: Option<BTreeMap<String, String>>,
    /// A new GPU type.
    pub gpu: Option<GpuType>,
    /// A new default timeout.
    pub timeout_minutes: Option<u32>,
    /// A new path for the ready probe.
    pub ready_path: Option<String>,
    /// Who may use the URL, or the server's default.
    pub access: Option<Option<Access>>,
    /// Another image, or none and with it no container.
    pub image: Option<Option<String>>,
    /// Whether the container's own files can be written.
    pub read_only: Option<bool>,
    /// The capabilities that the container keeps, in the place of the old.
    pub capabilities: Option<Vec<String>>,
}

impl MachinePatch {
    fn apply(self, recipe: &Recipe) -> Recipe {
        let old = recipe.clone();
        let image = self
            .image
            .unwrap_or_else(|| old.container.as_ref().map(|it| it.image.clone()));
        let (read_only, capabilities) = old
            .container
            .map_or((false, Vec::new()), |it| (it.read_only, it.capabilities));
        let container = image.map(|image| Container {
            image,
            read_only: self.read_only.unwrap_or(read_only),
            capabilities: self.capabilities.unwrap_or(capabilities),
        });
        Recipe {
            command: self.command.unwrap_or(old.command),
            port: self.port.unwrap_or(old.port),
            workdir: self.workdir.unwrap_or(old.workdir),
            environment: self.environment.unwrap_or(old.environment),
            gpu: self.gpu.unwrap_or(old.gpu),
            timeout_minutes: self.timeout_minutes.unwrap_or(old.timeout_minutes),
            ready_path: self.ready_path.unwrap_or(old.ready_path),
            access: self.access.unwrap_or(old.access),
            container,
        }
    }
}

/// The version that follows a machine's current one.
fn next_version(
    machine: &Machine,
    principal: &Principal,
    recipe: Recipe,
    id: MachineVersionId,
    now: Moment,
) -> MachineVersion {
    MachineVersion {
        id,
        version: machine.current.version + 1,
        recipe,
        user_id: principal.user.clone(),
        created_at: now.wall,
    }
}

impl ControlPlane {
    /// A new machine with its first version.
    ///
    /// # Errors
    /// When the owner has too many, or the recipe's GPU type or timeout can never
    /// be had.
    pub fn create_machine(&mut self, new: NewMachine, now: Moment) -> Result<Machine, Refusal> {
        let owner = new.principal.owner();
        self.check_recipe(&new.recipe)?;
        let have = self
            .machines
            .values()
            .filter(|machine| machine.owner == owner)
            .count();
        quota::one_more("machines", have, self.settings.limits.machines_per_owner)?;
        let machine = Machine {
            id: new.id,
            owner,
            user_id: new.principal.user.clone(),
            name: new.name,
            current: MachineVersion {
                id: new.version_id,
                version: 1,
                recipe: new.recipe,
                user_id: new.principal.user,
                created_at: now.wall,
            },
            created_at: now.wall,
            updated_at: now.wall,
        };
        self.put_machine(new.id, Some(machine.clone()));
        Ok(machine)
    }

    /// Change a machine. What changes the recipe makes a new version, `version_id`;
    /// sessions that run go on with theirs.
    ///
    /// # Errors
    /// When it is not the owner's, or the new recipe could never run.
    pub fn change_machine(
        &mut self,
        principal: &Principal,
        id: MachineId,
        patch: MachinePatch,
        version_id: MachineVersionId,
        now: Moment,
    ) -> Result<Machine, Refusal> {
        let mut machine = self.machine(&principal.owner(), id)?.clone();
        if let Some(name) = &patch.name {
            machine.name.clone_from(name);
        }
        let recipe = patch.apply(&machine.current.recipe);
        if recipe != machine.current.recipe {
            self.check_recipe(&recipe)?;
            machine.current = next_version(&machine, principal, recipe, version_id, now);
        }
        machine.updated_at = now.wall;
        self.put_machine(id, Some(machine.clone()));
        Ok(machine)
    }

    /// A new version of a machine that runs this, whatever the last one ran.
    ///
    /// # Errors
    /// When it is not the owner's, or the recipe could never run.
    pub fn add_version(
        &mut self,
        principal: &Principal,
        id: MachineId,
        recipe: Recipe,
        version_id: MachineVersionId,
        now: Moment,
    ) -> Result<Machine, Refusal> {
        let mut machine = self.machine(&principal.owner(), id)?.clone();
        self.check_recipe(&recipe)?;
        machine.current = next_version(&machine, principal, recipe, version_id, now);
        machine.updated_at = now.wall;
        self.put_machine(id, Some(machine.clone()));
        Ok(machine)
    }

    /// Delete a machine. Its sessions go on; they have their recipe.
    ///
    /// # Errors
    /// When it is not the owner's.
    pub fn delete_machine(&mut self, owner: &Owner, id: MachineId) -> Result<(), Refusal> {
        self.machine(owner, id)?;
        self.put_machine(id, None);
        Ok(())
    }

    /// One machine of an owner's.
    ///
    /// # Errors
    /// When there is none.
    pub fn machine(&self, owner: &Owner, id: MachineId) -> Result<&Machine, Refusal> {
        self.machines
            .get(&id)
            .filter(|machine| machine.owner == *owner)
            .ok_or(Refusal::NoSuchMachine)
    }

    fn check_recipe(&self, recipe: &Recipe) -> Result<(), Refusal> {
        self.check_gpu_type(&recipe.gpu)?;
        self.check_timeout(u64::from(recipe.timeout_minutes))
    }
}
