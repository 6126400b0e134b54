//! What owners ask for: sessions, more time, their end.

use std::collections::BTreeMap;

use super::{Command, ControlPlane};
use crate::gpu::GpuType;
use crate::id::{GpuEventId, MachineId, SessionId};
use crate::machine::{MachineVersion, Recipe};
use crate::metering::GpuEvent;
use crate::owner::{Owner, Principal};
use crate::protocol::ServerMessage;
use crate::quota;
use crate::refusal::Refusal;
use crate::session::{EndReason, Ending, Session, State};
use crate::time::{Millis, Moment};

/// What a session is made from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A machine's current version.
    Machine(MachineId),
    /// A certain version of a machine.
    Version(MachineId, Box<MachineVersion>),
    /// A recipe of its own.
    Recipe(Box<Recipe>),
}

/// A request for a session.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// The id of its GPU event.
    pub gpu_event_id: GpuEventId,
    /// Who asks.
    pub principal: Principal,
    /// What it runs.
    pub source: Source,
    /// On which type, if not the source's.
    pub gpu: Option<GpuType>,
    /// For how many minutes, if not the source's. 0 says the same as none.
    pub timeout_minutes: Option<u32>,
}

impl ControlPlane {
    /// A new session, queued or already starting.
    ///
    /// # Errors
    /// When the machine is not the owner's, a limit is reached, the GPU type can
    /// never be had, or the timeout is out of range.
    pub fn create_session(&mut self, new: NewSession, now: Moment) -> Result<(), Refusal> {
        if self.shuts_down {
            return Err(Refusal::ShuttingDown);
        }
        let owner = new.principal.owner();
        let (machine_id, machine_version_id, recipe) = match new.source {
            Source::Machine(id) => {
                let machine = self.machine(&owner, id)?;
                (
                    Some(id),
                    Some(machine.current.id),
                    machine.current.recipe.clone(),
                )
            }
            Source::Version(id, version) => {
                self.machine(&owner, id)?;
                (Some(id), Some(version.id), version.recipe)
            }
            Source::Recipe(recipe) => (None, None, *recipe),
        };
        let gpu_type = new.gpu.unwrap_or_else(|| recipe.gpu.clone());
        self.check_gpu_type(&gpu_type)?;
        if recipe.container.is_some() {
            self.check_images(&gpu_type)?;
        }
        let timeout_minutes = match new.timeout_minutes {
            None | Some(0) => recipe.timeout_minutes,
            Some(minutes) => minutes,
        };
        self.check_timeout(u64::from(timeout_minutes))?;
        let open = self.open_by_owner.get(&owner);
        quota::one_more_session(
            open.map_or(0, BTreeMap::len),
            machine_id.map(|id| {
                open.map_or(0, |open| {
                    open.values().filter(|of| **of == Some(id)).count()
                })
            }),
            &self.settings.limits,
        )?;

        let rate = self.settings.prices.rate(&gpu_type);
        let ticket = self.next_ticket;
        self.put(Session {
            id: new.id,
            owner,
            user_id: new.principal.user,
            machine_id,
            machine_version_id,
            recipe,
            gpu_type,
            created_at: now.wall,
            granted_ms: Millis::from_minutes(timeout_minutes),
            state: State::Queued { ticket },
            job: None,
            begun_by: None,
            gpu_event: GpuEvent::new(new.gpu_event_id, rate),
        });
        self.serve_queues(now);
        Ok(())
    }

    /// `minutes` more for a session that runs.
    ///
    /// # Errors
    /// When it is not the owner's, does not run (yet, or any more), or would be
    /// granted more than the longest timeout.
    pub fn extend_session(
        &mut self,
        owner: &Owner,
        id: SessionId,
        minutes: u32,
    ) -> Result<(), Refusal> {
        let mut session = self.open_session(owner, id)?.clone();
        match session.state {
            State::Queued { .. } | State::Starting { .. } => return Err(Refusal::NotStarted),
            State::Stopping { .. } | State::Ended { .. } => return Err(Refusal::NoSuchSession),
            State::Running { .. } => {}
        }
        let by = Millis::from_minutes(minutes);
        // Rounded up: a total that is over by a second is over.
        let total_minutes = session.granted_ms.plus(by).0.div_ceil(60_000);
        self.check_timeout(total_minutes)?;
        if minutes == 0 {
            return Err(Refusal::TimeoutOutOfRange {
                asked: 0,
                max: self.settings.limits.timeout_max_minutes,
            });
        }
        session.extend(by);
        let message = ServerMessage::Lease {
            granted_ms: session.granted_ms,
        };
        self.put(session);
        self.pending.commands.push(Command::Tell {
            session: id,
            message,
        });
        Ok(())
    }

    /// End a session. One that is ending already goes on ending.
    ///
    /// # Errors
    /// When it is not the owner's or has ended.
    pub fn cancel_session(
        &mut self,
        owner: &Owner,
        id: SessionId,
        now: Moment,
    ) -> Result<(), Refusal> {
        let session = self.open_session(owner, id)?.clone();
        self.stop(session, Ending::plain(EndReason::Cancelled), now);
        Ok(())
    }

    /// End every session, and take no new one: the server is to leave nothing behind.
    pub fn cancel_all(&mut self, now: Moment) {
        self.shuts_down = true;
        let open: Vec<_> = self.sessions.values().cloned().collect();
        for session in open {
            self.stop(session, Ending::plain(EndReason::Cancelled), now);
        }
    }

    pub(super) fn open_session(&self, owner: &Owner, id: SessionId) -> Result<&Session, Refusal> {
        self.sessions
            .get(&id)
            .filter(|session| session.owner == *owner)
            .ok_or(Refusal::NoSuchSession)
    }

    pub(super) fn check_gpu_type(&self, asked: &GpuType) -> Result<(), Refusal> {
        let known = self.settings.places.gpu_types();
        if known.contains(asked) {
            return Ok(());
        }
        Err(Refusal::UnknownGpuType {
            asked: asked.clone(),
            known: known.into_iter().collect(),
        })
    }

    pub(super) fn check_images(&self, asked: &GpuType) -> Result<(), Refusal> {
        let runs_some = self.settings.places.types_with_images();
        if runs_some.contains(asked) {
            return Ok(());
        }
        Err(Refusal::NoImages {
            asked: asked.clone(),
            known: runs_some.into_iter().collect(),
        })
    }

    pub(super) fn check_timeout(&self, minutes: u64) -> Result<(), Refusal> {
        let max = self.settings.limits.timeout_max_minutes;
        if (1..=u64::from(max)).contains(&minutes) {
            return Ok(());
        }
        Err(Refusal::TimeoutOutOfRange {
            asked: minutes,
            max,
        })
    }
}
